//! Distillation, and comparison with the teacher.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::guard::{guard, guard_or};
use super::pointers::{Host, Text, fill, given, put, put_text, slice};
use super::problem::{HostProblem, LmsdProblem};
use super::schedule::{LmsdSchedule, give_schedule};
use crate::distill::{self, Config, Distilled};
use crate::error::{Error, Result, Status};
use crate::host::{Backend, null};
use crate::schedule::Schedule;

/// What a distillation and a comparison are asked for with, checked.
///
/// # Safety
/// `problem` is NULL or valid.
unsafe fn asked(
    options: &Text,
    host: &Host,
    problem: *const LmsdProblem,
) -> Result<(Config, Backend, HostProblem)> {
    let config = Config::from_json(options.read("options")?)?;
    let backend = host.backend()?;
    // SAFETY: the caller's promise.
    let problem = unsafe { HostProblem::new(problem, backend) }?;
    Ok((config, backend, problem))
}

/// What a distillation leaves; made by `lmsd_distill`, freed by `lmsd_distilled_free`.
pub struct LmsdDistilled(Distilled);

/// Distills schedules for the model of `problem`, by forward calls only.
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
    options: Text,
    host: Host,
    problem: *const LmsdProblem,
    out: Option<&mut MaybeUninit<Box<LmsdDistilled>>>,
) -> Status {
    guard(|| {
        // SAFETY: NULL or a `lmsd_problem` by the promise above.
        let (config, backend, mut problem) = unsafe { asked(&options, &host, problem) }?;
        let like = problem.like()?;
        let out = given(out, "out")?;
        let distilled = distill::distill(&backend, &config, &like, &mut problem)?;
        put(out, Box::new(LmsdDistilled(distilled)))
    })
}

/// Number of schedules, smallest NFE first; 0 for NULL.
///
/// # Safety
/// `distilled` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_count(distilled: Option<&LmsdDistilled>) -> usize {
    guard_or(0, || distilled.map_or(0, |d| d.0.schedules().count()))
}

/// A copy of schedule `index`, to be freed with `lmsd_schedule_free`.
///
/// # Safety
/// `distilled` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_schedule(
    distilled: Option<&LmsdDistilled>,
    index: usize,
    out: Option<&mut MaybeUninit<Box<LmsdSchedule>>>,
) -> Status {
    give_schedule(out, || {
        let all = &given(distilled, "distilled")?.0;
        let count = all.schedules().count();
        all.schedules().nth(index).cloned().ok_or_else(|| {
            Error::argument(format!("index is {index}; there are {count} schedules, counted from 0"))
        })
    })
}

/// How the distillation went, as a JSON object, to be freed with `lmsd_string_free`: `"library_version"`, `"config"` (the
/// options with all defaults), `"ranks"`, `"batch"` (trajectories in a batch), `"image_calls"` (all calls times those),
/// `"teacher_nfe"` (on the held-out trajectories), `"teacher_calls"` and `"model_calls"` (batch calls of all ranks, the
/// teacher's and all others), `"ranking_calls"` (those of the latter that ranked published solvers), `"seconds"`,
/// `"callback_seconds"` (of them in the host's functions), `"stopped"` (null, or why it ended early: "cancelled", "calls",
/// "seconds"), `"checkpoint_error"` (null, or why the checkpoint lacks its end), and `"family"`, for each NFE, smallest
/// first, an object of `"nfe"`, `"distance"` (held-out; null where every candidate diverges), `"improved"` (whether it
/// beats every published solver) and `"trace"`, its course: objects of `"calls"` (batch calls so far), `"fresh"` (distance on
/// trajectories before it was fitted to them, or null) and `"held_out"` (distance).
///
/// # Safety
/// `distilled` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_report(
    distilled: Option<&LmsdDistilled>,
    out: Option<&mut MaybeUninit<*mut c_char>>,
) -> Status {
    guard(|| {
        let distilled = given(distilled, "distilled")?;
        let out = given(out, "out")?;
        put_text(out, distilled.0.to_json())
    })
}

/// Frees the result of a distillation. NULL is fine.
///
/// # Safety
/// `distilled` is NULL or made by `lmsd_distill`, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_distilled_free(distilled: Option<Box<LmsdDistilled>>) {
    guard_or((), || drop(distilled))
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
    options: Text,
    host: Host,
    problem: *const LmsdProblem,
    count: usize,
    schedules: *const Option<&LmsdSchedule>,
    distances: *mut f64,
) -> Status {
    guard(|| {
        // SAFETY: NULL or a `lmsd_problem` by the promise above.
        let (config, backend, mut problem) = unsafe { asked(&options, &host, problem) }?;
        let like = problem.like()?;
        // SAFETY: `count` entries by the promise above.
        let schedules = unsafe { slice(schedules, count, "schedules") }?;
        let schedules: Result<Vec<&Schedule>> =
            schedules.iter().map(|s| Ok(&given(*s, "a schedule")?.0)).collect();
        if distances.is_null() {
            return Err(null("distances")); // before the work
        }
        let found = distill::compare(&backend, &config, &like, &mut problem, &schedules?)?;
        // SAFETY: room for `count` values by the promise above, and there are as many.
        unsafe { fill(distances, &found, "distances") }
    })
}
