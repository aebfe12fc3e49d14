//! Tensors of libtorch against the built-in ones: what they compute, what they share, what they refuse,
//! and that a schedule is sampled and distilled the same. On CUDA too, where there is a device.

mod noise;

use std::ptr;

use lmsd::distill::{Config, Distilled, Problem, distill};
use lmsd::sample::sample;
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{Cpu, CpuTensor, Dtype, LmsdTensor, Tensors};
use lmsd::torch::Torch;
use lmsd::torch::tch::{Cuda, Device, Kind, TchError, Tensor};
use lmsd::{Call, Error, Purpose, Result, Status};
use noise::Noise;

const DTYPES: [Dtype; 4] = [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16];

fn devices() -> Vec<Device> {
    let cuda = Torch::new(Device::Cuda(0), Kind::Float).is_ok();
    [Device::Cpu].into_iter().chain(cuda.then_some(Device::Cuda(0))).collect()
}

fn cpu_tensor(dtype: Dtype, shape: &[i64], seed: u64) -> CpuTensor {
    let n = shape.iter().product::<i64>() as usize;
    CpuTensor::from_f64(dtype, shape, &Noise::of(seed).normals(n)).unwrap()
}

/// A view of a built-in tensor's memory, which must outlive it.
fn view(tensor: &CpuTensor) -> Tensor {
    let torch = Torch::new(Device::Cpu, tensor.dtype().into()).unwrap();
    // SAFETY: the tests use the memory by one name at a time, while `tensor` lives.
    unsafe { torch.view(tensor.descriptor()) }.unwrap()
}

fn copy_to(device: Device, tensor: &CpuTensor) -> Tensor {
    view(tensor).copy().to_device(device)
}

fn values(tensor: &Tensor) -> Vec<f64> {
    let flat = tensor.to_device(Device::Cpu).to_kind(Kind::Double).flatten(0, -1);
    Vec::try_from(flat).unwrap()
}

/// Half a unit in the last place, relative.
fn rounding(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F64 => 2f64.powi(-53),
        Dtype::F32 => 2f64.powi(-24),
        Dtype::F16 => 2f64.powi(-11),
        Dtype::Bf16 => 2f64.powi(-8),
    }
}

#[test]
fn lincomb_computes_what_the_built_in_one_does() {
    let factors = [0.7, -1.3, 0.0, 2.5, -0.01, 1.0, 1e-3, -4.0];
    for (device, dtype) in devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d, dtype))) {
        let torch = Torch::new(device, dtype.into()).unwrap();
        for shape in [vec![1], vec![3, 65], vec![2, 4, 8, 8], vec![1, 5000]] {
            let inputs: Vec<_> = (0..8).map(|seed| cpu_tensor(dtype, &shape, seed)).collect();
            let copies: Vec<_> = inputs.iter().map(|input| copy_to(device, input)).collect();
            for count in 0..=factors.len() {
                let terms: Vec<_> = factors.iter().copied().zip(&inputs).take(count).collect();
                let mut want = Cpu.alloc(&inputs[0]).unwrap();
                Cpu.lincomb(&mut want, &terms).unwrap();
                let terms: Vec<_> = factors.iter().copied().zip(&copies).take(count).collect();
                let mut got = torch.alloc(&copies[0]).unwrap();
                torch.lincomb(&mut got, &terms).unwrap();
                assert_eq!((got.kind(), got.device(), got.size()), (dtype.into(), device, shape.clone()));
                let wide = if dtype == Dtype::F64 { rounding(dtype) } else { rounding(Dtype::F32) };
                for (got, want) in values(&got).into_iter().zip(want.to_f64()) {
                    let allowed = 2.0 * rounding(dtype) * want.abs() + 100.0 * wide;
                    assert!(
                        (got - want).abs() <= allowed,
                        "{dtype} {shape:?} {count} terms: {got}, not {want}"
                    );
                }
            }
        }
    }
}

/// The sum of 1 and 1000 times a quarter of the last place of 1: half precision alone would stay at 1.
#[test]
fn half_precision_is_summed_in_float32() {
    for (device, dtype) in devices().into_iter().flat_map(|d| [(d, Dtype::F16), (d, Dtype::Bf16)]) {
        let torch = Torch::new(device, dtype.into()).unwrap();
        let one = Tensor::ones([2, 3], (dtype.into(), device));
        let small = rounding(dtype) / 2.0;
        let terms: Vec<_> = std::iter::once((1.0, &one)).chain((0..1000).map(|_| (small, &one))).collect();
        let mut out = torch.alloc(&one).unwrap();
        torch.lincomb(&mut out, &terms).unwrap();
        let want = 1.0 + 1000.0 * small;
        assert!(values(&out).iter().all(|v| (v - want).abs() < 2.0 * rounding(dtype) * want), "{dtype}");
    }
}

