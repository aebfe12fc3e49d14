//! The schedule: everything a multistep sampler is, as data. Knows no tensors; its JSON text is in `schedule/file.rs`.
//!
//! A schedule with N nodes (N = NFE, the number of model calls) turns a state at noise level
//! `sigma_start` into one at `sigma_end`:
//!
//! ```text
//! x_0     = (sigma[0] / sigma_start) x_T
//! D_n     = model(x_n, scale[n] sigma[n]), at guidance scale 1 + guidance[n] (w - 1)
//! x_{n+1} = r x_n + g sum_j weights[n][j] D_{n-j},   r = sigma[n+1] / sigma[n],  g = 1 - r
//! ```
//!
//! with `sigma[N] = sigma_end`. Where two neighbours have the same sigma nothing advances, g is 1,
//! and the row is a correction (the second stage of Heun's method) whose weights sum to 0.
//! The form is the design space of DLMS (OpenReview vkOFOUDLTn): prediction coefficients
//! (`weights`), time steps (`sigma`) and time scaling factors (`scale`); and how much of the host's
//! classifier-free guidance, whose scale is w, a call has (`guidance`).

mod file;

use serde::{Deserialize, Serialize};

#[cfg(feature = "abi")]
pub(crate) use self::file::check_length;
pub use self::file::{FORMAT, MAX_FILE_BYTES};
use crate::error::{Error, Result, Status};
use crate::json;

/// A schedule is refused above this many nodes.
pub const MAX_NODES: usize = 1000;
const MAX_SIGMA: f64 = 1e6;
/// Most of the host's guidance that a call may have.
const MAX_GUIDANCE: f64 = 10.0;
const SCALE_RANGE: std::ops::RangeInclusive<f64> = 1e-3..=1e3;
const MAX_WEIGHT: f64 = 1e9;

/// How noise is added. In both, `dx/dsigma = (x - denoised) / sigma`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Process {
    /// x = x0 + sigma n: EDM, and epsilon- and v-models wrapped the k-diffusion way.
    #[default]
    Ve,
    /// x = (1 - sigma) x0 + sigma n, with sigma at most 1.
    Flow,
}

/// One model call and the update that follows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Noise level of the state, above 0, not above the node before.
    pub sigma: f64,
    /// Time scaling factor: the model is called at `scale * sigma`. 1e-3 to 1e3.
    #[serde(default = "one")]
    pub scale: f64,
    /// How much of the host's guidance this call has: its guidance scale is 1 + guidance (w - 1), where w is the
    /// host's. 1: all of it; 0: none, so that no unconditional prediction is needed. 0 to 10.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub guidance: f64,
    /// Prediction coefficients over D_n, D_{n-1}, ..., newest first; 1 to n + 1 of them.
    #[serde(deserialize_with = "json::list")]
    pub weights: Vec<f64>,
}

impl Node {
    /// A node of time scaling factor 1 and the host's own guidance.
    pub fn new(sigma: f64, weights: Vec<f64>) -> Self {
        Self { sigma, scale: 1.0, guidance: 1.0, weights }
    }
}

fn one() -> f64 {
    1.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

/// What a schedule was fitted to. A host refuses or warns where its own values differ.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MadeFor {
    /// A name for the model, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// A hash of its weights, in whatever form the host uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<String>,
    /// What of its weights is cheap to read, in whatever form the host uses. [`Schedule::check_made_for`] does not
    /// compare it: another checkpoint of the same model is worth a warning of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    /// What the network predicts, such as "eps", "v", "x0", "edm" or "flow"; for the host's warning, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prediction: Option<String>,
    /// The same in all schedules of one distillation and in no other, for hosts that look for the one of another NFE.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Classifier-free guidance scale (1 = none).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale: Option<f64>,
    /// Smallest and largest of the guidance scales that it was fitted to, in place of a single one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_range: Option<[f64; 2]>,
    /// Noise level below which a second network, that of low noise, is called instead of the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boundary: Option<f64>,
    /// Guidance scale of that second network, where it is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guidance_scale_2: Option<f64>,
    /// Shape of one latent, without the batch.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "json::optional_list")]
    pub latent_shape: Option<Vec<u64>>,
    /// Smallest noise level the model knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// Largest noise level the model knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Time shift of a flow model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift: Option<f64>,
    /// Whether the model snaps sigma to its training steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapped: Option<bool>,
}

