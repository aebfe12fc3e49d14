//! Every export of the C ABI, and the guard around each. The comments here are the manual: cbindgen
//! makes `include/lmsd.h` of them, and of `host.rs`.
//!
//! Nothing panics across this file: the body of every export is a closure that [`guard`] or
//! [`guard_or`] runs.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem::offset_of;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::ptr;

use crate::distill::{self, Config, Distilled, Problem, Progress};
use crate::error::{Error, Result, Status};
use crate::field::Rivals;
use crate::host::{Backend, Handle, LmsdHost, check_size, null, read_sized, reason};
use crate::sample::{Sampler, Step};
use crate::schedule::{self, MadeFor, Named, Process, Schedule};
use crate::solver;
use crate::tensor::Tensors;

/// Version of this ABI. A binding compares it with `lmsd_abi_version()` when it loads the library.
pub const LMSD_ABI_VERSION: u32 = 1;

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn remember(message: &str) {
    let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
    // A thread that is ending may have no such text any more.
    let _ = LAST_ERROR.try_with(|slot| *slot.borrow_mut() = text);
}

/// Runs the body of an export: an error becomes its code and the thread's last error; a panic too.
fn guard(body: impl FnOnce() -> Result<()>) -> Status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(error)) => error,
        Err(panic) => Error::new(Status::Internal, panic_text(&*panic)),
    };
    remember(&error.message);
    error.status
}

/// The same for exports that return a plain value.
fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    format!("a fault of the library, please report it: {text}")
}

/// # Safety
/// `p` is NULL or valid for reading for the call.
unsafe fn given<'a, T>(p: *const T, what: &str) -> Result<&'a T> {
    // SAFETY: the caller's promise.
    unsafe { p.as_ref() }.ok_or_else(|| null(what))
}

/// # Safety
/// `p` is NULL or valid for writing for the call.
unsafe fn output<'a, T>(p: *mut T, what: &str) -> Result<&'a mut T> {
    // SAFETY: the caller's promise.
    unsafe { p.as_mut() }.ok_or_else(|| null(what))
}

/// # Safety
/// `p` is NULL or a NUL-terminated string.
unsafe fn text<'a>(p: *const c_char, what: &str) -> Result<&'a str> {
    if p.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, and NUL-terminated by the caller's promise.
    let text = unsafe { CStr::from_ptr(p) };
    text.to_str().map_err(|e| Error::argument(format!("{what} is not UTF-8: {e}")))
}

/// # Safety
/// `handle` is NULL or made by `Box::into_raw`, and freed once.
unsafe fn free_box<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(handle) });
    }
}

fn give_text(text: String) -> Result<*mut c_char> {
    let text = CString::new(text).map_err(|_| Error::new(Status::Internal, "a text with a NUL in it"))?;
    Ok(text.into_raw())
}

// ---------------------------------------------------------------- the library

/// The ABI version of the loaded library; equal to `LMSD_ABI_VERSION` of the header it goes with.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_abi_version() -> u32 {
    guard_or(0, || LMSD_ABI_VERSION)
}

/// The version of the library, such as "0.1.0". The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_version() -> *const c_char {
    guard_or(ptr::null(), || concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast())
}

/// One sentence on the last call of this thread that failed; empty before the first failure. It
/// names the value at fault and what would be right. The text is valid until the next call of
/// this library on this thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_last_error() -> *const c_char {
    guard_or(ptr::null(), || LAST_ERROR.try_with(|slot| slot.borrow().as_ptr()).unwrap_or(c"".as_ptr()))
}

/// Frees a text that a call of this library wrote into a `char **`. NULL is fine.
///
/// # Safety
/// `text` is NULL or such a text, as long as it was written, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_string_free(text: *mut c_char) {
    guard_or((), || {
        if !text.is_null() {
            // SAFETY: made by give_text, freed once.
            drop(unsafe { CString::from_raw(text) });
        }
    })
}

// ---------------------------------------------------------------- schedules

/// A multistep sampler as data; made by `lmsd_schedule_*`, freed by `lmsd_schedule_free`.
/// It never changes, so any number of threads may use it at once.
pub struct LmsdSchedule(Schedule);

/// One node of a schedule: a model call and the update that follows it.
#[repr(C)]
pub struct LmsdNode {
    /// Set to `sizeof(lmsd_node)` by the caller.
    pub struct_size: usize,
    /// Noise level of the state.
    pub sigma: f64,
    /// Time scaling factor: the model is called at `scale * sigma`.
    pub scale: f64,
    /// Prediction coefficients over D_n, D_{n-1}, ..., newest first. Valid as long as the schedule.
    pub weights: *const f64,
    /// How many there are, 1 to n + 1.
    pub weight_count: usize,
}

