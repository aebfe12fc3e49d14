//! A distillation from start to end: teacher, ranking, fits, growth, and what is kept. Sees
//! schedules and distances, no tensor.

use super::fit::{Fit, knob, padded, rebuilt};
use super::measure::{Bench, Set};
use super::{Config, Distilled, Fitted, Phase, Problem, Sums};
use crate::error::{Error, Result};
use crate::schedule::{Baseline, MadeBy, Node, Process, Schedule};
use crate::solver::{self, Grid, Spec};
use crate::tensor::Tensors;

/// The handcrafted solvers that compete and that fits start from.
const CONTENDERS: [&str; 6] = ["dpmpp_2m", "dpmpp_3m", "ipndm_3", "ipndm_4", "deis_3", "unipc_bh2_3"];

/// One NFE of the family in work.
struct Entry {
    nfe: usize,
    /// Held-out distances of the handcrafted solvers, best first.
    handcrafted: Vec<(Schedule, f64)>,
    best: Option<(Schedule, f64)>,
    start: Option<Schedule>,
    start_distance: f64,
    trace: Vec<(u64, f64, f64)>,
}

pub fn distill<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    config.validate()?;
    let mut bench = Bench::new(tensors, config, like, problem, teacher(config)?)?;
    let mut entries = Vec::new();
    let mut ranking_calls = 0;
    let ended = run(&mut bench, &mut entries, &mut ranking_calls);
    if let Err(error) = ended
        && (bench.stopped.is_none() || entries.is_empty())
    {
        return Err(error);
    }
    let stopped = bench.stopped;
    let family = entries.into_iter().map(|e| finished(&bench, e)).collect::<Result<Vec<_>>>()?;
    Ok(Distilled {
        library_version: env!("CARGO_PKG_VERSION").into(),
        config: config.clone(),
        teacher_calls: bench.teacher_calls,
        model_calls: bench.model_calls,
        ranking_calls,
        seconds: bench.seconds(),
        callback_seconds: bench.callback_seconds,
        stopped: stopped.map(Into::into),
        family,
    })
}

pub fn compare<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
    schedules: &[&Schedule],
) -> Result<Vec<f64>> {
    config.validate()?;
    let plain = Config { checkpoint: None, ..config.clone() };
    let mut bench = Bench::new(tensors, &plain, like, problem, teacher(config)?)?;
    let own: u64 = schedules.iter().map(|s| s.nfe() as u64).sum();
    bench.progress.calls_expected = bench.batch_count(Set::Test) * own + bench.teacher_cost(Set::Test);
    bench.teach(Set::Test)?;
    bench.progress.phase = Phase::Rank;
    bench.distances(Set::Test, schedules)
}

fn teacher(config: &Config) -> Result<Schedule> {
    solver::solve(&Spec {
        solver: config.teacher.clone(),
        nfe: config.teacher_nfe,
        grid: config.teacher_grid.clone(),
        lower_order_final: config.sigma_end == 0.0,
        ..spec(config)
    })
}

fn spec(config: &Config) -> Spec {
    Spec {
        process: config.process,
        sigma_min: (config.sigma_end == 0.0).then_some(config.sigma_min),
        sigma_max: Some(config.sigma_max),
        sigma_end: Some(config.sigma_end),
        sigma_start: Some(config.sigma_max),
        ..Spec::default()
    }
}

fn grids(config: &Config) -> Vec<Grid> {
    match config.process {
        Process::Ve => {
            vec![
                Grid::Karras { rho: 7.0 },
                Grid::Karras { rho: 5.0 },
                Grid::Karras { rho: 3.0 },
                Grid::Log {},
            ]
        }
        Process::Flow => {
            let mut shifts = vec![1.0, 2.0, 3.0, 5.0];
            shifts.extend(config.made_for.shift.filter(|s| !shifts.contains(s)));
            shifts.into_iter().map(|shift| Grid::Flow { shift }).collect()
        }
    }
}

/// Every contender on every grid at one NFE.
fn contenders(config: &Config, nfe: usize) -> Vec<Schedule> {
    let mut list = Vec::new();
    for solver in CONTENDERS {
        for grid in grids(config) {
            let spec = Spec { solver: solver.into(), nfe, grid: Some(grid), ..spec(config) };
            list.extend(solver::solve(&spec).ok());
        }
    }
    list
}

