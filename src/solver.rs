//! Sigma grids and published samplers, each run once on symbols and written down as a [`Schedule`].
//!
//! A sampler here is a function that reads like its paper. Its states are not tensors but `Lin`,
//! linear combinations of earlier states and predictions; whenever it asks for `model(x, sigma)` the
//! `Trace` notes how x came about, and those notes are the rows of the table. So there is no
//! solver trait and no second loop: a new sampler is a function and a line in `SOLVERS`.
//! Knows no tensors and no model.

mod trace;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::schedule::{MAX_NODES, MadeBy, MadeFor, Process, Schedule, advance};
use trace::{Lin, Trace};

const SIGMA_RANGE: std::ops::RangeInclusive<f64> = 1e-9..=1e6;
/// Neighbours on a grid differ by more than this, relatively.
const CLOSEST: f64 = 1e-12;

/// How the noise levels are spread from the first node to the end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Grid {
    /// Uniform in sigma^(1/rho) (arXiv 2206.00364). 0 < rho <= 100.
    Karras {
        #[serde(default = "seven")]
        rho: f64,
    },
    /// Uniform in log sigma; others call it exponential, or polyexponential with rho 1.
    Log {},
    /// Uniform in sigma.
    Linear {},
    /// sigma = shift t / (1 + (shift - 1) t), uniform in t (arXiv 2403.03206). Sigmas are at most 1.
    Flow {
        #[serde(default = "one")]
        shift: f64,
    },
    /// As given, first node to end.
    List { sigmas: Vec<f64> },
}

fn seven() -> f64 {
    7.0
}

fn one() -> f64 {
    1.0
}

impl Grid {
    /// In words, such as "karras rho=7".
    pub fn describe(&self) -> String {
        match self {
            Self::Karras { rho } => format!("karras rho={rho}"),
            Self::Log {} => "log".into(),
            Self::Linear {} => "linear".into(),
            Self::Flow { shift } => format!("flow shift={shift}"),
            Self::List { sigmas } => format!("list of {}", sigmas.len()),
        }
    }

    /// `steps + 1` decreasing noise levels. Above 0 they run from `first` to `end`. If `end` is 0,
    /// `steps` of them run from `first` to `sigma_min` and 0 follows (k-diffusion's convention),
    /// save on a flow grid, which is uniform all the way. Both ends are exact.
    pub fn sigmas(&self, steps: usize, first: f64, sigma_min: f64, end: f64) -> Result<Vec<f64>> {
        if steps == 0 {
            return Err(Error::argument("a grid of 0 steps has no first sigma"));
        }
        if let Self::List { sigmas } = self {
            if sigmas.len() != steps + 1 {
                return Err(Error::argument(format!(
                    "the grid lists {} sigmas; {steps} steps need {}, the end included",
                    sigmas.len(),
                    steps + 1
                )));
            }
            return decreasing(sigmas.clone());
        }
        let zero_follows = self.needs_sigma_min(end);
        let (last, count) = if zero_follows { (sigma_min, steps - 1) } else { (end, steps) };
        let between = |u: f64, a: f64, b: f64| a + u * (b - a);
        let at = |u: f64| match *self {
            Self::Karras { rho } => between(u, first.powf(1.0 / rho), last.powf(1.0 / rho)).powf(rho),
            Self::Log {} => between(u, first.ln(), last.ln()).exp(),
            Self::Linear {} => between(u, first, last),
            Self::Flow { shift } => {
                let time = |sigma: f64| sigma / (shift - (shift - 1.0) * sigma);
                let t = between(u, time(first), time(last));
                shift * t / (1.0 + (shift - 1.0) * t)
            }
            Self::List { .. } => f64::NAN,
        };
        let mut sigmas: Vec<f64> = (0..=count).map(|i| at(i as f64 / count as f64)).collect();
        sigmas[count] = last;
        sigmas[0] = first;
        if zero_follows {
            sigmas.push(0.0);
        }
        decreasing(sigmas)
    }

