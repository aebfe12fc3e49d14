//! Elements in blocks of 64: their dtypes, widened for arithmetic, and the instruction sets that a
//! block is handled with. Knows no operation.

use std::mem::transmute;

#[cfg(not(target_arch = "aarch64"))]
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements handled at a time: in float32 they fill half of the AVX2 registers.
pub const BLOCK: usize = 64;
pub type Block<T> = [T; BLOCK];

/// What differs between instruction sets and does not come by itself from the compiler.
///
/// Everything generic over it is `inline(always)`, so that it is compiled once for each set, inside
/// the function that enables it. Safety of all functions: the machine has the instruction set.
pub trait Isa {
    /// Whether a fused multiply-add is one instruction.
    const FMA: bool;
    /// Some float64 in one register.
    type Lanes: Copy;
    const LANES: usize = size_of::<Self::Lanes>() / size_of::<f64>();

    unsafe fn zero() -> Self::Lanes;
    /// `from[at..at + LANES]`, which must be within.
    #[inline(always)]
    unsafe fn load(from: &[f64], at: usize) -> Self::Lanes {
        // SAFETY: as promised; the lanes are plain numbers.
        unsafe { from.as_ptr().add(at).cast::<Self::Lanes>().read_unaligned() }
    }
    /// `a b + c`
    unsafe fn mul_add(a: Self::Lanes, b: Self::Lanes, c: Self::Lanes) -> Self::Lanes;
    unsafe fn sum(v: Self::Lanes) -> f64;

    unsafe fn widen_eight(from: &[f16; 8]) -> [f32; 8];
    unsafe fn narrow_eight(from: &[f32; 8]) -> [f16; 8];

    #[inline(always)]
    unsafe fn widen_f16(block: &Block<f16>) -> Block<f32> {
        let mut wide = [0.0; BLOCK];
        for (from, to) in block.as_chunks().0.iter().zip(wide.as_chunks_mut().0) {
            // SAFETY: as promised to this function.
            *to = unsafe { Self::widen_eight(from) };
        }
        wide
    }
    #[inline(always)]
    unsafe fn narrow_f16(block: &Block<f32>) -> Block<f16> {
        let mut narrow = [f16::ZERO; BLOCK];
        for (from, to) in block.as_chunks().0.iter().zip(narrow.as_chunks_mut().0) {
            // SAFETY: as promised to this function.
            *to = unsafe { Self::narrow_eight(from) };
        }
        narrow
    }

    /// Writes a block, past the caches where there is a way. `to` is a multiple of 64 bytes and has room for the block.
    #[inline(always)]
    unsafe fn stream<T>(block: &Block<T>, to: *mut T) {
        // SAFETY: as promised.
        unsafe { to.copy_from_nonoverlapping(block.as_ptr(), BLOCK) }
    }
    /// Makes streamed blocks visible to other threads.
    #[inline(always)]
    unsafe fn stream_end() {}
}

/// What every machine of the target has. On aarch64 that is NEON: neon.rs.
pub struct Baseline;

#[cfg(not(target_arch = "aarch64"))]
impl Isa for Baseline {
    const FMA: bool = false;
    type Lanes = [f64; 2];

    #[inline(always)]
    unsafe fn zero() -> [f64; 2] {
        [0.0; 2]
    }

    #[inline(always)]
    unsafe fn mul_add(a: [f64; 2], b: [f64; 2], c: [f64; 2]) -> [f64; 2] {
        [a[0].mul_add_by::<Self>(b[0], c[0]), a[1].mul_add_by::<Self>(b[1], c[1])]
    }

    #[inline(always)]
    unsafe fn sum(v: [f64; 2]) -> f64 {
        v[0] + v[1]
    }

    #[inline(always)]
    unsafe fn widen_eight(from: &[f16; 8]) -> [f32; 8] {
        let mut wide = [0.0; 8];
        from.convert_to_f32_slice(&mut wide);
        wide
    }

    #[inline(always)]
    unsafe fn narrow_eight(from: &[f32; 8]) -> [f16; 8] {
        let mut narrow = [f16::ZERO; 8];
        narrow.convert_from_f32_slice(from);
        narrow
    }
}

/// x86-64 of 2013 and later.
#[cfg(target_arch = "x86_64")]
pub struct Avx2;

#[cfg(target_arch = "x86_64")]
impl Avx2 {
    /// Whether this machine has avx2, fma and f16c. Costs a few loads.
    pub fn is_here() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::{Avx2, Block, Isa, f16};

    impl Isa for Avx2 {
        const FMA: bool = true;
        type Lanes = __m256d;

        #[inline(always)]
        unsafe fn zero() -> __m256d {
            // SAFETY: the caller promises the instruction set.
            unsafe { _mm256_setzero_pd() }
        }

        #[inline(always)]
        unsafe fn mul_add(a: __m256d, b: __m256d, c: __m256d) -> __m256d {
            // SAFETY: likewise.
            unsafe { _mm256_fmadd_pd(a, b, c) }
        }