unsafe fn give_schedule(out: *mut *mut LmsdSchedule, make: impl FnOnce() -> Result<Schedule>) -> Status {
    guard(|| {
        // SAFETY: the export's promise.
        let out = unsafe { output(out, "out") }?;
        *out = Box::into_raw(Box::new(LmsdSchedule(make()?)));
        Ok(())
    })
}

/// Makes the schedule of a published solver on a grid of noise levels.
///
/// `options`: a JSON object, all fields optional:
/// [options of solve]
///
/// # Safety
/// `options` is a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_solve(options: *const c_char, out: *mut *mut LmsdSchedule) -> Status {
    unsafe {
        give_schedule(out, || {
            let Named(spec) = serde_json::from_str(text(options, "options")?)
                .map_err(|e| Error::argument(format!("these are not options of a solver: {e}")))?;
            solver::solve(&spec)
        })
    }
}

/// Reads a schedule from the text of its file (`length` bytes of UTF-8, 1 MiB at most, no NUL
/// needed). Whatever breaks the format is refused with a sentence that says where.
///
/// # Safety
/// `json` is readable for `length` bytes, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_from_json(
    json: *const c_char,
    length: usize,
    out: *mut *mut LmsdSchedule,
) -> Status {
    unsafe {
        give_schedule(out, || {
            if json.is_null() {
                return Err(null("json"));
            }
            schedule::check_length(length as u64)?; // before a byte of it is believed to be there
            let bytes = std::slice::from_raw_parts(json.cast::<u8>(), length);
            let text = std::str::from_utf8(bytes)
                .map_err(|e| Error::schedule(format!("this is not UTF-8 text: {e}")))?;
            Schedule::from_json(text)
        })
    }
}

/// Reads a schedule file (`path` in UTF-8).
///
/// # Safety
/// `path` is a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_load(path: *const c_char, out: *mut *mut LmsdSchedule) -> Status {
    unsafe { give_schedule(out, || Schedule::load(Path::new(text(path, "path")?))) }
}

/// Writes a schedule file, whole or not at all.
///
/// # Safety
/// `schedule` is valid, `path` a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_save(schedule: *const LmsdSchedule, path: *const c_char) -> Status {
    guard(|| {
        let schedule = unsafe { given(schedule, "schedule") }?;
        schedule.0.save(Path::new(unsafe { text(path, "path") }?))
    })
}

/// The text of the schedule's file, to be freed with `lmsd_string_free`.
///
/// # Safety
/// `schedule` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_to_json(
    schedule: *const LmsdSchedule,
    out: *mut *mut c_char,
) -> Status {
    guard(|| {
        let schedule = unsafe { given(schedule, "schedule") }?;
        let out = unsafe { output(out, "out") }?;
        *out = give_text(schedule.0.to_json())?;
        Ok(())
    })
}

/// Number of model calls; 0 for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_nfe(schedule: *const LmsdSchedule) -> usize {
    guard_or(0, || unsafe { schedule.as_ref() }.map_or(0, |s| s.0.nfe()))
}

/// Noise level of the x_T that sampling starts from; NaN for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_sigma_start(schedule: *const LmsdSchedule) -> f64 {
    guard_or(f64::NAN, || unsafe { schedule.as_ref() }.map_or(f64::NAN, |s| s.0.sigma_start()))
}

/// Noise level of the result; NaN for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_sigma_end(schedule: *const LmsdSchedule) -> f64 {
    guard_or(f64::NAN, || unsafe { schedule.as_ref() }.map_or(f64::NAN, |s| s.0.sigma_end()))
}

/// Node `index`, 0 to nfe - 1. `out->struct_size` is set by the caller before the call.
///
/// # Safety
/// `schedule` is valid, `out` writable for its `struct_size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_node(
    schedule: *const LmsdSchedule,
    index: usize,
    out: *mut LmsdNode,
) -> Status {
    guard(|| {
        let schedule = &unsafe { given(schedule, "schedule") }?.0;
        let out = unsafe { output(out, "out") }?;
        check_size("lmsd_node", out.struct_size, size_of::<LmsdNode>())?;
        let Some(node) = schedule.nodes().get(index) else {
            let last = schedule.nfe() - 1;
            return Err(Error::argument(format!("index is {index}; the nodes are 0 to {last}")));
        };
        out.sigma = node.sigma;
        out.scale = node.scale;
        out.weights = node.weights.as_ptr();
        out.weight_count = node.weights.len();
        Ok(())
    })
}

