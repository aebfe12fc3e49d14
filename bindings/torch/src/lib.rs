//! Tensors of libtorch 2.11 as a `lmsd_host`: its tensors are `lmsd_tensor` descriptors, of the caller's
//! memory or of libtorch's own. `lmsd_torch_host` of the core loads this library where the process has that
//! very libtorch. Knows nothing of schedules.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::{ptr, slice};

use lmsd::host::LmsdHost;
use lmsd::tensor::LmsdTensor;
use lmsd::torch::Torch;
use lmsd::torch::tch::Tensor;
use lmsd::{Error, Result, Status, Tensors};

thread_local! {
    static LAST_ERROR: RefCell<(c_int, CString)> = RefCell::default();
}

/// A tensor that `alloc` made; its address is that of its descriptor.
#[repr(C)]
struct Owned {
    descriptor: LmsdTensor,
    _tensor: Tensor,
    _shape: Box<[i64]>,
    _strides: Box<[i64]>,
}

/// Runs the body of a function of the table: 0, or 1 and a text for [`error`].
fn guard(body: impl FnOnce() -> Result<()>) -> c_int {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return 0,
        Ok(Err(error)) => error,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied().map(String::from);
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            Error::new(Status::Internal, format!("a fault of the library, please report it: {text}"))
        }
    };
    let text = CString::new(error.message.replace('\0', "?")).unwrap_or_default();
    let _ = LAST_ERROR.try_with(|slot| *slot.borrow_mut() = (error.status as c_int, text));
    1
}

/// # Safety
/// `tensor` is NULL or a valid descriptor whose memory lives as long as the result.
unsafe fn view(tensor: *const c_void, what: &str) -> Result<(Torch, Tensor)> {
    let named = |e: Error| Error::new(e.status, format!("{what}: {}", e.message));
    // SAFETY: the caller's promise.
    let tensor = unsafe { tensor.cast::<LmsdTensor>().as_ref() };
    let tensor = tensor.ok_or_else(|| Error::argument(format!("{what} is NULL")))?;
    let torch = Torch::described(tensor).map_err(named)?;
    // SAFETY: the caller's promise.
    Ok((torch, unsafe { torch.view(tensor) }.map_err(named)?))
}

/// # Safety
/// As for each of `tensors`, which has `count` entries.
unsafe fn views(count: usize, tensors: *const *const c_void, what: &str) -> Result<Vec<Tensor>> {
    if count == 0 || tensors.is_null() {
        return Err(Error::argument(format!("there are no {what}s")));
    }
    // SAFETY: the caller's promise.
    let tensors = unsafe { slice::from_raw_parts(tensors, count) };
    let named = |(i, tensor): (usize, &*const c_void)| {
        // SAFETY: the caller's promise.
        unsafe { view(*tensor, &format!("{what} {i}")) }.map(|(_, view)| view)
    };
    tensors.iter().enumerate().map(named).collect()
}

impl Owned {
    /// A tensor of libtorch's, of the dtype and device that `like` describes, until its `release`.
    fn handed_out(tensor: Tensor, like: &LmsdTensor) -> *mut c_void {
        let (shape, strides) = (tensor.size().into_boxed_slice(), tensor.stride().into_boxed_slice());
        let descriptor = LmsdTensor {
            data: tensor.data_ptr(),
            byte_offset: 0,
            shape: shape.as_ptr(),
            strides: strides.as_ptr(),
            ..*like
        };
        let owned = Self { descriptor, _tensor: tensor, _shape: shape, _strides: strides };
        Box::into_raw(Box::new(owned)).cast()
    }
}

unsafe extern "C" fn alloc(_: *mut c_void, like: *const c_void, out: *mut *mut c_void) -> c_int {
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        let (torch, view) = unsafe { view(like, "the tensor to be like") }?;
        let tensor = torch.alloc(&view)?;
        // SAFETY: valid, as `view` found; the promise of `lmsd_host`.
        unsafe { *out = Owned::handed_out(tensor, &*like.cast::<LmsdTensor>()) };
        Ok(())
    })
}