        #[inline(always)]
        unsafe fn sum(v: __m256d) -> f64 {
            // SAFETY: likewise.
            unsafe {
                let two = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
                _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
            }
        }

        #[inline(always)]
        unsafe fn widen_eight(from: &[f16; 8]) -> [f32; 8] {
            let mut wide = [0.0; 8];
            // SAFETY: likewise; loads and stores of eight, which need no alignment.
            unsafe {
                _mm256_storeu_ps(wide.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())))
            }
            wide
        }

        #[inline(always)]
        unsafe fn narrow_eight(from: &[f32; 8]) -> [f16; 8] {
            let mut narrow = [f16::ZERO; 8];
            // SAFETY: as in `widen_eight`.
            unsafe {
                let eight = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from.as_ptr()));
                _mm_storeu_si128(narrow.as_mut_ptr().cast(), eight);
            }
            narrow
        }

        #[inline(always)]
        unsafe fn stream<T>(block: &Block<T>, to: *mut T) {
            let (from, to) = (block.as_ptr().cast::<__m256i>(), to.cast::<__m256i>());
            for i in 0..size_of_val(block) / size_of::<__m256i>() {
                // SAFETY: likewise; the caller promises room for the block, and its alignment.
                unsafe { _mm256_stream_si256(to.add(i), _mm256_loadu_si256(from.add(i))) }
            }
        }

        #[inline(always)]
        unsafe fn stream_end() {
            // SAFETY: the caller promises the instruction set.
            unsafe { _mm_sfence() }
        }
    }
}

/// A type that sums of products are accumulated in.
pub trait Wide: Copy + Default + Into<f64> {
    fn of(v: f64) -> Self;
    /// `self b + c`
    fn mul_add_by<I: Isa>(self, b: Self, c: Self) -> Self;
}

/// The element type of a tensor. A widened block may have another order, the same for all blocks.
pub trait Element: Copy + Default {
    type Wide: Wide;
    /// # Safety
    ///
    /// The machine has the instruction set, here and below.
    unsafe fn widen<I: Isa>(block: &Block<Self>) -> Block<Self::Wide>;
    unsafe fn narrow<I: Isa>(block: &Block<Self::Wide>) -> Block<Self>;
}

macro_rules! wide {
    ($t:ty) => {
        impl Wide for $t {
            #[inline(always)]
            fn of(v: f64) -> Self {
                v as $t
            }

            #[inline(always)]
            fn mul_add_by<I: Isa>(self, b: Self, c: Self) -> Self {
                if I::FMA { self.mul_add(b, c) } else { self * b + c }
            }
        }

        impl Element for $t {
            type Wide = $t;

            #[inline(always)]
            unsafe fn widen<I: Isa>(block: &Block<$t>) -> Block<$t> {
                *block
            }

            #[inline(always)]
            unsafe fn narrow<I: Isa>(block: &Block<$t>) -> Block<$t> {
                *block
            }
        }
    };
}
wide!(f32);
wide!(f64);

impl Element for f16 {
    type Wide = f32;

    #[inline(always)]
    unsafe fn widen<I: Isa>(block: &Block<f16>) -> Block<f32> {
        // SAFETY: as promised to this function.
        unsafe { I::widen_f16(block) }
    }

    #[inline(always)]
    unsafe fn narrow<I: Isa>(block: &Block<f32>) -> Block<f16> {
        // SAFETY: as promised to this function.
        unsafe { I::narrow_f16(block) }
    }
}

/// bfloat16 is the upper half of a float32. Two neighbours are taken as one number of 32 bits, and
/// land half a block apart: so the compiler's SIMD needs no shuffles.
impl Element for bf16 {
    type Wide = f32;

    #[inline(always)]
    unsafe fn widen<I: Isa>(block: &Block<bf16>) -> Block<f32> {
        // SAFETY: any bits are a u32.
        let pairs = unsafe { transmute::<Block<bf16>, [u32; BLOCK / 2]>(*block) };
        let mut wide = [0.0; BLOCK];
        for i in 0..BLOCK / 2 {
            wide[i] = f32::from_bits(pairs[i] << 16);
        }
        for i in 0..BLOCK / 2 {
            wide[BLOCK / 2 + i] = f32::from_bits(pairs[i] & 0xffff_0000);
        }
        wide
    }

    #[inline(always)]
    unsafe fn narrow<I: Isa>(block: &Block<f32>) -> Block<bf16> {
        let mut pairs = [0u32; BLOCK / 2];
        for i in 0..BLOCK / 2 {
            pairs[i] = round_to_bf16(block[i]) >> 16 | round_to_bf16(block[BLOCK / 2 + i]) & 0xffff_0000;
        }
        // SAFETY: any bits are a bf16.
        unsafe { transmute::<[u32; BLOCK / 2], Block<bf16>>(pairs) }
    }
}

/// The bits of `v`, of which the upper 16 are the nearest bfloat16, ties to even.
#[inline(always)]
fn round_to_bf16(v: f32) -> u32 {
    let bits = v.to_bits();
    // A NaN stays one; rounding could turn it into infinity.
    if v.is_nan() { bits | 0x40_0000 } else { bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) }
}
