//! The tensor operations by libtorch, on its CPU and CUDA devices, for Rust programs that have it:
//! feature `torch`. Tensors are tch's own and stay where they are. Knows no schedule.
//!
//! ```no_run
//! # fn network(x: &tch::Tensor, sigma: f64) -> Result<tch::Tensor, tch::TchError> { x.f_mul_scalar(sigma) }
//! # fn main() -> lmsd::Result<()> {
//! # let schedule = lmsd::solver::solve(&lmsd::solver::Spec::default())?;
//! use lmsd::torch::{Torch, tch};
//!
//! let x_t = tch::Tensor::f_randn([4, 4, 64, 64], (tch::Kind::Float, tch::Device::Cpu))?.f_mul_scalar(80.0)?;
//! let x_0 = lmsd::sample::sample(Torch::like(&x_t)?, &schedule, &x_t, |x, sigma, denoised| {
//!     Ok(denoised.f_copy_(&network(x, sigma)?)?)
//! })?;
//! # Ok(())
//! # }
//! ```
//!
//! All operations run on libtorch's current stream of the calling thread. A model writes to `denoised`;
//! a tensor that it puts in its place becomes the library's, which will write to it later.

mod device;

use std::ops::Range;

use tch::{Device, Kind, TchError, Tensor};

use self::device::{check_cuda, device_of, name};
use crate::error::{Error, Result, Status};
use crate::tensor::{CheckedTensor, Dtype, LmsdTensor, Tensors};

/// The one release of tch whose tensors fit.
pub use tch;

/// Bytes in a tensor from which on products gain a tenth on the CPU; below, a chain of operations sums in the
/// order of the terms, as the built-in tensors do.
const LEAST_FOR_PRODUCTS_CPU: usize = 1 << 20;
/// Most elements that inner products widen at a time: 8 MiB of float64 on the CPU, whose caches like small
/// blocks better; 64 MiB on devices, where an operation costs more.
const GRAM_BLOCK_CPU: i64 = 1 << 20;
const GRAM_BLOCK: i64 = 1 << 23;
/// A device is busy with this many products side by side; on two CPU cores they took 0.4 to 0.9 of the time.
const GRAM_SIDE_BY_SIDE: i64 = 256;
/// Shorter rows are not split further.
const GRAM_LEAST: i64 = 4096;

/// Tensors of one device and one dtype.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Torch {
    device: Device,
    dtype: Dtype,
}

impl Torch {
    /// Refuses a device that this process cannot reach, and dtypes other than float16, bfloat16,
    /// float32 and float64.
    pub fn new(device: Device, kind: Kind) -> Result<Self> {
        let Some(dtype) = dtype_of(kind) else {
            return Err(Error::argument(format!(
                "the dtype is {kind:?}; float16, bfloat16, float32 and float64 are supported"
            )));
        };
        match device {
            Device::Cpu => {}
            Device::Cuda(index) => check_cuda(index)?,
            Device::Mps if tch::utils::has_mps() => {}
            Device::Mps | Device::Vulkan => {
                return Err(Error::argument(format!("this libtorch has no device {device:?}")));
            }
        }
        Ok(Self { device, dtype })
    }

    /// For tensors of this one's device and dtype.
    pub fn like(tensor: &Tensor) -> Result<Self> {
        if !tensor.defined() {
            return Err(Error::tensor("the tensor is undefined"));
        }
        Self::new(tensor.device(), tensor.f_kind()?)
    }

    /// For tensors of a descriptor's device and dtype.
    pub fn described(tensor: &LmsdTensor) -> Result<Self> {
        let device = device_of(tensor).ok_or_else(|| {
            Error::tensor(format!(
                "the tensor is on device {} of DLPack type {}; the CPU and CUDA are supported",
                tensor.device.device_id, tensor.device.device_type
            ))
        })?;
        Self::new(device, Dtype::try_from(tensor.dtype)?.into())
    }

