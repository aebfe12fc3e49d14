//! Speed of the built-in tensors against copying the same bytes: `cargo bench --bench lincomb`.
//! Prints a table, and fails if a target is missed. Every figure is a median over rounds in which
//! the two sides take turns, so that whatever else the machine does meets both.

use std::cell::Cell;
use std::hint::black_box;
use std::process::ExitCode;
use std::slice;
use std::time::Instant;

use lmsd::tensor::{Cpu, CpuTensor, Dtype, Tensors};
use rayon::prelude::*;

const TERMS: usize = 5;
const LARGE: usize = 64 << 20;
const SMALL: usize = 4 * 64 * 64 * size_of::<f32>();

const LARGE_AT_LEAST: f64 = 0.8;
const SMALL_AT_MOST: f64 = 1.5;
const GRAM_AT_MOST_MS: f64 = 100.0;

fn tensor(dtype: Dtype, bytes: usize) -> CpuTensor {
    let like = CpuTensor::zeros(dtype, &[(bytes / dtype.size()) as i64]).unwrap();
    let mut filled = Cpu.alloc(&like).unwrap();
    Cpu.lincomb(&mut filled, &[(1.0, &like)]).unwrap(); // touches every page
    filled
}

fn bytes(tensor: &CpuTensor) -> &[u8] {
    // SAFETY: the tensor's own memory, which nobody writes meanwhile.
    unsafe { slice::from_raw_parts(tensor.descriptor().data.cast(), tensor.len() * tensor.dtype().size()) }
}

fn bytes_mut(tensor: &mut CpuTensor) -> &mut [u8] {
    let n = tensor.len() * tensor.dtype().size();
    // SAFETY: the tensor's own memory, borrowed mutably.
    unsafe { slice::from_raw_parts_mut(tensor.descriptor().data.cast(), n) }
}

/// Median seconds of each task, over rounds in which they take turns.
fn race<const N: usize>(rounds: usize, repeat: usize, mut tasks: [&mut dyn FnMut(); N]) -> [f64; N] {
    let mut times = [const { Vec::new() }; N];
    for _ in 0..rounds {
        for (task, times) in tasks.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..repeat).for_each(|_| task());
            times.push(start.elapsed().as_secs_f64() / repeat as f64);
        }
    }
    times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    })
}

fn terms(inputs: &[CpuTensor]) -> Vec<(f64, &CpuTensor)> {
    inputs.iter().enumerate().map(|(i, t)| (0.5 - i as f64, t)).collect()
}

/// Bandwidth of a combination of 5 large tensors over that of the best copy by all threads.
fn large(dtype: Dtype) -> f64 {
    let inputs: Vec<_> = (0..TERMS).map(|_| tensor(dtype, LARGE)).collect();
    let (terms, mut out) = (terms(&inputs), tensor(dtype, LARGE));
    let moved = (TERMS + 1) * LARGE;
    let (from, mut to) = (tensor(dtype, moved / 2), tensor(dtype, moved / 2));
    let (from, to) = (bytes(&from), Cell::from_mut(bytes_mut(&mut to)));
    let copy = |chunk: usize| {
        // SAFETY: one copy at a time uses it.
        let to = unsafe { &mut *to.as_ptr() };
        to.par_chunks_mut(chunk).zip(from.par_chunks(chunk)).for_each(|(to, from)| to.copy_from_slice(from));
    };
    let share = from.len().div_ceil(rayon::current_num_threads());
    let [lincomb, copies @ ..] = race(
        15,
        1,
        [
            &mut || Cpu.lincomb(&mut out, &terms).unwrap(),
            &mut || copy(64 << 10),
            &mut || copy(256 << 10),
            &mut || copy(1 << 20),
            &mut || copy(8 << 20),
            &mut || copy(share),
        ],
    );
    let best = copies.into_iter().fold(f64::INFINITY, f64::min);
    let speed = |seconds: f64| moved as f64 / seconds / 1e9;
    println!(
        "{:<10} 5 x 64 MiB   lincomb {:6.1} GB/s   copy {:6.1} GB/s   bandwidth ratio {:.2}",
        dtype.to_string(),
        speed(lincomb),
        speed(best),
        best / lincomb
    );
    best / lincomb
}

/// Time of a combination of 5 latents of 64 KiB over that of 3 copies of 64 KiB, which read and
/// write as many bytes.
fn small(dtype: Dtype) -> f64 {
    let inputs: Vec<_> = (0..TERMS).map(|_| tensor(dtype, SMALL)).collect();
    let (terms, mut out) = (terms(&inputs), tensor(dtype, SMALL));
    let from: Vec<_> = (0..3).map(|_| tensor(dtype, SMALL)).collect();
    let mut to: Vec<_> = (0..3).map(|_| tensor(dtype, SMALL)).collect();

    let [lincomb, copy] = race(
        101,
        200,
        [&mut || Cpu.lincomb(black_box(&mut out), black_box(&terms)).unwrap(), &mut || {
            for (to, from) in to.iter_mut().zip(&from) {
                bytes_mut(black_box(to)).copy_from_slice(bytes(black_box(from)));
            }
        }],
    );
    println!(
        "{:<10} 5 x 64 KiB   lincomb {:6.2} us     copy {:6.2} us     time ratio {:.2}",
        dtype.to_string(),
        lincomb * 1e6,
        copy * 1e6,
        lincomb / copy
    );
    lincomb / copy
}

/// Milliseconds of a Gram matrix of k columns.
fn gram(shape: &[i64], k: usize) -> f64 {
    let columns: Vec<_> = (0..k).map(|_| CpuTensor::zeros(Dtype::F32, shape).unwrap()).collect();
    let columns: Vec<_> = columns.iter().collect();
    let [seconds] = race(11, 1, [&mut || drop(black_box(Cpu.gram(&columns).unwrap()))]);
    println!("gram of {k} float32 columns of {shape:?}: {:.2} ms", seconds * 1e3);
    seconds * 1e3
}

fn main() -> ExitCode {
    println!("{} threads", rayon::current_num_threads());
    let large_ratio = large(Dtype::F32);
    let small_ratio = small(Dtype::F32);
    for dtype in [Dtype::F64, Dtype::F16, Dtype::Bf16] {
        large(dtype);
        small(dtype);
    }
    let gram_ms = gram(&[16, 4, 64, 64], 27);
    gram(&[128, 64], 27);
    gram(&[128, 64], 45);

    println!();
    let mut missed = 0;
    for (what, value, target, met) in [
        ("large, bandwidth ratio", large_ratio, LARGE_AT_LEAST, large_ratio >= LARGE_AT_LEAST),
        ("small, time ratio", small_ratio, SMALL_AT_MOST, small_ratio <= SMALL_AT_MOST),
        ("gram, ms", gram_ms, GRAM_AT_MOST_MS, gram_ms <= GRAM_AT_MOST_MS),
    ] {
        println!("{what:<24} {value:8.2}   target {target:6.1}   {}", if met { "met" } else { "MISSED" });
        missed += usize::from(!met);
    }
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
