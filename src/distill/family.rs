//! A distillation from start to end: teacher, ranking, fits, growth, and what is kept. Sees
//! schedules and distances, no tensor.

use super::fit::{Fit, padded, rebuilt, unknowns};
use super::measure::{Bench, Set};
use super::ranks::Ranks;
use super::{Config, Distilled, Fitted, Phase, Problem, Sums};
use crate::error::{Error, Result};
use crate::schedule::{Baseline, MadeBy, Node, Process, Schedule};
use crate::solver::{self, Grid, Spec};
use crate::tensor::Tensors;

/// The handcrafted solvers that compete, and that fits start from.
const CONTENDERS: [&str; 8] =
    ["dpmpp_2m", "dpmpp_3m", "deis_2", "deis_3", "ipndm_2", "ipndm_3", "unipc_bh1_2", "unipc_bh2_3"];
/// The best of these on the training set are measured on the held-out set too.
const BASELINES: usize = 4;
/// Starts at sigma[0] far below that of x_T: which solvers, and how far. Fits that start only at
/// the top get stuck in bad local minima.
const LOW_STARTS: [&str; 3] = ["dpmpp_2m", "dpmpp_3m", "ipndm_3"];
const LOW_SIGMAS: [f64; 3] = [0.25, 0.1, 0.05];
const LOW_SIGMAS_FLOW: [f64; 3] = [0.97, 0.93, 0.85];
/// The best starts race: each gets so many steps, so many are left, and again.
const STARTS: usize = 5;
const RACE: [(usize, usize); 2] = [(1, 2), (2, 1)];

/// One NFE of the family in work.
struct Entry {
    nfe: usize,
    /// The best on the held-out set so far, with its distance.
    best: (Schedule, f64),
    /// Held-out distances of handcrafted solvers, best first.
    handcrafted: Vec<(Schedule, f64)>,
    /// What the fit started from, with its held-out distance.
    start: Option<(Schedule, f64)>,
    trace: Vec<(u64, f64, f64)>,
}

/// Distils schedules for the model of `problem`. `like` gives the shape of a batch; its contents
/// are not read.
///
/// # Errors
/// Whatever a callback returns; `NonFinite` where the teacher diverges; `Mismatch` where the
/// checkpoint was made for something else; `Stopped` where the run was ended before the first result.
/// Where one rank fails, all do.
pub fn distill<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    let mut ranks = Ranks::of(problem)?;
    let result = distill_on(&mut ranks, tensors, config, like, problem);
    ranks.part(problem, &result);
    result
}

fn distill_on<B: Tensors>(
    ranks: &mut Ranks,
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    config.validate()?;
    let (teacher_nfe, least) = (config.teacher_nfe, 2 * config.nfe);
    if teacher_nfe < least {
        let message = format!("teacher_nfe is {teacher_nfe}; it must be at least twice nfe, {least}");
        return Err(Error::argument(message));
    }
    let count = ranks.count;
    let mut bench = Bench::new(tensors, config, like, problem, ranks, teacher(config)?)?;
    let mut entries = Vec::new();
    let mut ranking_calls = 0;
    if let Err(error) = run(&mut bench, &mut entries, &mut ranking_calls)
        && (bench.stopped.is_none() || entries.is_empty())
    {
        return Err(error);
    }
    Ok(Distilled {
        library_version: env!("CARGO_PKG_VERSION").into(),
        config: config.clone(),
        ranks: count,
        teacher_calls: bench.teacher_calls,
        model_calls: bench.model_calls,
        ranking_calls,
        seconds: bench.seconds(),
        callback_seconds: bench.callback_seconds,
        stopped: bench.stopped.map(Into::into),
        family: entries.into_iter().map(|entry| finished(&bench, entry)).collect(),
    })
}

/// Mean distances of `schedules` to the teacher's end points over `config.held_out` trajectories
/// that no distillation sees (batches from [`super::TEST_BATCHES`]). Ranks share them too.
pub fn compare<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
    schedules: &[&Schedule],
) -> Result<Vec<f64>> {
    let mut ranks = Ranks::of(problem)?;
    let result = compare_on(&mut ranks, tensors, config, like, problem, schedules);
    ranks.part(problem, &result);
    result
}

fn compare_on<B: Tensors>(
    ranks: &mut Ranks,
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
    schedules: &[&Schedule],
) -> Result<Vec<f64>> {
    config.validate()?;
    let config = Config { checkpoint: None, ..config.clone() };
    let mut bench = Bench::new(tensors, &config, like, problem, ranks, teacher(&config)?)?;
    let own: usize = schedules.iter().map(|s| s.nfe()).sum();
    bench.progress.calls_expected = bench.teacher_cost(Set::Test) + bench.batch_count(Set::Test) * own as u64;
    bench.teach(Set::Test)?;
    bench.progress.phase = Phase::Rank;
    bench.distances(Set::Test, schedules)
}

