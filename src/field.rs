//! The field of published solvers that a distilled schedule must beat: one list, for distillation,
//! comparisons and benchmarks alike.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::json::Named;
use crate::memory;
use crate::options::{integer, number, one_of, options, other};
use crate::schedule::{Process, Schedule};
use crate::solver::{self, Grid, Spec, solvers};

/// Which published solvers, on which grids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Field {
    /// As hosts' own options have them: every published solver, from `sigma_max`, with its lower order
    /// at the end, on the grids karras rho=7 and log, each with and without a call at `sigma_min`
    /// where the end is 0. For a flow model on the flow grids of shift 1 and of its own shift.
    Published,
    /// The published ones first, then what tuning makes of them: karras rho 3, 5 and 10 (flow shifts
    /// 2 and 3), full order to the end, and grids of the caller's, such as those of GITS
    /// (arXiv 2405.11326). Also, without a call at `sigma_min` where the end is 0: first nodes at 0.5,
    /// 0.25, 0.1, 0.05 and 0.025 of `sigma_max` (0.97, 0.93, 0.85 and 0.75 for a flow model), and the
    /// analytical first step from `sigma_max` (arXiv 2210.05475).
    #[default]
    Strongest,
}

/// The noise levels that a model was trained on and is sampled at.
#[derive(Debug, Clone, PartialEq)]
pub struct Levels {
    /// How noise is added.
    pub process: Process,
    /// Smallest noise level the model knows; used where `sigma_end` is 0.
    pub sigma_min: f64,
    /// Noise level of x_T; at most 1 for a flow model.
    pub sigma_max: f64,
    /// Noise level of the result.
    pub sigma_end: f64,
    /// Time shift of a flow model; its grid is in the field beside those of shift 1.
    pub shift: Option<f64>,
}

options! {
    /// What field, at how many model calls, for which model.
    struct Rivals {
        /// Model calls. Solvers of two calls a step are in where it fits.
        nfe: usize = 5, integer(1, MOST_CALLS as u32).of("model calls");
        /// "published": every solver as hosts' own options have it, on the grids karras with rho 7 and log (for
        /// flow with shift 1 and with `shift`), each with and without a call at `sigma_min` where the end is 0.
        /// "strongest": those first, then karras with rho 3, 5 and 10 (flow: shifts 2 and 3), full order to the
        /// end, first nodes at 0.5, 0.25, 0.1, 0.05 and 0.025 of `sigma_max` (flow: 0.97, 0.93, 0.85 and 0.75),
        /// the analytical first step (arXiv 2210.05475), and every solver of one call a step on the grids of
        /// `extra`. About 80 and 1100 schedules at 5 NFE.
        field: Field = Field::Strongest, one_of(&["published", "strongest"]);
        /// How noise is added: "ve" is x = x0 + sigma n, "flow" is x = (1 - sigma) x0 + sigma n.
        process: Process = Process::Ve, one_of(&["ve", "flow"]);
        /// Smallest noise level that the model knows.
        sigma_min: f64 = 0.002, number("above 0, below sigma_max").of("noise level");
        /// Noise level of x_T.
        sigma_max: Option<f64> = None, number("above sigma_min, for flow at most 1").of("noise level"),
            else "80, for flow 1";
        /// Noise level of the result.
        sigma_end: f64 = 0.0, number("0, or below sigma_max").of("noise level");
        /// Time shift of a flow model.
        shift: Option<f64> = None, number("1e-3 to 1e3").of("time shift"), else "1";
        /// Grids beside the published ones, each the nfe + 1 noise levels from the first node, at most
        /// `sigma_max`, to `sigma_end`; such as those of GITS (arXiv 2405.11326). Only the strongest field has them.
        extra: Vec<Vec<f64>> = Vec::new(), other("grids", "");
    }
}

impl Rivals {
    /// Reads the options, a JSON object.
    pub fn from_json(text: &str) -> Result<Self> {
        let Named(options): Named<Self> = serde_json::from_str(text)
            .map_err(|e| Error::argument(format!("these are not options of a field of solvers: {e}")))?;
        Ok(options)
    }

    /// The field, after [`check`].
    pub fn list(&self) -> Result<Vec<Schedule>> {
        let Self { nfe, field, process, sigma_min, sigma_end, shift, .. } = *self;
        let sigma_max = self.sigma_max.unwrap_or(if process == Process::Flow { 1.0 } else { 80.0 });
        let levels = Levels { process, sigma_min, sigma_max, sigma_end, shift };
        check(&levels, nfe, &self.extra)?;
        if field == Field::Published && !self.extra.is_empty() {
            return Err(Error::argument(
                "extra is given, but field is \"published\"; only the strongest has such grids",
            ));
        }
        Ok(rivals(&levels, nfe, field, &self.extra))
    }
}