#[test]
fn a_term_with_factor_zero_is_absent() {
    for (device, dtype) in devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d, dtype))) {
        let torch = Torch::new(device, dtype.into()).unwrap();
        let x = copy_to(device, &cpu_tensor(dtype, &[7, 10], 1));
        let nan = Tensor::full([7, 10], f64::NAN, (dtype.into(), device));
        let mut out = torch.alloc(&x).unwrap();
        torch.lincomb(&mut out, &[(0.0, &nan), (1.0, &x)]).unwrap();
        assert_eq!(values(&out), values(&x));
        torch.lincomb(&mut out, &[(1.0, &x), (1.0, &nan)]).unwrap();
        assert!(values(&out).iter().all(|v| v.is_nan()));
        torch.lincomb(&mut out, &[(0.0, &nan)]).unwrap();
        assert_eq!(values(&out), [0.0; 70]);
    }
}

#[test]
fn gram_computes_what_the_built_in_one_does() {
    // The last ones do not fit into one block: whole trajectories, and parts of one.
    let shapes = [(vec![1], 3), (vec![5, 1], 2), (vec![2, 4, 8, 8], 10), (vec![3, 257], 1)];
    let long = [(vec![40, 8192], 10), (vec![2, (1 << 22) + 77], 3)];
    for device in devices() {
        for (dtype, (shape, k)) in DTYPES.iter().flat_map(|d| shapes.iter().map(move |s| (*d, s))).chain([
            (Dtype::F32, &long[0]),
            (Dtype::F32, &long[1]),
            (Dtype::Bf16, &long[1]),
        ]) {
            let torch = Torch::new(device, dtype.into()).unwrap();
            let inputs: Vec<_> = (0..*k).map(|seed| cpu_tensor(dtype, shape, seed)).collect();
            let copies: Vec<_> = inputs.iter().map(|input| copy_to(device, input)).collect();
            let want = Cpu.gram(&inputs.iter().collect::<Vec<_>>()).unwrap();
            let got = torch.gram(&copies.iter().collect::<Vec<_>>()).unwrap();
            let n = inputs[0].len() as f64 / shape[0] as f64;
            assert_eq!(got.len(), want.len());
            for (at, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!((got - want).abs() <= 1e-12 * n, "{dtype} {shape:?} {at}: {got}, not {want}");
            }
        }
    }
    assert!(Torch::new(Device::Cpu, Kind::Float).unwrap().gram(&[]).unwrap().is_empty());
}

/// A fused multiply-add is not used everywhere.
fn close(a: &Tensor, b: &Tensor) -> bool {
    values(a).into_iter().zip(values(b)).all(|(a, b)| (a - b).abs() < 1e-5)
}

#[test]
fn strided_tensors_are_taken_as_they_are() {
    for device in devices() {
        let torch = Torch::new(device, Kind::Float).unwrap();
        let make = |seed| copy_to(device, &cpu_tensor(Dtype::F32, &[2, 3, 4, 4], seed));
        let (a, b) = (make(1), make(2));
        let strided = [
            a.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]), // channels last
            a.transpose(2, 3).contiguous().transpose(2, 3),
            Tensor::cat(&[&a, &b], 1).narrow(1, 0, 3),
        ];
        let mut want = torch.alloc(&a).unwrap();
        torch.lincomb(&mut want, &[(2.0, &a), (-0.5, &b)]).unwrap();
        for strided in &strided {
            assert_eq!(values(strided), values(&a));
            let mut out = torch.alloc(strided).unwrap();
            torch.lincomb(&mut out, &[(2.0, strided), (-0.5, &b)]).unwrap();
            assert!(close(&out, &want));
            let (got, want) = (torch.gram(&[strided, &b]).unwrap(), torch.gram(&[&a, &b]).unwrap());
            assert!(got.iter().zip(want).all(|(got, want)| (got - want).abs() < 1e-11));
        }
        let row = copy_to(device, &cpu_tensor(Dtype::F32, &[1, 3, 1, 1], 3));
        let mut out = torch.alloc(&a).unwrap();
        torch.lincomb(&mut out, &[(1.0, &a), (3.0, &row.expand([2, 3, 4, 4], false))]).unwrap();
        assert!(close(&out, &(&a + 3.0 * &row)));
    }
}