/// Starts whose first node lies below the noise level of x_T.
fn low_starts(config: &Config, nfe: usize) -> Vec<Schedule> {
    let mut list = Vec::new();
    if !config.fit_sigmas {
        return list;
    }
    let firsts: &[f64] = match config.process {
        Process::Ve => &[0.25, 0.1, 0.05],
        Process::Flow => &[0.97, 0.93, 0.85],
    };
    for solver in ["dpmpp_2m", "dpmpp_3m", "ipndm_3"] {
        for first in firsts {
            let first = first * config.sigma_max;
            let spec =
                Spec { solver: solver.into(), nfe, sigma_max: Some(first), ..spec(config) };
            list.extend(solver::solve(&spec).ok());
        }
    }
    list
}

fn run<B: Tensors>(bench: &mut Bench<B>, entries: &mut Vec<Entry>, ranking_calls: &mut u64) -> Result<()> {
    let config = bench.config;
    bench.teach(Set::Train)?;
    bench.teach(Set::Held)?;
    let verbose = knob("VERBOSE", 0.0) > 0.0;
    let mut below: Option<Fit> = None;
    for nfe in config.nfe_from()..=config.nfe {
        bench.progress.phase = Phase::Rank;
        bench.progress.nfe = nfe;
        bench.progress.distance = f64::INFINITY;
        bench.progress.handcrafted = f64::INFINITY;
        let before = bench.model_calls;
        let mut ranked = rank(bench, contenders(config, nfe))?;
        let top: Vec<Schedule> = ranked.iter().take(4).map(|(s, _)| s.clone()).collect();
        let held = bench.distances(Set::Held, &top.iter().collect::<Vec<_>>())?;
        let mut handcrafted: Vec<(Schedule, f64)> = top.into_iter().zip(held).collect();
        handcrafted.sort_by(|a, b| a.1.total_cmp(&b.1));
        let best = handcrafted[0].clone();
        bench.progress.handcrafted = best.1;
        entries.push(Entry {
            nfe,
            best: Some(best.clone()),
            start: Some(best.0.clone()),
            start_distance: best.1,
            handcrafted,
            trace: Vec::new(),
        });
        let entry = entries.last_mut().expect("just pushed");
        let mut fits: Vec<Fit> = Vec::new();
        if let Some(below) = &below {
            bench.progress.phase = Phase::Grow;
            for gap in 0..nfe {
                if let Some(start) = inserted(config, &below.schedule, gap)? {
                    let train = bench.distances(Set::Train, &[&start])?[0];
                    fits.push(Fit::new(padded(config, &start)?, train));
                }
            }
        } else {
            ranked.truncate(2);
            let low = rank(bench, low_starts(config, nfe))?;
            let count = knob("STARTS", 3.0) as usize;
            ranked.extend(low);
            ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
            for (s, train) in ranked.into_iter().take(count) {
                if verbose {
                    let by = s.made_by.clone().unwrap();
                    eprintln!("  start {:?} {:?} from {} : {train}", by.solver, by.grid, s.sigma(0));
                }
                fits.push(Fit::new(padded(config, &s)?, train));
            }
        }
        *ranking_calls += bench.model_calls - before;
        if verbose {
            eprintln!("nfe {nfe}: handcrafted {:.4}; {} calls", best.1, bench.model_calls);
        }
        // A few steps each, then the best goes on alone.
        bench.progress.phase = if below.is_some() { Phase::Grow } else { Phase::Fit };
        let rounds = knob(if below.is_some() { "GROUNDS" } else { "ROUNDS" }, 2.0) as usize;
        for fit in &mut fits {
            let from = fit.train;
            for _ in 0..rounds {
                fit.step(bench)?;
            }
            if verbose {
                eprintln!("  {:.4} -> {:.4} at {}", from, fit.train, bench.model_calls);
            }
        }
        fits.sort_by(|a, b| a.train.total_cmp(&b.train));
        bench.progress.phase = Phase::Fit;
        let finalists = knob("FINAL", 1.0) as usize;
        let mut finished: Vec<Fit> = Vec::new();
        for mut fit in fits.into_iter().take(finalists) {
            offer(bench, entry, &fit)?;
            for _ in 0..config.iterations {
                if fit.done {
                    break;
                }
                fit.step(bench)?;
                offer(bench, entry, &fit)?;
                if verbose {
                    let t = entry.trace.last().unwrap();
                    eprintln!("    {} train {:.5} held {:.5}", t.0, t.1, t.2);
                }
            }
            finished.push(fit);
        }
        finished.sort_by(|a, b| a.train.total_cmp(&b.train));
        below = finished.into_iter().next();
    }
    Ok(())
}

