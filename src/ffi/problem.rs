//! The host's side of a distillation, and what it is told of it.

use std::ffi::{c_char, c_int, c_void};

use super::sample::{LmsdModel, call_model};
use crate::call::Call;
use crate::distill::{Problem, Progress};
use crate::error::{Error, Result, Status};
use crate::host::{Backend, Handle, null, reason};
use crate::inside::outside;
use crate::{growing, sized};

/// Ranks meet in sums of a few numbers each, and have the batches of a set among them.
const MOST_RANKS: usize = 1 << 16;

/// The host's side of a distillation. Functions get `user_data` first, run on the calling thread,
/// keep no pointer after they return, and return 0 or, to stop, anything else.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LmsdProblem {
    /// Set to `sizeof(lmsd_problem)`.
    pub struct_size: usize,
    /// Handed to every function.
    pub user_data: *mut c_void,
    /// A tensor of the shape, dtype and device of one batch. It must have memory (`data` may not be NULL); its contents are not read.
    pub like: *const c_void,
    /// Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
    /// model depends on (prompts, labels). The same index always gives the same batch. Fitted
    /// batches count from 0, held-out ones from 2^20, those of `lmsd_compare` from 2^21.
    ///
    /// `x_t` comes from the host's `alloc` with `like`. Where the host's own tensors can change their shape,
    /// `begin` may give `x_t` another one for each batch, with as many trajectories; all other tensors of that
    /// batch are then made by `alloc` with it or with what came of it.
    pub begin: Option<unsafe extern "C" fn(user_data: *mut c_void, batch: u64, x_t: *mut c_void) -> c_int>,
    /// The model, for the current batch.
    pub model: LmsdModel,
    /// Hears how far things are after every model call; nonzero ends the run, which then keeps
    /// the best so far and succeeds. May be NULL.
    pub progress: Option<unsafe extern "C" fn(user_data: *mut c_void, progress: *const Progress) -> c_int>,
    /// Which of `ranks` processes this one is, from 0, where several share a distillation. Each rank
    /// calls the model for every `ranks`-th batch only; all need the same options, model and batches,
    /// and get the same schedules, those of one rank that has all batches.
    pub rank: usize,
    /// How many processes share the distillation, 65536 at most; 0 and 1 mean this one alone.
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
    /// Features of end points, for distances to the teacher's in a space of the host's choice: those of the
    /// current batch's `x`, with which the option "feature_weight" goes. Writes a tensor of any shape, with as many
    /// trajectories as `x`, to `*features`: with the host's own tensors a new one, which the library hands to the
    /// host's `release`; with the built-in ones a `lmsd_tensor` of any dtype, which stays as it is until the next
    /// call of this function or the end of the distillation. The same `x` always gives the same features, and all
    /// `x` of one shape give features of one shape. A fit asks for them once for each unknown of a linearisation
    /// and each trial, on each batch. May be NULL.
    pub features: Option<
        unsafe extern "C" fn(user_data: *mut c_void, x: *const c_void, features: *mut *mut c_void) -> c_int,
    >,
}

growing!(
    LmsdProblem,
    "lmsd_problem",
    { struct_size, user_data, like, begin, model, progress },
    { rank, ranks, sum, error, features }
);

/// The functions of a [`LmsdProblem`] that was looked through.
pub(super) struct HostProblem {
    raw: LmsdProblem,
    backend: Backend,
}

impl HostProblem {
    /// # Safety
    /// `problem` is NULL or valid.
    pub(super) unsafe fn new(problem: *const LmsdProblem, backend: Backend) -> Result<HostProblem> {
        // SAFETY: the caller's promise.
        let problem = unsafe { sized::read(problem, "problem") }?;
        if problem.ranks > 1 && problem.sum.is_none() {
            return Err(Error::argument(format!(
                "problem->ranks is {} but problem->sum is NULL; ranks need a sum over all of them",
                problem.ranks
            )));
        }
        if problem.ranks > MOST_RANKS {
            return Err(Error::argument(format!(
                "problem->ranks is {}; it must be {MOST_RANKS} at most",
                problem.ranks
            )));
        }
        for (name, missing) in [("begin", problem.begin.is_none()), ("model", problem.model.is_none())] {
            if missing {
                return Err(null(&format!("problem->{name}")));
            }
        }
        Ok(HostProblem { raw: problem, backend })
    }