#[test]
fn a_view_shares_the_callers_memory() {
    for dtype in DTYPES {
        let memory = cpu_tensor(dtype, &[3, 4], 5);
        let torch = Torch::new(Device::Cpu, dtype.into()).unwrap();
        let whole = view(&memory);
        assert_eq!((whole.data_ptr(), whole.size()), (memory.descriptor().data, vec![3, 4]));
        assert_eq!(values(&whole), memory.to_f64());

        // Its last two columns, transposed: strides and byte_offset.
        let (shape, strides, offset) = ([2, 3], [1, 4], 2 * dtype.size());
        let part = LmsdTensor {
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            byte_offset: offset as u64,
            ..*memory.descriptor()
        };
        // SAFETY: within `memory`, used by one name at a time.
        let mut part = unsafe { torch.view(&part) }.unwrap();
        assert_eq!(part.data_ptr(), memory.descriptor().data.wrapping_byte_add(offset));
        assert_eq!(values(&part), values(&whole.narrow(1, 2, 2).transpose(0, 1)));
        let ones = Tensor::ones([2, 3], (dtype.into(), Device::Cpu));
        torch.lincomb(&mut part, &[(3.0, &ones)]).unwrap();
        drop((part, whole));
        let now = memory.to_f64();
        assert!((0..12).all(|i| (i % 4 < 2) == (now[i] != 3.0)), "{now:?}");
    }
}

fn says(error: &Error, status: Status, words: &[&str]) {
    assert_eq!(error.status, status, "{error}");
    for word in words {
        assert!(error.message.contains(word), "'{error}' does not say '{word}'");
    }
    assert!(!error.message.contains('\n') && error.message.len() < 400, "{error}");
}

#[test]
fn a_view_refuses_what_it_cannot_read() {
    let memory = cpu_tensor(Dtype::F32, &[2, 3, 4], 0);
    let good = *memory.descriptor();
    let torch = Torch::new(Device::Cpu, Kind::Float).unwrap();
    let refused = |words: &[&str], change: &dyn Fn(&mut LmsdTensor)| {
        let mut d = good;
        change(&mut d);
        // SAFETY: what a test makes wrong is refused before it is used.
        says(&unsafe { torch.view(&d) }.unwrap_err(), Status::InvalidTensor, words);
    };
    refused(&["device 0 of DLPack type 2", "the CPU"], &|d| d.device.device_type = 2);
    refused(&["device 0 of DLPack type 12"], &|d| d.device.device_type = 12);
    refused(&["float64", "float32"], &|d| (d.dtype.bits, d.byte_offset) = (64, 0));
    refused(&["code 0 and 32 bits"], &|d| d.dtype.code = 0);
    refused(&["0 dimensions"], &|d| d.ndim = 0);
    refused(&["dimension 1", "[2, 0, 4]"], &|d| d.shape = [2, 0, 4].as_ptr());
    refused(&["null data"], &|d| d.data = ptr::null_mut());
    refused(&["not a multiple of 4"], &|d| d.byte_offset = 2);
    refused(&["[-12, 4, 1]", "negative"], &|d| d.strides = [-12, 4, 1].as_ptr());
    refused(&["address space"], &|d| d.strides = [i64::MAX, 4, 1].as_ptr());
    refused(&["address space"], &|d| d.strides = [1 << 61, 4, 1].as_ptr());
}