/// The mean distance of another schedule, kept beside this one's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The published solver that it is of.
    pub solver: String,
    /// Its sigma grid, in words.
    pub grid: String,
    /// Where it is not that of the schedule itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfe: Option<u64>,
    /// Mean Euclidean distance to the teacher's end points, finite.
    pub distance: f64,
}

/// How a schedule came to be. Distances are means over held-out trajectories of the Euclidean
/// distance to the teacher's end point.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MadeBy {
    /// "handcrafted" or "distilled".
    pub method: String,
    /// The handcrafted solver, or the one the distillation started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub solver: Option<String>,
    /// Its sigma grid, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<String>,
    /// The teacher, in words: solver, grid and number of steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// Number of trajectories fitted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trajectories: Option<u64>,
    /// Number of held-out trajectories that decided what was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<u64>,
    /// The seeds of the noise, as the host tells them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seeds: Option<String>,
    /// Batch calls of the model, the teacher's not among them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_calls: Option<u64>,
    /// Batch calls of the model by the teacher.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teacher_calls: Option<u64>,
    /// Wall time in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// Version of the library that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library_version: Option<String>,
    /// Share of the host's features in these distances; None where they are between end points alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_weight: Option<f64>,
    /// Held-out distance of this schedule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distance: Option<f64>,
    /// Held-out distance of the schedule that the fit started from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_distance: Option<f64>,
    /// Whether this schedule beats every handcrafted one on the held-out trajectories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub improved: Option<bool>,
    /// The handcrafted solvers at the same NFE, best first.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::list")]
    pub handcrafted: Vec<Baseline>,
    /// Distances of this schedule and of others, at this NFE and at others, on trajectories that
    /// nothing was fitted to or selected by.
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "json::list")]
    pub compared: Vec<Baseline>,
}

/// A multistep sampler as data. Build one with [`Schedule::new`] or read one with
/// [`Schedule::from_json`]; both leave nothing unchecked, so a `Schedule` is always valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    process: Process,
    sigma_start: f64,
    sigma_end: f64,
    nodes: Vec<Node>,
    /// A name, for people.
    pub name: Option<String>,
    /// What it was fitted to.
    pub made_for: Option<MadeFor>,
    /// How it came to be.
    pub made_by: Option<MadeBy>,
}

impl Schedule {
    /// A checked schedule. `sigma_start` is the noise level of the x_T that the host hands in (at
    /// least `nodes[0].sigma`), `sigma_end` that of the result (0 allowed, below the last node).
    pub fn new(process: Process, sigma_start: f64, sigma_end: f64, nodes: Vec<Node>) -> Result<Self> {
        let schedule =
            Self { process, sigma_start, sigma_end, nodes, name: None, made_for: None, made_by: None };
        schedule.validate()?;
        Ok(schedule)
    }

    /// How noise is added.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Noise level of the x_T that sampling starts from.
    pub fn sigma_start(&self) -> f64 {
        self.sigma_start
    }

    /// Noise level of the result.
    pub fn sigma_end(&self) -> f64 {
        self.sigma_end
    }

    /// The model calls, from `sigma_start` down.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Number of model calls.
    pub fn nfe(&self) -> usize {
        self.nodes.len()
    }

    /// Noise level of state `n`, 0 to `nfe()` inclusive.
    pub fn sigma(&self, n: usize) -> f64 {
        self.nodes.get(n).map_or(self.sigma_end, |node| node.sigma)
    }

    /// The noise level that the model is called at, at node `n`.
    pub fn model_sigma(&self, n: usize) -> f64 {
        self.nodes[n].scale * self.nodes[n].sigma
    }

    /// Whether a call has another guidance than the host's own, so that the host must be able to set it.
    pub fn is_guided(&self) -> bool {
        self.nodes.iter().any(|node| node.guidance != 1.0)
    }

    /// The update after node `n` as plain factors: of x_n, and of D_n, D_{n-1}, ...
    pub fn row(&self, n: usize) -> (f64, Vec<f64>) {
        let (r, g) = advance(self.nodes[n].sigma, self.sigma(n + 1));
        (r, self.nodes[n].weights.iter().map(|w| g * w).collect())
    }

