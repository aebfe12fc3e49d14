//! Distillation: from published schedules to one fitted to a model, by forward calls only.
//!
//! A recorded run of the teacher and a few model calls rank the strongest published field; online
//! Gauss-Newton lowers the mean Euclidean distance to the teacher's end points on trajectories that are
//! fresh each time; a family of NFEs grows node by node; held-out trajectories decide what is kept. The
//! design space is that of DLMS (OpenReview vkOFOUDLTn), the optimiser is not.
//!
//! ```text
//! run        the whole, from checks to what is kept     compare   on trajectories that it never saw
//! plan       how many calls for what, before the long part
//! starts     the field, ranked                           generic   starts made once, for exact models
//! race       the fits of one number of calls             grow      where a new node goes
//! optimise   the fit: numbers only                       unknowns  the numbers of a schedule
//! fitting    linearisations, as the fit asks for them    jacobian  one, on one batch
//! teacher    its run, recorded                           recorded  what that says of schedules and grids
//! evaluator  batches, model, teacher's end points        check     whether these can be fitted to
//! residual   what a distance is made of                  report    what a run leaves
//! measure    the way of every measurement through:
//!            account (calls, time, progress), ranks (many processes), journal (the checkpoint)
//! config     the options
//! ```

mod account;
mod check;
mod compare;
mod config;
mod evaluator;
mod fitting;
mod generic;
mod grow;
mod jacobian;
mod journal;
mod measure;
mod optimise;
mod plan;
mod race;
mod ranks;
mod recorded;
mod report;
mod residual;
mod run;
mod starts;
mod teacher;
mod unknowns;

pub use crate::call::{Call, Phase, Progress, Purpose};
pub use compare::compare;
pub use config::{Config, Objective, WeightSums};
#[doc(hidden)] // for fuzz/
pub use journal::{Journal, Kind, Record};
pub use report::{Distilled, Fitted, Trace};
pub use run::distill;

use crate::error::{Error, Result, Status};

/// Batches with these indices and above are held out: never fitted to, they decide what is kept.
pub const HELD_OUT_BATCHES: u64 = 1 << 20;
/// Batches with these indices and above are for [`compare()`]: never seen by a distillation.
pub const TEST_BATCHES: u64 = 1 << 21;

/// The host's side of a distillation: noise and model. All calls come on the caller's thread.
pub trait Problem<T> {
    /// Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
    /// model depends on (prompts, labels). The same index must always give the same batch. x_T may be of another
    /// shape than `like`, with as many trajectories; all else on this batch then is, too.
    fn begin(&mut self, batch: u64, x_t: &mut T) -> Result<()>;

    /// Writes the model's prediction of x0 at `x`, noise level `call.sigma`, for the current batch.
    fn denoise(&mut self, x: &T, call: &Call, denoised: &mut T) -> Result<()>;

    /// Whether there are [`Problem::features`].
    fn has_features(&self) -> bool {
        false
    }

    /// Features of the end points `x` of the current batch: a new tensor of any shape, with as many trajectories. The
    /// same `x` must always give the same features, of the same shape for all `x` of one shape.
    fn features(&mut self, _x: &T) -> Result<T> {
        Err(Error::new(Status::Internal, "features were asked for where there are none"))
    }

    /// Hears how far things are; false ends the run, which then keeps the best so far.
    fn progress(&mut self, _progress: &Progress) -> bool {
        true
    }

    /// Which of how many processes this one is, counted from 0, where several share a run: each takes
    /// every `ranks().1`-th batch of a set. All need the same options, model and batches.
    fn ranks(&self) -> (usize, usize) {
        (0, 1)
    }

    /// Adds `values` up over all ranks, in place. Called as often, with as many values, on every rank.
    /// An error ends the run on this rank only: the others must find out by themselves, such as by a
    /// time-out.
    fn sum(&mut self, _values: &mut [f64]) -> Result<()> {
        Ok(())
    }
}