fn teacher(config: &Config) -> Result<Schedule> {
    solver::solve(&Spec {
        solver: config.teacher().into(),
        nfe: config.teacher_nfe,
        grid: config.teacher_grid.clone(),
        ..spec(config)
    })
}

/// What every handcrafted schedule for this model has in common.
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
        Process::Ve => vec![Grid::Karras { rho: 7.0 }, Grid::Karras { rho: 4.0 }, Grid::Log {}],
        Process::Flow => {
            let mut shifts = vec![1.0, 2.0, 3.0];
            shifts.extend(config.made_for.shift.filter(|s| !shifts.contains(s)));
            shifts.into_iter().map(|shift| Grid::Flow { shift }).collect()
        }
    }
}

/// Every contender on every grid at one NFE. With an end at 0, those that spend a call at sigma_min,
/// as hosts do, on the first grid only.
fn contenders(config: &Config, nfe: usize) -> Vec<Schedule> {
    let mut grids: Vec<_> = grids(config).into_iter().map(|grid| (grid, true)).collect();
    if config.process == Process::Ve && config.sigma_end == 0.0 {
        grids.push((grids[0].0.clone(), false));
    }
    let all = CONTENDERS.iter().flat_map(|solver| grids.iter().map(move |at| (*solver, at.clone())));
    let specs = all.map(|(solver, (grid, jump_to_zero))| Spec {
        solver: solver.into(),
        nfe,
        grid: Some(grid),
        jump_to_zero,
        ..spec(config)
    });
    specs.filter_map(|spec| solver::solve(&spec).ok()).collect()
}

/// Published solvers that start below the noise level of x_T, as hosts' "leading" spacing does.
fn low_starts(config: &Config, nfe: usize) -> Vec<Schedule> {
    if !(config.fit_sigmas && config.fit_start) {
        return Vec::new();
    }
    let sigmas = if config.process == Process::Ve { LOW_SIGMAS } else { LOW_SIGMAS_FLOW };
    let all = LOW_STARTS.iter().flat_map(|solver| sigmas.map(|part| (*solver, part * config.sigma_max)));
    let specs = all.map(|(solver, first)| Spec {
        solver: solver.into(),
        nfe,
        sigma_max: Some(first),
        jump_to_zero: true,
        ..spec(config)
    });
    let solved = specs.filter_map(|spec| solver::solve(&spec).ok());
    solved.map(from_below).collect()
}

/// Its record says where it starts.
fn from_below(mut schedule: Schedule) -> Schedule {
    let first = schedule.sigma(0);
    if let Some(grid) = schedule.made_by.as_mut().and_then(|by| by.grid.as_mut()) {
        *grid += &format!(", from sigma {}", (first * 1e6).round() / 1e6);
    }
    schedule
}

fn run<B: Tensors>(bench: &mut Bench<B>, entries: &mut Vec<Entry>, ranking_calls: &mut u64) -> Result<()> {
    let config = bench.config;
    bench.progress.calls_expected = expected_calls(bench, config.nfe_from());
    bench.teach(Set::Train)?;
    bench.teach(Set::Held)?;
    let mut below: Option<Fit> = None;
    for nfe in config.nfe_from()..=config.nfe {
        bench.progress.calls_expected = bench.progress.calls + expected_calls(bench, nfe);
        bench.progress.nfe = nfe;
        bench.progress.distance = f64::INFINITY;
        bench.progress.handcrafted = f64::INFINITY;
        bench.progress.phase = Phase::Rank;
        let before = bench.model_calls;
        let mut ranked = rank(bench, contenders(config, nfe))?;
        let smaller = entries.last().map(|entry| entry.best.clone());
        entries.push(baseline(bench, &ranked)?);
        let entry = entries.last_mut().expect("just pushed");
        let low = rank(bench, low_starts(config, nfe))?;
        compete(bench, entry, &low)?;
        ranked.truncate(2);
        ranked.extend(low);
        *ranking_calls += bench.model_calls - before;

        let fits = match &below {
            None => from_handcrafted(config, ranked)?,
            Some(below) => {
                if let Some((smaller, _)) = smaller {
                    // What is kept at n nodes is there at n + 1 too, so the family is monotone.
                    let same = (1..nfe).find_map(|gap| inserted(config, &smaller, gap).transpose());
                    keep(bench, entry, &same.transpose()?.unwrap_or(smaller), f64::NAN)?;
                }
                grown(config, below)?
            }
        };
        bench.progress.phase = if below.is_some() { Phase::Grow } else { Phase::Fit };
        let (start, mut fit) = race(bench, fits)?;
        let held = bench.distances(Set::Held, &[&start])?[0];
        entry.start = Some((start, held));
        bench.progress.phase = Phase::Fit;
        keep(bench, entry, &fit.schedule, fit.train)?;
        for _ in 1..config.iterations {
            if fit.done {
                break;
            }
            fit.step(bench)?;
            keep(bench, entry, &fit.schedule, fit.train)?;
        }
        below = Some(fit);
    }
    Ok(())
}