    fn needs_sigma_min(&self, end: f64) -> bool {
        end == 0.0 && !matches!(self, Self::Flow { .. } | Self::List { .. })
    }

    fn check(&self) -> Result<()> {
        match *self {
            Self::Karras { rho } if !(rho > 0.0 && rho <= 100.0) => Err(Error::argument(format!(
                "rho of the karras grid is {rho}; it must be above 0, at most 100"
            ))),
            Self::Flow { shift } if !(1e-3..=1e3).contains(&shift) => {
                Err(Error::argument(format!("shift of the flow grid is {shift}; it must be 1e-3 to 1e3")))
            }
            _ => Ok(()),
        }
    }
}

fn decreasing(sigmas: Vec<f64>) -> Result<Vec<f64>> {
    let last = sigmas.len() - 1;
    for (i, &sigma) in sigmas.iter().enumerate() {
        if !(SIGMA_RANGE.contains(&sigma) || (sigma == 0.0 && i == last)) {
            return Err(Error::argument(format!(
                "sigma {i} of the grid is {sigma}; it must be 1e-9 to 1e6, or 0 at the end"
            )));
        }
        if i > 0 && sigma >= sigmas[i - 1] * (1.0 - CLOSEST) {
            let before = sigmas[i - 1];
            return Err(Error::argument(format!(
                "sigma {i} of the grid is {sigma}, after {before}; sigmas must decrease"
            )));
        }
    }
    Ok(sigmas)
}

/// What to solve with. Every field has a default, so `{}` is a complete specification.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spec {
    /// A name out of [`solvers`].
    pub solver: String,
    /// Default: karras rho=7, and flow shift=1 for a flow model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<Grid>,
    /// Number of model calls, 1 to 1000.
    pub nfe: usize,
    pub process: Process,
    /// The last noise level before 0, where the grid needs one; below `sigma_max`. Default 0.002.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_min: Option<f64>,
    /// Noise level of the first node. Default 80, and 1 for a flow model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_max: Option<f64>,
    /// Noise level of the result, below `sigma_max`. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_end: Option<f64>,
    /// Noise level of the host's x_T, at least `sigma_max`, which is the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sigma_start: Option<f64>,
    /// With `sigma_end` 0, on grids that have a level at `sigma_min`: the step that would end there
    /// ends at 0, with the same weights, and no call is spent at `sigma_min`.
    pub jump_to_zero: bool,
    /// Multistep methods in log-SNR (dpmpp, deis, res, unipc): order at most the number of steps
    /// left. ipndm: first order for a step to 0. Others do not heed it.
    pub lower_order_final: bool,
    /// Analytical first step (arXiv 2210.05475), for solvers of one call a step: the grid has `nfe + 1`
    /// steps, and the first of them calls no model but takes D = 0, pure noise. So the schedule starts
    /// at the grid's second level, and its weights on that first prediction are gone.
    pub afs: bool,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            solver: "dpmpp_2m".into(),
            grid: None,
            nfe: 8,
            process: Process::Ve,
            sigma_min: None,
            sigma_max: None,
            sigma_end: None,
            sigma_start: None,
            jump_to_zero: false,
            lower_order_final: true,
            afs: false,
        }
    }
}

/// A published sampler.
pub struct Solver {
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Model calls a step. Of two, a step to 0 leaves out the second; so does heun's last step, whatever
    /// the end.
    pub stages: usize,
    /// False where it is another name of a solver before it.
    pub competes: bool,
    run: fn(&mut Trace) -> Lin,
}

/// All published samplers, each defined for VE and for flow models.
pub fn solvers() -> &'static [Solver] {
    SOLVERS
}

macro_rules! solver {
    ($name:literal, $stages:literal, $about:literal, $run:expr) => {
        Solver { name: $name, about: $about, stages: $stages, competes: true, run: $run }
    };
    (another name: $name:literal, $about:literal, $run:expr) => {
        Solver { name: $name, about: $about, stages: 1, competes: false, run: $run }
    };
}