/// Distances on the training set, best first.
fn rank<B: Tensors>(bench: &mut Bench<B>, list: Vec<Schedule>) -> Result<Vec<(Schedule, f64)>> {
    let train = bench.distances(Set::Train, &list.iter().collect::<Vec<_>>())?;
    let mut ranked: Vec<_> = list.into_iter().zip(train).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(ranked)
}

/// Keeps the fit if it is the best so far on the held-out set.
fn offer<B: Tensors>(bench: &mut Bench<B>, entry: &mut Entry, fit: &Fit) -> Result<()> {
    let held = bench.distances(Set::Held, &[&fit.schedule])?[0];
    entry.trace.push((bench.model_calls, fit.train, held));
    if entry.best.as_ref().is_none_or(|(_, best)| held < *best) {
        entry.best = Some((fit.schedule.clone(), held));
        bench.progress.distance = held;
    }
    Ok(())
}

/// The schedule with one node more, which as yet changes nothing: its own prediction has weight 0
/// everywhere, and it repeats its neighbour's row. `gap` 0 is in front of the first node. None
/// where there is no room.
fn inserted(config: &Config, schedule: &Schedule, gap: usize) -> Result<Option<Schedule>> {
    let old = schedule.nodes();
    let above = if gap == 0 { schedule.sigma_start() } else { old[gap - 1].sigma };
    let below = schedule.sigma(gap).max(if gap == old.len() { config.sigma_min } else { 0.0 });
    if above < below * 1.02 {
        return Ok(None);
    }
    let sigma = (above * below).sqrt();
    let scale = match gap {
        0 => old[0].scale,
        g if g == old.len() => old[g - 1].scale,
        g => (old[g - 1].scale * old[g].scale).sqrt(),
    };
    let scale = (scale * sigma).clamp(config.sigma_min, config.sigma_max) / sigma;
    let weights = match gap {
        0 if config.sums == Sums::Affine => vec![1.0],
        0 => vec![0.0],
        g => std::iter::once(0.0).chain(old[g - 1].weights.iter().copied()).collect(),
    };
    let mut nodes = old.to_vec();
    for (m, node) in nodes.iter_mut().enumerate().skip(gap) {
        let age = m + 1 - gap;
        if age <= node.weights.len() {
            node.weights.insert(age, 0.0);
        }
    }
    nodes.insert(gap, Node { sigma, scale, weights });
    if let Some(order) = config.order {
        nodes.iter_mut().for_each(|node| node.weights.truncate(order));
    }
    rebuilt(schedule, nodes).map(Some)
}

/// The schedule that an entry hands out, with its record.
fn finished<B: Tensors>(bench: &Bench<B>, entry: Entry) -> Result<Fitted> {
    let config = bench.config;
    let (mut schedule, distance) =
        entry.best.ok_or_else(|| Error::argument("a family without a result"))?;
    let best_handcrafted = entry.handcrafted.first().map_or(f64::INFINITY, |h| h.1);
    let improved = distance < best_handcrafted;
    let about = |s: &Schedule| s.made_by.clone().unwrap_or_default();
    let start = entry.start.as_ref().map(about).unwrap_or_default();
    let mut made_for = config.made_for.clone();
    made_for.sigma_min.get_or_insert(config.sigma_min);
    made_for.sigma_max.get_or_insert(config.sigma_max);
    schedule.made_for = Some(made_for);
    schedule.name = Some(format!(
        "{} at {} NFE",
        if improved { "distilled" } else { "best handcrafted" },
        entry.nfe
    ));
    schedule.made_by = Some(MadeBy {
        method: if improved { "distilled" } else { "handcrafted" }.into(),
        solver: start.solver,
        grid: start.grid,
        teacher: Some(format!("{} at {} NFE", config.teacher, config.teacher_nfe)),
        trajectories: Some(config.trajectories as u64),
        held_out: Some(config.held_out as u64),
        seeds: config.seeds.clone(),
        model_calls: Some(bench.model_calls),
        teacher_calls: Some(bench.teacher_calls),
        seconds: Some(bench.seconds()),
        library_version: Some(env!("CARGO_PKG_VERSION").into()),
        distance: Some(distance),
        start_distance: Some(entry.start_distance),
        improved: Some(improved),
        handcrafted: entry
            .handcrafted
            .iter()
            .map(|(s, distance)| {
                let by = about(s);
                Baseline {
                    solver: by.solver.unwrap_or_default(),
                    grid: by.grid.unwrap_or_default(),
                    distance: *distance,
                }
            })
            .collect(),
    });
    Ok(Fitted { nfe: entry.nfe, distance, improved, trace: entry.trace, schedule: Some(schedule) })
}