/// First nodes below sigma_max, as parts of it.
const STARTS: [f64; 5] = [0.5, 0.25, 0.1, 0.05, 0.025];
const STARTS_FLOW: [f64; 4] = [0.97, 0.93, 0.85, 0.75];
/// Fields are for few calls; solvers take the third power of their number to compile.
const MOST_CALLS: usize = 100;
/// Two tables are one where they differ by less than this, relatively: rounding.
const ROUNDING: f64 = 1e-9;

/// The field at `nfe` model calls: handcrafted schedules for `levels`, no two with the same table, those
/// of [`Field::Published`] first. `made_by` says which solver each is and on which grid.
///
/// `extra` are grids of the caller's, each the `nfe + 1` noise levels from the first node (at most
/// `sigma_max`) to `sigma_end`. Every solver of one call a step runs on them; only the strongest field
/// has them. What `levels` and `nfe` do not allow is left out; [`check`] says why.
pub fn rivals(levels: &Levels, nfe: usize, field: Field, extra: &[Vec<f64>]) -> Vec<Schedule> {
    let mut list = Vec::new();
    let usual = usual_grids(levels);
    add_all(&mut list, nfe, &at_top(levels, &usual, true));
    if field == Field::Strongest {
        let grids = [usual, more_grids(levels)].concat();
        let starts: &[f64] = if levels.process == Process::Flow { &STARTS_FLOW } else { &STARTS };
        for lower_order_final in [true, false] {
            let top = at_top(levels, &grids, lower_order_final);
            add_all(&mut list, nfe, &top);
            // Calls are few: none of them at sigma_min.
            let direct = top.into_iter().filter(|spec| spec.jump_to_zero == has_endings(levels));
            for spec in direct {
                let below = starts.iter().map(|part| Some(part * levels.sigma_max));
                let mut specs: Vec<_> = below.map(|sigma_max| Spec { sigma_max, ..spec.clone() }).collect();
                specs.push(Spec { afs: true, ..spec });
                add_all(&mut list, nfe, &specs);
            }
        }
        for sigmas in extra {
            let words: Vec<String> = sigmas.iter().map(|sigma| rounded(*sigma)).collect();
            list.extend(on_grid(levels, nfe, sigmas, &format!("sigmas {}", words.join(" "))));
        }
    }
    unique(list)
}

/// Every published solver of one call a step on one grid of `nfe + 1` noise levels, from the first node
/// to `sigma_end`, with and without lower order at the end; `words` name the grid in their records.
/// Empty where the grid does not fit.
pub fn on_grid(levels: &Levels, nfe: usize, sigmas: &[f64], words: &str) -> Vec<Schedule> {
    let specs = [true, false].map(|lower_order_final| Spec { lower_order_final, ..listed(levels, sigmas) });
    let mut list = Vec::new();
    if sigmas.last() == Some(&levels.sigma_end) {
        add_all(&mut list, nfe, &specs);
    }
    for schedule in &mut list {
        rename(schedule, |grid| grid.replacen(&Grid::List { sigmas: sigmas.to_vec() }.describe(), words, 1));
    }
    unique(list)
}

/// What `spec` solves as it is, from each first node below sigma_max that the strongest field has, and with
/// the analytical first step.
pub fn starts(levels: &Levels, spec: &Spec) -> Vec<Schedule> {
    let parts: &[f64] = if levels.process == Process::Flow { &STARTS_FLOW } else { &STARTS };
    let below = parts.iter().map(|part| Some(part * levels.sigma_max));
    let mut specs = vec![spec.clone()];
    specs.extend(below.map(|sigma_max| Spec { sigma_max, ..spec.clone() }));
    specs.push(Spec { afs: true, ..spec.clone() });
    specs.iter().filter_map(solved).collect()
}

/// `list` without schedules whose table one before them has; records are not compared.
pub fn unique(list: Vec<Schedule>) -> Vec<Schedule> {
    let mut kept: Vec<Schedule> = Vec::new();
    for schedule in list {
        if !kept.iter().any(|other| same_table(other, &schedule)) {
            kept.push(schedule);
        }
    }
    kept
}

/// Refuses levels or extra grids that no solver fits, and a number of calls that is not 1 to 100, naming
/// the value.
pub fn check(levels: &Levels, nfe: usize, extra: &[Vec<f64>]) -> Result<()> {
    if !(1..=MOST_CALLS).contains(&nfe) {
        return Err(Error::argument(format!("nfe is {nfe}; it must be 1 to {MOST_CALLS}")));
    }
    let euler = |spec: Spec| solver::solve(&Spec { solver: "euler".into(), nfe, ..spec });
    for grid in usual_grids(levels) {
        euler(Spec { grid: Some(grid), ..levels.spec() })?;
    }
    for (i, sigmas) in extra.iter().enumerate() {
        let about = |m: String| Error::argument(format!("grid {i} of extra: {m}"));
        let schedule = euler(listed(levels, sigmas)).map_err(|e| about(e.message))?;
        if schedule.sigma_end() != levels.sigma_end {
            let (end, wanted) = (schedule.sigma_end(), levels.sigma_end);
            return Err(about(format!("it ends at {end}; it must end at sigma_end, {wanted}")));
        }
    }
    Ok(())
}