static SOLVERS: &[Solver] = &[
    solver!("euler", 1, "Euler's method, which is DDIM", euler),
    solver!(another name: "ddim", "another name of euler", euler),
    solver!("heun", 2, "Heun's method (EDM), order 2", heun),
    solver!("dpm_2", 2, "midpoint rule on the noise prediction (DPM-Solver-2 as in k-diffusion)", dpm_2),
    solver!("dpmpp_2s", 2, "DPM-Solver++(2S): midpoint rule on the data prediction", dpmpp_2s),
    solver!("dpmpp_2m", 1, "DPM-Solver++(2M): two-step, data prediction", |t| dpmpp(t, 2)),
    solver!("dpmpp_3m", 1, "DPM-Solver++(3M): three-step, data prediction", |t| dpmpp(t, 3)),
    solver!(another name: "deis_1", "DEIS of one step, which is DDIM", |t| deis(t, 1)),
    solver!("deis_2", 1, "DEIS: polynomial of degree 1 in log rho through the noise", |t| deis(t, 2)),
    solver!("deis_3", 1, "DEIS: polynomial of degree 2 in log rho through the noise", |t| deis(t, 3)),
    solver!(another name: "lms_1", "Adams-Bashforth on the grid, one step: Euler", |t| lms(t, 1)),
    solver!("lms_2", 1, "Adams-Bashforth on the grid, two steps", |t| lms(t, 2)),
    solver!("lms_3", 1, "Adams-Bashforth on the grid, three steps", |t| lms(t, 3)),
    solver!("lms_4", 1, "Adams-Bashforth on the grid, four steps (LMS)", |t| lms(t, 4)),
    solver!(another name: "ipndm_1", "Adams-Bashforth as if the grid were uniform, one step: Euler", |t| ipndm(t, 1)),
    solver!("ipndm_2", 1, "Adams-Bashforth as if the grid were uniform, two steps", |t| ipndm(t, 2)),
    solver!("ipndm_3", 1, "Adams-Bashforth as if the grid were uniform, three steps", |t| ipndm(t, 3)),
    solver!("ipndm_4", 1, "Adams-Bashforth as if the grid were uniform, four steps (iPNDM)", |t| ipndm(t, 4)),
    solver!("res_multistep", 1, "RES: two-step exponential integrator in -log sigma", res_multistep),
    solver!("unipc_bh1_1", 1, "UniPC of order 1, B(h) = h", |t| unipc(t, 1, Bh::H)),
    solver!("unipc_bh1_2", 1, "UniPC of order 2, B(h) = h", |t| unipc(t, 2, Bh::H)),
    solver!("unipc_bh1_3", 1, "UniPC of order 3, B(h) = h", |t| unipc(t, 3, Bh::H)),
    solver!("unipc_bh2_1", 1, "UniPC of order 1, B(h) = e^h - 1", |t| unipc(t, 1, Bh::Expm1)),
    solver!("unipc_bh2_2", 1, "UniPC of order 2, B(h) = e^h - 1", |t| unipc(t, 2, Bh::Expm1)),
    solver!("unipc_bh2_3", 1, "UniPC of order 3, B(h) = e^h - 1", |t| unipc(t, 3, Bh::Expm1)),
];

