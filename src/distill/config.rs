//! The options of a distillation and of a comparison.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::field::Levels;
use crate::json::{Named, unique};
use crate::options::{between, check, count, flag, integer, number, one_of, options, other, text};
use crate::schedule::{MAX_FILE_BYTES, MadeFor, Process, Schedule};
use crate::solver::Grid;

/// Whether the weights of a node must sum to 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightSums {
    /// Any sum: fits better.
    #[default]
    Free,
    /// Sum 1, as in every published data-prediction method.
    Affine,
}

/// Which distances a fit lowers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// To the teacher's end point.
    #[default]
    End,
    /// To the teacher's states at the noise levels of the schedule's nodes, as in DLMS (OpenReview vkOFOUDLTn).
    Trajectory,
}

options! {
    /// What to distill, and how hard to try. Crosses the ABI as a JSON object; unknown fields are refused.
    struct Config {
        /// Model calls of the schedule; of the largest one where a family is wanted.
        nfe: usize = 5, integer(1, 50).of("model calls");
        /// Model calls of the smallest schedule of a family, at most `nfe`.
        nfe_from: Option<usize> = None, integer(1, 50).of("model calls"), else "nfe, which is no family";
        /// How noise is added: "ve" is x = x0 + sigma n, "flow" is x = (1 - sigma) x0 + sigma n.
        process: Process = Process::Ve, one_of(&["ve", "flow"]);
        /// Smallest noise level that the model knows.
        sigma_min: f64 = 0.002, number("above 0, below sigma_max").of("noise level");
        /// Largest noise level that the model knows, and that of x_T.
        sigma_max: f64 = 80.0, number("above sigma_min, for flow at most 1").of("noise level");
        /// Noise level of the result: 0, or usually `sigma_min`.
        sigma_end: f64 = 0.0, number("0 to sigma_min").of("noise level");
        /// Fresh trajectories that each fit gets, 4 or 8 at a time, rounded up to whole batches of the host's
        /// size. A batch of more than 16 makes fits dearer than they need to be: they want eight steps at least.
        trajectories: usize = 64, integer(1, 1 << 20).of("trajectories");
        /// Trajectories that no fit sees and that decide what is kept, rounded up to whole batches; in a
        /// comparison those that it is made on.
        held_out: usize = 24, integer(1, 1 << 20).of("trajectories");
        /// The published solver that is the teacher, on a fine grid.
        teacher: Option<String> = None, text().range("a name of lmsd_solvers"),
            else "deis_3, for flow unipc_bh2_3";
        /// Model calls of the teacher, at least twice `nfe`.
        teacher_nfe: Option<usize> = None, integer(1, 1000).of("model calls"),
            else "measured, so that its own error is at most a tenth of the student's; 50 in a comparison";
        /// The teacher's grid of noise levels. A list is interpolated to the teacher's number of calls.
        teacher_grid: Option<Grid> = None, other("grid", ""), else "karras with rho 7, for flow uniform in t";
        /// Whether the weights of a node may have any sum, which fits better, or must sum to 1 as in every
        /// published data-prediction method.
        weight_sums: WeightSums = WeightSums::Free, one_of(&["free", "affine"]);
        /// Which distances a fit lowers: those to the teacher's end points, or the mean over the schedule's nodes
        /// of those to the teacher's states at the same noise levels, as in DLMS (OpenReview vkOFOUDLTn). What
        /// decides between fits, and is reported, is the distance of end points all the same. "trajectory" takes
        /// memory: 2 tensors for each of the teacher's calls, on the batches of the ranking and those in work, and
        /// `nfe` tensors for each unknown of a Jacobian.
        objective: Objective = Objective::End, one_of(&["end", "trajectory"]);
        /// Share of the distance between the host's features in every distance that is fitted to, decides or is
        /// reported: 1 is features alone, in their own unit, and 0 no features. Between them, distances are
        /// (1 - w) d / s + w D / S: d is the distance between end points and D that between their features, s and S
        /// are the root mean square lengths of the teacher's end points and of their features over the trajectories
        /// that rank the published solvers, or over those of a comparison.
        feature_weight: Option<f64> = None, between(0.0, 1.0), else "1 where the host has features, else 0";
        /// Most weights that a node may have.
        order: Option<usize> = None, integer(1, 50).of("weights"), else "all of its history";
        /// Whether noise levels may move.
        fit_sigmas: bool = true, flag();
        /// Whether the first noise level may move below that of x_T. Not for hosts that hand x_T to the model as
        /// it is, such as flow pipelines.
        fit_start: bool = true, flag();
        /// Whether time scaling factors may move.
        fit_scales: bool = true, flag();
        /// Whether weights may move.
        fit_weights: bool = true, flag();
        /// Whether the guidance of each call may move: how much of the guidance scale that the user set it has. For
        /// models that set theirs as a call says; schedules of 4 to 6 calls then end nearer, by 3 to 20 percent.
        fit_guidance: bool = false, flag();
        /// Forward difference in log sigma, log scale and weights. Hosts that snap sigma to a table, or that
        /// compute in half precision, need 0.01 or more.
        difference_step: f64 = 0.02, between(1e-5, 0.2);
        /// Most linearisations for each NFE.
        iterations: usize = 40, integer(1, 10_000).of("linearisations");
        /// Schedules that fits may start from beside the published ones, each at its own number of calls and for
        /// this process, sigma_max and sigma_end; such as those of the checkpoint that this one was tuned from. One
        /// at least must have a number of calls that is asked for.
        #[serde(deserialize_with = "unique")]
        starts: Vec<Value> = Vec::new(), other("schedules", "at most 64");
        /// Batch calls of the model that the run may make, all included, of all ranks together. The plan keeps
        /// within them by fewer steps, fewer held-out trajectories and fewer NFEs.
        max_calls: Option<u64> = None, count().of("calls of a batch"), else "no limit";
        /// Seconds that the run may take, kept within likewise at the speed of the first calls.
        max_seconds: Option<f64> = None, number("above 0").of("seconds"), else "no limit";
        /// File for the run's measurements. Where it exists already the run resumes from it, on as many ranks as
        /// one likes. Only rank 0 reads and writes it. It is locked while the run goes on: a second run is refused
        /// and told the process of the first; when that ends, or is killed, so does the lock. Damage to its end, as a
        /// kill or a power cut leaves it, is cut off and measured again; elsewhere the file is refused with the
        /// number of the line.
        checkpoint: Option<PathBuf> = None, other("path", ""), else "none: a run that is killed is lost";
        /// What the schedules are for, copied into them: any of `model`, `model_hash`, `fingerprint`, `prediction`,
        /// `family`, `guidance_scale`, `guidance_range` (lowest and highest), `boundary` and `guidance_scale_2` (of a
        /// second network below that noise level), `latent_shape`, `sigma_min`, `sigma_max`, `shift`, `snapped`.
        made_for: MadeFor = MadeFor::default(), other("object", "");
        /// The host's name for its noise, its conditions and its features, copied into the schedules. A checkpoint
        /// made with another one is refused.
        seeds: Option<String> = None, text(), else "none";
    }
}

