//! Tensors: the few operations that sampling and distillation need, and the built-in CPU
//! implementation. Nothing else in the crate sees an element.

mod element;
mod kernels;
mod threads;

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ffi::c_void;
use std::{fmt, ptr, slice};

use half::{bf16, f16};

use crate::error::{Error, Result, Status};

/// A tensor library. Tensors are opaque; all of one run have the same shape, dtype and device.
/// Dimension 0 counts trajectories.
pub trait Tensors {
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
}

/// DLPack's number for memory of the CPU, the only device of the built-in implementation.
pub const DEVICE_CPU: i32 = 1;
/// DLPack's type code of IEEE floating point numbers: float16, float32, float64.
pub const DTYPE_FLOAT: u8 = 2;
/// DLPack's type code of bfloat16.
pub const DTYPE_BFLOAT: u8 = 4;
/// A tensor has at most this many dimensions.
pub const MAX_DIMENSIONS: usize = 32;

/// Start of a tensor that the library allocates, in bytes: a cache line, and every SIMD register.
const ALIGNMENT: usize = 64;

/// Where a tensor's memory is. The layout of DLPack's DLDevice.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LmsdDevice {
    /// DLPack's device type: 1 for the CPU, 2 for CUDA, ...
    pub device_type: i32,
    /// Which device of this type, from 0; ignored for the CPU.
    pub device_id: i32,
}

/// The type of a tensor's elements. The layout of DLPack's DLDataType.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LmsdDtype {
    /// 2 for IEEE floating point, 4 for bfloat16.
    pub code: u8,
    /// Bits in an element: 16, 32 or 64.
    pub bits: u8,
    /// Always 1.
    pub lanes: u16,
}

/// A tensor's memory, described. The layout of DLPack's DLTensor, so that a host can pass its own
/// as it is. It owns nothing: `data`, `shape` and `strides` belong to whoever made it, and must
/// stay valid, and unchanged in place, for as long as the function that takes it says.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct LmsdTensor {
    /// Start of the memory, on `device`. The first element is `byte_offset` bytes further on.
    pub data: *mut c_void,
    pub device: LmsdDevice,
    /// Number of dimensions, 1 to 32.
    pub ndim: i32,
    pub dtype: LmsdDtype,
    /// `ndim` sizes, in elements, each 1 or more. Dimension 0 counts trajectories.
    pub shape: *const i64,
    /// `ndim` distances between neighbours, in elements; or null: row-major without gaps.
    pub strides: *const i64,
    /// From `data` to the first element, in bytes.
    pub byte_offset: u64,
}

/// What a descriptor says, checked as far as every backend would.
pub(crate) struct Described<'a> {
    pub dtype: Dtype,
    pub shape: &'a [i64],
    /// None: row-major without gaps. Any numbers else, as many as dimensions.
    pub strides: Option<&'a [i64]>,
    /// The first element; a multiple of the dtype's size.
    pub data: *mut u8,
    /// Number of elements.
    pub len: usize,
}

impl LmsdTensor {
    /// Refuses dtypes, dimensions and addresses that no backend takes; looks at neither the device nor
    /// the strides.
    ///
    /// # Safety
    ///
    /// `shape`, and `strides` unless null, point to `ndim` numbers that stay as they are for 'a.
    pub(crate) unsafe fn read<'a>(&self) -> Result<Described<'a>> {
        let dtype = Dtype::try_from(self.dtype)?;
        let ndim = match usize::try_from(self.ndim) {
            Ok(n) if (1..=MAX_DIMENSIONS).contains(&n) => n,
            _ => {
                return Err(Error::tensor(format!(
                    "the tensor has {} dimensions; 1 to {MAX_DIMENSIONS} are allowed",
                    self.ndim
                )));
            }
        };
        if self.shape.is_null() {
            return Err(Error::tensor("the tensor's shape is null"));
        }
        // SAFETY: not null, and the caller promises `ndim` numbers.
        let shape = unsafe { slice::from_raw_parts(self.shape, ndim) };
        let (len, bytes) = size_of_shape(shape, dtype)?;
        // SAFETY: where not null, the caller promises `ndim` numbers.
        let strides = (!self.strides.is_null()).then(|| unsafe { slice::from_raw_parts(self.strides, ndim) });
        if self.data.is_null() {
            return Err(Error::tensor(format!("the tensor of shape {shape:?} has null data")));
        }
        let end = usize::try_from(self.byte_offset)
            .ok()
            .and_then(|offset| offset.checked_add(bytes))
            .and_then(|n| n.checked_add(self.data.addr()));
        if end.is_none() {
            return Err(Error::tensor(format!(
                "the tensor's byte_offset is {}; its end is beyond the address space",
                self.byte_offset
            )));
        }
        let data = self.data.cast::<u8>().wrapping_add(self.byte_offset as usize);
        if data.addr() % dtype.size() != 0 {
            return Err(Error::tensor(format!(
                "the tensor's first element is at address {data:p}, not a multiple of {} as {dtype} needs; pass an \
                 aligned copy",
                dtype.size()
            )));
        }
        Ok(Described { dtype, shape, strides, data, len })
    }
}

