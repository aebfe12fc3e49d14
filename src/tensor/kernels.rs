//! The two loops over elements: linear combination and Gram matrix. Checks nothing: its callers
//! did. Each loop is written once and compiled for the target's baseline and for AVX2; which of the
//! two runs is decided when it is called.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::CpuTensor;
#[cfg(target_arch = "x86_64")]
use super::element::Avx2;
use super::element::{BLOCK, Baseline, Block, Element, Isa, Wide};
use super::threads::Threads;
use crate::error::Result;
use crate::memory;

/// Linear combinations that move fewer bytes than this stay on the calling thread, which is done
/// before sleeping threads have woken up (some 60 us).
const THREADS_FROM_BYTES: usize = 8 << 20;
/// From this many bytes on, more than the caches hold, the output is written past them.
const STREAM_FROM_BYTES: usize = 32 << 20;
/// What a thread takes at a time, in bytes of output.
const CHUNK_BYTES: usize = 256 << 10;

/// Gram matrices of fewer multiplications than this stay on the calling thread.
const THREADS_FROM_PRODUCTS: usize = 1 << 20;
/// A trajectory is cut into pieces of at least this many elements, whose sums are then added up in
/// order; it depends on the length alone, so that the result never depends on the threads.
const PIECE: usize = 1 << 14;
const MAX_PIECES: usize = 64;
/// Elements of each column that are widened at a time; 30 columns of them fit a level-2 cache.
const STRIP: usize = 4 * BLOCK;
/// Columns are multiplied 3 by 3: nine sums and their factors fit 16 registers.
const TILE: usize = 3;

/// Elements `at..at + n` of a tensor, widened; n is at most BLOCK, and the rest is zero.
///
/// # Safety
///
/// The tensor has elements of type T and that many; the machine has the instruction set.
#[inline(always)]
unsafe fn load<T: Element, I: Isa>(tensor: &CpuTensor, at: usize, n: usize) -> Block<T::Wide> {
    // SAFETY: as promised; a view may share its memory, so no reference to it is made.
    unsafe {
        let data = tensor.data::<T>().add(at);
        let block = if n == BLOCK {
            data.cast::<Block<T>>().read()
        } else {
            let mut block = [T::default(); BLOCK];
            data.copy_to_nonoverlapping(block.as_mut_ptr(), n);
            block
        };
        T::widen::<I>(&block)
    }
}

/// The combination's elements `at..at + n`; n is at most BLOCK.
///
/// # Safety
///
/// As for `load`, for every term.
#[inline(always)]
unsafe fn combine<T: Element, I: Isa>(terms: &[(f64, &CpuTensor)], at: usize, n: usize) -> Block<T> {
    let mut sum = [T::Wide::default(); BLOCK];
    for &(factor, tensor) in terms {
        if factor != 0.0 {
            let factor = T::Wide::of(factor);
            // SAFETY: as promised.
            let block = unsafe { load::<T, I>(tensor, at, n) };
            for i in 0..BLOCK {
                sum[i] = factor.mul_add_by::<I>(block[i], sum[i]);
            }
        }
    }
    // SAFETY: as promised.
    unsafe { T::narrow::<I>(&sum) }
}

/// One thread's share of a linear combination.
#[derive(Clone, Copy)]
struct Combination<'a> {
    out: &'a CpuTensor,
    terms: &'a [(f64, &'a CpuTensor)],
    /// Whether to write past the caches.
    stream: bool,
}