/// The table of a published sampler on a grid. Fails with `InvalidArgument` where the specification
/// is out of range, naming the value. In `made_for`, sigma_max is the noise level of x_T, sigma_min
/// is there if it was given or the grid needed it.
pub fn solve(spec: &Spec) -> Result<Schedule> {
    let solver = SOLVERS.iter().find(|s| s.name == spec.solver).ok_or_else(|| {
        let known: Vec<&str> = SOLVERS.iter().map(|s| s.name).collect();
        Error::argument(format!("there is no solver \"{}\"; known are {}", spec.solver, known.join(", ")))
    })?;
    let flow = spec.process == Process::Flow;
    let default = if flow { Grid::Flow { shift: 1.0 } } else { Grid::Karras { rho: 7.0 } };
    let grid = spec.grid.clone().unwrap_or(default);
    grid.check()?;
    let (first, end) = ends(spec, &grid)?;
    let start = spec.sigma_start.unwrap_or(first);
    if !(start >= first && SIGMA_RANGE.contains(&start)) {
        return Err(Error::argument(format!(
            "sigma_start is {start}; it must be the first sigma, {first}, to 1e6"
        )));
    }
    if start > 1.0 && (flow || matches!(grid, Grid::Flow { .. })) {
        let what = if flow { "model" } else { "grid" };
        return Err(Error::argument(format!("sigma_start is {start}; a flow {what} knows 0 to 1")));
    }
    if !(1..=MAX_NODES).contains(&spec.nfe) {
        return Err(Error::argument(format!("nfe is {}; it must be 1 to {MAX_NODES}", spec.nfe)));
    }
    if spec.afs && solver.stages > 1 {
        return Err(Error::argument(format!(
            "afs is true, but {} calls the model twice a step; an analytical first step needs a solver of one call",
            solver.name
        )));
    }
    let calls = spec.nfe + usize::from(spec.afs);
    let steps = calls.div_ceil(solver.stages);
    let sigma_min = spec.sigma_min.or(grid.needs_sigma_min(end).then_some(0.002));
    if let Some(sigma) = sigma_min.filter(|s| !(SIGMA_RANGE.contains(s) && *s < first)) {
        return Err(Error::argument(format!(
            "sigma_min is {sigma}; it must be at least 1e-9 and below the first sigma {first}"
        )));
    }
    let jump = spec.jump_to_zero && grid.needs_sigma_min(end);
    let last = if jump { sigma_min.unwrap_or(end) } else { end };
    let sigmas = grid.sigmas(steps, first, sigma_min.unwrap_or(end), last)?;

    let mut trace = Trace::new(spec.process, sigmas, spec.lower_order_final);
    let x = (solver.run)(&mut trace);
    let mut nodes = trace.finish(&x)?;
    if spec.afs {
        nodes.remove(0);
        // Node n had n + 2 weights at most; the last of that many was the one on the first prediction.
        nodes.iter_mut().enumerate().for_each(|(n, node)| node.weights.truncate(n + 1));
    }
    if nodes.len() != spec.nfe {
        let near = [spec.nfe - 1, spec.nfe + 1].into_iter().filter(|n| (1..=MAX_NODES).contains(n));
        return Err(Error::argument(format!(
            "{} calls the model twice a step, save once for a last step without a second stage; nfe cannot be \
             {} here, the nearest possible: {}",
            solver.name,
            spec.nfe,
            near.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
        )));
    }
    let mut schedule = Schedule::new(spec.process, start, end, nodes)?;
    let mut words = grid.describe();
    words += if jump { ", straight to 0" } else { "" };
    words += if spec.afs { ", AFS" } else { "" };
    schedule.name = Some(format!("{}, {words}, {} NFE", solver.name, spec.nfe));
    schedule.made_for = Some(MadeFor {
        sigma_min,
        sigma_max: Some(start),
        shift: if let Grid::Flow { shift } = grid { Some(shift) } else { None },
        ..MadeFor::default()
    });
    schedule.made_by = Some(MadeBy {
        method: "handcrafted".into(),
        solver: Some(solver.name.into()),
        grid: Some(words),
        library_version: Some(env!("CARGO_PKG_VERSION").into()),
        ..MadeBy::default()
    });
    Ok(schedule)
}

