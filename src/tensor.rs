//! Tensors: the few operations that sampling and distillation need, and the built-in CPU
//! implementation. Nothing else in the crate sees an element.

use crate::error::Result;

/// A tensor library. Tensors are opaque; all of one run have the same shape, dtype and device.
/// Dimension 0 counts trajectories.
pub trait Tensors {
    type Tensor;

    /// A new tensor of the shape, dtype and device of `like`; its contents are unspecified.
    fn alloc(&self, like: &Self::Tensor) -> Result<Self::Tensor>;

    /// `out = sum_i terms[i].0 * terms[i].1`, element by element, accumulated in float32 at least.
    /// No term is `out`. A term with factor 0 counts as absent, even if it is not finite.
    fn lincomb(&self, out: &mut Self::Tensor, terms: &[(f64, &Self::Tensor)]) -> Result<()>;

    /// Inner products within each trajectory, accumulated in float64:
    /// `gram[(b * k + i) * k + j] = <columns[i][b], columns[j][b]>` for k columns.
    fn gram(&self, columns: &[&Self::Tensor]) -> Result<Vec<f64>>;
}
