//! The host's own tensors behind the trait of all tensors, or the built-in ones where it brings none.
//! Its comments are part of the manual in `include/lmsd.h`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

use crate::error::{Error, Result, Status};
use crate::inside::outside;
use crate::memory;
use crate::tensor::{Cpu, CpuTensor, LmsdTensor, Tensors, not_finite_in};
use crate::{growing, sized};

/// The host's own tensors: any framework, any device. Functions get `user_data` first, run on the
/// thread of the call that needs them, keep no pointer after they return, and return 0 or, to
/// stop that call with `LMSD_STATUS_STOPPED`, anything else. Tensors are opaque to the library.
///
/// Everywhere a call takes a `const lmsd_host *`, NULL means the built-in CPU backend, where every
/// tensor is a `lmsd_tensor *` (compact row-major float32, float64, float16 or bfloat16).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LmsdHost {
    /// Set to `sizeof(lmsd_host)`.
    pub struct_size: usize,
    /// Handed to every function.
    pub user_data: *mut c_void,
    /// Writes a new tensor of the shape, dtype and device of `like`, not NULL, to `*out`. Its
    /// contents may be anything. One table serves tensors of many shapes, in any number of calls at once:
    /// all that are handed in with one another have one shape.
    pub alloc: Option<
        unsafe extern "C" fn(user_data: *mut c_void, like: *const c_void, out: *mut *mut c_void) -> c_int,
    >,
    /// Frees a tensor that `alloc` made.
    pub release: Option<unsafe extern "C" fn(user_data: *mut c_void, tensor: *mut c_void)>,
    /// `out = sum_i factors[i] * terms[i]`, `count` terms (at least 1), best summed in float32 at
    /// least; none of them is `out`. A term with factor 0 counts as absent, even if it is not finite.
    pub lincomb: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            out: *mut c_void,
            count: usize,
            factors: *const f64,
            terms: *const *const c_void,
        ) -> c_int,
    >,
    /// Inner products within each trajectory b of dimension 0, best summed in float64:
    /// `out[(b * count + i) * count + j] = <columns[i][b], columns[j][b]>`.
    pub gram: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            count: usize,
            columns: *const *const c_void,
            out: *mut f64,
        ) -> c_int,
    >,
    /// Number of trajectories (the size of dimension 0) of a tensor.
    pub batch: Option<unsafe extern "C" fn(user_data: *mut c_void, tensor: *const c_void) -> usize>,
    /// Why the last function of this table that returned nonzero on this thread did: returns a
    /// `lmsd_status` and writes one sentence to `*text`, valid until the next such function fails. The
    /// call then ends with these. May be NULL.
    pub error: Option<unsafe extern "C" fn(user_data: *mut c_void, text: *mut *const c_char) -> c_int>,
    /// Writes `count` new tensors, each as `alloc` makes one, to `outs[0]`, `outs[1]`, ..., or none where it
    /// fails. They will be combined with one another, in this order, so best lie side by side in memory.
    /// `release` gets each of them. May be NULL: then `alloc` makes them one by one.
    pub alloc_many: Option<
        unsafe extern "C" fn(
            user_data: *mut c_void,
            like: *const c_void,
            count: usize,
            outs: *mut *mut c_void,
        ) -> c_int,
    >,
    /// Number of elements of a tensor, 0 where that is not known. A distillation checks by it that x_T has
    /// the level of noise that it should have. May be NULL.
    pub elements: Option<unsafe extern "C" fn(user_data: *mut c_void, tensor: *const c_void) -> usize>,
    /// Writes to `*trajectory` the first trajectory of a tensor that has an element which is not finite, or the
    /// number of trajectories where there is none. A run asks so of each prediction. May be NULL: then `gram` tells.
    pub not_finite: Option<
        unsafe extern "C" fn(user_data: *mut c_void, tensor: *const c_void, trajectory: *mut usize) -> c_int,
    >,
}

growing!(
    LmsdHost,
    "lmsd_host",
    { struct_size, user_data, alloc, release, lincomb, gram, batch },
    { error, alloc_many, elements, not_finite }
);

/// A tensor of either kind.
pub enum Handle {
    /// The library's own.
    Cpu(CpuTensor),
    /// The host's.
    Host {
        /// As the host knows it.
        tensor: *mut c_void,
        /// Whose `release` frees it; None where it is the caller's.
        owner: Option<LmsdHost>,
    },
}

