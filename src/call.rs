//! What a host is told: of each call of its model, and how far a distillation is. These structs cross the C ABI
//! as they are.

use serde::{Deserialize, Serialize};

use crate::schedule::Schedule;

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
    /// Seven calls at the start of a distillation that find out whether the same call gives the same result, and one
    /// more, without guidance, where guidance is fitted.
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
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Call {
    /// `sizeof(lmsd_call)` of the library.
    pub struct_size: usize,
    /// Node of the schedule in work, from 0.
    pub node: usize,
    /// Number of nodes of that schedule.
    pub nfe: usize,
    /// Noise level of `x`, as the model is to be told it: the node's sigma times its scale.
    pub sigma: f64,
    /// What the call is for.
    pub purpose: Purpose,
    /// How much of the guidance to use: the guidance scale is 1 + guidance (w - 1), where w is the one that the user
    /// set. 1 but where a schedule was fitted with the option `fit_guidance`; `lmsd_schedule_is_guided` tells.
    pub guidance: f64,
}

impl Call {
    /// The call at node `node` of a schedule, to sample with it.
    pub fn at(schedule: &Schedule, node: usize) -> Self {
        let guidance = schedule.nodes()[node].guidance;
        Self {
            node,
            nfe: schedule.nfe(),
            guidance,
            ..Self::alone(schedule.model_sigma(node), Purpose::Sample)
        }
    }

    /// A call that belongs to no schedule.
    pub fn alone(sigma: f64, purpose: Purpose) -> Self {
        Self { struct_size: size_of::<Self>(), node: 0, nfe: 0, sigma, purpose, guidance: 1.0 }
    }
}

/// How far a distillation is. Told after every model call, and once with the plan.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// `sizeof(lmsd_progress)` of the library.
    pub struct_size: usize,
    /// What is being done.
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
    /// Measurements that could not be written to the checkpoint so far, as on a full disk. They are kept in memory and
    /// tried again with each new one, and the run goes on; one that is killed meanwhile loses them. 0: none.
    pub unwritten: usize,
}