/// The element types that the library takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F32,
    F64,
    F16,
    Bf16,
}

impl Dtype {
    /// Bytes in an element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F64 => 8,
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        })
    }
}

impl From<Dtype> for LmsdDtype {
    fn from(dtype: Dtype) -> Self {
        let code = if dtype == Dtype::Bf16 { DTYPE_BFLOAT } else { DTYPE_FLOAT };
        Self { code, bits: 8 * dtype.size() as u8, lanes: 1 }
    }
}

impl TryFrom<LmsdDtype> for Dtype {
    type Error = Error;

    fn try_from(dtype: LmsdDtype) -> Result<Self> {
        match (dtype.code, dtype.bits, dtype.lanes) {
            (DTYPE_FLOAT, 16, 1) => Ok(Dtype::F16),
            (DTYPE_FLOAT, 32, 1) => Ok(Dtype::F32),
            (DTYPE_FLOAT, 64, 1) => Ok(Dtype::F64),
            (DTYPE_BFLOAT, 16, 1) => Ok(Dtype::Bf16),
            (_, _, 1) => Err(Error::tensor(format!(
                "the tensor's dtype has code {} and {} bits; float16, float32, float64 (code 2) and bfloat16 \
                 (code 4) are supported",
                dtype.code, dtype.bits
            ))),
            (_, _, lanes) => {
                Err(Error::tensor(format!("the tensor's dtype has {lanes} lanes; it must be 1")))
            }
        }
    }
}

/// A tensor in the memory of the CPU, row-major without gaps: its own memory, or the caller's.
pub struct CpuTensor {
    /// `shape` and `strides` are halves of one boxed slice, owned here and freed on drop.
    descriptor: LmsdTensor,
    dtype: Dtype,
    /// Number of elements.
    len: usize,
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
        let memory = unsafe { alloc_zeroed(layout) };
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
        let Described { dtype, shape, strides, data, len } = unsafe { tensor.read() }?;
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

    fn data<T>(&self) -> *mut T {
        self.descriptor.data.cast()
    }

    fn bytes(&self) -> usize {
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

fn compact_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    strides
}

/// Number of elements and of bytes.
fn size_of_shape(shape: &[i64], dtype: Dtype) -> Result<(usize, usize)> {
    if !(1..=MAX_DIMENSIONS).contains(&shape.len()) {
        return Err(Error::tensor(format!(
            "the tensor has {} dimensions; 1 to {MAX_DIMENSIONS} are allowed",
            shape.len()
        )));
    }
    let mut bytes = dtype.size() as i64;
    for (d, &n) in shape.iter().enumerate() {
        if n < 1 {
            return Err(Error::tensor(format!(
                "dimension {d} of the tensor's shape {shape:?} is {n}; it must be 1 or more"
            )));
        }
        let product = bytes.checked_mul(n).filter(|&total| isize::try_from(total).is_ok());
        bytes = product.ok_or_else(|| {
            Error::tensor(format!("the tensor's shape {shape:?} exceeds the address space"))
        })?;
    }
    Ok((bytes as usize / dtype.size(), bytes as usize))
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
        Ok(unsafe {
            match first.dtype {
                Dtype::F32 => kernels::gram::<f32>(columns),
                Dtype::F64 => kernels::gram::<f64>(columns),
                Dtype::F16 => kernels::gram::<f16>(columns),
                Dtype::Bf16 => kernels::gram::<bf16>(columns),
            }
        })
    }
}
