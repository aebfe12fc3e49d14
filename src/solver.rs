//! Published samplers on grids of noise levels, each run once on symbols and written down as a [`Schedule`].
//!
//! There is no solver trait and no second loop: a new sampler is a function and a line in `published.rs`. What
//! it costs is not declared but counted in its trace. Knows no tensors and no model.

mod arithmetic;
mod grid;
mod published;
mod trace;

pub use grid::Grid;

use crate::error::{Error, Result};
use crate::options::{check, flag, integer, number, one_of, options, other, text};
use crate::schedule::{MAX_NODES, MadeBy, MadeFor, Node, Process, Schedule};
use grid::SIGMA_RANGE;
use published::SOLVERS;
use trace::{Lin, Trace};

options! {
    /// What to solve with. Every field has a default, so `{}` is a complete specification.
    struct Spec {
        /// The published solver.
        solver: String = "dpmpp_2m".into(), text().range("a name of lmsd_solvers");
        /// How noise levels are spread: {"kind": "karras", "rho": 7} (uniform in sigma^(1/rho)), {"kind": "log"},
        /// {"kind": "linear"}, {"kind": "flow", "shift": 1} (sigma = shift t / (1 + (shift - 1) t), uniform in t),
        /// or {"kind": "list", "sigmas": [...]}, the nfe + 1 levels from the first node to the end.
        grid: Option<Grid> = None, other("grid", ""), else "karras with rho 7, for flow the flow grid with shift 1";
        /// Model calls.
        nfe: usize = 8, integer(1, MAX_NODES as u32).of("model calls");
        /// How noise is added: "ve" is x = x0 + sigma n, "flow" is x = (1 - sigma) x0 + sigma n.
        process: Process = Process::Ve, one_of(&["ve", "flow"]);
        /// The last noise level before 0, where the grid needs one.
        sigma_min: Option<f64> = None, number("1e-9 to below sigma_max").of("noise level"), else "0.002";
        /// Noise level of the first node.
        sigma_max: Option<f64> = None, number("1e-9 to 1e6, for flow at most 1").of("noise level"),
            else "80, for flow 1";
        /// Noise level of the result.
        sigma_end: Option<f64> = None, number("0, or 1e-9 to below sigma_max").of("noise level"), else "0";
        /// Noise level of the x_T that the host hands in.
        sigma_start: Option<f64> = None, number("sigma_max to 1e6, for flow at most 1").of("noise level"),
            else "sigma_max";
        /// With `sigma_end` 0, on grids that have a level at `sigma_min` (karras, log, linear): the step that would
        /// end there ends at 0, with the same weights, and no call is spent at `sigma_min`. Refused elsewhere.
        jump_to_zero: bool = false, flag();
        /// Whether the order falls towards the end: dpmpp, deis, res and unipc then use an order of at most the
        /// number of steps left, and ipndm takes a step to 0 at first order. It changes no other solver.
        lower_order_final: bool = true, flag();
        /// Analytical first step (arXiv 2210.05475), for solvers of one call a step: the grid has nfe + 1 steps,
        /// and the first of them calls no model but takes D = 0, pure noise. So the schedule starts at the
        /// grid's second level.
        afs: bool = false, flag();
    }
}

/// A published sampler.
pub struct Solver {
    /// Its name in [`Spec`].
    pub name: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// Where it was published.
    pub arxiv: &'static str,
    /// Order of a whole run.
    pub order: usize,
    /// False where it is another name of a solver before it.
    pub competes: bool,
    run: fn(&mut Trace) -> Lin,
}

/// All published samplers, each defined for VE and for flow models.
pub fn solvers() -> &'static [Solver] {
    SOLVERS
}

/// Largest NFE that [`Solver::nfes`] lists.
const LISTED_NFE: usize = 50;

impl Solver {
    /// The table on a grid, not yet a schedule.
    fn trace(&self, process: Process, sigmas: Vec<f64>, lower_order_final: bool) -> Result<Vec<Node>> {
        let mut trace = Trace::new(process, sigmas, lower_order_final);
        let x = (self.run)(&mut trace);
        trace.finish(&x)
    }

    /// Model calls of `steps` steps that end at 0 or above, counted in a trace.
    fn calls(&self, steps: usize, to_zero: bool) -> usize {
        let end = if to_zero { 0.0 } else { 0.5 };
        let sigmas = (0..steps).map(|n| (1 + steps - n) as f64).chain([end]).collect();
        let mut trace = Trace::new(Process::Ve, sigmas, true);
        (self.run)(&mut trace);
        trace.calls()
    }

    /// Model calls of one more step.
    fn calls_a_step(&self) -> usize {
        self.calls(3, false) - self.calls(2, false)
    }