impl Levels {
    /// What every handcrafted schedule for the model has in common.
    pub fn spec(&self) -> Spec {
        Spec {
            process: self.process,
            sigma_min: (self.sigma_end == 0.0).then_some(self.sigma_min),
            sigma_max: Some(self.sigma_max),
            sigma_end: Some(self.sigma_end),
            sigma_start: Some(self.sigma_max),
            ..Spec::default()
        }
    }
}

fn listed(levels: &Levels, sigmas: &[f64]) -> Spec {
    let grid = Some(Grid::List { sigmas: sigmas.to_vec() });
    Spec { grid, sigma_max: None, sigma_end: None, ..levels.spec() }
}

fn usual_grids(levels: &Levels) -> Vec<Grid> {
    match levels.process {
        Process::Ve => vec![Grid::Karras { rho: 7.0 }, Grid::Log {}],
        Process::Flow => {
            let own = levels.shift.filter(|shift| *shift != 1.0);
            [Some(1.0), own].into_iter().flatten().map(|shift| Grid::Flow { shift }).collect()
        }
    }
}

fn more_grids(levels: &Levels) -> Vec<Grid> {
    match levels.process {
        Process::Ve => [3.0, 5.0, 10.0].map(|rho| Grid::Karras { rho }).into(),
        Process::Flow => [2.0, 3.0].map(|shift| Grid::Flow { shift }).into(),
    }
}

/// Whether grids may end with a call at sigma_min, or without one.
fn has_endings(levels: &Levels) -> bool {
    levels.process == Process::Ve && levels.sigma_end == 0.0
}

/// Each grid from sigma_max, with each ending.
fn at_top(levels: &Levels, grids: &[Grid], lower_order_final: bool) -> Vec<Spec> {
    let endings: &[bool] = if has_endings(levels) { &[false, true] } else { &[false] };
    let spec = |grid: &Grid, jump_to_zero: bool| Spec {
        grid: Some(grid.clone()),
        jump_to_zero,
        lower_order_final,
        ..levels.spec()
    };
    grids.iter().flat_map(|grid| endings.iter().map(move |jump| spec(grid, *jump))).collect()
}

/// Every solver that competes, as each of `specs` has it; those that it does not fit are left out.
fn add_all(list: &mut Vec<Schedule>, nfe: usize, specs: &[Spec]) {
    for solver in solvers().iter().filter(|solver| solver.competes) {
        for spec in specs {
            list.extend(solved(&Spec { solver: solver.name.into(), nfe, ..spec.clone() }));
        }
    }
}

/// The schedule of a specification, with words for all that is not the default; None where it does not fit.
fn solved(spec: &Spec) -> Option<Schedule> {
    if memory::is_short() {
        return None; // the call ends with that, whatever is in the field
    }
    let mut schedule = solver::solve(spec).ok()?;
    let first = spec.sigma_max.filter(|first| Some(*first) != spec.sigma_start);
    rename(&mut schedule, |mut grid| {
        if let Some(first) = first {
            grid += &format!(", from sigma {}", rounded(first));
        }
        grid + if spec.lower_order_final { "" } else { ", full order to the end" }
    });
    Some(schedule)
}

/// Changes the words for the grid, in the record and in the name.
fn rename(schedule: &mut Schedule, change: impl FnOnce(String) -> String) {
    let nfe = schedule.nfe();
    let Some(by) = &mut schedule.made_by else { return };
    let words = change(by.grid.take().unwrap_or_default());
    let solver = by.solver.as_deref().unwrap_or_default();
    schedule.name = Some(format!("{solver}, {words}, {nfe} NFE"));
    by.grid = Some(words);
}

/// A noise level in words, to 4 digits.
fn rounded(sigma: f64) -> String {
    let text = format!("{sigma:.3e}");
    text.parse::<f64>().map_or(text, |value| value.to_string())
}

/// Whether sampling makes no difference between them.
fn same_table(a: &Schedule, b: &Schedule) -> bool {
    let near = |x: f64, y: f64| (x - y).abs() <= ROUNDING * x.abs().max(y.abs()).max(f64::MIN_POSITIVE);
    let weights = |a: &[f64], b: &[f64]| {
        let size = a.iter().chain(b).fold(0.0, |size: f64, w| size.max(w.abs()));
        let at = |list: &[f64], j: usize| list.get(j).copied().unwrap_or(0.0);
        (0..a.len().max(b.len())).all(|j| (at(a, j) - at(b, j)).abs() <= ROUNDING * size)
    };
    a.process() == b.process()
        && a.nfe() == b.nfe()
        && near(a.sigma_start(), b.sigma_start())
        && near(a.sigma_end(), b.sigma_end())
        && a.nodes().iter().zip(b.nodes()).all(|(a, b)| near(a.sigma, b.sigma) && near(a.scale, b.scale))
        && a.nodes().iter().zip(b.nodes()).all(|(a, b)| weights(&a.weights, &b.weights))
}
