//! What the compiler does not find by itself on aarch64: sums of products two at a time, and the conversions of
//! float16, which every such processor has but Rust offers to those with all of its arithmetic only.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use super::element::{Baseline, Isa};

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
    unsafe fn widen_eight(from: &[f16; 8]) -> [f32; 8] {
        let mut wide = [0.0; 8];
        // SAFETY: likewise; loads and stores of eight. The instructions read and write registers.
        unsafe {
            let eight = vld1q_u16(from.as_ptr().cast());
            let (low, high): (float32x4_t, float32x4_t);
            asm!("fcvtl {low:v}.4s, {eight:v}.4h", "fcvtl2 {high:v}.4s, {eight:v}.8h", eight = in(vreg) eight,
                low = out(vreg) low, high = lateout(vreg) high, options(pure, nomem, nostack, preserves_flags));
            vst1q_f32(wide.as_mut_ptr(), low);
            vst1q_f32(wide.as_mut_ptr().add(4), high);
        }
        wide
    }

    #[inline(always)]
    unsafe fn narrow_eight(from: &[f32; 8]) -> [f16; 8] {
        let mut narrow = [f16::ZERO; 8];
        // SAFETY: as in `widen_eight`.
        unsafe {
            let (low, high) = (vld1q_f32(from.as_ptr()), vld1q_f32(from.as_ptr().add(4)));
            let eight: uint16x8_t;
            asm!("fcvtn {eight:v}.4h, {low:v}.4s", "fcvtn2 {eight:v}.8h, {high:v}.4s", low = in(vreg) low,
                high = in(vreg) high, eight = out(vreg) eight, options(pure, nomem, nostack, preserves_flags));
            vst1q_u16(narrow.as_mut_ptr().cast(), eight);
        }
        narrow
    }
}