/// The options of a comparison.
const COMPARED: [&str; 10] = [
    "process",
    "sigma_min",
    "sigma_max",
    "sigma_end",
    "held_out",
    "teacher",
    "teacher_nfe",
    "teacher_grid",
    "feature_weight",
    "made_for",
];

impl Config {
    /// The options of a comparison, as described in `OPTIONS`.
    pub fn of_comparison() -> Vec<crate::options::Item> {
        Self::OPTIONS.iter().filter(|item| COMPARED.contains(&item.name)).copied().collect()
    }

    /// Reads and checks the options, a JSON object.
    pub fn from_json(text: &str) -> Result<Self> {
        let Named(config): Named<Self> = serde_json::from_str(text)
            .map_err(|e| Error::argument(format!("these are not options of a distillation: {e}")))?;
        config.validate()?;
        Ok(config)
    }

    /// The same with `feature_weight` as it is for a host that has features or not.
    pub fn with_features(&self, has_features: bool) -> Result<Self> {
        let weight = self.feature_weight.unwrap_or(f64::from(has_features));
        if weight > 0.0 && !has_features {
            return Err(Error::argument(format!(
                "feature_weight is {weight} but the problem has no features; hand features in, or leave it out"
            )));
        }
        if weight == 1.0 && self.objective == Objective::Trajectory {
            return Err(Error::argument(
                "objective is \"trajectory\" and feature_weight 1, which is features of end points alone; it must be \
                 below 1",
            ));
        }
        Ok(Self { feature_weight: Some(weight), ..self.clone() })
    }