unsafe extern "C" fn alloc_many(
    _: *mut c_void,
    like: *const c_void,
    count: usize,
    outs: *mut *mut c_void,
) -> c_int {
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        let (torch, view) = unsafe { view(like, "the tensor to be like") }?;
        for (i, tensor) in torch.alloc_many(&view, count)?.into_iter().enumerate() {
            // SAFETY: valid, as `view` found; room for `count` by the promise of `lmsd_host`.
            unsafe { *outs.add(i) = Owned::handed_out(tensor, &*like.cast::<LmsdTensor>()) };
        }
        Ok(())
    })
}

unsafe extern "C" fn release(_: *mut c_void, tensor: *mut c_void) {
    guard(|| {
        // SAFETY: made by `alloc`, released once.
        drop(unsafe { Box::from_raw(tensor.cast::<Owned>()) });
        Ok(())
    });
}

unsafe extern "C" fn lincomb(
    _: *mut c_void,
    out: *mut c_void,
    count: usize,
    factors: *const f64,
    terms: *const *const c_void,
) -> c_int {
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        let (torch, mut out) = unsafe { view(out, "out") }?;
        // SAFETY: likewise.
        let terms = unsafe { views(count, terms, "term") }?;
        // SAFETY: likewise; `views` refuses a count of 0.
        let factors = unsafe { slice::from_raw_parts(factors, count) };
        torch.lincomb(&mut out, &factors.iter().copied().zip(&terms).collect::<Vec<_>>())
    })
}

unsafe extern "C" fn gram(
    _: *mut c_void,
    count: usize,
    columns: *const *const c_void,
    out: *mut f64,
) -> c_int {
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        let columns = unsafe { views(count, columns, "column") }?;
        let gram = Torch::like(&columns[0])?.gram(&columns.iter().collect::<Vec<_>>())?;
        // SAFETY: room for the matrix of each trajectory by the promise of `lmsd_host`.
        unsafe { ptr::copy_nonoverlapping(gram.as_ptr(), out, gram.len()) };
        Ok(())
    })
}

unsafe extern "C" fn batch(_: *mut c_void, tensor: *const c_void) -> usize {
    let mut found = 0;
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        found = unsafe { view(tensor, "the tensor") }?.1.size()[0] as usize;
        Ok(())
    });
    found
}

unsafe extern "C" fn elements(_: *mut c_void, tensor: *const c_void) -> usize {
    let mut found = 0;
    guard(|| {
        // SAFETY: the promise of `lmsd_host`.
        found = unsafe { view(tensor, "the tensor") }?.1.numel();
        Ok(())
    });
    found
}

unsafe extern "C" fn error(_: *mut c_void, text: *mut *const c_char) -> c_int {
    LAST_ERROR
        .try_with(|slot| {
            let slot = slot.borrow();
            // SAFETY: writable by the promise of `lmsd_host`.
            unsafe { *text = slot.1.as_ptr() };
            slot.0
        })
        .unwrap_or(Status::Ok as c_int)
}

struct Table(LmsdHost);
// SAFETY: its pointer is null.
unsafe impl Sync for Table {}

static TABLE: Table = Table(LmsdHost {
    struct_size: size_of::<LmsdHost>(),
    user_data: ptr::null_mut(),
    alloc: Some(alloc),
    release: Some(release),
    lincomb: Some(lincomb),
    gram: Some(gram),
    batch: Some(batch),
    elements: Some(elements),
    error: Some(error),
    alloc_many: Some(alloc_many),
    not_finite: None,
});

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version with a NUL"),
};

/// The version of this library, which must be the core's own: between versions the table may change.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_torch_version() -> *const c_char {
    VERSION.as_ptr()
}

/// The table of functions, static.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_torch_table() -> *const LmsdHost {
    &raw const TABLE.0
}