impl Handle {
    /// What callbacks are given.
    pub fn pointer(&self) -> *mut c_void {
        match self {
            Self::Cpu(tensor) => ptr::from_ref(tensor.descriptor()).cast_mut().cast(),
            Self::Host { tensor, .. } => *tensor,
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Self::Host { tensor, owner: Some(host) } = self
            && let Some(release) = host.release
        {
            // SAFETY: made by this host's alloc, released once.
            outside(|| unsafe { release(host.user_data, *tensor) })
        }
    }
}

/// Whose tensors a run is of.
#[derive(Clone, Copy)]
pub enum Backend {
    /// The library's own.
    Cpu,
    /// The host's.
    Host(LmsdHost),
}

impl Backend {
    /// # Safety
    /// `host` is NULL or valid, with functions as its documentation says.
    pub unsafe fn new(host: *const LmsdHost) -> Result<Self> {
        if host.is_null() {
            return Ok(Self::Cpu);
        }
        // SAFETY: the caller's promise.
        let host = unsafe { sized::read(host, "host") }?;
        for (name, missing) in [
            ("alloc", host.alloc.is_none()),
            ("release", host.release.is_none()),
            ("lincomb", host.lincomb.is_none()),
            ("gram", host.gram.is_none()),
            ("batch", host.batch.is_none()),
        ] {
            if missing {
                return Err(Error::argument(format!("host->{name} is NULL; it is needed")));
            }
        }
        Ok(Self::Host(host))
    }

    /// The caller's tensor, borrowed for as long as the result lives.
    ///
    /// # Safety
    /// `tensor` is NULL or a tensor of this backend.
    pub unsafe fn borrow(&self, tensor: *const c_void, what: &str) -> Result<Handle> {
        if tensor.is_null() {
            return Err(null(what));
        }
        match self {
            // SAFETY: a descriptor by the caller's promise; view checks all that can be checked.
            Self::Cpu => unsafe { CpuTensor::view(&*tensor.cast::<LmsdTensor>()) }
                .map(Handle::Cpu)
                .map_err(|e| Error::new(e.status, format!("{what}: {}", e.message))),
            Self::Host(_) => Ok(Handle::Host { tensor: tensor.cast_mut(), owner: None }),
        }
    }

    /// A tensor that a callback made: the host's own, which is released in time, or a copy of a built-in one.
    ///
    /// # Safety
    /// `tensor` is NULL or a tensor of this backend; the host's own is nobody else's.
    pub unsafe fn adopt(&self, tensor: *mut c_void, what: &str) -> Result<Handle> {
        match self {
            // SAFETY: the caller's promise.
            Self::Cpu => self.copy(&unsafe { self.borrow(tensor, what) }?),
            Self::Host(_) if tensor.is_null() => Err(null(what)),
            Self::Host(host) => Ok(Handle::Host { tensor, owner: Some(*host) }),
        }
    }

    /// The size of dimension 0.
    pub fn trajectories(&self, tensor: &Handle) -> usize {
        match (self, tensor) {
            (Self::Host(host), tensor) => {
                let batch = host.batch.expect("checked by Backend::new");
                // SAFETY: a `batch` as `lmsd_host` says gets its own user data and tensor.
                outside(|| unsafe { batch(host.user_data, tensor.pointer()) })
            }
            (Self::Cpu, tensor) => cpu(tensor).map_or(0, |tensor| tensor.shape()[0] as usize),
        }
    }

    /// Refuses an output that does not fit `like`, before any work is done for it.
    pub fn check_output(&self, out: &Handle, like: &Handle) -> Result<()> {
        match (out, like) {
            (Handle::Cpu(out), Handle::Cpu(like)) => {
                if out.dtype() == like.dtype() && out.shape() == like.shape() {
                    return Ok(());
                }
                Err(Error::tensor(format!(
                    "out is {} {:?}; it must be {} {:?} as the input",
                    out.dtype(),
                    out.shape(),
                    like.dtype(),
                    like.shape()
                )))
            }
            _ => Ok(()),
        }
    }
}

/// The pointers of a list of handles, on the stack for the usual few.
fn pointers<'a>(handles: impl Iterator<Item = &'a Handle>) -> Vec<*const c_void> {
    handles.map(|h| h.pointer().cast_const()).collect()
}

fn cpu(handle: &Handle) -> Result<&CpuTensor> {
    match handle {
        Handle::Cpu(tensor) => Ok(tensor),
        Handle::Host { .. } => Err(Error::new(Status::Internal, "tensors of two backends met")),
    }
}

impl LmsdHost {
    fn said(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: `error` is NULL or as `lmsd_host` says, and gets its own user data.
        let (status, text) = unsafe { reason(self.error, self.user_data) }
            .unwrap_or_else(|| (Status::Stopped, format!("{what} of the host returned {code}")));
        Err(Error::new(status, text))
    }
}

type Reason = unsafe extern "C" fn(user_data: *mut c_void, text: *mut *const c_char) -> c_int;

/// What a host says of its last failure, if anything.
///
/// # Safety
/// `error` is a function of the host's, `user_data` its own.
pub(crate) unsafe fn reason(error: Option<Reason>, user_data: *mut c_void) -> Option<(Status, String)> {
    let mut text = ptr::null();
    let error = error?;
    // SAFETY: the caller's promise.
    let status = Status::from_code(outside(|| unsafe { error(user_data, &mut text) }));
    if status == Status::Ok || text.is_null() {
        return None;
    }
    // SAFETY: a text that is valid until the host's next failure.
    Some((status, unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()))
}

impl Tensors for Backend {
    type Tensor = Handle;