    /// A view of the caller's memory, without a copy. Any strides but negative ones.
    ///
    /// Refuses with `InvalidTensor` another device or dtype than this backend's, dimensions of size 0,
    /// negative strides, memory that is not aligned to its elements.
    ///
    /// # Safety
    ///
    /// `shape`, and `strides` unless null, point to `ndim` readable numbers; they are copied. `data`
    /// points to initialised memory of the described size and device, which outlives the view and all
    /// that shares its memory. While a call uses the view as an input, nobody writes to that memory;
    /// while it uses the view as an output, the memory is writable and nobody else reads or writes it.
    pub unsafe fn view(&self, tensor: &LmsdTensor) -> Result<Tensor> {
        if device_of(tensor) != Some(self.device) {
            return Err(Error::tensor(format!(
                "the tensor is on device {} of DLPack type {}; this backend's tensors are on {}",
                tensor.device.device_id,
                tensor.device.device_type,
                name(self.device)
            )));
        }
        // SAFETY: as promised to this function.
        let CheckedTensor { dtype, shape, strides, data, .. } = unsafe { tensor.read() }?;
        if dtype != self.dtype {
            return Err(Error::tensor(format!(
                "the tensor is {dtype}; this backend's tensors are {}",
                self.dtype
            )));
        }
        if let Some(strides) = strides {
            let end = shape.iter().zip(strides).try_fold(dtype.size() as i64, |end, (&n, &stride)| {
                let reach = (n - 1).checked_mul(stride)?.checked_mul(dtype.size() as i64)?;
                end.checked_add(reach).filter(|_| stride >= 0)
            });
            if end.and_then(|end| data.addr().checked_add(usize::try_from(end).ok()?)).is_none() {
                return Err(Error::tensor(format!(
                    "the tensor of shape {shape:?} has strides {strides:?}; they must not be negative, nor its end \
                     beyond the address space"
                )));
            }
        }
        // SAFETY: as promised to this function.
        let view = unsafe {
            Tensor::f_from_blob(data, shape, strides.unwrap_or_default(), self.dtype.into(), self.device)
        };
        Ok(view?)
    }

    /// What sums are made in, where float64 is asked for.
    fn widest(&self) -> Kind {
        if self.device == Device::Mps { Kind::Float } else { Kind::Double }
    }

    /// The shape of a tensor of this backend's device and dtype; all others are refused by name.
    fn shape(&self, tensor: &Tensor, what: impl Fn() -> String) -> Result<Vec<i64>> {
        // The question is one that libtorch takes for dense tensors only; of others strides would panic.
        if !tensor.defined() || tensor.f_is_set_to(tensor).is_err() {
            return Err(Error::tensor(format!("{} is undefined or not a dense tensor", what())));
        }
        let (device, kind, shape) = (tensor.device(), tensor.f_kind()?, tensor.size());
        if device != self.device || dtype_of(kind) != Some(self.dtype) {
            let dtype = dtype_of(kind).map_or_else(|| format!("{kind:?}"), |dtype| dtype.to_string());
            return Err(Error::tensor(format!(
                "{} is {dtype} on {}; this backend's tensors are {} on {}",
                what(),
                name(device),
                self.dtype,
                name(self.device)
            )));
        }
        if shape.is_empty() || shape.contains(&0) {
            return Err(Error::tensor(format!(
                "{} has shape {shape:?}; it must have 1 dimension or more, each of size 1 or more",
                what()
            )));
        }
        Ok(shape)
    }

    /// Where a tensor's memory is, from its first byte to its last.
    fn extent(&self, tensor: &Tensor, shape: &[i64]) -> Range<usize> {
        let start = tensor.data_ptr().addr();
        if self.device == Device::Mps {
            return start..start + 1; // a handle, not an address
        }
        let last: i64 = shape.iter().zip(tensor.stride()).map(|(n, stride)| (n - 1) * stride).sum();
        start..start + (last as usize + 1) * self.dtype.size()
    }

    /// `out` from terms that are in runs of equal distances in memory: a product for each run. `bytes`:
    /// from the first of `out` to its last.
    fn products(&self, out: &Tensor, mut terms: Vec<(f64, &Tensor)>, bytes: usize) -> Result<()> {
        let (kind, strides, n) = (out.f_kind()?, out.stride(), out.numel() as i64);
        let dense = bytes == out.numel() * self.dtype.size();
        let address = |term: &Tensor| term.data_ptr().addr();
        terms.sort_by_key(|(_, term)| address(term));
        let mut rest = terms.as_slice();
        let mut first = true;
        while let Some((factor, term)) = rest.first() {
            let count = if dense { run_length(rest, &strides, bytes, self.dtype.size()) } else { 1 };
            let (run, others) = rest.split_at(count);
            rest = others;
            if count == 1 {
                let factor = self.factor(*factor, kind)?;
                let _same = if first {
                    term.f_mul_out(out, &factor)?
                } else {
                    out.shallow_clone().f_addcmul_(term, &factor)?
                };
            } else {
                let distance = ((address(run[1].1) - address(run[0].1)) / self.dtype.size()) as i64;
                // SAFETY: the memory of the terms, which live longer, and of `out`, as flat as it is; `lincomb`
                // has found that they do not overlap.
                let (matrix, flat) = unsafe {
                    let data = term.data_ptr().cast::<u8>();
                    (
                        Tensor::f_from_blob(data, &[n, count as i64], &[1, distance], kind, self.device)?,
                        Tensor::f_from_blob(out.data_ptr().cast(), &[n], &[1], kind, self.device)?,
                    )
                };
                let factors =
                    run.iter().map(|(factor, _)| self.factor(*factor, kind)).collect::<Result<Vec<_>>>()?;
                let factors = Tensor::f_stack(&factors, 0)?;
                let mut flat = flat;
                let _same =
                    if first { matrix.f_mv_out(&flat, &factors)? } else { flat.f_addmv_(&matrix, &factors)? };
            }
            first = false;
        }
        Ok(())
    }

