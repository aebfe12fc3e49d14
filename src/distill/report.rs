//! What a distillation leaves: schedules with their record, and how it went.

use serde::Serialize;

use super::Config;
use super::account::Caller;
use super::evaluator::Evaluator;
use crate::schedule::{Baseline, MadeBy, Schedule};
use crate::tensor::Tensors;

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
    /// Its number of model calls.
    pub nfe: usize,
    /// Held-out distance; None where every candidate diverges.
    pub distance: Option<f64>,
    /// Whether it beats every handcrafted solver on the held-out trajectories. If not, the
    /// schedule is the best handcrafted one.
    pub improved: bool,
    /// Its course.
    pub trace: Vec<Trace>,
    /// What is handed out.
    #[serde(skip)]
    pub schedule: Schedule,
}

/// What a distillation leaves: one schedule for each NFE, smallest first, and how it went.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Distilled {
    /// Version of the library that made it.
    pub library_version: String,
    /// The options, with all defaults.
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
    /// Wall time, that of runs which this one resumed included.
    pub seconds: f64,
    /// Seconds spent in the host's callbacks.
    pub callback_seconds: f64,
    /// Why it ended early: "cancelled", "calls", "seconds".
    pub stopped: Option<String>,
    /// Why the end of the checkpoint could not be written, as on a full disk; None where all of it is there.
    pub checkpoint_error: Option<String>,
    /// What became of each NFE, smallest first.
    pub family: Vec<Fitted>,
}

impl Distilled {
    /// The schedules, smallest NFE first.
    pub fn schedules(&self) -> impl Iterator<Item = &Schedule> {
        self.family.iter().map(|fitted| &fitted.schedule)
    }

    /// The report as JSON; the schedules are not in it.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("plain data always serializes")
    }
}

/// The method of published solvers, in their records.
pub(super) const HANDCRAFTED: &str = "handcrafted";

/// One NFE of the family in work.
pub(super) struct Entry {
    pub nfe: usize,
    /// Where its fit starts, the nearest first.
    pub starts: Vec<(Schedule, f64)>,
    /// The teacher that its fit has.
    pub teacher: Schedule,
    /// The best so far with its distance: on the held-out batches once they are measured.
    pub best: (Schedule, f64),
    /// Held-out distances of handcrafted solvers, best first; on the ranking batches until then.
    pub handcrafted: Vec<(Schedule, f64)>,
    /// What the best started from, with its distance: on the held-out batches where it is known there.
    pub start: Option<(Schedule, f64)>,
    pub trace: Vec<Trace>,
}

impl Entry {
    /// The schedule that an entry hands out, with its record.
    pub fn finished<B: Tensors>(self, eval: &Evaluator<B>) -> Fitted {
        let config = eval.config;
        let (mut schedule, distance) = self.best;
        let improved = distance < self.handcrafted[0].1;
        let word = if improved { "distilled" } else { HANDCRAFTED };
        let about = |s: &Schedule| s.made_by.clone().unwrap_or_default();
        let (start, start_distance) = self.start.as_ref().unwrap_or(&self.handcrafted[0]);
        let start = about(start);
        let mut made_for = config.made_for.clone();
        made_for.sigma_min.get_or_insert(config.sigma_min);
        made_for.sigma_max.get_or_insert(config.sigma_max);
        schedule.made_for = Some(made_for);
        schedule.name = Some(format!("{word}, {} NFE", self.nfe));
        let finite = |distance: f64| distance.is_finite().then_some(distance);
        let account = &eval.account;
        schedule.made_by = Some(MadeBy {
            method: word.into(),
            solver: start.solver,
            grid: start.grid,
            teacher: Some(format!("{}, {} NFE", config.teacher(), self.teacher.nfe())),
            trajectories: Some(config.trajectories as u64),
            held_out: Some(config.held_out as u64),
            seeds: config.seeds.clone(),
            model_calls: Some(account.calls(Caller::Student)),
            teacher_calls: Some(account.calls(Caller::Teacher)),
            seconds: Some(account.seconds()),
            library_version: Some(env!("CARGO_PKG_VERSION").into()),
            feature_weight: config.feature_weight.filter(|weight| *weight > 0.0),
            distance: finite(distance),
            start_distance: finite(*start_distance),
            improved: Some(improved),
            handcrafted: self
                .handcrafted
                .iter()
                .filter(|(_, distance)| distance.is_finite())
                .map(|(s, distance)| baseline_of(&about(s), *distance))
                .collect(),
            compared: Vec::new(),
        });
        Fitted { nfe: self.nfe, distance: finite(distance), improved, trace: self.trace, schedule }
    }
}

fn baseline_of(by: &MadeBy, distance: f64) -> Baseline {
    let word = |w: &Option<String>| w.clone().unwrap_or_default();
    Baseline { solver: word(&by.solver), grid: word(&by.grid), nfe: None, distance }
}