    fn alloc(&self, like: &Handle) -> Result<Handle> {
        match self {
            Self::Cpu => Ok(Handle::Cpu(Cpu.alloc(cpu(like)?)?)),
            Self::Host(host) => {
                let mut tensor = ptr::null_mut();
                let alloc = host.alloc.expect("checked by Backend::new");
                // SAFETY: an `alloc` as `lmsd_host` says gets its own user data and tensor, and room for a pointer.
                let code = outside(|| unsafe { alloc(host.user_data, like.pointer(), &mut tensor) });
                host.said(code, "alloc")?;
                if tensor.is_null() {
                    return Err(Error::argument("alloc of the host returned 0 but wrote no tensor"));
                }
                Ok(Handle::Host { tensor, owner: Some(*host) })
            }
        }
    }

    fn alloc_many(&self, like: &Handle, count: usize) -> Result<Vec<Handle>> {
        let Self::Host(host @ LmsdHost { alloc_many: Some(alloc_many), .. }) = self else {
            return (0..count).map(|_| self.alloc(like)).collect();
        };
        let mut outs = memory::list(count)?;
        outs.resize(count, ptr::null_mut());
        // SAFETY: an `alloc_many` as `lmsd_host` says gets its own user data and tensor; `outs` has room for `count`.
        let code =
            outside(|| unsafe { alloc_many(host.user_data, like.pointer(), count, outs.as_mut_ptr()) });
        host.said(code, "alloc_many")?;
        let written = outs.into_iter().filter(|tensor| !tensor.is_null());
        let tensors: Vec<_> = written.map(|tensor| Handle::Host { tensor, owner: Some(*host) }).collect();
        if tensors.len() == count {
            return Ok(tensors);
        }
        Err(Error::argument(format!(
            "alloc_many of the host returned 0 but wrote {} tensors of {count}",
            tensors.len()
        )))
    }

    fn elements(&self, of: &Handle) -> Option<usize> {
        match (self, of) {
            (Self::Host(host), of) => {
                let elements = host.elements?;
                // SAFETY: an `elements` as `lmsd_host` says gets its own user data and tensor.
                Some(outside(|| unsafe { elements(host.user_data, of.pointer()) })).filter(|n| *n > 0)
            }
            (Self::Cpu, of) => Cpu.elements(cpu(of).ok()?),
        }
    }

    fn lincomb(&self, out: &mut Handle, terms: &[(f64, &Handle)]) -> Result<()> {
        match (self, out) {
            (Self::Cpu, Handle::Cpu(out)) => {
                let terms: Result<Vec<_>> = terms.iter().map(|(f, t)| Ok((*f, cpu(t)?))).collect();
                Cpu.lincomb(out, &terms?)
            }
            (Self::Host(host), out) => {
                let factors: Vec<f64> = terms.iter().map(|(f, _)| *f).collect();
                let tensors = pointers(terms.iter().map(|(_, t)| *t));
                let lincomb = host.lincomb.expect("checked by Backend::new");
                // SAFETY: a `lincomb` as `lmsd_host` says gets its own tensors, of which `out` is no term, and two
                // arrays of `count` entries that stay during the call.
                let code = outside(|| unsafe {
                    lincomb(host.user_data, out.pointer(), factors.len(), factors.as_ptr(), tensors.as_ptr())
                });
                host.said(code, "lincomb")
            }
            _ => Err(Error::new(Status::Internal, "tensors of two backends met")),
        }
    }

    fn gram(&self, columns: &[&Handle]) -> Result<Vec<f64>> {
        match self {
            Self::Cpu => {
                let columns: Result<Vec<_>> = columns.iter().map(|c| cpu(c)).collect();
                Cpu.gram(&columns?)
            }
            Self::Host(host) => {
                let Some(first) = columns.first() else { return Ok(Vec::new()) };
                let gram = host.gram.expect("checked by Backend::new");
                let trajectories = self.trajectories(first);
                if trajectories == 0 || trajectories > 1 << 30 {
                    return Err(Error::argument(format!("batch of the host returned {trajectories}")));
                }
                let mut out = memory::zeros(&[trajectories, columns.len(), columns.len()])?;
                out.fill(f64::NAN);
                let tensors = pointers(columns.iter().copied());
                // SAFETY: a `gram` as `lmsd_host` says gets its own tensors, and room for every trajectory's matrix.
                let code = outside(|| unsafe {
                    gram(host.user_data, columns.len(), tensors.as_ptr(), out.as_mut_ptr())
                });
                host.said(code, "gram")?;
                Ok(out)
            }
        }
    }

    fn not_finite(&self, of: &Handle) -> Result<Option<usize>> {
        let Self::Host(host @ LmsdHost { not_finite: Some(not_finite), .. }) = self else {
            return self.gram(&[of]).map(not_finite_in);
        };
        let mut trajectory = 0;
        // SAFETY: a `not_finite` as `lmsd_host` says gets its own user data and tensor, and room for a number.
        let code = outside(|| unsafe { not_finite(host.user_data, of.pointer(), &mut trajectory) });
        host.said(code, "not_finite")?;
        Ok(Some(trajectory).filter(|b| *b < self.trajectories(of)))
    }
}

pub(crate) fn null(what: &str) -> Error {
    Error::argument(format!("{what} is NULL"))
}