    /// Sets `starts`.
    pub fn start_from(&mut self, schedules: &[Schedule]) {
        let value = |schedule: &Schedule| serde_json::from_str(&schedule.to_json());
        self.starts = schedules.iter().map(|s| value(s).expect("what the library writes is JSON")).collect();
    }

    /// The schedules of `nfe` calls that the caller has a fit start from, for this process and these levels.
    pub(crate) fn given(&self, nfe: usize) -> Result<Vec<Schedule>> {
        let read = |(at, start): (usize, &Value)| {
            let about = |m: String| Error::argument(format!("schedule {at} of starts: {m}"));
            let start = Schedule::from_json(&start.to_string()).map_err(|e| about(e.message))?;
            let its = (start.process(), start.sigma_start(), start.sigma_end());
            let wanted = (self.process, self.sigma_max, self.sigma_end);
            if its != wanted {
                return Err(about(format!(
                    "its process and noise levels from x_T to the end are {its:?}; they must be {wanted:?}"
                )));
            }
            if start.is_guided() && !self.fit_guidance {
                return Err(about(
                    "its calls have a guidance of their own; fit_guidance must be true".into(),
                ));
            }
            Ok(start)
        };
        let all: Result<Vec<Schedule>> = self.starts.iter().enumerate().map(read).collect();
        Ok(all?.into_iter().filter(|start| start.nfe() == nfe).collect())
    }

    /// The solver that the teacher is: of deis_3 (arXiv 2204.13902) and unipc_bh2_3 (arXiv 2302.04867) the one that ends
    /// nearer on the default grid. Emoji flow model, guidance 3, uniform in t, distance to the end of 240 calls after 20, 40
    /// and 60: deis_3 4.4 2.15 1.02, unipc_bh2_3 3.3 0.85 0.42; the digits as a flow model do not tell them apart.
    pub fn teacher(&self) -> &str {
        self.teacher.as_deref().unwrap_or(match self.process {
            Process::Ve => "deis_3",
            Process::Flow => "unipc_bh2_3",
        })
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

    /// The numbers of calls wanted, in words.
    fn nfes(&self) -> String {
        let (from, to) = (self.nfe_from(), self.nfe);
        if from == to { to.to_string() } else { format!("{from} to {to}") }
    }

    /// Refuses what the file of a schedule has no room for.
    fn check_texts(&self) -> Result<()> {
        let text = serde_json::to_string(&(&self.made_for, &self.seeds)).unwrap_or_default();
        let (bytes, most) = (text.len() as u64, MAX_FILE_BYTES / 2);
        if bytes <= most {
            return Ok(());
        }
        Err(Error::argument(format!("made_for and seeds have {bytes} bytes; they must have {most} at most")))
    }

    /// Refuses what is out of range, naming the value.
    pub fn validate(&self) -> Result<()> {
        let bad = |m: String| Err(Error::argument(m));
        check(Self::OPTIONS, self)?;
        if self.nfe_from() > self.nfe {
            return bad(format!("nfe_from is {}; it must be 1 to {}", self.nfe_from(), self.nfe));
        }
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
        if self.starts.len() > 64 {
            return bad(format!("the number of starts is {}; it must be 0 to 64", self.starts.len()));
        }
        let fits = |start: &Value| {
            start["nfe"].as_u64().is_some_and(|nfe| (self.nfe_from() as u64..=self.nfe as u64).contains(&nfe))
        };
        self.given(0)?;
        if !self.starts.is_empty() && !self.starts.iter().any(fits) {
            return bad(format!("none of starts has the {} calls that are asked for", self.nfes()));
        }
        self.check_texts()?;
        if self.difference_step.is_nan() {
            return bad("difference_step is not a number".into());
        }
        if !(self.fit_sigmas || self.fit_scales || self.fit_weights || self.fit_guidance) {
            let all = "fit_sigmas, fit_scales, fit_weights and fit_guidance";
            return bad(format!("{all} are all false; one must be true"));
        }
        if self.checkpoint.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return bad("checkpoint is an empty path; name a file, or leave it out".into());
        }
        if self.max_seconds.is_some_and(|s| s.is_nan() || s <= 0.0) {
            return bad("max_seconds must be above 0".into());
        }
        Ok(())
    }
}