/// First and last noise level. A list brings its own.
fn ends(spec: &Spec, grid: &Grid) -> Result<(f64, f64)> {
    if let Grid::List { sigmas } = grid {
        let &[first, .., end] = sigmas.as_slice() else {
            return Err(Error::argument("the grid lists fewer than 2 sigmas"));
        };
        for (what, given, listed) in
            [("sigma_max", spec.sigma_max, first), ("sigma_end", spec.sigma_end, end)]
        {
            if let Some(given) = given.filter(|g| *g != listed) {
                return Err(Error::argument(format!(
                    "{what} is {given} but the grid lists {listed}; leave it out, or make them equal"
                )));
            }
        }
        return Ok((first, end));
    }
    let first = spec.sigma_max.unwrap_or(if spec.process == Process::Flow { 1.0 } else { 80.0 });
    let end = spec.sigma_end.unwrap_or(0.0);
    if !SIGMA_RANGE.contains(&first) {
        return Err(Error::argument(format!("sigma_max is {first}; it must be 1e-9 to 1e6")));
    }
    if !(end == 0.0 || (SIGMA_RANGE.contains(&end) && end < first)) {
        return Err(Error::argument(format!(
            "sigma_end is {end}; it must be 0, or at least 1e-9 and below sigma_max {first}"
        )));
    }
    Ok((first, end))
}

// ---------------------------------------------------------------------------------- the samplers

/// arXiv 2010.02502 (DDIM), in the coordinates of arXiv 2206.00364.
fn euler(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        x = ddim(&x, &denoised, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// arXiv 2206.00364, algorithm 1. The last step stays uncorrected: no schedule calls the model at its end.
fn heun(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let (sigma, next) = (t.sigmas[n], t.sigmas[n + 1]);
        let denoised = t.model(&mut x, sigma);
        let mut predicted = ddim(&x, &denoised, sigma, next);
        if n + 1 == t.steps() {
            return predicted;
        }
        let denoised_2 = t.model(&mut predicted, next);
        let d = (&x - denoised) / sigma;
        let d_2 = (&predicted - denoised_2) / next;
        x = predicted + (d_2 - d) * (0.5 * (next - sigma));
    }
    x
}

/// arXiv 2206.00927 (DPM-Solver-2) as k-diffusion has it: midpoint in log sigma.
fn dpm_2(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let (sigma, next) = (t.sigmas[n], t.sigmas[n + 1]);
        let denoised = t.model(&mut x, sigma);
        if next == 0.0 {
            return ddim(&x, &denoised, sigma, next);
        }
        let middle = (sigma * next).sqrt();
        let mut x_2 = ddim(&x, &denoised, sigma, middle);
        let denoised_2 = t.model(&mut x_2, middle);
        let d_2 = (x_2 - denoised_2) / middle;
        x = x + d_2 * (next - sigma);
    }
    x
}

/// arXiv 2211.01095, algorithm 1. The midpoint is in -log sigma for flow models too: in their
/// log-SNR there is none between 1 and anything else.
fn dpmpp_2s(t: &mut Trace) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let (sigma, next) = (t.sigmas[n], t.sigmas[n + 1]);
        let denoised = t.model(&mut x, sigma);
        if next == 0.0 {
            return ddim(&x, &denoised, sigma, next);
        }
        let middle = (sigma * next).sqrt();
        let mut x_2 = ddim(&x, &denoised, sigma, middle);
        let denoised_2 = t.model(&mut x_2, middle);
        x = ddim(&x, &denoised_2, sigma, next);
    }
    x
}