#[test]
fn operations_refuse_another_device_dtype_or_shape_and_their_own_output() {
    let torch = Torch::new(Device::Cpu, Kind::Float).unwrap();
    let zeros = |shape: &[i64], kind| Tensor::zeros(shape, (kind, Device::Cpu));
    let (like, mut out) = (zeros(&[2, 4], Kind::Float), zeros(&[2, 4], Kind::Float));
    for (other, words) in [
        (zeros(&[2, 4], Kind::Double), vec!["1 is float64 on the CPU", "float32"]),
        (zeros(&[2, 4], Kind::Int64), vec!["1 is Int64 on the CPU", "float32"]),
        (zeros(&[4, 2], Kind::Float), vec!["1 has shape [4, 2]", "[2, 4]"]),
        (zeros(&[8], Kind::Float), vec!["1 has shape [8]", "[2, 4]"]),
        (zeros(&[], Kind::Float), vec!["1 has shape []", "1 dimension or more"]),
        (zeros(&[0, 4], Kind::Float), vec!["1 has shape [0, 4]", "size 1 or more"]),
        (like.to_sparse_sparse_dim(2), vec!["not a dense tensor"]),
        (like.to_sparse_csr(None), vec!["not a dense tensor"]),
        (Tensor::new(), vec!["undefined"]),
    ] {
        let error = torch.lincomb(&mut out, &[(1.0, &like), (1.0, &other)]).unwrap_err();
        says(&error, Status::InvalidTensor, &[&["term"], &words[..]].concat());
        let error = torch.gram(&[&like, &other]).unwrap_err();
        says(&error, Status::InvalidTensor, &[&["column"], &words[..]].concat());
    }
    for device in devices().into_iter().filter(|d| *d != Device::Cpu) {
        let there = like.to_device(device);
        let error = torch.lincomb(&mut out, &[(1.0, &there)]).unwrap_err();
        says(&error, Status::InvalidTensor, &["term 0 is float32 on CUDA device 0", "the CPU"]);
    }
    for overlapping in [out.shallow_clone(), out.view([4, 2]).view([2, 4])] {
        let error = torch.lincomb(&mut out, &[(1.0, &overlapping)]).unwrap_err();
        says(&error, Status::InvalidTensor, &["term 0 overlaps the output"]);
    }
    let whole = zeros(&[4, 4], Kind::Float);
    torch.lincomb(&mut whole.narrow(0, 2, 2), &[(1.0, &whole.narrow(0, 0, 2))]).unwrap();
    // What libtorch itself refuses: to write to memory that stands for many elements.
    let mut expanded = zeros(&[1, 4], Kind::Float).expand([2, 4], false);
    let error = torch.lincomb(&mut expanded, &[(1.0, &like)]).unwrap_err();
    says(&error, Status::InvalidTensor, &["libtorch: ", "single memory location"]);
}

#[test]
fn devices_and_dtypes_that_are_not_there_are_refused_by_name() {
    let error = Torch::new(Device::Cpu, Kind::Int64).unwrap_err();
    says(&error, Status::InvalidArgument, &["Int64", "bfloat16"]);
    let error = Torch::new(Device::Cuda(99), Kind::Float).unwrap_err();
    let why = if Cuda::is_available() { "counted from 0" } else { "CUDA" };
    says(&error, Status::InvalidArgument, &["CUDA device 99 is asked for", why]);
    says(&Torch::new(Device::Vulkan, Kind::Float).unwrap_err(), Status::InvalidArgument, &["Vulkan"]);
    assert!(Torch::like(&Tensor::new()).is_err());
}

const DIMENSIONS: i64 = 8;
const BATCH: i64 = 16;
const SIGMA_MAX: f64 = 80.0;

/// E[x0 | x] for a mixture of Gaussians. Both backends call it, the built-in one through a view.
struct Mixture {
    means: Tensor,
    device: Device,
}

impl Mixture {
    fn new(device: Device, kind: Kind) -> Self {
        let means =
            Tensor::from_slice(&Noise::of(7).normals(12 * DIMENSIONS as usize)).view([12, DIMENSIONS]);
        Self { means: means.to_kind(kind).to_device(device), device }
    }

    fn denoised(&self, x: &Tensor, sigma: f64) -> std::result::Result<Tensor, TchError> {
        let variance = 0.15 * 0.15 + sigma * sigma;
        let far = x.f_unsqueeze(1)?.f_sub(&self.means)?.f_square()?;
        let far = far.f_sum_dim_intlist([-1i64].as_slice(), false, None)?.f_div_scalar(-2.0 * variance)?;
        let near = far.f_softmax(-1, None)?.f_matmul(&self.means)?;
        let keep = 0.15 * 0.15 / variance;
        near.f_mul_scalar(1.0 - keep)?.f_add(&x.f_mul_scalar(keep)?)
    }

    fn start(&self, batch: u64, x_t: &mut Tensor) {
        let x: Vec<f64> = Noise::of(batch + 1000).normals((BATCH * DIMENSIONS) as usize);
        x_t.copy_(&(SIGMA_MAX * Tensor::from_slice(&x).view([BATCH, DIMENSIONS])));
    }
}

