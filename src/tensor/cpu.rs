//! The built-in tensors, in the memory of the CPU.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::{fmt, ptr, slice};

use half::{bf16, f16};

use super::descriptor::{CheckedTensor, compact_strides, size_of_shape};
use super::{DEVICE_CPU, Dtype, LmsdDevice, LmsdTensor, Tensors, kernels};
use crate::error::{Error, Result, Status};
use crate::inside;

/// Start of a tensor that the library allocates, in bytes: a cache line, and every SIMD register.
const ALIGNMENT: usize = 64;

/// A tensor in the memory of the CPU, row-major without gaps: its own memory, or the caller's.
pub struct CpuTensor {
    /// `shape` and `strides` are halves of one boxed slice, owned here and freed on drop.
    descriptor: LmsdTensor,
    dtype: Dtype,
    /// Number of elements.
    pub(super) len: usize,
    /// What to free on drop; None if the memory is the caller's.
    owned: Option<(*mut u8, Layout)>,
}

// SAFETY: own memory is reached through this value only, and `view` has its caller promise as much
// for the time of every use. Through `&CpuTensor`, safe code only reads.
unsafe impl Send for CpuTensor {}
// SAFETY: as above.
unsafe impl Sync for CpuTensor {}

impl CpuTensor {
    /// A tensor of zeros in memory of its own.
    pub fn zeros(dtype: Dtype, shape: &[i64]) -> Result<Self> {
        let (len, bytes) = size_of_shape(shape, dtype)?;
        // The system hands out large zeroed blocks without touching them, but only at the alignment
        // that the C library knows; so the rest of the alignment is done here.
        let out_of_memory = || {
            Error::new(
                Status::OutOfMemory,
                format!("no memory for a tensor of {bytes} bytes, shape {shape:?}"),
            )
        };
        let layout = bytes
            .checked_add(ALIGNMENT)
            .and_then(|padded| Layout::from_size_align(padded, 16).ok())
            .ok_or_else(out_of_memory)?;
        // SAFETY: the layout has a size above 0.
        let memory = inside::without_reserve(|| unsafe { alloc_zeroed(layout) });
        if memory.is_null() {
            return Err(out_of_memory());
        }
        // SAFETY: the block is ALIGNMENT bytes longer than the tensor.
        let data = unsafe { memory.add(memory.align_offset(ALIGNMENT)) };
        Ok(Self { descriptor: describe(data, dtype, shape), dtype, len, owned: Some((memory, layout)) })
    }

    /// A tensor with these values, rounded to the dtype, in row-major order.
    pub fn from_f64(dtype: Dtype, shape: &[i64], values: &[f64]) -> Result<Self> {
        let tensor = Self::zeros(dtype, shape)?;
        if values.len() != tensor.len {
            return Err(Error::tensor(format!(
                "{} values for the shape {shape:?}, which has {} elements",
                values.len(),
                tensor.len
            )));
        }
        let data = tensor.descriptor.data;
        for (i, &v) in values.iter().enumerate() {
            // SAFETY: `data` is this tensor's own memory of `len` elements, and i < len.
            unsafe {
                match dtype {
                    Dtype::F32 => *data.cast::<f32>().add(i) = v as f32,
                    Dtype::F64 => *data.cast::<f64>().add(i) = v,
                    Dtype::F16 => *data.cast::<f16>().add(i) = f16::from_f64(v),
                    Dtype::Bf16 => *data.cast::<bf16>().add(i) = bf16::from_f64(v),
                }
            }
        }
        Ok(tensor)
    }

    /// A view of the caller's memory, without a copy.
    ///
    /// Refuses with `InvalidTensor` what the built-in implementation does not take: a device other
    /// than the CPU, a dtype other than float16, bfloat16, float32 and float64, dimensions of size 0,
    /// gaps or another order than row-major, memory that is not aligned to its elements.
    ///
    /// # Safety
    ///
    /// `shape`, and `strides` unless null, point to `ndim` readable numbers; they are copied. `data`
    /// points to initialised memory of the described size, which outlives the view. While a call
    /// uses the view as an input, nobody writes to that memory; while it uses the view as an output,
    /// the memory is writable and nobody else reads or writes it.
    pub unsafe fn view(tensor: &LmsdTensor) -> Result<Self> {
        if tensor.device.device_type != DEVICE_CPU {
            return Err(Error::tensor(format!(
                "the tensor is on a device of DLPack type {}; the built-in implementation takes CPU memory (type 1)",
                tensor.device.device_type
            )));
        }
        // SAFETY: as promised to this function.
        let CheckedTensor { dtype, shape, strides, data, len } = unsafe { tensor.read() }?;
        if let Some(strides) = strides {
            let compact = compact_strides(shape);
            if (0..shape.len()).any(|d| shape[d] != 1 && strides[d] != compact[d]) {
                return Err(Error::tensor(format!(
                    "the tensor of shape {shape:?} has strides {strides:?}; pass a contiguous (row-major) copy, \
                     strides {compact:?}"
                )));
            }
        }
        Ok(Self { descriptor: describe(data, dtype, shape), dtype, len, owned: None })
    }

    /// The tensor as C sees it. Strides are spelled out and `byte_offset` is 0. Its pointers are
    /// valid for as long as this value lives, wherever it is moved.
    pub fn descriptor(&self) -> &LmsdTensor {
        &self.descriptor
    }

