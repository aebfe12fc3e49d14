//! The two loops over elements: linear combination and Gram matrix. Knows no shapes.

use half::{bf16, f16};

use super::CpuTensor;

pub(super) trait Element: Copy {
    fn widen(self) -> f64;
    fn narrow(v: f64) -> Self;
}

impl Element for f32 {
    fn widen(self) -> f64 {
        self.into()
    }
    fn narrow(v: f64) -> Self {
        v as f32
    }
}
impl Element for f64 {
    fn widen(self) -> f64 {
        self
    }
    fn narrow(v: f64) -> Self {
        v
    }
}
impl Element for f16 {
    fn widen(self) -> f64 {
        self.into()
    }
    fn narrow(v: f64) -> Self {
        f16::from_f64(v)
    }
}
impl Element for bf16 {
    fn widen(self) -> f64 {
        self.into()
    }
    fn narrow(v: f64) -> Self {
        bf16::from_f64(v)
    }
}

/// # Safety
///
/// All tensors have elements of type T, as many as `out`; no term overlaps it.
pub(super) unsafe fn lincomb<T: Element>(out: &mut CpuTensor, terms: &[(f64, &CpuTensor)]) {
    for e in 0..out.len {
        let mut sum = 0.0;
        for (w, t) in terms {
            if *w != 0.0 {
                // SAFETY: e < len.
                sum += w * unsafe { *t.data::<T>().add(e) }.widen();
            }
        }
        // SAFETY: e < len.
        unsafe { *out.data::<T>().add(e) = T::narrow(sum) };
    }
}

/// # Safety
///
/// All columns have elements of type T and the same shape; there is at least one.
pub(super) unsafe fn gram<T: Element>(columns: &[&CpuTensor]) -> Vec<f64> {
    let k = columns.len();
    let b = columns[0].shape()[0] as usize;
    let n = columns[0].len / b;
    let mut gram = vec![0.0; b * k * k];
    for t in 0..b {
        for i in 0..k {
            for j in i..k {
                let mut sum = 0.0;
                for e in t * n..(t + 1) * n {
                    // SAFETY: e < len.
                    sum += unsafe {
                        (*columns[i].data::<T>().add(e)).widen() * (*columns[j].data::<T>().add(e)).widen()
                    };
                }
                gram[(t * k + i) * k + j] = sum;
                gram[(t * k + j) * k + i] = sum;
            }
        }
    }
    gram
}