/// The schedule for a state that is at noise level `sigma` already, as image-to-image hosts have it:
/// above its sigma_end, at most its sigma_start. Above the first node's sigma all nodes stay. Below
/// it the node nearest to `sigma` in log sigma moves there and those before it are dropped, so NFE
/// falls; rows that lose predictions are completed on the oldest one left. `schedule` stays as it is.
///
/// # Safety
/// `schedule` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_start_at(
    schedule: *const LmsdSchedule,
    sigma: f64,
    out: *mut *mut LmsdSchedule,
) -> Status {
    unsafe { give_schedule(out, || given(schedule, "schedule")?.0.start_at(sigma)) }
}

/// Refuses a schedule that was made for something else than `host`, a JSON object of the host's
/// own values: `"process"`, and any of `"model"`, `"model_hash"`, `"guidance_scale"`,
/// `"latent_shape"`, `"sigma_min"`, `"sigma_max"`, `"shift"`. Only what both sides state is
/// compared; `LMSD_STATUS_MISMATCH` names the first value that differs.
///
/// # Safety
/// `schedule` is valid, `host` a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_check(schedule: *const LmsdSchedule, host: *const c_char) -> Status {
    guard(|| {
        let schedule = &unsafe { given(schedule, "schedule") }?.0;
        let text = unsafe { text(host, "host") }?;
        let bad = |e| Error::argument(format!("host is not a description of a model: {e}"));
        // Not by serde's flatten, which lets unknown fields through.
        let mut host: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).map_err(bad)?;
        let process: Option<Process> = match host.remove("process") {
            Some(process) => serde_json::from_value(process).map_err(bad)?,
            None => None,
        };
        let made_for: MadeFor = serde_json::from_value(host.into()).map_err(bad)?;
        schedule.check_made_for(process.unwrap_or(schedule.process()), &made_for)
    })
}

/// Frees a schedule. NULL is fine.
///
/// # Safety
/// `schedule` is NULL or made by this library, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_free(schedule: *mut LmsdSchedule) {
    guard_or((), || unsafe { free_box(schedule) })
}

/// The published solvers as a JSON array of objects, to be freed with `lmsd_string_free`: `"name"`, `"about"`,
/// `"arxiv"` (where it was published), `"order"` (of a whole run), `"competes"` (false for another name of one
/// before it), and the numbers of model calls up to 50 that it can have: `"nfes"` where the last step ends at
/// 0, `"nfes_above_zero"` where it ends above.
///
/// # Safety
/// `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_solvers(out: *mut *mut c_char) -> Status {
    guard(|| {
        let out = unsafe { output(out, "out") }?;
        let list = solver::solvers().iter().map(|s| {
            serde_json::json!({
                "name": s.name,
                "about": s.about,
                "arxiv": s.arxiv,
                "order": s.order,
                "competes": s.competes,
                "nfes": s.nfes(true),
                "nfes_above_zero": s.nfes(false),
            })
        });
        let list: Vec<_> = list.collect();
        *out = give_text(serde_json::Value::from(list).to_string())?;
        Ok(())
    })
}

/// Every option that a call takes as JSON, to be freed with `lmsd_string_free`: an object with a list for each
/// of `"solve"`, `"distill"`, `"compare"` and `"rivals"`. An option is an object of `"name"`, `"type"`,
/// `"default"` (null where it depends on others), `"default_text"`, `"range"` (in words), `"unit"`, `"about"`,
/// and `"values"` where it is one of a few words. Types: `"integer"`, `"number"`, `"boolean"`, `"string"`,
/// `"path"`, `"object"`, `"grid"` (an object with `"kind"`), `"grids"` (arrays of noise levels) and
/// `"schedules"` (objects as in their files).
///
/// # Safety
/// `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_options(out: *mut *mut c_char) -> Status {
    guard(|| {
        // SAFETY: the caller's promise.
        let out = unsafe { output(out, "out") }?;
        *out = give_text(crate::options::all().to_string())?;
        Ok(())
    })
}

/// The field of published solvers that a distilled schedule must beat, as a JSON array of schedules
/// in the format of their file, to be freed with `lmsd_string_free`. No two have the same table.
/// Their `made_by` says which solver each is and on which grid, such as "karras rho=5, straight to
/// 0, from sigma 8".
///
/// `options`: a JSON object, all fields optional:
/// [options of rivals]
///
/// `LMSD_STATUS_INVALID_ARGUMENT` names the value that is out of range.
///
/// # Safety
/// `options` is a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_rivals(options: *const c_char, out: *mut *mut c_char) -> Status {
    guard(|| {
        let out = unsafe { output(out, "out") }?;
        let list = Rivals::from_json(unsafe { text(options, "options") }?)?.list()?;
        let texts: Vec<_> = list.iter().map(Schedule::to_json).collect();
        *out = give_text(format!("[{}]", texts.join(",")))?;
        Ok(())
    })
}