    /// The numbers of model calls, at most 50, that the solver can have where the last of its steps ends at 0
    /// (`to_zero`), or above.
    pub fn nfes(&self, to_zero: bool) -> Vec<usize> {
        let first = self.calls(1, to_zero);
        (first..=LISTED_NFE).step_by(self.calls_a_step()).collect()
    }
}

/// The table of a published sampler on a grid. Fails with `InvalidArgument` where the specification
/// is out of range, naming the value. In `made_for`, sigma_max is the noise level of x_T, sigma_min
/// is there if it was given or the grid needed it.
pub fn solve(spec: &Spec) -> Result<Schedule> {
    check(Spec::OPTIONS, spec)?;
    let solver = SOLVERS.iter().find(|s| s.name == spec.solver).ok_or_else(|| {
        let known: Vec<&str> = SOLVERS.iter().map(|s| s.name).collect();
        Error::argument(format!("there is no solver \"{}\"; known are {}", spec.solver, known.join(", ")))
    })?;
    let levels = Levels::of(spec)?;
    let nodes = nodes(solver, spec, &levels)?;
    let mut schedule = Schedule::new(spec.process, levels.start, levels.end, nodes)?;
    describe(&mut schedule, solver, spec, &levels);
    Ok(schedule)
}

/// The noise levels of a specification, checked.
struct Levels {
    grid: Grid,
    /// Of x_T, of the first node and of the result.
    start: f64,
    first: f64,
    end: f64,
    /// The last one before 0, where it was given or is needed.
    sigma_min: Option<f64>,
    /// Whether the step that would end at sigma_min ends at 0.
    jump: bool,
}

impl Levels {
    fn of(spec: &Spec) -> Result<Self> {
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
        let sigma_min = spec.sigma_min.or(grid.needs_sigma_min(end).then_some(0.002));
        if let Some(sigma) = sigma_min.filter(|s| !(SIGMA_RANGE.contains(s) && *s < first)) {
            return Err(Error::argument(format!(
                "sigma_min is {sigma}; it must be at least 1e-9 and below the first sigma {first}"
            )));
        }
        let jump = spec.jump_to_zero;
        if jump && !grid.needs_sigma_min(end) {
            return Err(Error::argument(format!(
                "jump_to_zero is true, but no step of this grid ({}) from {first} to {end} ends at sigma_min; leave it out",
                grid.describe()
            )));
        }
        Ok(Self { grid, start, first, end, sigma_min, jump })
    }
}

/// The rows of the table.
fn nodes(solver: &Solver, spec: &Spec, levels: &Levels) -> Result<Vec<Node>> {
    let a_step = solver.calls_a_step();
    if spec.afs && a_step > 1 {
        return Err(Error::argument(format!(
            "afs is true, but {} calls the model {a_step} times a step; an analytical first step needs a solver \
             of one call",
            solver.name
        )));
    }
    let calls = spec.nfe + usize::from(spec.afs);
    let before = levels.sigma_min.unwrap_or(levels.end);
    let last = if levels.jump { before } else { levels.end };
    let sigmas = levels.grid.sigmas(calls.div_ceil(a_step), levels.first, before, last)?;
    let mut nodes = solver.trace(spec.process, sigmas, spec.lower_order_final)?;
    if spec.afs {
        nodes.remove(0);
        // Node n had n + 2 weights at most; the last of that many was the one on the first prediction.
        nodes.iter_mut().enumerate().for_each(|(n, node)| node.weights.truncate(n + 1));
    }
    if nodes.len() == spec.nfe {
        return Ok(nodes);
    }
    let near = [spec.nfe - 1, spec.nfe + 1].into_iter().filter(|n| (1..=MAX_NODES).contains(n));
    Err(Error::argument(format!(
        "{} calls the model {a_step} times a step, but not in every last step; nfe cannot be {} here, the nearest \
         possible: {}",
        solver.name,
        spec.nfe,
        near.map(|n| n.to_string()).collect::<Vec<_>>().join(", ")
    )))
}

/// Says in the schedule's records what it is.
fn describe(schedule: &mut Schedule, solver: &Solver, spec: &Spec, levels: &Levels) {
    let mut words = levels.grid.describe();
    words += if levels.jump { ", straight to 0" } else { "" };
    words += if spec.afs { ", AFS" } else { "" };
    schedule.name = Some(format!("{}, {words}, {} NFE", solver.name, spec.nfe));
    schedule.made_for = Some(MadeFor {
        sigma_min: levels.sigma_min,
        sigma_max: Some(levels.start),
        shift: if let Grid::Flow { shift } = levels.grid { Some(shift) } else { None },
        ..MadeFor::default()
    });
    schedule.made_by = Some(MadeBy {
        method: "handcrafted".into(),
        solver: Some(solver.name.into()),
        grid: Some(words),
        library_version: Some(env!("CARGO_PKG_VERSION").into()),
        ..MadeBy::default()
    });
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
