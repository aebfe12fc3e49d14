//! What the compiler does not find by itself on aarch64: sums of products two at a time, and the conversions of
//! float16, which every such processor has but Rust offers to those with all of its arithmetic only.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::element::{BLOCK, Baseline, Block, Isa};

impl Isa for Baseline {
    const FMA: bool = true;
    type Lanes = float64x2_t;

    #[inline(always)]
    unsafe fn zero() -> float64x2_t {
        // SAFETY: every aarch64 has NEON; likewise below.
        unsafe { vdupq_n_f64(0.0) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: float64x2_t, b: float64x2_t, c: float64x2_t) -> float64x2_t {
        // SAFETY: likewise.
        unsafe { vfmaq_f64(c, a, b) }
    }

    #[inline(always)]
    unsafe fn sum(v: float64x2_t) -> f64 {
        // SAFETY: likewise.
        unsafe { vaddvq_f64(v) }
    }

    #[inline(always)]
    unsafe fn widen_f16(block: &Block<f16>) -> Block<f32> {
        let mut wide = [0.0; BLOCK];
        for i in (0..BLOCK).step_by(8) {
            // SAFETY: likewise; 8 divides BLOCK, so loads and stores stay within the blocks. The instructions
            // read and write registers.
            unsafe {
                let eight = vld1q_u16(block.as_ptr().add(i).cast());
                let (low, high): (float32x4_t, float32x4_t);
                asm!("fcvtl {low:v}.4s, {eight:v}.4h", "fcvtl2 {high:v}.4s, {eight:v}.8h", eight = in(vreg) eight,
                    low = out(vreg) low, high = lateout(vreg) high, options(pure, nomem, nostack, preserves_flags));
                vst1q_f32(wide.as_mut_ptr().add(i), low);
                vst1q_f32(wide.as_mut_ptr().add(i + 4), high);
            }
        }
        wide
    }

    #[inline(always)]
    unsafe fn narrow_f16(block: &Block<f32>) -> Block<f16> {
        let mut narrow = [f16::ZERO; BLOCK];
        for i in (0..BLOCK).step_by(8) {
            // SAFETY: as in `widen_f16`.
            unsafe {
                let (low, high) = (vld1q_f32(block.as_ptr().add(i)), vld1q_f32(block.as_ptr().add(i + 4)));
                let eight: uint16x8_t;
                asm!("fcvtn {eight:v}.4h, {low:v}.4s", "fcvtn2 {eight:v}.8h, {high:v}.4s", low = in(vreg) low,
                    high = in(vreg) high, eight = out(vreg) eight, options(pure, nomem, nostack, preserves_flags));
                vst1q_u16(narrow.as_mut_ptr().add(i).cast(), eight);
            }
        }
        narrow
    }
}