// ---------------------------------------------------------------- tensors

/// The tensors of the libtorch that this process has loaded, on its CPU and CUDA devices: a host
/// whose tensors are `lmsd_tensor *` of any strides but negative ones, in memory of the caller's, used
/// as it is, without copies. Its operations run on libtorch's current stream of the calling thread.
///
/// This library links no libtorch and loads none. `library` is the path of the library of tensors
/// that fits the loaded one, such as liblmsd_torch_2_11.so, or NULL for that beside this library. It
/// is loaded once and for good. `LMSD_STATUS_WRONG_STATE` where no libtorch is loaded,
/// `LMSD_STATUS_MISMATCH` where there is no library for its version; use the host's own tensors then.
/// `*out` is static.
///
/// # Safety
/// `library` is NULL or a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_torch_host(library: *const c_char, out: *mut *const LmsdHost) -> Status {
    guard(|| {
        let out = unsafe { output(out, "out") }?;
        let library = if library.is_null() { None } else { Some(unsafe { text(library, "library") }?) };
        *out = crate::libtorch::host(library.map(Path::new))?;
        Ok(())
    })
}

/// The library's own linear combination: `out = sum_i factors[i] * terms[i]` in one pass over
/// memory, summed in float32 or float64. `out` may not be one of the terms.
///
/// # Safety
/// `host` is NULL or valid; `factors` and `terms` have `count` entries; tensors are of this host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_lincomb(
    host: *const LmsdHost,
    count: usize,
    factors: *const f64,
    terms: *const *const c_void,
    out: *mut c_void,
) -> Status {
    guard(|| {
        let backend = unsafe { Backend::new(host) }?;
        let terms = unsafe { borrow_all(&backend, terms, count, "terms") }?;
        let factors = unsafe { slice(factors, count, "factors") }?;
        let mut out = unsafe { backend.borrow(out, "out") }?;
        let terms: Vec<_> = factors.iter().copied().zip(&terms).collect();
        backend.lincomb(&mut out, &terms)
    })
}

/// The library's own inner products within each trajectory, summed in float64:
/// `out[(b * count + i) * count + j] = <columns[i][b], columns[j][b]>`; `length` is the room in
/// `out`, the batch times count squared.
///
/// # Safety
/// `host` is NULL or valid; `columns` has `count` entries; `out` has room for `length` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_gram(
    host: *const LmsdHost,
    count: usize,
    columns: *const *const c_void,
    length: usize,
    out: *mut f64,
) -> Status {
    guard(|| {
        let backend = unsafe { Backend::new(host) }?;
        let columns = unsafe { borrow_all(&backend, columns, count, "columns") }?;
        let gram = backend.gram(&columns.iter().collect::<Vec<_>>())?;
        if out.is_null() {
            return Err(null("out"));
        }
        if gram.len() != length {
            return Err(Error::argument(format!("length is {length}; this Gram matrix has {}", gram.len())));
        }
        // SAFETY: room for `length` values by the caller's promise.
        unsafe { ptr::copy_nonoverlapping(gram.as_ptr(), out, length) };
        Ok(())
    })
}

/// A field of solvers has a thousand at each NFE, and comparisons take many NFEs at once.
const MOST_ITEMS: usize = 1 << 16;

/// # Safety
/// `items` is NULL or has `count` entries.
unsafe fn slice<'a, T>(items: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    if count == 0 || count > MOST_ITEMS {
        return Err(Error::argument(format!("count is {count}; it must be 1 to {MOST_ITEMS}")));
    }
    if items.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, with `count` entries by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(items, count) })
}

/// # Safety
/// `items` is NULL or has `count` tensors of this backend.
unsafe fn borrow_all(
    backend: &Backend,
    items: *const *const c_void,
    count: usize,
    what: &str,
) -> Result<Vec<Handle>> {
    let items = unsafe { slice(items, count, what) }?;
    items.iter().enumerate().map(|(i, t)| unsafe { backend.borrow(*t, &format!("{what}[{i}]")) }).collect()
}

// ---------------------------------------------------------------- sampling

/// The model: writes to `denoised` its prediction of x0 at `x`, whose noise level is `sigma`,
/// guidance included. Runs on the calling thread, keeps no pointer; returns 0, or anything else to
/// stop the call with `LMSD_STATUS_STOPPED`. The built-in backend's tensors are compact with
/// `byte_offset` 0; the model fills `denoised`'s memory and leaves the descriptor as it is.
pub type LmsdModel = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        x: *const c_void,
        sigma: f64,
        denoised: *mut c_void,
    ) -> c_int,
>;