impl Problem<Tensor> for Mixture {
    fn begin(&mut self, batch: u64, x_t: &mut Tensor) -> Result<()> {
        self.start(batch, x_t);
        Ok(())
    }

    fn denoise(&mut self, x: &Tensor, call: &Call, denoised: &mut Tensor) -> Result<()> {
        Ok(denoised.f_copy_(&self.denoised(x, call.sigma)?)?)
    }
}

impl Problem<CpuTensor> for Mixture {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        self.start(batch, &mut view(x_t));
        Ok(())
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        let x = view(x).to_device(self.device);
        Ok(view(denoised).f_copy_(&self.denoised(&x, call.sigma)?)?)
    }
}

#[test]
fn tensors_side_by_side_are_combined_as_any_others() {
    let factors = [0.7, -1.3, 2.5, -0.01, 1.0, 1e-3, -4.0];
    let shape = [2, 4, 256, 300]; // above what the CPU makes products for
    for (device, dtype) in devices().into_iter().flat_map(|d| DTYPES.map(|dtype| (d, dtype))) {
        let torch = Torch::new(device, dtype.into()).unwrap();
        let inputs: Vec<_> = (0..factors.len() as u64).map(|seed| cpu_tensor(dtype, &shape, seed)).collect();
        for layout in ["row-major", "channels last"] {
            let mut like = copy_to(device, &inputs[0]);
            if layout == "channels last" {
                like = like.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
            }
            let mut slots = torch.alloc_many(&like, factors.len() + 2).unwrap();
            let bytes = like.numel() * dtype.size();
            for (i, slot) in slots.iter().enumerate() {
                assert_eq!(slot.data_ptr().addr(), slots[0].data_ptr().addr() + i * bytes, "one buffer");
                assert_eq!((slot.size(), slot.stride()), (like.size(), like.stride()));
            }
            // The output lies among the terms, and so does a slot of NaN that counts for nothing.
            let mut out = slots.remove(2);
            let _same = out.fill_(f64::NAN);
            let mut unused = slots.remove(4);
            let _same = unused.fill_(f64::NAN);
            for (slot, input) in slots.iter_mut().zip(&inputs) {
                slot.copy_(&copy_to(device, input));
            }
            for order in [[0, 1, 2, 3, 4, 5, 6], [6, 2, 0, 5, 1, 4, 3]] {
                let mut terms: Vec<_> = order.iter().map(|&i| (factors[i], &slots[i])).collect();
                terms.insert(3, (0.0, &unused));
                torch.lincomb(&mut out, &terms).unwrap();
                let mut want = vec![0.0; out.numel()];
                for (factor, input) in factors.iter().zip(&inputs) {
                    want.iter_mut().zip(input.to_f64()).for_each(|(sum, value)| *sum += factor * value);
                }
                let bound = 50.0 * rounding(dtype).max(rounding(Dtype::F64));
                for (got, want) in values(&out).into_iter().zip(want) {
                    assert!((got - want).abs() <= bound, "{device:?} {dtype} {layout}: {got}, not {want}");
                }
            }
            let same = out.shallow_clone();
            let error = torch.lincomb(&mut out, &[(1.0, &slots[0]), (1.0, &same)]).unwrap_err();
            assert!(error.message.contains("overlaps the output"), "{error}");
        }
    }
}

fn at(sigma: f64) -> Call {
    Call::alone(sigma, Purpose::Sample)
}

#[test]
fn sampling_ends_where_the_built_in_backend_does() {
    for (device, dtype) in devices().into_iter().flat_map(|d| [(d, Dtype::F32), (d, Dtype::F64)]) {
        let mut mixture = Mixture::new(device, dtype.into());
        let x_t = CpuTensor::zeros(dtype, &[BATCH, DIMENSIONS]).unwrap();
        mixture.start(0, &mut view(&x_t));
        for solver in ["euler", "dpmpp_2m", "unipc_bh2_3"] {
            let schedule = solve(&Spec { solver: solver.into(), nfe: 10, ..Spec::default() }).unwrap();
            let want = sample(Cpu, &schedule, &x_t, |x, sigma, d| mixture.denoise(x, &at(sigma), d)).unwrap();
            let start = copy_to(device, &x_t);
            let torch = Torch::like(&start).unwrap();
            let got =
                sample(torch, &schedule, &start, |x, sigma, d| mixture.denoise(x, &at(sigma), d)).unwrap();
            assert_eq!(values(&start), x_t.to_f64(), "x_T is only read");
            // A device sums in another order, and states of 80 are rounded to 4e-6.
            let scale = if device != Device::Cpu && dtype == Dtype::F32 { 80.0 } else { 1.0 };
            for (got, want) in values(&got).into_iter().zip(want.to_f64()) {
                let bound = 1e-6 * scale;
                assert!((got - want).abs() <= bound, "{device:?} {dtype} {solver}: {got}, not {want}");
            }
        }
    }
}

