//! Schedules: made, read, written, looked at, checked.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::path::Path;

use super::guard::{guard, guard_or};
use super::pointers::{Text, given, put, put_text};
use crate::error::{Error, Result, Status};
use crate::host::null;
use crate::json::{Named, Unique};
use crate::schedule::{self, MadeFor, Process, Schedule};
use crate::{growing, memory, sized, solver};

/// A multistep sampler as data; made by `lmsd_schedule_*`, freed by `lmsd_schedule_free`.
/// It never changes, so any number of threads may use it at once.
pub struct LmsdSchedule(pub(super) Schedule);

/// One node of a schedule: a model call and the update that follows it.
#[repr(C)]
#[derive(Clone, Copy)]
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
    /// How much of the guidance this call has, as in `lmsd_call`.
    pub guidance: f64,
}

growing!(LmsdNode, "lmsd_node", { struct_size, sigma, scale, weights, weight_count }, { guidance });

/// Refuses where there is no room for so many bytes for each number of a schedule.
pub(super) fn room_for(schedule: &Schedule, bytes: usize) -> Result<()> {
    let numbers: usize = schedule.nodes().iter().map(|node| 8 + node.weights.len()).sum();
    memory::room(bytes * numbers)
}

/// Bytes of a number in a copy, and in a text while it is put together.
pub(super) const COPIED: usize = 16;
const WRITTEN: usize = 96;

/// Guards an export that makes a schedule.
pub(super) fn give_schedule(
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
    make: impl FnOnce() -> Result<Schedule>,
) -> Status {
    guard(|| {
        let out = given(out, "out")?;
        put(out, Box::new(LmsdSchedule(make()?)))
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
pub unsafe extern "C" fn lmsd_schedule_solve(
    options: Text,
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
) -> Status {
    give_schedule(out, || {
        let Named(spec) = serde_json::from_str(options.read("options")?)
            .map_err(|e| Error::argument(format!("these are not options of a solver: {e}")))?;
        solver::solve(&spec)
    })
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
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
) -> Status {
    give_schedule(out, || {
        if json.is_null() {
            return Err(null("json"));
        }
        schedule::check_length(length as u64)?; // before a byte of it is believed to be there
        // SAFETY: not NULL, and readable for `length` bytes by the promise above.
        let bytes = unsafe { std::slice::from_raw_parts(json.cast::<u8>(), length) };
        let text = std::str::from_utf8(bytes)
            .map_err(|e| Error::schedule(format!("this is not UTF-8 text: {e}")))?;
        Schedule::from_json(text)
    })
}

/// Reads a schedule file (`path` in UTF-8).
///
/// # Safety
/// `path` is a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_load(
    path: Text,
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
) -> Status {
    give_schedule(out, || Schedule::load(Path::new(path.read("path")?)))
}

/// Writes a schedule file (`path` in UTF-8), whole or not at all: into a temporary file in the same folder, which then
/// takes its place. A link is followed, and the file that it leads to replaced; that keeps its permissions and, where
/// the system allows it, its owner. What is no regular file, such as a pipe, is refused, and so is what
/// `lmsd_schedule_load` would refuse. Any number of threads and processes may save to one path at once and read it
/// meanwhile: a reader meets the file of one of them.
///
/// # Safety
/// `schedule` is valid, `path` a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_save(schedule: Option<&LmsdSchedule>, path: Text) -> Status {
    guard(|| {
        let schedule = given(schedule, "schedule")?;
        room_for(&schedule.0, WRITTEN)?;
        schedule.0.save(Path::new(path.read("path")?))
    })
}

/// The text of the schedule's file, to be freed with `lmsd_string_free`.
///
/// # Safety
/// `schedule` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_to_json(
    schedule: Option<&LmsdSchedule>,
    out: Option<&mut MaybeUninit<*mut c_char>>,
) -> Status {
    guard(|| {
        let schedule = given(schedule, "schedule")?;
        let out = given(out, "out")?;
        room_for(&schedule.0, WRITTEN)?;
        put_text(out, schedule.0.text()?)
    })
}