/// What an observer sees after each model call, before the update.
#[repr(C)]
pub struct LmsdStep {
    /// `sizeof(lmsd_step)` of the library.
    pub struct_size: usize,
    /// Node, from 0.
    pub index: usize,
    /// Number of nodes.
    pub nfe: usize,
    /// Noise level of the state.
    pub sigma: f64,
    /// Noise level that the model was told.
    pub model_sigma: f64,
    /// The state; valid during the call.
    pub x: *const c_void,
    /// The model's prediction of x0; valid during the call.
    pub denoised: *const c_void,
}

/// Sees every step, for previews and progress. Returns 0, or anything else to stop the call with
/// `LMSD_STATUS_STOPPED`.
pub type LmsdObserver = Option<unsafe extern "C" fn(user_data: *mut c_void, step: *const LmsdStep) -> c_int>;

fn model_returned(code: c_int, sigma: f64) -> String {
    format!("the model callback returned {code} at sigma {sigma}")
}

/// Runs `schedule` from `x_t` (noise level `lmsd_schedule_sigma_start`) and writes the end point
/// to `out`, which may be `x_t`. `observer` may be NULL. `out` is untouched on failure.
/// `LMSD_STATUS_NON_FINITE` names the node whose prediction was not finite.
///
/// # Safety
/// `schedule` is valid, `host` NULL or valid, tensors are of this host and of one shape.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sample(
    schedule: *const LmsdSchedule,
    host: *const LmsdHost,
    x_t: *const c_void,
    model: LmsdModel,
    observer: LmsdObserver,
    user_data: *mut c_void,
    out: *mut c_void,
) -> Status {
    guard(|| {
        let schedule = &unsafe { given(schedule, "schedule") }?.0;
        let backend = unsafe { Backend::new(host) }?;
        let x_t = unsafe { backend.borrow(x_t, "x_t") }?;
        let mut out = unsafe { backend.borrow(out, "out") }?;
        backend.check_output(&out, &x_t)?;
        let model = model.ok_or_else(|| null("model"))?;
        let mut sampler = Sampler::new(backend, std::borrow::Cow::Borrowed(schedule), &x_t)?;
        sampler.run(
            &mut |x, sigma, denoised| {
                // SAFETY: the host's promise.
                match unsafe { model(user_data, x.pointer(), sigma, denoised.pointer()) } {
                    0 => Ok(()),
                    code => Err(Error::new(Status::Stopped, model_returned(code, sigma))),
                }
            },
            &mut |step: &Step<Handle>| {
                let Some(observer) = observer else { return Ok(()) };
                let step = LmsdStep {
                    struct_size: size_of::<LmsdStep>(),
                    index: step.index,
                    nfe: step.nfe,
                    sigma: step.sigma,
                    model_sigma: step.model_sigma,
                    x: step.x.pointer(),
                    denoised: step.denoised.pointer(),
                };
                // SAFETY: the host's promise.
                match unsafe { observer(user_data, &step) } {
                    0 => Ok(()),
                    code => Err(Error::new(
                        Status::Stopped,
                        format!("the observer returned {code} at node {}", step.index),
                    )),
                }
            },
        )?;
        backend.lincomb(&mut out, &[(1.0, sampler.state())])
    })
}

/// A run whose loop the host owns; made by `lmsd_sampler_new`, freed by `lmsd_sampler_free`. One
/// thread at a time.
pub struct LmsdSampler {
    sampler: Sampler<'static, Backend>,
    backend: Backend,
}

/// Starts a run from `x_t` (noise level `lmsd_schedule_sigma_start`), which is copied, as is the
/// schedule. `host`'s functions and user data must live as long as the sampler.
///
/// # Safety
/// `schedule` is valid, `host` NULL or valid, `x_t` a tensor of it, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_new(
    schedule: *const LmsdSchedule,
    host: *const LmsdHost,
    x_t: *const c_void,
    out: *mut *mut LmsdSampler,
) -> Status {
    guard(|| {
        let schedule = unsafe { given(schedule, "schedule") }?.0.clone();
        let backend = unsafe { Backend::new(host) }?;
        let x_t = unsafe { backend.borrow(x_t, "x_t") }?;
        let out = unsafe { output(out, "out") }?;
        let sampler = Sampler::new(backend, std::borrow::Cow::Owned(schedule), &x_t)?;
        *out = Box::into_raw(Box::new(LmsdSampler { sampler, backend }));
        Ok(())
    })
}

/// The node to be evaluated next, from 0; equal to the schedule's NFE when the run is over, and
/// for NULL 0.
///
/// # Safety
/// `sampler` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_index(sampler: *const LmsdSampler) -> usize {
    guard_or(0, || unsafe { sampler.as_ref() }.map_or(0, |s| s.sampler.index()))
}

