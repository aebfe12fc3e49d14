//! One call of the model: where in which schedule it stands and what it is for. Knows nothing else.

use serde::{Deserialize, Serialize};

/// What a call of the model is for.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Sampling: `lmsd_sample`.
    Sample = 0,
    /// A run of the teacher, whose end points a schedule is measured against. `node` and `nfe` are the teacher's.
    Teacher = 1,
    /// Measuring published solvers and other schedules that a fit may start from.
    Ranking = 2,
    /// Fitting: linearisations, trials, looks at the held-out batches, the place of a new node.
    Fit = 3,
    /// The schedules of `lmsd_compare`.
    Compare = 4,
    /// Seven calls at the start of a distillation that find out whether the same call gives the same result.
    /// They belong to no schedule: `node` and `nfe` are 0.
    Check = 5,
}

/// What a distillation or a comparison is doing.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Checking the model and the noise, and finding the teacher's end points.
    Teacher = 0,
    /// Ranking the published solvers.
    Rank = 1,
    /// Fitting.
    Fit = 2,
    /// Looking for the place of a new node.
    Grow = 3,
    /// The plan is made: told once, before the long part, with the calls and seconds that it will take.
    Plan = 4,
    /// Comparing schedules: `lmsd_compare`.
    Compare = 5,
}

/// A call of the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// Node of the schedule in work, from 0.
    pub node: usize,
    /// Number of nodes of that schedule.
    pub nfe: usize,
    /// Noise level that the model is told.
    pub sigma: f64,
    /// What it is for.
    pub purpose: Purpose,
}