impl Combination<'_> {
    /// Elements `at..at + n`, fewer than a block.
    ///
    /// # Safety
    ///
    /// As for `run`.
    #[inline(always)]
    unsafe fn run_some<T: Element, I: Isa>(self, at: usize, n: usize) {
        if n > 0 {
            // SAFETY: as promised.
            unsafe {
                let block = combine::<T, I>(self.terms, at, n);
                self.out.data::<T>().add(at).copy_from_nonoverlapping(block.as_ptr(), n);
            }
        }
    }

    /// # Safety
    ///
    /// The machine has the instruction set. All tensors have elements of type T, `to` or more; nobody
    /// else uses `from..to` of the output.
    #[inline(always)]
    unsafe fn run<T: Element, I: Isa>(self, from: usize, to: usize) {
        let Self { out, terms, stream } = self;
        let mut at = from;
        // SAFETY: as promised; elements `from..to` are written and no others.
        unsafe {
            let data = out.data::<T>();
            if stream {
                let n = data.add(at).align_offset(64).min(to - at);
                self.run_some::<T, I>(at, n);
                at += n;
            }
            while to - at >= BLOCK {
                let block = combine::<T, I>(terms, at, BLOCK);
                if stream {
                    I::stream(&block, data.add(at));
                } else {
                    data.add(at).cast::<Block<T>>().write(block);
                }
                at += BLOCK;
            }
            self.run_some::<T, I>(at, to - at);
            if stream {
                I::stream_end();
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn run_avx2<T: Element>(self, from: usize, to: usize) {
        // SAFETY: as promised.
        unsafe { self.run::<T, Avx2>(from, to) }
    }
}

/// # Safety
///
/// All tensors have elements of type T, as many as `out`; no term overlaps it.
pub unsafe fn lincomb<T: Element>(out: &mut CpuTensor, terms: &[(f64, &CpuTensor)]) {
    let len = out.len;
    let bytes = (terms.len() + 1) * out.bytes();
    let combination = Combination { out, terms, stream: bytes >= STREAM_FROM_BYTES };
    // SAFETY: as promised; `out` is borrowed mutably, and the ranges below do not overlap.
    let run = |from: usize, to: usize| unsafe {
        #[cfg(target_arch = "x86_64")]
        if Avx2::is_here() {
            return combination.run_avx2::<T>(from, to);
        }
        combination.run::<T, Baseline>(from, to)
    };
    let threads = if bytes < THREADS_FROM_BYTES { None } else { Threads::get() };
    let Some(threads) = threads else { return run(0, len) };
    let chunk = CHUNK_BYTES / size_of::<T>();
    let chunks = (0..len.div_ceil(chunk)).into_par_iter();
    threads.run(|| chunks.for_each(|i| run(i * chunk, len.min((i + 1) * chunk))));
}

/// Some elements of one column, widened.
type Strip = [f64; STRIP];

/// Inner products of 3 strips with 3 strips, over their first `n` elements, a multiple of BLOCK.
///
/// # Safety
///
/// The machine has the instruction set; n is at most STRIP.
#[inline(always)]
unsafe fn tile<I: Isa>(a: &[Strip; TILE], b: &[Strip; TILE], n: usize) -> [[f64; TILE]; TILE] {
    // SAFETY: as promised; LANES divides BLOCK.
    unsafe {
        let mut sums = [[I::zero(); TILE]; TILE];
        for at in (0..n).step_by(I::LANES) {
            let y = [I::load(&b[0], at), I::load(&b[1], at), I::load(&b[2], at)];
            for (strip, sums) in a.iter().zip(&mut sums) {
                let x = I::load(strip, at);
                for (sum, y) in sums.iter_mut().zip(y) {
                    *sum = I::mul_add(x, y, *sum);
                }
            }
        }
        let mut totals = [[0.0; TILE]; TILE];
        for (totals, sums) in totals.iter_mut().zip(sums) {
            for (total, sum) in totals.iter_mut().zip(sums) {
                *total = I::sum(sum);
            }
        }
        totals
    }
}

/// The upper triangle of the Gram matrix of elements `from..to` of all columns, added to `sums`.
///
/// # Safety
///
/// The machine has the instruction set. All columns have elements of type T, `to` or more.
#[inline(always)]
unsafe fn gram_piece<T: Element, I: Isa>(
    columns: &[&CpuTensor],
    from: usize,
    to: usize,
    strips: &mut [Strip],
    sums: &mut [f64],
) {
    let k = columns.len();
    assert!(strips.len() >= k.next_multiple_of(TILE) && sums.len() == k * k);
    for start in (from..to).step_by(STRIP) {
        let n = STRIP.min(to - start);
        for (column, strip) in columns.iter().zip(strips.iter_mut()) {
            for at in (0..n).step_by(BLOCK) {
                // SAFETY: as promised.
                let block = unsafe { load::<T, I>(column, start + at, BLOCK.min(n - at)) };
                for i in 0..BLOCK {
                    strip[at + i] = block[i].into();
                }
            }
        }
        for i in (0..k).step_by(TILE) {
            for j in (i..k).step_by(TILE) {
                let (a, b) = (strips[i..].first_chunk().unwrap(), strips[j..].first_chunk().unwrap());
                // SAFETY: n is at most STRIP, a multiple of BLOCK.
                let products = unsafe { tile::<I>(a, b, n.next_multiple_of(BLOCK)) };
                for (row, products) in sums.chunks_exact_mut(k).skip(i).zip(products) {
                    row[j..].iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn gram_piece_avx2<T: Element>(
    columns: &[&CpuTensor],
    from: usize,
    to: usize,
    strips: &mut [Strip],
    sums: &mut [f64],
) {
    // SAFETY: as promised.
    unsafe { gram_piece::<T, Avx2>(columns, from, to, strips, sums) }
}

/// # Safety
///
/// All columns have elements of type T and the same shape; there is at least one.
pub unsafe fn gram<T: Element>(columns: &[&CpuTensor]) -> Result<Vec<f64>> {
    let k = columns.len();
    let trajectories = columns[0].shape()[0] as usize;
    let len = columns[0].len / trajectories;
    let pieces = len.div_ceil(PIECE).min(MAX_PIECES);
    let step = len.div_ceil(pieces);

    let strips = || {
        let mut strips = memory::list::<Strip>(k.next_multiple_of(TILE))?;
        strips.resize(k.next_multiple_of(TILE), [0.0; STRIP]);
        Ok(strips)
    };
    // Where a thread gets no memory for its strips.
    let failed = AtomicBool::new(false);
    let piece = |strips: &mut Result<Vec<Strip>>, (index, sums): (usize, &mut [f64])| {
        let Ok(strips) = strips else { return failed.store(true, Ordering::Relaxed) };
        let (start, piece) = (index / pieces * len, index % pieces);
        let (from, to) = (start + len.min(piece * step), start + len.min((piece + 1) * step));
        // SAFETY: as promised; `to` is at most the number of elements.
        unsafe {
            #[cfg(target_arch = "x86_64")]
            if Avx2::is_here() {
                return gram_piece_avx2::<T>(columns, from, to, strips, sums);
            }
            gram_piece::<T, Baseline>(columns, from, to, strips, sums)
        }
    };
    let mut sums = memory::zeros(&[trajectories, pieces, k, k])?;
    let products = step.saturating_mul(k * k) / 2 + 1;
    let few = products.saturating_mul(pieces * trajectories) < THREADS_FROM_PRODUCTS;
    if let Some(threads) = if few { None } else { Threads::get() } {
        let at_least = THREADS_FROM_PRODUCTS.div_ceil(products);
        let all = sums.par_chunks_mut(k * k).enumerate().with_min_len(at_least);
        threads.run(|| all.for_each_init(strips, piece));
    } else {
        let mut strips = strips();
        sums.chunks_mut(k * k).enumerate().for_each(|item| piece(&mut strips, item));
    }

    if failed.into_inner() {
        return Err(memory::none(k, size_of::<Strip>()));
    }
    let mut gram = if pieces == 1 { sums } else { add_pieces(&sums, pieces, k * k)? };
    for gram in gram.chunks_mut(k * k) {
        for i in 0..k {
            for j in 0..i {
                gram[i * k + j] = gram[j * k + i];
            }
        }
    }
    Ok(gram)
}

/// Adds up every `pieces` successive runs of `n` numbers, in order.
fn add_pieces(sums: &[f64], pieces: usize, n: usize) -> Result<Vec<f64>> {
    let mut totals = memory::zeros(&[sums.len() / pieces])?;
    for (totals, sums) in totals.chunks_mut(n).zip(sums.chunks(pieces * n)) {
        for piece in sums.chunks(n) {
            totals.iter_mut().zip(piece).for_each(|(total, sum)| *total += sum);
        }
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::tensor::{Cpu, Dtype, Tensors};

    /// What machines without AVX2 run, against what this one runs.
    fn check<T: Element>(dtype: Dtype, tolerance: f64) {
        let (n, k) = (2 * 333, 4);
        let values = |c: usize| (0..n).map(|e| ((e * 7 + c * 31) as f64).sin()).collect::<Vec<_>>();
        let columns: Vec<_> =
            (0..k).map(|c| CpuTensor::from_f64(dtype, &[2, 333], &values(c)).unwrap()).collect();
        let terms: Vec<_> = columns.iter().map(|c| (0.7, c)).collect();
        let mut here = Cpu.alloc(&columns[0]).unwrap();
        Cpu.lincomb(&mut here, &terms).unwrap();
        let columns: Vec<_> = columns.iter().collect();
        let gram_here = Cpu.gram(&columns).unwrap();

        for stream in [false, true] {
            let out = Cpu.alloc(columns[0]).unwrap();
            // SAFETY: all have n elements of type T.
            unsafe { Combination { out: &out, terms: &terms, stream }.run::<T, Baseline>(0, n) }
            let close = |(a, b): (f64, f64)| (a - b).abs() <= tolerance;
            assert!(here.to_f64().into_iter().zip(out.to_f64()).all(close), "{dtype}");
        }
        for b in 0..2 {
            let (mut strips, mut sums) = ([[0.0; STRIP]; 6], [0.0; 16]);
            // SAFETY: as above.
            unsafe { gram_piece::<T, Baseline>(&columns, b * 333, (b + 1) * 333, &mut strips, &mut sums) }
            for i in 0..k {
                for j in i..k {
                    assert!((sums[i * k + j] - gram_here[(b * k + i) * k + j]).abs() < 1e-11, "{dtype}");
                }
            }
        }
    }

    #[test]
    fn the_baseline_computes_the_same() {
        check::<f32>(Dtype::F32, 1e-6);
        check::<f64>(Dtype::F64, 1e-14);
        check::<f16>(Dtype::F16, 2f64.powi(-9));
        check::<bf16>(Dtype::Bf16, 2f64.powi(-6));
    }
}