    /// A factor as libtorch multiplies by it: without a copy from the host, which would wait for the
    /// device.
    fn factor(&self, factor: f64, kind: Kind) -> Result<Tensor> {
        Ok(Tensor::f_full([0i64; 0], factor, (kind, self.device))?)
    }
}

impl Tensors for Torch {
    type Tensor = Tensor;

    fn alloc(&self, like: &Tensor) -> Result<Tensor> {
        let _no_grad = tch::no_grad_guard();
        self.shape(like, || "the tensor to be like".into())?;
        Ok(like.f_empty_like()?)
    }

    fn elements(&self, of: &Tensor) -> Option<usize> {
        Some(of.numel())
    }

    /// Parts of one buffer, which combinations of them read as one matrix.
    fn alloc_many(&self, like: &Tensor, count: usize) -> Result<Vec<Tensor>> {
        let _no_grad = tch::no_grad_guard();
        let shape = self.shape(like, || "the tensor to be like".into())?;
        let strides = like.f_empty_like()?.stride();
        let n: i64 = shape.iter().product();
        let buffer = Tensor::f_empty([n * count as i64], (self.dtype.into(), self.device))?;
        (0..count as i64).map(|i| Ok(buffer.f_as_strided(&shape, &strides, i * n)?)).collect()
    }

    /// One matrix-vector product for terms that lie side by side, as those of [`Tensors::alloc_many`] do;
    /// one operation in place for each other term; half precision in a float32 tensor of its own. Refuses
    /// terms that differ from `out` in shape, or overlap its memory.
    fn lincomb(&self, out: &mut Tensor, terms: &[(f64, &Tensor)]) -> Result<()> {
        let _no_grad = tch::no_grad_guard();
        let shape = self.shape(out, || "the output".into())?;
        let written = self.extent(out, &shape);
        for (i, (_, term)) in terms.iter().enumerate() {
            let its = self.shape(term, || format!("term {i}"))?;
            if its != shape {
                return Err(Error::tensor(format!(
                    "term {i} has shape {its:?} but the output {shape:?}; they must be alike"
                )));
            }
            let read = self.extent(term, &its);
            if read.start < written.end && written.start < read.end {
                return Err(Error::tensor(format!("term {i} overlaps the output's memory")));
            }
        }
        if out.requires_grad() {
            // A model's own tensor, once: the graph it came from would live on in what is written now.
            *out = out.f_detach()?;
        }
        let terms: Vec<(f64, &Tensor)> = terms.iter().copied().filter(|(factor, _)| *factor != 0.0).collect();
        let half = matches!(self.dtype, Dtype::F16 | Dtype::Bf16);
        let small = self.device == Device::Cpu && written.len() < LEAST_FOR_PRODUCTS_CPU;
        if !half && terms.len() > 1 && self.device != Device::Mps && !small {
            return self.products(out, terms, written.len());
        }
        let mut terms = terms.iter();
        let Some((factor, first)) = terms.next() else {
            let _same = out.f_zero_()?;
            return Ok(());
        };
        let wide = if self.dtype == Dtype::F64 { Kind::Double } else { Kind::Float };
        let factor = self.factor(*factor, wide)?;
        let mut sum =
            if half { first.f_to_kind(wide)?.f_mul_(&factor)? } else { first.f_mul_out(out, &factor)? };
        for (factor, term) in terms {
            let _same = sum.f_addcmul_(term, &self.factor(*factor, wide)?)?;
        }
        if half {
            out.f_copy_(&sum)?;
        }
        Ok(())
    }