    /// The tensor that gives the shape of a batch.
    pub(super) fn like(&self) -> Result<Handle> {
        // SAFETY: NULL or a tensor of the host that goes with this problem, as `lmsd_problem` says.
        unsafe { self.backend.borrow(self.raw.like, "problem->like") }
    }

    fn said(&self, code: c_int, what: impl FnOnce() -> String) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: `error` is NULL or as `lmsd_problem` says, and gets its own user data.
        let reason = unsafe { reason(self.raw.error, self.raw.user_data) };
        let (status, text) = reason.unwrap_or((Status::Stopped, String::new()));
        let colon = if text.is_empty() { "" } else { ": " };
        Err(Error::new(status, format!("{}{colon}{text}", what())))
    }
}

impl Problem<Handle> for HostProblem {
    fn begin(&mut self, batch: u64, x_t: &mut Handle) -> Result<()> {
        let begin = self.raw.begin.expect("checked by HostProblem::new");
        // SAFETY: a `begin` as `lmsd_problem` says gets its own user data and a tensor of its host.
        let code = outside(|| unsafe { begin(self.raw.user_data, batch, x_t.pointer()) });
        self.said(code, || format!("the begin callback returned {code} at batch {batch}"))?;
        let (wanted, found) = (self.backend.trajectories(&self.like()?), self.backend.trajectories(x_t));
        if found == wanted {
            return Ok(());
        }
        Err(Error::tensor(format!(
            "x_T of batch {batch} has {found} trajectories; those of all batches have as many as problem->like, {wanted}"
        )))
    }

    fn denoise(&mut self, x: &Handle, call: &Call, denoised: &mut Handle) -> Result<()> {
        let refused = |code, said| self.said(code, || said);
        // SAFETY: the model and user data of `lmsd_problem`, tensors of the host that goes with it.
        unsafe { call_model(self.raw.model, self.raw.user_data, call, x, denoised, refused) }
    }

    fn has_features(&self) -> bool {
        self.raw.features.is_some()
    }

    fn features(&mut self, x: &Handle) -> Result<Handle> {
        let features = self.raw.features.expect("asked for where there are some");
        let mut found = std::ptr::null_mut();
        // SAFETY: a `features` as `lmsd_problem` says gets its own user data, a tensor of its host, and room for a
        // pointer.
        let code = outside(|| unsafe { features(self.raw.user_data, x.pointer(), &mut found) });
        self.said(code, || format!("the features callback returned {code}"))?;
        // SAFETY: NULL or a tensor as `lmsd_problem` says, of the host that goes with it.
        let found = unsafe { self.backend.adopt(found, "what features wrote") }?;
        let (wanted, trajectories) = (self.backend.trajectories(x), self.backend.trajectories(&found));
        if trajectories == wanted {
            return Ok(found);
        }
        Err(Error::tensor(format!(
            "features gave {trajectories} trajectories for the {wanted} of x; dimension 0 must have as many"
        )))
    }

    fn progress(&mut self, p: &Progress) -> bool {
        let Some(progress) = self.raw.progress else { return true };
        // SAFETY: a `progress` as `lmsd_problem` says gets its own user data and a struct that stays during the call.
        outside(|| unsafe { progress(self.raw.user_data, p) == 0 })
    }

    fn ranks(&self) -> (usize, usize) {
        (self.raw.rank, self.raw.ranks.max(1))
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<()> {
        let Some(sum) = self.raw.sum else { return Ok(()) };
        // SAFETY: a `sum` as `lmsd_problem` says gets its own user data and room for as many values as it is told.
        let code = outside(|| unsafe { sum(self.raw.user_data, values.len(), values.as_mut_ptr()) });
        self.said(code, || {
            format!("the sum callback of rank {} returned {code}; is a rank lost?", self.raw.rank)
        })
    }
}
