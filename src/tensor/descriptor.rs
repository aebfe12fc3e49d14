//! How a tensor is described across the ABI, in the layout of DLPack; and what of that every backend checks.

use std::ffi::c_void;
use std::{fmt, slice};

use crate::error::{Error, Result};

/// DLPack's number for memory of the CPU, the only device of the built-in implementation.
pub const DEVICE_CPU: i32 = 1;
/// DLPack's type code of IEEE floating point numbers: float16, float32, float64.
pub const DTYPE_FLOAT: u8 = 2;
/// DLPack's type code of bfloat16.
pub const DTYPE_BFLOAT: u8 = 4;
/// A tensor has at most this many dimensions.
pub const MAX_DIMENSIONS: usize = 32;

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
    /// Where that memory is.
    pub device: LmsdDevice,
    /// Number of dimensions, 1 to 32.
    pub ndim: i32,
    /// The type of its elements.
    pub dtype: LmsdDtype,
    /// `ndim` sizes, in elements, each 1 or more. Dimension 0 counts trajectories.
    pub shape: *const i64,
    /// `ndim` distances between neighbours, in elements; or null: row-major without gaps.
    pub strides: *const i64,
    /// From `data` to the first element, in bytes.
    pub byte_offset: u64,
}

/// What a descriptor says, checked as far as every backend would.
pub(crate) struct CheckedTensor<'a> {
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
    pub(crate) unsafe fn read<'a>(&self) -> Result<CheckedTensor<'a>> {
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
        Ok(CheckedTensor { dtype, shape, strides, data, len })
    }
}

/// The element types that the library takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// IEEE double precision.
    F64,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
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

/// Distances between neighbours, in elements, of a tensor that is row-major without gaps.
pub(super) fn compact_strides(shape: &[i64]) -> Vec<i64> {
    let mut strides = vec![1; shape.len()];
    for d in (1..shape.len()).rev() {
        strides[d - 1] = strides[d] * shape[d];
    }
    strides
}

/// Number of elements and of bytes.
pub(super) fn size_of_shape(shape: &[i64], dtype: Dtype) -> Result<(usize, usize)> {
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