    /// Batched matrix products of parts of each trajectory, in blocks of bounded memory; float32 where the
    /// device has no float64. Refuses columns that differ in shape.
    fn gram(&self, columns: &[&Tensor]) -> Result<Vec<f64>> {
        let _no_grad = tch::no_grad_guard();
        let Some(first) = columns.first() else { return Ok(Vec::new()) };
        let shape = self.shape(first, || "column 0".into())?;
        for (i, column) in columns.iter().enumerate() {
            let its = self.shape(column, || format!("column {i}"))?;
            if its != shape {
                return Err(Error::tensor(format!(
                    "column {i} has shape {its:?} but column 0 {shape:?}; they must be alike"
                )));
            }
        }
        let k = columns.len() as i64;
        let (batch, mut parts) = (shape[0], 1);
        let mut n: i64 = shape[1..].iter().product();
        // Parts of a trajectory, as if there were more of them.
        while n % 2 == 0 && n > GRAM_LEAST && batch * parts < GRAM_SIDE_BY_SIDE {
            (parts, n) = (2 * parts, n / 2);
        }
        let all_rows = batch * parts;
        let flat: Vec<Tensor> =
            columns.iter().map(|column| Ok(column.f_reshape([all_rows, n])?)).collect::<Result<_>>()?;

        // Whole rows while they fit, else pieces of one.
        let most = if self.device == Device::Cpu { GRAM_BLOCK_CPU } else { GRAM_BLOCK };
        let rows = (most / (k * n)).clamp(1, all_rows);
        let length = (most / (k * rows)).clamp(1, n);
        let wide = self.widest();
        let sums = Tensor::f_zeros([all_rows, k, k], (wide, self.device))?;
        let block = Tensor::f_empty([rows, k, length], (wide, self.device))?;
        for from in (0..all_rows).step_by(rows as usize) {
            let rows = rows.min(all_rows - from);
            let mut sums = sums.f_narrow(0, from, rows)?;
            for start in (0..n).step_by(length as usize) {
                let length = length.min(n - start);
                let block = block.f_narrow(0, 0, rows)?.f_narrow(2, 0, length)?;
                for (i, column) in flat.iter().enumerate() {
                    let piece = column.f_narrow(0, from, rows)?.f_narrow(1, start, length)?;
                    block.f_select(1, i as i64)?.f_copy_(&piece)?;
                }
                let _same = sums.f_baddbmm_(&block, &block.f_transpose(1, 2)?)?;
            }
        }
        let sums = sums.f_view([batch, parts, k, k])?.f_sum_dim_intlist([1i64].as_slice(), false, None)?;
        let mut gram = vec![0.0; (batch * k * k) as usize];
        let sums = sums.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?;
        let (length, k) = (gram.len(), columns.len());
        sums.f_copy_data(&mut gram, length)?;
        for gram in gram.chunks_mut(k * k) {
            for i in 0..k {
                for j in 0..i {
                    gram[i * k + j] = gram[j * k + i];
                }
            }
        }
        Ok(gram)
    }
}

/// For programs, at their start: freed memory of the CPU stays with the process. glibc gives large blocks
/// back to the system at once, and a run on the CPU that frees and allocates 16 MiB at a time then takes 1.7
/// times as long (`make bench-torch`). Does nothing with other C libraries.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: sets two options of the allocator.
    unsafe {
        libc::mallopt(libc::M_MMAP_MAX, 0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, -1);
    }
}

impl From<Dtype> for Kind {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F64 => Kind::Double,
            Dtype::F16 => Kind::Half,
            Dtype::Bf16 => Kind::BFloat16,
        }
    }
}

/// How many of the first terms, which are sorted by address, follow one another at equal distances, whole
/// elements and a tensor's length or more, and are laid out as the output is.
fn run_length(terms: &[(f64, &Tensor)], strides: &[i64], bytes: usize, size: usize) -> usize {
    let address = |i: usize| terms[i].1.data_ptr().addr();
    let fits = |i: usize| terms[i].1.stride() == strides;
    if terms.len() < 2 || !fits(0) {
        return 1;
    }
    let distance = address(1) - address(0);
    if distance < bytes || distance % size != 0 {
        return 1;
    }
    let more = (1..terms.len()).take_while(|&i| fits(i) && address(i) - address(i - 1) == distance).count();
    1 + more
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    [Dtype::F32, Dtype::F64, Dtype::F16, Dtype::Bf16].into_iter().find(|&dtype| Kind::from(dtype) == kind)
}

/// libtorch's failures, in one line; so that a model's `?` carries them out.
impl From<TchError> for Error {
    fn from(error: TchError) -> Self {
        let text = match error {
            TchError::Torch(text) => text,
            other => other.to_string(),
        };
        // A backtrace follows. In TorchScript the reason comes last, after the place.
        let kind = |prefix: &str| prefix.ends_with("Error") && !prefix.contains(' ');
        let reason = text.lines().find_map(|line| line.split_once(": ").filter(|(prefix, _)| kind(prefix)));
        let reason = reason.map(|(_, reason)| reason);
        let line = reason.or(text.lines().next()).unwrap_or_default();
        let memory = ["out of memory", "can't allocate memory", "not enough memory"];
        let out_of_memory = memory.iter().any(|words| line.contains(words));
        let status = if out_of_memory { Status::OutOfMemory } else { Status::InvalidTensor };
        Error::new(status, format!("libtorch: {line}"))
    }
}
