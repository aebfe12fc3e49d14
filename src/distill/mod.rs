//! Distillation: from published schedules to one fitted to a model, by forward calls only.
//!
//! A recorded run of the teacher and a few model calls rank the strongest published field; online
//! Gauss-Newton lowers the mean Euclidean distance to the teacher's end points on trajectories that are
//! fresh each time; a family of NFEs grows node by node; held-out trajectories decide what is kept. The
//! design space is that of DLMS (OpenReview vkOFOUDLTn), the optimiser is not.
//!
//! ```text
//! run       the whole, from checks to what is kept
//! plan      how many calls for what, before the long part
//! starts    the field, ranked        grow      where a new node goes
//! optimise  the fit: numbers only    unknowns  the numbers of a schedule
//! jacobian  linearisations           teacher   its run, recorded
//! bench     batches and measurements
//! generic   starts made once, for exact models
//! account   calls, time, progress    journal   the checkpoint     ranks   many processes
//! ```

mod account;
mod bench;
mod generic;
mod grow;
mod jacobian;
mod journal;
pub mod optimise;
mod plan;
mod ranks;
mod run;
mod starts;
mod teacher;
mod unknowns;

pub use run::{compare, distill};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::field::Levels;
use crate::schedule::{MadeFor, Named, Process, Schedule};
use crate::solver::Grid;

/// Batches with these indices and above are held out: never fitted to, they decide what is kept.
pub const HELD_OUT_BATCHES: u64 = 1 << 20;
/// Batches with these indices and above are for [`compare`]: never seen by a distillation.
pub const TEST_BATCHES: u64 = 1 << 21;

/// Whether the weights of a node must sum to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sums {
    /// Any sum: fits better.
    #[default]
    Free,
    /// Sum 1, as in every published data-prediction method.
    Affine,
}

/// What to distil, and how hard to try. Crosses the ABI as a JSON object; unknown fields are refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Number of model calls of the schedule; the largest one when a family is wanted. 1 to 50.
    pub nfe: usize,
    /// The smallest one of the family. Default: `nfe`, no family.
    pub nfe_from: Option<usize>,
    pub process: Process,
    /// Smallest noise level the model knows.
    pub sigma_min: f64,
    /// Largest noise level the model knows, and that of x_T.
    pub sigma_max: f64,
    /// Noise level of the result: 0, or usually `sigma_min`.
    pub sigma_end: f64,
    /// Fresh trajectories that each fit gets, 4 or 8 at a time, rounded up to whole batches of the host's
    /// size. A batch of more than 16 makes fits dearer than they need to be: they want eight steps at least.
    pub trajectories: usize,
    /// Held-out trajectories that decide what is kept; rounded up to whole batches.
    pub held_out: usize,
    /// The teacher: a published solver on a fine grid. Default: deis_3.
    pub teacher: Option<String>,
    /// Its number of model calls, at least twice `nfe`. Default: measured, so that its own error is a tenth of
    /// the student's at most; 50 in a comparison.
    pub teacher_nfe: Option<usize>,
    /// Its grid. Default: Karras rho 7; for flow uniform in t.
    pub teacher_grid: Option<Grid>,
    /// Whether the weights of a node must sum to 1.
    pub sums: Sums,
    /// Most weights a node may have. Default: all of its history.
    pub order: Option<usize>,
    /// May the noise levels move?
    pub fit_sigmas: bool,
    /// May the first noise level move, below that of x_T? Not for hosts that hand x_T to the model as
    /// it is, such as flow pipelines.
    pub fit_start: bool,
    /// May the time scaling factors move?
    pub fit_scales: bool,
    /// May the weights move?
    pub fit_weights: bool,
    /// Forward difference in log sigma, log scale and weights. 1e-5 to 0.2; hosts that snap
    /// sigma or compute in half precision need 0.01 or more.
    pub difference_step: f64,
    /// Most linearisations for each NFE.
    pub iterations: usize,
    /// Schedules that fits may start from, beside the published ones, each at its own number of calls; such as
    /// those of the checkpoint that this one was tuned from. 64 at most.
    pub starts: Vec<serde_json::Value>,
    /// Batch calls of the model that the run may make, all included, of all ranks together. The plan keeps
    /// within them: fewer steps, fewer held-out trajectories, fewer NFEs.
    pub max_calls: Option<u64>,
    /// Seconds that the run may take; kept within likewise, at the speed that the first calls have.
    pub max_seconds: Option<f64>,
    /// A file to keep the run's measurements in. Where it exists already, the run resumes from it, on as
    /// many ranks as one likes. Only rank 0 reads and writes it.
    pub checkpoint: Option<PathBuf>,
    /// Copied into the schedules.
    pub made_for: MadeFor,
    /// The host's word for its noise and its conditions; copied into the schedules. A checkpoint
    /// made with another one is refused.
    pub seeds: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            nfe: 5,
            nfe_from: None,
            process: Process::Ve,
            sigma_min: 0.002,
            sigma_max: 80.0,
            sigma_end: 0.0,
            trajectories: 64,
            held_out: 24,
            teacher: None,
            teacher_nfe: None,
            teacher_grid: None,
            sums: Sums::Free,
            order: None,
            fit_sigmas: true,
            fit_start: true,
            fit_scales: true,
            fit_weights: true,
            difference_step: 0.02,
            iterations: 40,
            starts: Vec::new(),
            max_calls: None,
            max_seconds: None,
            checkpoint: None,
            made_for: MadeFor::default(),
            seeds: None,
        }
    }
}