/// Number of model calls; 0 for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_nfe(schedule: Option<&LmsdSchedule>) -> usize {
    guard_or(0, || schedule.map_or(0, |s| s.0.nfe()))
}

/// Noise level of the x_T that sampling starts from; NaN for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_sigma_start(schedule: Option<&LmsdSchedule>) -> f64 {
    guard_or(f64::NAN, || schedule.map_or(f64::NAN, |s| s.0.sigma_start()))
}

/// Noise level of the result; NaN for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_sigma_end(schedule: Option<&LmsdSchedule>) -> f64 {
    guard_or(f64::NAN, || schedule.map_or(f64::NAN, |s| s.0.sigma_end()))
}

/// Whether a node has another guidance than the host's own: a model that does not look at `guidance` of `lmsd_call`,
/// or of `lmsd_node`, must not be sampled with such a schedule. 1 or 0; 0 for NULL.
///
/// # Safety
/// `schedule` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_is_guided(schedule: Option<&LmsdSchedule>) -> c_int {
    guard_or(0, || schedule.map_or(0, |s| s.0.is_guided().into()))
}

/// Node `index`, 0 to nfe - 1. `out->struct_size` is set by the caller before the call.
///
/// # Safety
/// `schedule` is valid, `out` writable for its `struct_size`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_node(
    schedule: Option<&LmsdSchedule>,
    index: usize,
    out: *mut LmsdNode,
) -> Status {
    guard(|| {
        let schedule = &given(schedule, "schedule")?.0;
        let Some(node) = schedule.nodes().get(index) else {
            let last = schedule.nfe() - 1;
            return Err(Error::argument(format!("index is {index}; the nodes are 0 to {last}")));
        };
        let node = LmsdNode {
            struct_size: size_of::<LmsdNode>(),
            sigma: node.sigma,
            scale: node.scale,
            weights: node.weights.as_ptr(),
            weight_count: node.weights.len(),
            guidance: node.guidance,
        };
        // SAFETY: writable for its `struct_size` by the promise above.
        unsafe { sized::write(out, node, "out") }
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
    schedule: Option<&LmsdSchedule>,
    sigma: f64,
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
) -> Status {
    give_schedule(out, || {
        let schedule = &given(schedule, "schedule")?.0;
        room_for(schedule, COPIED)?;
        schedule.start_at(sigma)
    })
}

/// Refuses a schedule that was made for something else than `host`, a JSON object of the host's
/// own values, all optional: `"process"` ("ve" or "flow"), `"model"`, `"model_hash"` (texts), `"guidance_scale"`,
/// `"boundary"` (noise level below which a second model is called), `"guidance_scale_2"` (of that one), `"sigma_min"`,
/// `"sigma_max"`, `"shift"` (numbers, which may differ by 0.1 %) and `"latent_shape"` (whole numbers, without the batch).
/// Only what both sides state is compared; `LMSD_STATUS_MISMATCH` names the first value that differs. A schedule's own
/// `"guidance_range"` (two numbers) holds for the scales between. `"fingerprint"`, `"prediction"`, `"family"` (texts) and
/// `"snapped"` (true or false) may be there, too, and are not compared. The same fields are `"made_for"` of a
/// schedule's file, but for `"process"`.
///
/// # Safety
/// `schedule` is valid, `host` a NUL-terminated string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_schedule_check(schedule: Option<&LmsdSchedule>, host: Text) -> Status {
    guard(|| {
        let schedule = &given(schedule, "schedule")?.0;
        let text = host.read("host")?;
        let bad = |e| Error::argument(format!("host is not a description of a model: {e}"));
        // Not by serde's flatten, which lets unknown fields through.
        let Unique(host) = serde_json::from_str(text).map_err(bad)?;
        let mut host: serde_json::Map<String, serde_json::Value> =
            serde_json::from_value(host).map_err(bad)?;
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
pub unsafe extern "C" fn lmsd_schedule_free(schedule: Option<Box<LmsdSchedule>>) {
    guard_or((), || drop(schedule))
}