/// arXiv 2211.01095, algorithm 2 (order 2), and the multistep third order of its code. That is of
/// second order: d2 is half the second derivative, and phi_3 wants it whole.
fn dpmpp(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let d0 = t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let target = match t.order(n, order) {
            1 => d0,
            2 => {
                let r0 = t.gap(n - 1, n) / h;
                let d1 = (&d0 - t.denoised(n - 1)) / r0;
                d0 + d1 * 0.5
            }
            _ => {
                let (r0, r1) = (t.gap(n - 1, n) / h, t.gap(n - 2, n - 1) / h);
                let d1_0 = (&d0 - t.denoised(n - 1)) / r0;
                let d1_1 = (t.denoised(n - 1) - t.denoised(n - 2)) / r1;
                let d2 = (&d1_0 - &d1_1) / (r0 + r1);
                let d1 = d1_0 + &d2 * r0;
                d0 + d1 * (phi(2, h) / phi(1, h)) + d2 * (phi(3, h) / phi(1, h))
            }
        };
        x = ddim(&x, &target, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// arXiv 2204.13902 (tAB-DEIS) with the polynomial in log rho, rho = sigma / alpha, that diffusers
/// took: x / alpha gains the integral over rho of the polynomial through the latest noise
/// predictions. Written as what it adds to DDIM, which stays finite at alpha = 0.
fn deis(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let order = t.order(n, order);
        // v = log rho_n - log rho, so that rho = rho_n e^-v.
        let nodes: Vec<f64> = (0..order).map(|j| -t.gap(n - j, n)).collect();
        let weights = quadrature(&nodes, |k| exp_moment(k, h));
        let mut next = ddim(&x, &denoised, t.sigmas[n], t.sigmas[n + 1]);
        for (j, w) in weights.iter().enumerate().skip(1) {
            let rho = t.sigmas[n] / t.alpha(n);
            next = next + (t.noise(n) - t.noise(n - j)) * (t.alpha(n + 1) * rho * w);
        }
        x = next;
    }
    x
}

/// The linear multistep method of k-diffusion: the polynomial in sigma through the latest slopes,
/// integrated exactly.
fn lms(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        let step = t.sigmas[n + 1] - t.sigmas[n];
        let nodes: Vec<f64> = (0..order.min(n + 1)).map(|j| t.sigmas[n - j] - t.sigmas[n]).collect();
        let weights = quadrature(&nodes, |k| step.powi(k as i32 + 1) / (k + 1) as f64);
        for (j, w) in weights.iter().enumerate() {
            x = x + t.slope(n - j) * *w;
        }
    }
    x
}

/// arXiv 2202.09778 and 2204.13902 (iPNDM); newest first. A step to 0 takes the prediction, as in
/// ComfyUI, unless `lower_order_final` is off.
const ADAMS_BASHFORTH: [&[f64]; 4] = [
    &[1.0],
    &[3.0 / 2.0, -1.0 / 2.0],
    &[23.0 / 12.0, -16.0 / 12.0, 5.0 / 12.0],
    &[55.0 / 24.0, -59.0 / 24.0, 37.0 / 24.0, -9.0 / 24.0],
];

fn ipndm(t: &mut Trace, order: usize) -> Lin {
    let mut x = t.start();
    for n in 0..t.steps() {
        let denoised = t.model(&mut x, t.sigmas[n]);
        let step = t.sigmas[n + 1] - t.sigmas[n];
        if t.sigmas[n + 1] == 0.0 && t.lower_order_final {
            return denoised;
        }
        for (j, b) in ADAMS_BASHFORTH[order.min(n + 1) - 1].iter().enumerate() {
            x = x + t.slope(n - j) * (step * b);
        }
    }
    x
}