/// Where to call the model next: writes the state to `x` and its noise level, as the model is to
/// be told it, to `sigma`. `LMSD_STATUS_WRONG_STATE` when the run is over.
///
/// # Safety
/// `sampler` is valid, `sigma` writable, `x` a tensor of the sampler's host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_next(
    sampler: *const LmsdSampler,
    sigma: *mut f64,
    x: *mut c_void,
) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = unsafe { given(sampler, "sampler") }?;
        let sigma = unsafe { output(sigma, "sigma") }?;
        let mut x = unsafe { backend.borrow(x, "x") }?;
        let next = sampler.model_sigma().ok_or_else(|| {
            Error::new(Status::WrongState, "the run is over; lmsd_sampler_result has the end point")
        })?;
        backend.lincomb(&mut x, &[(1.0, sampler.state())])?;
        *sigma = next;
        Ok(())
    })
}

/// Advances with the model's prediction at the present node, which is copied. Refuses one that is
/// not finite, and a step after the last; the sampler then stays where it is.
///
/// # Safety
/// `sampler` is valid, `denoised` a tensor of its host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_step(sampler: *mut LmsdSampler, denoised: *const c_void) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = unsafe { output(sampler, "sampler") }?;
        let denoised = unsafe { backend.borrow(denoised, "denoised") }?;
        sampler.check_open()?;
        sampler.check_finite(&denoised)?;
        let mut own = sampler.buffer()?;
        backend.lincomb(&mut own, &[(1.0, &denoised)])?;
        sampler.step(own)
    })
}

/// Replaces the state at the present node by a copy of `x`, for hosts that change it between steps,
/// as inpainting does; predictions made before are kept. `x` has the noise level of that node: at the
/// first one this is the node's sigma, which may lie below `lmsd_schedule_sigma_start`.
/// `LMSD_STATUS_WRONG_STATE` when the run is over.
///
/// # Safety
/// `sampler` is valid, `x` a tensor of its host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_set_state(sampler: *mut LmsdSampler, x: *const c_void) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = unsafe { output(sampler, "sampler") }?;
        let x = unsafe { backend.borrow(x, "x") }?;
        sampler.set_state(&x)
    })
}

/// Writes the state where the run stands to `out`: the end point when it is over.
///
/// # Safety
/// `sampler` is valid, `out` a tensor of its host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_result(sampler: *const LmsdSampler, out: *mut c_void) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = unsafe { given(sampler, "sampler") }?;
        let mut out = unsafe { backend.borrow(out, "out") }?;
        backend.lincomb(&mut out, &[(1.0, sampler.state())])
    })
}

/// Frees a sampler. NULL is fine.
///
/// # Safety
/// `sampler` is NULL or made by `lmsd_sampler_new`, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_free(sampler: *mut LmsdSampler) {
    guard_or((), || unsafe { free_box(sampler) })
}

// ---------------------------------------------------------------- distillation

/// How far a distillation is.
#[repr(C)]
pub struct LmsdProgress {
    /// `sizeof(lmsd_progress)` of the library.
    pub struct_size: usize,
    /// 0 teacher, 1 ranking the published solvers, 2 fitting, 3 growing by a node, 4 the plan is made: told
    /// once, before the long part, with the calls and seconds that it will take.
    pub phase: i32,
    /// NFE of the schedule in work.
    pub nfe: usize,
    /// Batch calls of the model so far, the teacher's among them.
    pub calls: u64,
    /// How many there will be: until the plan is made those before it, then by the plan.
    pub calls_expected: u64,
    /// Best held-out distance at this NFE so far; infinite before the first.
    pub distance: f64,
    /// Held-out distance of the best of the strongest published field at this NFE; infinite before it is
    /// known.
    pub handcrafted: f64,
    /// Estimated seconds to the end.
    pub seconds_left: f64,
    /// Trajectories in a batch: so many image-calls is one call.
    pub batch: usize,
    /// With the plan: how many times nearer to the teacher than the best of the strongest published field
    /// similar runs have ended at `nfe`; infinite before.
    pub gain_expected: f64,
}