/// Gives every fit its steps, drops the worse ones, and so on until one is left, with its start.
fn race<B: Tensors>(bench: &mut Bench<B>, fits: Vec<Fit>) -> Result<(Schedule, Fit)> {
    let mut field: Vec<_> = fits.into_iter().map(|fit| (fit.schedule.clone(), fit)).collect();
    for (steps, left) in RACE {
        for (_, fit) in &mut field {
            for _ in 0..steps {
                fit.step(bench)?;
            }
        }
        field.sort_by(|a, b| a.1.train.total_cmp(&b.1.train));
        field.truncate(left);
    }
    field.into_iter().next().ok_or_else(|| Error::argument("no start fits these options"))
}

/// Fits from the best handcrafted starts.
fn from_handcrafted(config: &Config, mut ranked: Vec<(Schedule, f64)>) -> Result<Vec<Fit>> {
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    let starts = ranked.into_iter().take(STARTS);
    starts.map(|(schedule, train)| Ok(Fit::new(padded(config, &schedule)?, train))).collect()
}

/// Fits from one with a node less, a new node in each gap.
fn grown(config: &Config, below: &Fit) -> Result<Vec<Fit>> {
    let gaps = usize::from(!config.fit_start)..=below.schedule.nfe();
    let starts = gaps.filter_map(|gap| inserted(config, &below.schedule, gap).transpose());
    starts.map(|start| Ok(Fit::new(padded(config, &start?)?, below.train))).collect()
}

/// The entry of an NFE that has only handcrafted solvers yet.
fn baseline<B: Tensors>(bench: &mut Bench<B>, ranked: &[(Schedule, f64)]) -> Result<Entry> {
    let (first, _) = ranked.first().ok_or_else(|| Error::argument("no solver fits these options"))?;
    let best = (first.clone(), f64::INFINITY);
    let mut entry = Entry { nfe: first.nfe(), best, handcrafted: Vec::new(), start: None, trace: Vec::new() };
    compete(bench, &mut entry, ranked)?;
    Ok(entry)
}

/// Measures the best of `ranked` on the held-out set; the best of all so far are the baselines.
fn compete<B: Tensors>(bench: &mut Bench<B>, entry: &mut Entry, ranked: &[(Schedule, f64)]) -> Result<()> {
    let top: Vec<&Schedule> = ranked.iter().take(BASELINES).map(|(schedule, _)| schedule).collect();
    let held = bench.distances(Set::Held, &top)?;
    entry.handcrafted.extend(top.into_iter().cloned().zip(held));
    entry.handcrafted.sort_by(|a, b| a.1.total_cmp(&b.1));
    entry.handcrafted.truncate(BASELINES);
    entry.best = entry.handcrafted[0].clone();
    bench.progress.handcrafted = entry.best.1;
    bench.progress.distance = entry.best.1;
    Ok(())
}

/// Distances on the training set, best first.
fn rank<B: Tensors>(bench: &mut Bench<B>, list: Vec<Schedule>) -> Result<Vec<(Schedule, f64)>> {
    let train = bench.distances(Set::Train, &list.iter().collect::<Vec<_>>())?;
    let mut ranked: Vec<_> = list.into_iter().zip(train).collect();
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(ranked)
}

/// Keeps a schedule if it is the best so far on the held-out set.
fn keep<B: Tensors>(bench: &mut Bench<B>, entry: &mut Entry, schedule: &Schedule, train: f64) -> Result<()> {
    let held = bench.distances(Set::Held, &[schedule])?[0];
    if train.is_finite() {
        entry.trace.push((bench.model_calls, train, held));
    }
    if held < entry.best.1 && schedule.nfe() == entry.nfe {
        entry.best = (schedule.clone(), held);
        bench.progress.distance = held;
    }
    Ok(())
}

