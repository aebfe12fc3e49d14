//! Speed of the tensors of libtorch: `make bench-torch`; part of `make bench-gpu`. Prints a table and, with `--json FILE`, writes it.
//!
//! Bandwidth of a combination of 5 inputs against a copy on the same device, from one buffer and from
//! separate tensors; the largest difference from the built-in tensors; and distillations of latents with a
//! convolutional network of random weights that takes 10 ms a call, against its calls alone.

use std::time::Instant;

use lmsd::distill::{Config, Problem, distill};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};
use lmsd::torch::Torch;
use lmsd::torch::tch::{self, Cuda, Device, Kind, Tensor};
use lmsd::{Call, Error, Result};
use serde_json::{Value, json};

const TERMS: usize = 5;
const CALL_SECONDS: f64 = 0.010;

fn wait(device: Device) {
    if let Device::Cuda(index) = device {
        Cuda::synchronize(index as i64);
    }
}

/// Median seconds of each task, over rounds in which they take turns.
fn race<const N: usize>(device: Device, rounds: usize, mut tasks: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for round in 0..=rounds {
        for (task, times) in tasks.iter_mut().zip(&mut times) {
            wait(device);
            let start = Instant::now();
            task();
            wait(device);
            if round > 0 {
                times.push(start.elapsed().as_secs_f64());
            }
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn bandwidth(device: Device, kind: Kind, bytes: usize) -> Result<Value> {
    let torch = Torch::new(device, kind)?;
    let n = (bytes / kind.elt_size_in_bytes()) as i64;
    let like = Tensor::f_zeros([n], (kind, device))?;
    let mut together = torch.alloc_many(&like, TERMS)?;
    // At distances that are not equal, so that no product fits them.
    let separate: Result<Vec<Tensor>> = (0..TERMS)
        .map(|i| Ok(Tensor::f_zeros([n + (i * i) as i64], (kind, device))?.f_narrow(0, (i * i) as i64, n)?))
        .collect();
    let mut separate = separate?;
    for tensor in together.iter_mut().chain(&mut separate) {
        let _same = tensor.f_normal_(0.0, 1.0)?;
    }
    let (mut one, mut two) = (torch.alloc(&like)?, torch.alloc(&like)?);
    let (from, mut to) = (like.f_ones_like()?, like.f_zeros_like()?);
    let terms = |tensors: &[Tensor]| -> Vec<(f64, Tensor)> {
        tensors.iter().enumerate().map(|(i, t)| (0.5 - i as f64, t.shallow_clone())).collect()
    };
    let (a, b) = (terms(&together), terms(&separate));
    let refer = |terms: &[(f64, Tensor)]| -> Vec<(f64, Tensor)> {
        terms.iter().map(|(f, t)| (*f, t.shallow_clone())).collect()
    };
    let (a, b) = (refer(&a), refer(&b));
    let a: Vec<(f64, &Tensor)> = a.iter().map(|(f, t)| (*f, t)).collect();
    let b: Vec<(f64, &Tensor)> = b.iter().map(|(f, t)| (*f, t)).collect();
    let [product, chain, copy] = race(
        device,
        15,
        [
            &mut || torch.lincomb(&mut one, &a).unwrap(),
            &mut || torch.lincomb(&mut two, &b).unwrap(),
            &mut || to.copy_(&from),
        ],
    );
    // A copy reads and writes a tensor once; the combination reads five and writes one.
    let speed = |seconds: f64, tensors: usize| (tensors * bytes) as f64 / seconds / 1e9;
    let (product, chain, copy) = (speed(product, TERMS + 1), speed(chain, TERMS + 1), speed(copy, 2));
    println!(
        "{kind:?} {TERMS} x {} MiB   one buffer {product:7.1} GB/s   separate {chain:7.1} GB/s   copy {copy:7.1} GB/s   \
         ratios {:.2}, {:.2}",
        bytes >> 20,
        product / copy,
        chain / copy
    );
    Ok(
        json!({"dtype": format!("{kind:?}"), "bytes": bytes, "one_buffer_gb_s": product, "separate_gb_s": chain,
              "copy_gb_s": copy, "ratio": product / copy, "ratio_separate": chain / copy}),
    )
}

/// Largest differences from the built-in tensors, relative to the largest value.
fn agreement(device: Device) -> Result<Value> {
    let shape = [16, 4, 64, 64];
    let torch = Torch::new(device, Kind::Float)?;
    let like = Tensor::f_randn(shape, (Kind::Float, device))?;
    let mut tensors = torch.alloc_many(&like, TERMS)?;
    let mut builtin = Vec::new();
    for tensor in &mut tensors {
        let _same = tensor.f_normal_(0.0, 1.0)?;
        let values: Vec<f32> = Vec::try_from(tensor.to_device(Device::Cpu).flatten(0, -1))?;
        let values: Vec<f64> = values.into_iter().map(f64::from).collect();
        builtin.push(CpuTensor::from_f64(Dtype::F32, &shape, &values)?);
    }
    let factors: Vec<f64> = (0..TERMS).map(|i| 0.7 - 0.3 * i as f64).collect();
    let mut got = torch.alloc(&like)?;
    torch.lincomb(&mut got, &factors.iter().copied().zip(&tensors).collect::<Vec<_>>())?;
    let got: Vec<f32> = Vec::try_from(got.to_device(Device::Cpu).flatten(0, -1))?;
    let mut want = Cpu.alloc(&builtin[0])?;
    Cpu.lincomb(&mut want, &factors.iter().copied().zip(&builtin).collect::<Vec<_>>())?;
    let apart = |got: &[f64], want: &[f64]| {
        let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        got.iter().zip(want).fold(0.0f64, |m, (g, w)| m.max((g - w).abs())) / largest
    };
    let lincomb = apart(&got.into_iter().map(f64::from).collect::<Vec<_>>(), &want.to_f64());
    let columns: Vec<&Tensor> = tensors.iter().collect();
    let gram = apart(&torch.gram(&columns)?, &Cpu.gram(&builtin.iter().collect::<Vec<_>>())?);
    println!("largest difference from the built-in tensors: lincomb {lincomb:.1e}, gram {gram:.1e}");
    Ok(json!({"lincomb": lincomb, "gram": gram}))
}

/// Convolutions of random weights, kept small, over latents; as many as take the time wanted.
struct Network {
    first: Tensor,
    middle: Tensor,
    last: Tensor,
    depth: usize,
    device: Device,
    shape: Vec<i64>,
    seed: i64,
    calls: u64,
}

impl Network {
    fn new(device: Device, shape: &[i64]) -> Result<Self> {
        let width = if device == Device::Cpu { 8 } else { 64 };
        let weight = |to: i64, from: i64| -> Result<Tensor> {
            let scale = (2.0 / (9 * from) as f64).sqrt();
            Ok(Tensor::f_randn([to, from, 3, 3], (Kind::Float, device))?.f_mul_scalar(scale)?)
        };
        let (first, last) = (weight(width, shape[1])?, weight(shape[1], width)?);
        let middle = weight(width, width)?;
        Ok(Self { first, middle, last, depth: 0, device, shape: shape.into(), seed: 1, calls: 0 })
    }

    fn predict(&self, x: &Tensor, sigma: f64) -> Result<Tensor> {
        let conv = |x: &Tensor, w: &Tensor| x.f_conv2d::<Tensor>(w, None, [1, 1], [1, 1], [1, 1], 1);
        let skip = 1.0 / (1.0 + sigma * sigma);
        let mut h = conv(&x.f_mul_scalar(skip.sqrt())?, &self.first)?;
        for _ in 0..self.depth {
            h = conv(&h, &self.middle)?.f_tanh()?;
        }
        let f = conv(&h, &self.last)?.f_tanh()?.f_mul_scalar(0.1 * sigma * skip.sqrt())?;
        Ok(f.f_add(&x.f_mul_scalar(skip)?)?)
    }

    /// Median seconds of a call whose result is waited for.
    fn seconds(&self) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let x = Tensor::f_randn(&self.shape, (Kind::Float, self.device))?;
        let [seconds] = race(self.device, 15, [&mut || drop(self.predict(&x, 1.0).unwrap())]);
        Ok(seconds)
    }

    /// Seconds a call in a long row of them.
    fn seconds_in_a_row(&self, calls: usize) -> Result<f64> {
        let _no_grad = tch::no_grad_guard();
        let mut x = Tensor::f_randn(&self.shape, (Kind::Float, self.device))?;
        wait(self.device);
        let start = Instant::now();
        for _ in 0..calls {
            x.copy_(&self.predict(&x, 1.0)?);
        }
        wait(self.device);
        Ok(start.elapsed().as_secs_f64() / calls as f64)
    }
}

impl Problem<Tensor> for Network {
    fn begin(&mut self, batch: u64, x_t: &mut Tensor) -> Result<()> {
        tch::manual_seed(self.seed + batch as i64);
        let _same = x_t.f_normal_(0.0, 20.0)?;
        Ok(())
    }

    fn denoise(&mut self, x: &Tensor, call: &Call, denoised: &mut Tensor) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        self.calls += 1;
        denoised.f_copy_(&self.predict(x, call.sigma)?)?;
        Ok(())
    }
}

/// A distillation against its model calls alone, which are timed before and after it.
fn overhead(device: Device, shape: &[i64], calls: u64) -> Result<Value> {
    let mut network = Network::new(device, shape)?;
    while network.depth < 4096 && network.seconds()? < CALL_SECONDS {
        network.depth += 1 + network.depth / 8;
    }
    let config = Config {
        nfe: 5,
        sigma_min: 0.01,
        sigma_max: 20.0,
        trajectories: shape[0] as usize,
        held_out: shape[0] as usize,
        teacher_nfe: Some(20),
        max_calls: Some(calls),
        ..Config::default()
    };
    let like = Tensor::f_zeros(shape, (Kind::Float, device))?;
    let torch = Torch::like(&like)?;
    let before = network.seconds_in_a_row(100)?;
    wait(device);
    let start = Instant::now();
    let found = distill(&torch, &config, &like, &mut network)?;
    wait(device);
    let seconds = start.elapsed().as_secs_f64();
    let made = network.calls;
    let after = network.seconds_in_a_row(100)?;
    let call = 0.5 * (before + after);
    let whole = seconds / (call * made as f64) - 1.0;
    // On the CPU a callback returns when it is done, so the run's own clock says it without that detour.
    let outside = match device {
        Device::Cpu => 1.0 - found.callback_seconds / found.seconds,
        _ => 1.0 - call * made as f64 / seconds,
    };
    println!(
        "{shape:?}: {made} calls of {:.2} ms ({:.2} before, {:.2} after) in {seconds:.2} s: {:.1} % outside the model, \
         {:+.1} % to the calls alone",
        call * 1e3,
        before * 1e3,
        after * 1e3,
        outside * 100.0,
        whole * 100.0
    );
    Ok(json!({"shape": shape, "calls": made, "call_ms": call * 1e3, "call_ms_before": before * 1e3,
              "call_ms_after": after * 1e3, "seconds": seconds, "outside": outside, "whole_run": whole}))
}

fn main() -> Result<()> {
    lmsd::torch::keep_freed_memory();
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1));
    let device = match after("--device").map(String::as_str) {
        None | Some("cpu") => Device::Cpu,
        Some("cuda") => Device::Cuda(0),
        Some(other) => return Err(Error::argument(format!("--device is {other}; cpu or cuda is needed"))),
    };
    let gpu = device != Device::Cpu;
    Torch::new(device, Kind::Float)?;
    let large = if gpu { 256 << 20 } else { 64 << 20 };
    let latents: [[i64; 4]; 2] = [[16, 4, 64, 64], [16, 16, 128, 128]];
    let small: Vec<usize> =
        latents.iter().map(|shape| shape.iter().product::<i64>() as usize * size_of::<f32>()).collect();

    let differences = agreement(device)?;
    let mut speeds = Vec::new();
    for bytes in [large, small[0], small[1]] {
        speeds.push(bandwidth(device, Kind::Float, bytes)?);
    }
    for kind in [Kind::Double, Kind::Half, Kind::BFloat16] {
        speeds.push(bandwidth(device, kind, large)?);
    }
    let calls = if gpu { 1500 } else { 300 };
    let shares: Vec<Value> =
        latents.iter().map(|shape| overhead(device, shape, calls)).collect::<Result<_>>()?;

    if let Some(path) = after("--json") {
        let all = json!({"differences": differences, "bandwidth": speeds, "distillation": shares});
        std::fs::write(path, all.to_string())
            .map_err(|e| Error::new(lmsd::Status::Io, format!("{path}: {e}")))?;
    }
    Ok(())
}