    /// The state at `n` over the basis [x_T, D_0, ..., D_{n-1}]. Whatever the solver, the first
    /// entry is `sigma(n) / sigma_start`; where all weights sum to 1 the others sum to its complement.
    pub fn expand(&self, n: usize) -> Vec<f64> {
        let mut state = vec![self.nodes[0].sigma / self.sigma_start];
        for m in 0..n {
            let (r, row) = self.row(m);
            state.iter_mut().for_each(|v| *v *= r);
            state.push(0.0);
            for (j, b) in row.iter().enumerate() {
                state[1 + m - j] += b;
            }
        }
        state
    }

    fn validate(&self) -> Result<()> {
        let bad = |m: String| Err(Error::schedule(m));
        let n = self.nodes.len();
        if n == 0 || n > MAX_NODES {
            return bad(format!("the schedule has {n} nodes; 1 to {MAX_NODES} are allowed"));
        }
        if !(self.sigma_start > 0.0 && self.sigma_start <= MAX_SIGMA) {
            return bad(format!(
                "sigma_start is {}; it must be above 0, at most {MAX_SIGMA}",
                self.sigma_start
            ));
        }
        if self.process == Process::Flow && self.sigma_start > 1.0 {
            return bad(format!("sigma_start is {}; a flow model knows 0 to 1", self.sigma_start));
        }
        if !(self.sigma_end >= 0.0 && self.sigma_end.is_finite()) {
            return bad(format!("sigma_end is {}; it must be 0 or above", self.sigma_end));
        }
        let mut above = self.sigma_start;
        for (i, node) in self.nodes.iter().enumerate() {
            if !(node.sigma > 0.0 && node.sigma.is_finite()) {
                return bad(format!("sigma of node {i} is {}; it must be above 0 and finite", node.sigma));
            }
            if node.sigma > above {
                let before = if i == 0 { "sigma_start".into() } else { format!("node {}", i - 1) };
                return bad(format!(
                    "sigma of node {i} is {}, above the {above} of {before}; sigmas must not increase",
                    node.sigma
                ));
            }
            above = node.sigma;
            if !SCALE_RANGE.contains(&node.scale) {
                return bad(format!("scale of node {i} is {}; it must be 1e-3 to 1e3", node.scale));
            }
            if self.process == Process::Flow && node.scale * node.sigma > 1.0 + 1e-9 {
                return bad(format!(
                    "scale times sigma of node {i} is {}; a flow model knows 0 to 1",
                    node.scale * node.sigma
                ));
            }
            if !(0.0..=MAX_GUIDANCE).contains(&node.guidance) {
                return bad(format!("guidance of node {i} is {}; it must be 0 to 10", node.guidance));
            }
            let w = node.weights.len();
            if w == 0 || w > i + 1 {
                return bad(format!("node {i} has {w} weights; 1 to {} are allowed", i + 1));
            }
            if let Some((j, v)) =
                node.weights.iter().enumerate().find(|(_, v)| !(-MAX_WEIGHT..=MAX_WEIGHT).contains(*v))
            {
                return bad(format!("weight {j} of node {i} is {v}; it must be finite, at most 1e9 in size"));
            }
        }
        if self.sigma_end >= above {
            return bad(format!(
                "sigma_end is {}; it must be below the last node's sigma {above}",
                self.sigma_end
            ));
        }
        Ok(())
    }

