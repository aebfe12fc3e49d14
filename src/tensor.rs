//! Tensors: the few operations that sampling and distillation need. Nothing outside of `tensor/` sees an element.
//!
//! ```text
//! descriptor   how a tensor is described to and by a host
//! cpu          the built-in tensors     kernels   their two loops     element, neon   SIMD     threads
//! ```

#[allow(unsafe_code)]
mod cpu;
#[allow(unsafe_code)]
mod descriptor;
#[allow(unsafe_code)]
mod element;
#[allow(unsafe_code)]
mod kernels;
#[cfg(target_arch = "aarch64")]
#[allow(unsafe_code)]
mod neon;
mod threads;

pub use self::cpu::{Cpu, CpuTensor};
#[cfg(feature = "torch")]
pub(crate) use self::descriptor::CheckedTensor;
pub use self::descriptor::{
    DEVICE_CPU, DTYPE_BFLOAT, DTYPE_FLOAT, Dtype, LmsdDevice, LmsdDtype, LmsdTensor, MAX_DIMENSIONS,
};
use crate::error::Result;

/// A tensor library. Tensors are opaque; all of one run have the same shape, dtype and device.
/// Dimension 0 counts trajectories.
pub trait Tensors {
    /// One of its tensors.
    type Tensor;

    /// A new tensor of the shape, dtype and device of `like`; its contents are unspecified.
    fn alloc(&self, like: &Self::Tensor) -> Result<Self::Tensor>;

    /// Tensors that will be combined with one another, as by [`Tensors::alloc`]; side by side in memory
    /// where that helps.
    fn alloc_many(&self, like: &Self::Tensor, count: usize) -> Result<Vec<Self::Tensor>> {
        (0..count).map(|_| self.alloc(like)).collect()
    }

    /// A new tensor with the contents of `of`, in memory of its own.
    fn copy(&self, of: &Self::Tensor) -> Result<Self::Tensor> {
        let mut out = self.alloc(of)?;
        self.lincomb(&mut out, &[(1.0, of)])?;
        Ok(out)
    }

    /// `out = sum_i terms[i].0 * terms[i].1`, element by element, accumulated in float32 at least.
    /// No term is `out`. A term with factor 0 counts as absent, even if it is not finite.
    fn lincomb(&self, out: &mut Self::Tensor, terms: &[(f64, &Self::Tensor)]) -> Result<()>;

    /// Number of elements of a tensor, where it is known.
    fn elements(&self, _of: &Self::Tensor) -> Option<usize> {
        None
    }

    /// Inner products within each trajectory, accumulated in float64:
    /// `gram[(b * k + i) * k + j] = <columns[i][b], columns[j][b]>` for k columns.
    fn gram(&self, columns: &[&Self::Tensor]) -> Result<Vec<f64>>;

    /// The first trajectory with an element that is not finite.
    fn not_finite(&self, of: &Self::Tensor) -> Result<Option<usize>> {
        self.gram(&[of]).map(not_finite_in)
    }
}

/// The first trajectory whose square is not finite.
pub(crate) fn not_finite_in(squares: Vec<f64>) -> Option<usize> {
    squares.iter().position(|square| !square.is_finite())
}