/// The host's side of a distillation. Functions get `user_data` first, run on the calling thread,
/// keep no pointer after they return, and return 0 or, to stop, anything else.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LmsdProblem {
    /// Set to `sizeof(lmsd_problem)`.
    pub struct_size: usize,
    /// Handed to every function.
    pub user_data: *mut c_void,
    /// A tensor of the shape, dtype and device of one batch; its contents are not read.
    pub like: *const c_void,
    /// Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
    /// model depends on (prompts, labels). The same index always gives the same batch. Fitted
    /// batches count from 0, held-out ones from 2^20, those of `lmsd_compare` from 2^21.
    pub begin: Option<unsafe extern "C" fn(user_data: *mut c_void, batch: u64, x_t: *mut c_void) -> c_int>,
    /// The model, for the current batch.
    pub model: LmsdModel,
    /// Hears how far things are after every model call; nonzero ends the run, which then keeps
    /// the best so far and succeeds. May be NULL.
    pub progress:
        Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const LmsdProgress) -> c_int>,
    /// Which of `ranks` processes this one is, from 0, where several share a distillation. Each rank
    /// calls the model for every `ranks`-th batch only; all need the same options, model and batches,
    /// and get the same schedules, those of one rank that has all batches.
    pub rank: usize,
    /// How many processes share the distillation; 0 and 1 mean this one alone.
    pub ranks: usize,
    /// Adds up `count` values over all ranks, in place: the same call is made on every rank, and each
    /// must get the same sums. Fits `MPI_Allreduce(MPI_IN_PLACE, values, count, MPI_DOUBLE, MPI_SUM,
    /// comm)`. Where a rank is lost it must return nonzero in finite time: the call then ends with
    /// `LMSD_STATUS_STOPPED`. A rank that fails otherwise tells the others through it, and every rank
    /// ends with its error. May be NULL on one rank.
    pub sum: Option<unsafe extern "C" fn(user_data: *mut c_void, count: usize, values: *mut f64) -> c_int>,
    /// Why the last function of this struct that returned nonzero did: returns a `lmsd_status` and
    /// writes one sentence to `*text`, valid until the next one fails. The call's error, on every rank,
    /// then says so. May be NULL.
    pub error: Option<unsafe extern "C" fn(user_data: *mut c_void, text: *mut *const c_char) -> c_int>,
}

struct HostProblem(LmsdProblem);

impl HostProblem {
    /// # Safety
    /// `problem` is NULL or valid.
    unsafe fn new(problem: *const LmsdProblem) -> Result<HostProblem> {
        // SAFETY: the caller's promise; a size of the first version ends before `rank`.
        let older = [offset_of!(LmsdProblem, rank)];
        let problem = unsafe { read_sized(problem, "problem", "lmsd_problem", &older) }?;
        if problem.ranks > 1 && problem.sum.is_none() {
            return Err(Error::argument(format!(
                "problem->ranks is {} but problem->sum is NULL; ranks need a sum over all of them",
                problem.ranks
            )));
        }
        for (name, missing) in [("begin", problem.begin.is_none()), ("model", problem.model.is_none())] {
            if missing {
                return Err(null(&format!("problem->{name}")));
            }
        }
        Ok(HostProblem(problem))
    }

    fn said(&self, code: c_int, what: impl Fn() -> String) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the host's promise.
        let reason = unsafe { reason(self.0.error, self.0.user_data) };
        let (status, text) = reason.unwrap_or((Status::Stopped, String::new()));
        let colon = if text.is_empty() { "" } else { ": " };
        Err(Error::new(status, format!("{}{colon}{text}", what())))
    }
}

impl Problem<Handle> for HostProblem {
    fn begin(&mut self, batch: u64, x_t: &mut Handle) -> Result<()> {
        let begin = self.0.begin.expect("checked by HostProblem::new");
        // SAFETY: the host's promise.
        let code = unsafe { begin(self.0.user_data, batch, x_t.pointer()) };
        self.said(code, || format!("the begin callback returned {code} at batch {batch}"))
    }

    fn denoise(&mut self, x: &Handle, sigma: f64, denoised: &mut Handle) -> Result<()> {
        let model = self.0.model.expect("checked by HostProblem::new");
        // SAFETY: the host's promise.
        let code = unsafe { model(self.0.user_data, x.pointer(), sigma, denoised.pointer()) };
        self.said(code, || model_returned(code, sigma))
    }

    fn progress(&mut self, p: &Progress) -> bool {
        let Some(progress) = self.0.progress else { return true };
        let told = LmsdProgress {
            struct_size: size_of::<LmsdProgress>(),
            phase: p.phase as i32,
            nfe: p.nfe,
            calls: p.calls,
            calls_expected: p.calls_expected,
            distance: p.distance,
            handcrafted: p.handcrafted,
            seconds_left: p.seconds_left,
            batch: p.batch,
            gain_expected: p.gain_expected,
        };
        // SAFETY: the host's promise.
        unsafe { progress(self.0.user_data, &told) == 0 }
    }