/// arXiv 2308.02157, two-step form: the line through the latest two predictions, integrated exactly
/// in -log sigma, for flow models too, as in ComfyUI.
fn res_multistep(t: &mut Trace) -> Lin {
    t.process = Process::Ve;
    let mut x = t.start();
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        let h = t.gap(n, n + 1);
        let target = if t.order(n, 2) == 1 {
            t.denoised(n)
        } else {
            let nodes = [0.0, -t.gap(n - 1, n) / h];
            let weights = quadrature(&nodes, |k| phi(k + 1, h) / phi(1, h));
            t.denoised(n) * weights[0] + t.denoised(n - 1) * weights[1]
        };
        x = ddim(&x, &target, t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// The two choices of B(h) in UniPC.
#[derive(Clone, Copy, PartialEq)]
enum Bh {
    H,
    Expm1,
}

/// arXiv 2302.04867 (UniPC, data prediction), predictor and corrector. The corrector uses the next
/// node's prediction, so it costs no call and there is none at the end.
fn unipc(t: &mut Trace, max_order: usize, bh: Bh) -> Lin {
    let mut x = t.start();
    let mut order = 1;
    for n in 0..t.steps() {
        t.model(&mut x, t.sigmas[n]);
        // From flow's sigma = 1, h is infinite: with B(h) = h the corrector has no limit.
        if n > 0 && !(bh == Bh::H && t.gap(n - 1, n).is_infinite()) {
            let (_, g) = advance(t.sigmas[n - 1], t.sigmas[n]);
            let predicted = unipc_target(t, n - 1, order, bh, false);
            let corrected = unipc_target(t, n - 1, order, bh, true);
            x = x + (corrected - predicted) * g;
        }
        order = t.order(n, max_order);
        x = ddim(&x, &unipc_target(t, n, order, bh, false), t.sigmas[n], t.sigmas[n + 1]);
    }
    x
}

/// D_n + B(h)/(e^h - 1) sum_m rho_m (D_m - D_n) / r_m, over earlier nodes and, for the corrector,
/// the next one (r = 1). The rhos make it exact for polynomials, but a single one is 1/2.
fn unipc_target(t: &Trace, n: usize, order: usize, bh: Bh, corrector: bool) -> Lin {
    let h = t.gap(n, n + 1);
    let b = if bh == Bh::H { 1.0 / phi(1, h) } else { 1.0 };
    let mut nodes: Vec<usize> = (1..order).map(|j| n - j).collect();
    let mut r: Vec<f64> = nodes.iter().map(|&m| -t.gap(m, n) / h).collect();
    if corrector {
        nodes.push(n + 1);
        r.push(1.0);
    }
    let rho = match r.len() {
        1 => vec![0.5],
        _ => quadrature(&r, |k| factorial(k + 1) * phi(k + 2, h) / (phi(1, h) * b)),
    };
    let mut target = t.denoised(n);
    for (i, &m) in nodes.iter().enumerate() {
        target = target + (t.denoised(m) - t.denoised(n)) * (b * rho[i] / r[i]);
    }
    target
}

// ------------------------------------------------------------------------------- their arithmetic

/// The first-order step: exact if the prediction did not change.
fn ddim(x: &Lin, denoised: &Lin, sigma: f64, next: f64) -> Lin {
    let (r, g) = advance(sigma, next);
    x * r + denoised * g
}

/// phi_k(-h) of exponential integrators: phi_0 = e^-h, phi_{k+1}(z) = (phi_k(z) - 1/k!) / z. h >= 0.
fn phi(k: usize, h: f64) -> f64 {
    if h < 1.0 {
        let mut term = 1.0 / factorial(k);
        let mut sum = term;
        for j in 1..20 {
            term *= -h / (j + k) as f64;
            sum += term;
        }
        return sum;
    }
    (0..k).fold((-h).exp(), |value, j| (1.0 / factorial(j) - value) / h)
}

/// The integral of v^k e^-v from 0 to h; h may be infinite.
fn exp_moment(k: usize, h: f64) -> f64 {
    if h < 1.0 {
        let term = |j: usize| (-h).powi(j as i32) / (factorial(j) * (k + 1 + j) as f64);
        return h.powi(k as i32 + 1) * (0..20).map(term).sum::<f64>();
    }
    let end = |k: usize| if h.is_infinite() { 0.0 } else { h.powi(k as i32) * (-h).exp() };
    (1..=k).fold(1.0 - end(0), |value, j| j as f64 * value - end(j))
}

fn factorial(k: usize) -> f64 {
    (1..=k).map(|i| i as f64).product()
}

/// Weights over `nodes` of the rule exact for every polynomial they determine, given the integral
/// of v^k: the integral of each Lagrange polynomial.
fn quadrature(nodes: &[f64], moment: impl Fn(usize) -> f64) -> Vec<f64> {
    let integral = |j: usize| {
        let mut poly = vec![1.0]; // lowest power first
        for (_, v) in nodes.iter().enumerate().filter(|(i, _)| *i != j) {
            let scale = nodes[j] - v;
            poly.push(0.0);
            for k in (0..poly.len()).rev() {
                let lower = if k > 0 { poly[k - 1] } else { 0.0 };
                poly[k] = (lower - v * poly[k]) / scale;
            }
        }
        poly.iter().enumerate().map(|(k, c)| c * moment(k)).sum()
    };
    (0..nodes.len()).map(integral).collect()
}