#[test]
fn a_distillation_goes_the_way_of_the_built_in_backend() {
    let config = Config { nfe: 5, trajectories: 84, held_out: 32, ..Config::default() };
    let like = CpuTensor::zeros(Dtype::F64, &[BATCH, DIMENSIONS]).unwrap();
    for device in devices() {
        let mut mixture = Mixture::new(device, Kind::Double);
        let want: Distilled = distill(&Cpu, &config, &like, &mut mixture).unwrap();
        let there = copy_to(device, &like);
        let got = distill(&Torch::like(&there).unwrap(), &config, &there, &mut mixture).unwrap();
        let (got, want) = (&got.family[0], &want.family[0]);
        assert!(want.improved == got.improved && want.trace.len() >= 2, "{:?}", want.trace);
        let looks = got.trace.iter().zip(&want.trace);
        let apart = looks.clone().map(|(got, want)| (got.held_out / want.held_out - 1.0).abs());
        println!("{device:?}: relative differences of the steps {:?}", apart.collect::<Vec<_>>());
        println!("{} steps, {} of the built-in one", got.trace.len(), want.trace.len());
        println!("held-out distance {:?}, {:?}", got.distance, want.distance);
        for (i, (got, want)) in looks.take(2).enumerate() {
            let close = |a: f64, b: f64| (a - b).abs() <= 1e-6 * b;
            let fresh = close(got.fresh.unwrap(), want.fresh.unwrap());
            assert!(fresh && close(got.held_out, want.held_out), "look {i}: {got:?}, not {want:?}");
        }
        let (got, want) = (got.distance.unwrap(), want.distance.unwrap());
        assert!((got / want - 1.0).abs() <= 0.01, "{got} {want}");
    }
}

#[test]
fn an_exception_of_libtorch_in_the_model_is_carried_out_in_one_line() {
    let schedule = solve(&Spec { nfe: 4, ..Spec::default() }).unwrap();
    for device in devices() {
        let x_t = Tensor::ones([2, 4], (Kind::Float, device));
        let torch = Torch::like(&x_t).unwrap();
        let wrong = Tensor::ones([5, 5], (Kind::Float, device));
        let mut calls = 0;
        let error = sample(torch, &schedule, &x_t, |x, _, denoised| {
            calls += 1;
            let out = if calls < 3 { x.f_mul_scalar(0.5)? } else { x.f_matmul(&wrong)? };
            Ok(denoised.f_copy_(&out)?)
        })
        .unwrap_err();
        assert_eq!(calls, 3);
        says(&error, Status::InvalidTensor, &["libtorch: ", "2x4 and 5x5"]);
        // An output of another shape, put in the place of ours.
        let error = sample(torch, &schedule, &x_t, |_, _, denoised| {
            *denoised = wrong.shallow_clone();
            Ok(())
        })
        .unwrap_err();
        says(&error, Status::InvalidTensor, &["[5, 5]", "[2, 4]"]);
    }
    let big = Tensor::f_empty([1 << 50], (Kind::Float, Device::Cpu)).map_err(Error::from).unwrap_err();
    says(&big, Status::OutOfMemory, &["libtorch: "]);
}

/// A model with parameters that could be trained.
#[test]
fn no_gradients_are_kept() {
    let schedule = solve(&Spec { nfe: 4, ..Spec::default() }).unwrap();
    let x_t = Tensor::ones([2, 4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let weight = Tensor::full([1], 0.5, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let end = sample(Torch::like(&x_t).unwrap(), &schedule, &x_t, |x, _, denoised| {
        *denoised = x.f_mul(&weight)?;
        Ok(())
    })
    .unwrap();
    assert!(!end.requires_grad());
}