    fn ranks(&self) -> (usize, usize) {
        (self.0.rank, self.0.ranks.max(1))
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<()> {
        let Some(sum) = self.0.sum else { return Ok(()) };
        // SAFETY: the host's promise.
        let code = unsafe { sum(self.0.user_data, values.len(), values.as_mut_ptr()) };
        self.said(code, || {
            format!("the sum callback of rank {} returned {code}; is a rank lost?", self.0.rank)
        })
    }
}

/// What a distillation leaves; made by `lmsd_distill`, freed by `lmsd_distilled_free`.
pub struct LmsdDistilled(Distilled);

/// Distils schedules for the model of `problem`, by forward calls only.
///
/// `options`: a JSON object, all fields optional:
/// [options of distill]
///
/// The result holds one schedule for each NFE. One that does not beat every handcrafted solver on
/// held-out trajectories is replaced by the best of those and says so (`"improved": false`).
///
/// # Safety
/// `options` is a NUL-terminated string, `host` NULL or valid, `problem` valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distill(
    options: *const c_char,
    host: *const LmsdHost,
    problem: *const LmsdProblem,
    out: *mut *mut LmsdDistilled,
) -> Status {
    guard(|| {
        let config = Config::from_json(unsafe { text(options, "options") }?)?;
        let backend = unsafe { Backend::new(host) }?;
        let mut problem = unsafe { HostProblem::new(problem) }?;
        let like = unsafe { backend.borrow(problem.0.like, "problem->like") }?;
        let out = unsafe { output(out, "out") }?;
        let distilled = distill::distill(&backend, &config, &like, &mut problem)?;
        *out = Box::into_raw(Box::new(LmsdDistilled(distilled)));
        Ok(())
    })
}

/// Number of schedules, smallest NFE first; 0 for NULL.
///
/// # Safety
/// `distilled` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_count(distilled: *const LmsdDistilled) -> usize {
    guard_or(0, || unsafe { distilled.as_ref() }.map_or(0, |d| d.0.schedules().count()))
}

/// A copy of schedule `index`, to be freed with `lmsd_schedule_free`.
///
/// # Safety
/// `distilled` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_schedule(
    distilled: *const LmsdDistilled,
    index: usize,
    out: *mut *mut LmsdSchedule,
) -> Status {
    unsafe {
        give_schedule(out, || {
            let all = &given(distilled, "distilled")?.0;
            let count = all.schedules().count();
            all.schedules().nth(index).cloned().ok_or_else(|| {
                Error::argument(format!("index is {index}; there are {count} schedules, counted from 0"))
            })
        })
    }
}

/// How the distillation went, as JSON: calls, seconds, why it ended, and for each NFE its distances
/// and its course. To be freed with `lmsd_string_free`.
///
/// # Safety
/// `distilled` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_report(
    distilled: *const LmsdDistilled,
    out: *mut *mut c_char,
) -> Status {
    guard(|| {
        let distilled = unsafe { given(distilled, "distilled") }?;
        let out = unsafe { output(out, "out") }?;
        *out = give_text(distilled.0.to_json())?;
        Ok(())
    })
}

/// Frees the result of a distillation. NULL is fine.
///
/// # Safety
/// `distilled` is NULL or made by `lmsd_distill`, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_free(distilled: *mut LmsdDistilled) {
    guard_or((), || unsafe { free_box(distilled) })
}

/// Mean Euclidean distances of `count` schedules to the teacher's end points, over `"held_out"`
/// trajectories that no distillation sees (batches from 2^21).
///
/// `options`: a JSON object, all fields optional; those of `lmsd_distill` that are not among them are taken and
/// change nothing:
/// [options of compare]
///
/// # Safety
/// As in `lmsd_distill`; `schedules` and `distances` have `count` entries.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_compare(
    options: *const c_char,
    host: *const LmsdHost,
    problem: *const LmsdProblem,
    count: usize,
    schedules: *const *const LmsdSchedule,
    distances: *mut f64,
) -> Status {
    guard(|| {
        let config = Config::from_json(unsafe { text(options, "options") }?)?;
        let backend = unsafe { Backend::new(host) }?;
        let mut problem = unsafe { HostProblem::new(problem) }?;
        let like = unsafe { backend.borrow(problem.0.like, "problem->like") }?;
        let schedules: Result<Vec<&Schedule>> = unsafe { slice(schedules, count, "schedules") }?
            .iter()
            .map(|s| unsafe { given(*s, "a schedule") }.map(|s| &s.0))
            .collect();
        if distances.is_null() {
            return Err(null("distances"));
        }
        let found = distill::compare(&backend, &config, &like, &mut problem, &schedules?)?;
        // SAFETY: room for `count` values by the caller's promise.
        unsafe { ptr::copy_nonoverlapping(found.as_ptr(), distances, count) };
        Ok(())
    })
}
