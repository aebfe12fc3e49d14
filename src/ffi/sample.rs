//! Sampling: the library's loop, or the host's own, step by step.

use std::borrow::Cow;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use super::guard::{guard, guard_or};
use super::pointers::{Host, Input, Output, given, put};
use super::schedule::{COPIED, LmsdSchedule, room_for};
use crate::call::Call;
use crate::error::{Error, Result, Status};
use crate::host::{Backend, Handle};
use crate::inside::outside;
use crate::sample::{Sampler, Step};
use crate::tensor::Tensors;

/// The model: writes to `denoised` its prediction of x0 at `x`, whose noise level is `call->sigma`,
/// guidance included. Runs on the calling thread, keeps no pointer; returns 0, or anything else to
/// stop the call with `LMSD_STATUS_STOPPED`. The built-in backend's tensors are compact with
/// `byte_offset` 0; the model fills `denoised`'s memory and leaves the descriptor as it is.
pub type LmsdModel = Option<
    unsafe extern "C" fn(
        user_data: *mut c_void,
        call: *const Call,
        x: *const c_void,
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

/// Calls the model. `refused` makes the error of what it returns, if that is not 0.
///
/// # Safety
/// `model` is as `lmsd_model` says, `user_data` its own, the tensors of its host.
pub(super) unsafe fn call_model(
    model: LmsdModel,
    user_data: *mut c_void,
    call: &Call,
    x: &Handle,
    denoised: &mut Handle,
    refused: impl FnOnce(c_int, String) -> Result<()>,
) -> Result<()> {
    let model = given(model, "model")?;
    // SAFETY: the caller's promise; `call` stays during the call.
    match outside(|| unsafe { model(user_data, call, x.pointer(), denoised.pointer()) }) {
        0 => Ok(()),
        code => refused(code, format!("the model callback returned {code} at sigma {}", call.sigma)),
    }
}

/// Runs `schedule` from `x_t` (noise level `lmsd_schedule_sigma_start`) and writes the end point
/// to `out`, which may be `x_t`. `observer` may be NULL. `out` is untouched on failure.
/// `LMSD_STATUS_NON_FINITE` names the node whose prediction was not finite.
///
/// # Safety
/// `schedule` is valid, `host` NULL or valid, tensors are of this host and of one shape.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sample(
    schedule: Option<&LmsdSchedule>,
    host: Host,
    x_t: Input,
    model: LmsdModel,
    observer: LmsdObserver,
    user_data: *mut c_void,
    out: Output,
) -> Status {
    guard(|| {
        let schedule = &given(schedule, "schedule")?.0;
        let backend = host.backend()?;
        let x_t = x_t.borrow(&backend, "x_t")?;
        let mut out = out.borrow(&backend, "out")?;
        backend.check_output(&out, &x_t)?;
        given(model, "model")?;
        let mut sampler = Sampler::new(backend, Cow::Borrowed(schedule), &x_t)?;
        sampler.run(
            &mut |x, call, denoised| {
                let stopped = |_, said| Err(Error::new(Status::Stopped, said));
                // SAFETY: the promise above; `x` and `denoised` are of `host`.
                unsafe { call_model(model, user_data, call, x, denoised, stopped) }
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
                // SAFETY: the caller's observer, called as `lmsd_observer` says; `step` stays during the call.
                match outside(|| unsafe { observer(user_data, &step) }) {
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
    schedule: Option<&LmsdSchedule>,
    host: Host,
    x_t: Input,
    out: Option<&mut MaybeUninit<Box<LmsdSampler>>>,
) -> Status {
    guard(|| {
        let schedule = &given(schedule, "schedule")?.0;
        room_for(schedule, COPIED)?;
        let backend = host.backend()?;
        let x_t = x_t.borrow(&backend, "x_t")?;
        let out = given(out, "out")?;
        let sampler = Sampler::new(backend, Cow::Owned(schedule.clone()), &x_t)?;
        put(out, Box::new(LmsdSampler { sampler, backend }))
    })
}

/// Another run that stands where `sampler` does, and goes on without it; to be freed with
/// `lmsd_sampler_free`. Its host is that of `sampler`, whose functions and user data must live as long as it, too.
///
/// # Safety
/// `sampler` is valid, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_copy(
    sampler: Option<&LmsdSampler>,
    out: Option<&mut MaybeUninit<Box<LmsdSampler>>>,
) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = given(sampler, "sampler")?;
        room_for(sampler.schedule(), COPIED)?;
        let out = given(out, "out")?;
        put(out, Box::new(LmsdSampler { sampler: sampler.copy()?, backend: *backend }))
    })
}

/// The node to be evaluated next, from 0; equal to the schedule's NFE when the run is over, and
/// for NULL 0.
///
/// # Safety
/// `sampler` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_index(sampler: Option<&LmsdSampler>) -> usize {
    guard_or(0, || sampler.map_or(0, |s| s.sampler.index()))
}

/// Where to call the model next: writes the state to `x` and its noise level, as the model is to
/// be told it, to `sigma`. `LMSD_STATUS_WRONG_STATE` when the run is over.
///
/// # Safety
/// `sampler` is valid, `sigma` writable, `x` a tensor of the sampler's host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_next(
    sampler: Option<&LmsdSampler>,
    sigma: Option<&mut MaybeUninit<f64>>,
    x: Output,
) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = given(sampler, "sampler")?;
        let sigma = given(sigma, "sigma")?;
        let mut x = x.borrow(backend, "x")?;
        let next = sampler.model_sigma().ok_or_else(|| {
            Error::new(Status::WrongState, "the run is over; lmsd_sampler_result has the end point")
        })?;
        backend.lincomb(&mut x, &[(1.0, sampler.state())])?;
        sigma.write(next);
        Ok(())
    })
}

/// Advances with the model's prediction at the present node, which is copied. Refuses one that is
/// not finite, and a step after the last; the sampler then stays where it is.
///
/// # Safety
/// `sampler` is valid, `denoised` a tensor of its host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_step(sampler: Option<&mut LmsdSampler>, denoised: Input) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = given(sampler, "sampler")?;
        let denoised = denoised.borrow(backend, "denoised")?;
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
pub unsafe extern "C" fn lmsd_sampler_set_state(sampler: Option<&mut LmsdSampler>, x: Input) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = given(sampler, "sampler")?;
        let x = x.borrow(backend, "x")?;
        sampler.set_state(&x)
    })
}

/// Writes the state where the run stands to `out`: the end point when it is over.
///
/// # Safety
/// `sampler` is valid, `out` a tensor of its host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_result(sampler: Option<&LmsdSampler>, out: Output) -> Status {
    guard(|| {
        let LmsdSampler { sampler, backend } = given(sampler, "sampler")?;
        let mut out = out.borrow(backend, "out")?;
        backend.lincomb(&mut out, &[(1.0, sampler.state())])
    })
}

/// Frees a sampler. NULL is fine.
///
/// # Safety
/// `sampler` is NULL or made by `lmsd_sampler_new`, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_sampler_free(sampler: Option<Box<LmsdSampler>>) {
    guard_or((), || drop(sampler))
}