    /// The type of its elements.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Sizes of the dimensions; dimension 0 counts trajectories.
    pub fn shape(&self) -> &[i64] {
        // SAFETY: made by `describe`, valid as long as self.
        unsafe { slice::from_raw_parts(self.descriptor.shape, self.descriptor.ndim as usize) }
    }

    /// Number of elements, at least 1.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The elements in row-major order.
    pub fn to_f64(&self) -> Vec<f64> {
        let data = self.descriptor.data;
        // SAFETY: `data` has `len` initialised elements of the dtype, aligned; nobody writes now.
        let element = |i: usize| unsafe {
            match self.dtype {
                Dtype::F32 => f64::from(*data.cast::<f32>().add(i)),
                Dtype::F64 => *data.cast::<f64>().add(i),
                Dtype::F16 => (*data.cast::<f16>().add(i)).to_f64(),
                Dtype::Bf16 => (*data.cast::<bf16>().add(i)).to_f64(),
            }
        };
        (0..self.len).map(element).collect()
    }

    pub(super) fn data<T>(&self) -> *mut T {
        self.descriptor.data.cast()
    }

    pub(super) fn bytes(&self) -> usize {
        self.len * self.dtype.size()
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (a, b) = (self.data::<u8>().addr(), other.data::<u8>().addr());
        a < b + other.bytes() && b < a + self.bytes()
    }

    /// Refuses a tensor of another dtype or shape than `first`, naming both.
    fn check_like(&self, what: &str, index: usize, first_is: &str, first: &Self) -> Result<()> {
        if self.dtype == first.dtype && self.shape() == first.shape() {
            return Ok(());
        }
        Err(Error::tensor(format!(
            "{what} {index} is {self:?} but {first_is} is {first:?}; they must be alike"
        )))
    }
}

/// The dtype and the shape, as messages name a tensor.
impl fmt::Debug for CpuTensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.shape())
    }
}

impl Drop for CpuTensor {
    fn drop(&mut self) {
        let n = 2 * self.descriptor.ndim as usize;
        let sizes = ptr::slice_from_raw_parts_mut(self.descriptor.shape.cast_mut(), n);
        // SAFETY: the box that `describe` leaked.
        drop(unsafe { Box::from_raw(sizes) });
        if let Some((memory, layout)) = self.owned {
            // SAFETY: from `alloc_zeroed` with this layout.
            unsafe { dealloc(memory, layout) }
        }
    }
}

/// A descriptor of compact memory. Its shape and strides are one leaked box of 2 ndim numbers.
fn describe(data: *mut u8, dtype: Dtype, shape: &[i64]) -> LmsdTensor {
    let sizes = Box::leak([shape, &compact_strides(shape)].concat().into_boxed_slice()).as_mut_ptr();
    LmsdTensor {
        data: data.cast(),
        device: LmsdDevice { device_type: DEVICE_CPU, device_id: 0 },
        ndim: shape.len() as i32,
        dtype: dtype.into(),
        shape: sizes,
        strides: sizes.wrapping_add(shape.len()),
        byte_offset: 0,
    }
}

/// The built-in implementation: SIMD, and threads where the tensors are large.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cpu;

impl Tensors for Cpu {
    type Tensor = CpuTensor;

    /// Fails only where memory is out.
    fn alloc(&self, like: &CpuTensor) -> Result<CpuTensor> {
        CpuTensor::zeros(like.dtype, like.shape())
    }

    fn elements(&self, of: &CpuTensor) -> Option<usize> {
        Some(of.shape().iter().map(|&n| n as usize).product())
    }

    /// One pass over all terms; the output is not read. float64 is accumulated in float64, all else
    /// in float32. Refuses terms that differ from `out` in dtype or shape, or overlap its memory.
    fn lincomb(&self, out: &mut CpuTensor, terms: &[(f64, &CpuTensor)]) -> Result<()> {
        for (i, (_, term)) in terms.iter().enumerate() {
            term.check_like("term", i, "the output", out)?;
            if term.overlaps(out) {
                return Err(Error::tensor(format!("term {i} overlaps the output's memory")));
            }
        }
        // SAFETY: all have this dtype and as many elements; the output overlaps no term.
        unsafe {
            match out.dtype {
                Dtype::F32 => kernels::lincomb::<f32>(out, terms),
                Dtype::F64 => kernels::lincomb::<f64>(out, terms),
                Dtype::F16 => kernels::lincomb::<f16>(out, terms),
                Dtype::Bf16 => kernels::lincomb::<bf16>(out, terms),
            }
        }
        Ok(())
    }

    /// The same bits at every call, whatever the number of threads. Refuses columns that differ in
    /// dtype or shape.
    fn gram(&self, columns: &[&CpuTensor]) -> Result<Vec<f64>> {
        let Some(first) = columns.first() else { return Ok(Vec::new()) };
        for (i, column) in columns.iter().enumerate() {
            column.check_like("column", i, "column 0", first)?;
        }
        // SAFETY: all have this dtype and shape.
        unsafe {
            match first.dtype {
                Dtype::F32 => kernels::gram::<f32>(columns),
                Dtype::F64 => kernels::gram::<f64>(columns),
                Dtype::F16 => kernels::gram::<f16>(columns),
                Dtype::Bf16 => kernels::gram::<bf16>(columns),
            }
        }
    }
}