impl Config {
    pub fn from_json(text: &str) -> Result<Self> {
        let Named(config): Named<Self> = serde_json::from_str(text)
            .map_err(|e| Error::argument(format!("these are not options of a distillation: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// Sets `starts`.
    pub fn start_from(&mut self, schedules: &[Schedule]) {
        let value = |schedule: &Schedule| serde_json::from_str(&schedule.to_json());
        self.starts = schedules.iter().map(|s| value(s).expect("what the library writes is JSON")).collect();
    }

    /// The schedules of `nfe` calls that the caller has a fit start from, for this process and these levels.
    pub(crate) fn given(&self, nfe: usize) -> Result<Vec<Schedule>> {
        let read = |(at, start): (usize, &serde_json::Value)| {
            let about = |m: String| Error::argument(format!("schedule {at} of starts: {m}"));
            let start = Schedule::from_json(&start.to_string()).map_err(|e| about(e.message))?;
            let its = (start.process(), start.sigma_start(), start.sigma_end());
            let wanted = (self.process, self.sigma_max, self.sigma_end);
            if its != wanted {
                return Err(about(format!(
                    "its process and noise levels from x_T to the end are {its:?}; they must be {wanted:?}"
                )));
            }
            Ok(start)
        };
        let all: Result<Vec<Schedule>> = self.starts.iter().enumerate().map(read).collect();
        Ok(all?.into_iter().filter(|start| start.nfe() == nfe).collect())
    }

    /// The solver that the teacher is.
    pub fn teacher(&self) -> &str {
        self.teacher.as_deref().unwrap_or("deis_3")
    }

    /// The noise levels of the published field.
    pub fn levels(&self) -> Levels {
        let Self { process, sigma_min, sigma_max, sigma_end, .. } = *self;
        Levels { process, sigma_min, sigma_max, sigma_end, shift: self.made_for.shift }
    }

    /// The smallest NFE wanted.
    pub fn nfe_from(&self) -> usize {
        self.nfe_from.unwrap_or(self.nfe)
    }

    pub fn validate(&self) -> Result<()> {
        let bad = |m: String| Err(Error::argument(m));
        let range = |what: &str, v: usize, low: usize, high: usize| {
            if (low..=high).contains(&v) {
                return Ok(());
            }
            Err(Error::argument(format!("{what} is {v}; it must be {low} to {high}")))
        };
        range("nfe", self.nfe, 1, 50)?;
        range("nfe_from", self.nfe_from(), 1, self.nfe)?;
        range("trajectories", self.trajectories, 1, 1 << 20)?;
        range("held_out", self.held_out, 1, 1 << 20)?;
        range("teacher_nfe", self.teacher_nfe.unwrap_or(1), 1, 1000)?;
        range("iterations", self.iterations, 1, 10_000)?;
        range("order", self.order.unwrap_or(1), 1, 50)?;
        if !(self.sigma_min > 0.0 && self.sigma_min < self.sigma_max && self.sigma_max.is_finite()) {
            return bad(format!(
                "sigma_min is {} and sigma_max {}; 0 < sigma_min < sigma_max is needed",
                self.sigma_min, self.sigma_max
            ));
        }
        if self.process == Process::Flow && self.sigma_max > 1.0 {
            return bad(format!("sigma_max is {}; a flow model knows 0 to 1", self.sigma_max));
        }
        if !(self.sigma_end >= 0.0 && self.sigma_end <= self.sigma_min) {
            return bad(format!(
                "sigma_end is {}; it must be 0 to sigma_min ({})",
                self.sigma_end, self.sigma_min
            ));
        }
        range("the number of starts", self.starts.len(), 0, 64)?;
        self.given(0)?;
        if !(1e-5..=0.2).contains(&self.difference_step) {
            return bad(format!("difference_step is {}; it must be 1e-5 to 0.2", self.difference_step));
        }
        if !(self.fit_sigmas || self.fit_scales || self.fit_weights) {
            return bad("fit_sigmas, fit_scales and fit_weights are all false; one must be true".into());
        }
        if self.max_seconds.is_some_and(|s| s.is_nan() || s <= 0.0) {
            return bad("max_seconds must be above 0".into());
        }
        Ok(())
    }
}

/// What a distillation is doing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Finding the teacher's end points.
    Teacher = 0,
    /// Ranking the handcrafted solvers.
    Rank = 1,
    /// Fitting.
    Fit = 2,
    /// Looking for the place of a new node.
    Grow = 3,
    /// The plan is made: told once, before the long part.
    Plan = 4,
}

/// How far a distillation is. Told after every model call, and once with the plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    pub phase: Phase,
    /// NFE of the schedule in work.
    pub nfe: usize,
    /// Batch calls of the model so far, the teacher's among them; with several ranks an estimate for
    /// all of them together.
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

/// What runs on the networks of this repository have gained on the strongest published field.
fn usual_gain(nfe: usize) -> f64 {
    match nfe {
        0..=3 => 1.2,
        4 => 1.6,
        5 => 2.3,
        6 => 2.6,
        _ => 3.0,
    }
}

/// The host's side of a distillation: noise and model. All calls come on the caller's thread.
pub trait Problem<T> {
    /// Makes batch `batch` current: writes its x_T (noise level `sigma_max`) and sets whatever the
    /// model depends on (prompts, labels). The same index must always give the same batch.
    fn begin(&mut self, batch: u64, x_t: &mut T) -> Result<()>;

    /// Writes the model's prediction of x0 at `x`, noise level `sigma`, for the current batch.
    fn denoise(&mut self, x: &T, sigma: f64, denoised: &mut T) -> Result<()>;

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

/// A look at a fit in work.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Trace {
    /// Batch calls so far.
    pub calls: u64,
    /// Distance on the trajectories of its last batch, before it was fitted to them.
    pub fresh: Option<f64>,
    /// Held-out distance.
    pub held_out: f64,
}

/// What became of one NFE.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fitted {
    pub nfe: usize,
    /// Held-out distance; None where every candidate diverges.
    pub distance: Option<f64>,
    /// Whether it beats every handcrafted solver on the held-out trajectories. If not, the
    /// schedule is the best handcrafted one.
    pub improved: bool,
    /// Its course.
    pub trace: Vec<Trace>,
    #[serde(skip)]
    pub schedule: Schedule,
}

/// What a distillation leaves: one schedule for each NFE, smallest first, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distilled {
    pub library_version: String,
    pub config: Config,
    /// Processes that shared the run.
    pub ranks: usize,
    /// Trajectories in a batch.
    pub batch: usize,
    /// All calls, each times the trajectories of a batch.
    pub image_calls: u64,
    /// Calls of the teacher of the held-out trajectories.
    pub teacher_nfe: usize,
    /// Batch calls by the teacher, of all ranks together, as the others.
    pub teacher_calls: u64,
    /// All other batch calls.
    pub model_calls: u64,
    /// Those of them that ranked the handcrafted solvers.
    pub ranking_calls: u64,
    pub seconds: f64,
    /// Seconds spent in the host's callbacks.
    pub callback_seconds: f64,
    /// Why it ended early: "cancelled", "calls", "seconds".
    pub stopped: Option<String>,
    pub family: Vec<Fitted>,
}

impl Distilled {
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.family.iter().map(|fitted| &fitted.schedule)
    }

    /// The report as JSON; the schedules are not in it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always serializes")
    }
}