/// Batch calls from `nfe` to the end of the family, by what fits have needed: some fifteen steps each.
fn expected_calls<B: Tensors>(bench: &Bench<B>, nfe: usize) -> u64 {
    let config = bench.config;
    let of = |nfe: usize| {
        let Some(start) = contenders(config, nfe).first().and_then(|s| padded(config, s).ok()) else {
            return 0;
        };
        let calls: usize = unknowns(config, &start).iter().map(|u| nfe - u.first_call()).sum();
        let step = nfe + calls + 3 * nfe;
        let tried = if nfe == config.nfe_from() { STARTS } else { nfe };
        let steps = tried + 2 + config.iterations.min(15);
        let rank = nfe * (contenders(config, nfe).len() + low_starts(config, nfe).len());
        (rank + steps * step) as u64 * bench.batch_count(Set::Train)
            + (nfe * (2 * BASELINES + steps)) as u64 * bench.batch_count(Set::Held)
    };
    let teacher = match bench.teacher_calls {
        0 => bench.teacher_cost(Set::Train) + bench.teacher_cost(Set::Held),
        _ => 0,
    };
    let fits = (nfe..=config.nfe).map(of).sum::<u64>();
    teacher + config.max_calls.map_or(fits, |limit| fits.min(limit.saturating_sub(bench.model_calls)))
}

/// The schedule with one node more, which as yet changes nothing: its own prediction has weight 0
/// everywhere, and it repeats its neighbour's row. `gap` 0 is in front of the first node. None
/// where there is no room. (In front, where sums must be 1, and under an order limit, the result
/// does change.)
fn inserted(config: &Config, schedule: &Schedule, gap: usize) -> Result<Option<Schedule>> {
    let old = schedule.nodes();
    let last = gap == old.len();
    let above = if gap == 0 { schedule.sigma_start() } else { old[gap - 1].sigma };
    let below = if last { schedule.sigma_end().max(config.sigma_min) } else { old[gap].sigma };
    if above < below * 1.02 {
        return Ok(None);
    }
    let sigma = (above * below).sqrt();
    let scale = match gap {
        0 => old[0].scale,
        _ if last => old[gap - 1].scale,
        _ => (old[gap - 1].scale * old[gap].scale).sqrt(),
    };
    let weights = match gap {
        0 if config.sums == Sums::Affine => vec![1.0],
        0 => vec![0.0],
        _ => std::iter::once(0.0).chain(old[gap - 1].weights.iter().copied()).collect(),
    };
    let mut nodes = old.to_vec();
    for (m, node) in nodes.iter_mut().enumerate().skip(gap) {
        let age = m + 1 - gap;
        if age <= node.weights.len() {
            node.weights.insert(age, 0.0);
        }
    }
    let scale = (scale * sigma).clamp(config.sigma_min, config.sigma_max) / sigma;
    nodes.insert(gap, Node { sigma, scale, weights });
    let grown = rebuilt(schedule, nodes)?;
    Ok(Some(if config.order.is_some() { padded(config, &grown)? } else { grown }))
}

/// The schedule that an entry hands out, with its record.
fn finished<B: Tensors>(bench: &Bench<B>, entry: Entry) -> Fitted {
    let config = bench.config;
    let (mut schedule, distance) = entry.best;
    let improved = distance < entry.handcrafted[0].1;
    let word = if improved { "distilled" } else { "handcrafted" };
    let about = |s: &Schedule| s.made_by.clone().unwrap_or_default();
    let (start, start_distance) = entry.start.as_ref().unwrap_or(&entry.handcrafted[0]);
    let start = about(start);
    let mut made_for = config.made_for.clone();
    made_for.sigma_min.get_or_insert(config.sigma_min);
    made_for.sigma_max.get_or_insert(config.sigma_max);
    schedule.made_for = Some(made_for);
    schedule.name = Some(format!("{word}, {} NFE", entry.nfe));
    schedule.made_by = Some(MadeBy {
        method: word.into(),
        solver: start.solver,
        grid: start.grid,
        teacher: Some(format!("{}, {} NFE", config.teacher(), config.teacher_nfe)),
        trajectories: Some(config.trajectories as u64),
        held_out: Some(config.held_out as u64),
        seeds: config.seeds.clone(),
        model_calls: Some(bench.model_calls),
        teacher_calls: Some(bench.teacher_calls),
        seconds: Some(bench.seconds()),
        library_version: Some(env!("CARGO_PKG_VERSION").into()),
        distance: Some(distance),
        start_distance: Some(*start_distance),
        improved: Some(improved),
        handcrafted: entry
            .handcrafted
            .iter()
            .map(|(s, distance)| baseline_of(&about(s), *distance))
            .collect(),
        compared: Vec::new(),
    });
    Fitted { nfe: entry.nfe, distance, improved, trace: entry.trace, schedule }
}

fn baseline_of(by: &MadeBy, distance: f64) -> Baseline {
    let word = |w: &Option<String>| w.clone().unwrap_or_default();
    Baseline { solver: word(&by.solver), grid: word(&by.grid), nfe: None, distance }
}