    /// The schedule for a state that is at noise level `sigma` already, as image-to-image hosts have
    /// it: `sigma_end` < `sigma` <= `sigma_start`.
    ///
    /// Above the first node's sigma all nodes stay. Below it the node nearest to `sigma` in log sigma
    /// moves there and those before it are dropped, so NFE falls. A row that loses predictions by
    /// that gives the oldest one left what its sum is short of 1 (of 0, where the row is a
    /// correction). The record of distances goes: it is about the whole schedule.
    pub fn start_at(&self, sigma: f64) -> Result<Self> {
        if !(sigma > self.sigma_end && sigma <= self.sigma_start) {
            let range = format!("above {} and at most {}", self.sigma_end, self.sigma_start);
            return Err(Error::argument(format!("sigma is {sigma}; this schedule starts {range}")));
        }
        let mut part = Self { sigma_start: sigma, ..self.clone() };
        if sigma == self.sigma_start {
            return Ok(part);
        }
        part.made_by =
            self.made_by.as_ref().map(|by| MadeBy { method: by.method.clone(), ..MadeBy::default() });
        if sigma < self.nodes[0].sigma {
            let far = |node: &Node| (node.sigma / sigma).ln().abs();
            // Of two at the same sigma the last: the row of the first is a correction.
            let nearest =
                (0..self.nfe()).rev().min_by(|a, b| far(&self.nodes[*a]).total_cmp(&far(&self.nodes[*b])));
            part.nodes.drain(..nearest.expect("there is a node"));
            part.nodes[0].sigma = sigma;
            for n in 0..part.nfe() {
                let sum = if part.sigma(n) == part.sigma(n + 1) { 0.0 } else { 1.0 };
                let weights = &mut part.nodes[n].weights;
                if weights.len() > n + 1 {
                    weights.truncate(n + 1);
                    weights[n] += sum - weights.iter().sum::<f64>();
                }
            }
            if self.process == Process::Flow {
                part.nodes.iter_mut().for_each(|node| node.scale = node.scale.min(1.0 / node.sigma));
            }
        }
        part.validate()?;
        Ok(part)
    }

    /// Refuses a schedule made for something else, naming the first value that differs. Only values
    /// that both sides state are compared. Sigmas, shift and guidance may differ by 0.1 %; a host's guidance scale
    /// may lie anywhere in the range of a schedule that has one.
    pub fn check_made_for(&self, process: Process, host: &MadeFor) -> Result<()> {
        let differs = |what: &str, made: String, here: String| {
            Err(Error::new(
                Status::Mismatch,
                format!("the schedule was made for {what} {made}; this model has {here}"),
            ))
        };
        if process != self.process {
            let name = |p| if p == Process::Ve { "ve" } else { "flow" };
            return differs("the process", name(self.process).into(), name(process).into());
        }
        let Some(own) = &self.made_for else { return Ok(()) };
        let same = |a: f64, b: f64| (a - b).abs() <= 1e-3 * a.abs().max(b.abs());
        for (what, made, here) in [
            ("shift", own.shift, host.shift),
            ("sigma_min", own.sigma_min, host.sigma_min),
            ("sigma_max", own.sigma_max, host.sigma_max),
            ("guidance scale", own.guidance_scale, host.guidance_scale),
            ("a second model below sigma", own.boundary, host.boundary),
            ("guidance scale of the second model", own.guidance_scale_2, host.guidance_scale_2),
        ] {
            if let (Some(a), Some(b)) = (made, here)
                && !same(a, b)
            {
                return differs(what, a.to_string(), b.to_string());
            }
        }
        if let (Some([low, high]), Some(here)) = (own.guidance_range, host.guidance_scale)
            && !((low..=high).contains(&here) || same(low, here) || same(high, here))
        {
            return differs("guidance scales", format!("{low} to {high}"), here.to_string());
        }
        for (what, made, here) in
            [("the model", &own.model, &host.model), ("the model hash", &own.model_hash, &host.model_hash)]
        {
            if let (Some(a), Some(b)) = (made, here)
                && a != b
            {
                return differs(what, a.clone(), b.clone());
            }
        }
        if let (Some(a), Some(b)) = (&own.latent_shape, &host.latent_shape)
            && a != b
        {
            return differs("the latent shape", format!("{a:?}"), format!("{b:?}"));
        }
        Ok(())
    }
}

/// Factors of the state (r) and of the weighted predictions (g) from `sigma` to `next`.
pub fn advance(sigma: f64, next: f64) -> (f64, f64) {
    let g = (sigma - next) / sigma;
    (next / sigma, if g == 0.0 { 1.0 } else { g })
}

/// The weights of the row that leads from one state to the next, newest prediction first: what [`Schedule::expand`]
/// undoes. Both states are coefficients of the predictions [D_0, D_1, ...], the noise is not among them.
pub(crate) fn weights_between(before: &[f64], after: &[f64], sigma: f64, next: f64) -> Vec<f64> {
    let (r, g) = advance(sigma, next);
    let kept = |j: usize| before.get(j).map_or(0.0, |c| r * c);
    after.iter().enumerate().rev().map(|(j, c)| (c - kept(j)) / g).collect()
}
