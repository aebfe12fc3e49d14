//! Where fits start, and what they must beat: the strongest published field, ranked. First by the
//! teacher's recorded run, at no calls at all; then by the model, by successive halving.

use std::collections::HashMap;

use super::bench::{Bench, hashed};
use super::journal::{Key, Kind};
use super::teacher::Recording;
use super::{Config, Phase, generic};
use crate::error::{Error, Result};
use crate::field::{self, Field};
use crate::schedule::{Process, Schedule};
use crate::solver::{Grid, Spec};
use crate::tensor::Tensors;

/// The model is asked about so many schedules of the field, of published starts, and of the levels that a generic
/// one may have; about the best quarter of the field again.
const ASKED: [usize; 3] = [16, 4, 2];
/// So many generic starts race: two that are as near may end half as far from each other, by what they are made for
/// (photographs, 5 NFE: 5.1 from a table for pictures, 7.6 from one that was nearer).
const GENERIC: usize = 3;
/// Where calls are few the ranking takes its share of them, but asks about so many of each.
const SPARE: f64 = 2.2;
const LEAST_ASKED: usize = 2;
/// Solvers and grids that fits start from. Not all of the field: from rho 10 or the log grid, whose last
/// levels are too low, fits end a tenth farther from the teacher than from rho 5 or 7 (guidance 1, 5
/// NFE: 0.105 against 0.093 and 0.096), though they start nearer.
const SOLVERS: [&str; 5] = ["ipndm_3", "ipndm_2", "deis_3", "lms_4", "dpmpp_2m"];
const RHOS: [f64; 2] = [5.0, 7.0];
/// How strongly the denoised image follows an error of the state: as that of a Gaussian of this standard
/// deviation, relative to the data's. Networks differ (one is best told by 0.13, a mixture by 0.4), so
/// both have a say: half of those asked by each.
const STIFFNESS: [f64; 2] = [0.13, 0.4];
/// Weight of what is accumulated before a step, in the cost of GITS (arXiv 2405.11326): its own choice,
/// and none.
const GITS: [f64; 2] = [1.15, 1.0];

/// What the ranking of one number of calls found, with distances on the ranking batches, best first.
pub struct Ranked {
    /// The strongest published field.
    pub field: Vec<(Schedule, f64)>,
    /// What fits start from: the best of each kind.
    pub starts: Vec<(Schedule, f64)>,
}

/// Ranks the strongest field at `nfe` calls, and what fits start from. Where only so many calls are `left`, the
/// model is asked about fewer: the held-out batches need their part.
pub fn rank<B: Tensors>(
    bench: &mut Bench<B>,
    recording: &Recording,
    goal: &Schedule,
    batches: &[u64],
    nfe: usize,
    left: Option<u64>,
) -> Result<Ranked> {
    bench.account.progress.phase = Phase::Rank;
    bench.account.progress.nfe = nfe;
    let first = &batches[..bench.batches_of(4).min(batches.len())];
    let share = left.map_or(1.0, |left| {
        left as f64 / (SPARE * cost(bench.config, first.len(), batches.len(), nfe) as f64)
    });
    let asked = ASKED.map(|count| ((share.min(1.0) * count as f64) as usize).max(LEAST_ASKED));
    let config = bench.config;
    let of_field = promising(recording, field_of(config, recording, nfe), asked[0]);
    if of_field.is_empty() {
        return Err(Error::argument("no solver fits these options"));
    }
    let published = promising(recording, starts_of(config, nfe), asked[1]);
    // Each table by itself: the recorded run overrates those whose numbers fit nothing else.
    let tables = generic::starts(config, nfe, recording.deviation()).into_iter();
    let tables = tables.flat_map(|table| promising(recording, table, asked[2])).collect();
    let mut known = HashMap::new();
    let mut field = one_by_one(bench, goal, first, of_field, &mut known)?;
    field.truncate(asked[0].div_ceil(4));
    let field = field.into_iter().map(|(schedule, _)| schedule).collect();
    let field = one_by_one(bench, goal, batches, field, &mut known)?;
    let kinds = [(config.given(nfe)?, usize::MAX), (published, 1), (tables, GENERIC)];
    let mut starts = Vec::new();
    for (list, count) in kinds {
        let ranked = one_by_one(bench, goal, first, list, &mut known)?;
        let mut models = Vec::new();
        for start in ranked {
            let model = generic::model_of(&start.0).map(String::from);
            if count > models.len() && (model.is_none() || !models.contains(&model)) {
                models.push(model);
                starts.push(start);
            }
        }
    }
    starts.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(Ranked { starts: if starts.is_empty() { vec![field[0].clone()] } else { starts }, field })
}

/// `list` with its distances, best first. Each is a measurement of its own: a run with more calls, which asks about more,
/// has these already. What is both in the field and a start is measured once.
fn one_by_one<B: Tensors>(
    bench: &mut Bench<B>,
    goal: &Schedule,
    batches: &[u64],
    list: Vec<Schedule>,
    known: &mut HashMap<u64, f64>,
) -> Result<Vec<(Schedule, f64)>> {
    let mut ranked = Vec::with_capacity(list.len());
    for schedule in list {
        let key = hashed(Key::of(Kind::Distances).and_all(batches.iter().copied()), &&schedule).number();
        let distance = match known.get(&key) {
            Some(distance) => *distance,
            None => bench.distances(goal, batches, &[&schedule], true)?[0],
        };
        known.insert(key, distance);
        ranked.push((schedule, distance));
    }
    ranked.sort_by(|a, b| a.1.total_cmp(&b.1));
    Ok(ranked)
}

/// How many batch calls [`rank`] takes.
pub fn cost(config: &Config, first: usize, all: usize, nfe: usize) -> u64 {
    let given = config.given(nfe).map_or(0, |given| given.len());
    let asked = ASKED[0] + ASKED[1] + ASKED[2] * generic::count(nfe) + given;
    (nfe * (asked * first + ASKED[0] / 4 * all)) as u64
}

/// The strongest field, with the grids that the recorded run gives.
fn field_of(config: &Config, recording: &Recording, nfe: usize) -> Vec<Schedule> {
    let levels = config.levels();
    let mut all = field::rivals(&levels, nfe, Field::Strongest, &[]);
    for factor in GITS {
        if let Some(sigmas) = gits(recording, nfe, factor) {
            all.extend(field::on_grid(&levels, nfe, &sigmas, &format!("gits {factor}")));
        }
    }
    allowed(config, all)
}

/// What fits may start from: at the top, below it, and with an analytical first step.
fn starts_of(config: &Config, nfe: usize) -> Vec<Schedule> {
    if !config.fit_sigmas {
        return Vec::new(); // the grid stays: that of the best of the field
    }
    let levels = config.levels();
    let grids: Vec<Grid> = match config.process {
        Process::Ve => RHOS.map(|rho| Grid::Karras { rho }).into(),
        Process::Flow => {
            let shifts = [Some(1.0), Some(2.0), Some(3.0), config.made_for.shift];
            shifts.into_iter().flatten().map(|shift| Grid::Flow { shift }).collect()
        }
    };
    let mut all = Vec::new();
    for (solver, grid) in SOLVERS.iter().flat_map(|solver| grids.iter().map(move |grid| (solver, grid))) {
        let spec = Spec { solver: (*solver).into(), nfe, grid: Some(grid.clone()), ..levels.spec() };
        all.extend(field::starts(&levels, &Spec { jump_to_zero: true, ..spec }));
    }
    allowed(config, field::unique(all))
}

/// Those that a fit may have come from: hosts that hand x_T to the model as it is start at the top.
fn allowed(config: &Config, mut all: Vec<Schedule>) -> Vec<Schedule> {
    if !(config.fit_sigmas && config.fit_start) {
        all.retain(|schedule| schedule.sigma(0) == schedule.sigma_start());
    }
    all
}

/// So many of `all`, by the recorded run.
fn promising(recording: &Recording, all: Vec<Schedule>, count: usize) -> Vec<Schedule> {
    let mut chosen: Vec<usize> = Vec::new();
    for stiffness in STIFFNESS {
        let model = Recorded::new(recording, stiffness);
        let told: Vec<f64> = all.iter().map(|schedule| model.distance(schedule)).collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|a, b| told[*a].total_cmp(&told[*b]));
        let new: Vec<usize> = order.into_iter().filter(|i| !chosen.contains(i)).take(count / 2).collect();
        chosen.extend(new);
    }
    chosen.into_iter().map(|i| all[i].clone()).collect()
}

/// A model made of the recorded run: what the teacher's model said on the way, and a scalar response to
/// being off it.
struct Recorded<'a> {
    recording: &'a Recording,
    /// Standard deviation of the Gaussian that responds so.
    deviation: f64,
}

impl<'a> Recorded<'a> {
    fn new(recording: &'a Recording, stiffness: f64) -> Self {
        Self { recording, deviation: stiffness * recording.deviation() }
    }

    /// The teacher's prediction and state at a noise level, over the basis.
    fn at(&self, sigma: f64) -> (Vec<f64>, Vec<f64>) {
        let (run, basis) = (&self.recording.schedule, self.recording.basis());
        let last = run.nfe() - 1;
        let low = (0..last).find(|&n| run.sigma(n + 1) <= sigma).unwrap_or(last.saturating_sub(1));
        let (above, below) = (run.sigma(low), run.sigma((low + 1).min(last)));
        let part = ((above / sigma).ln() / (above / below).ln()).clamp(0.0, 1.0);
        let mut prediction = vec![0.0; basis];
        prediction[1 + low] += 1.0 - part;
        prediction[1 + (low + 1).min(last)] += part;
        // From the node above, by the mean of the predictions on the way.
        let keep = (sigma / above).min(1.0);
        let mut state: Vec<f64> = self.recording.states[low].iter().map(|v| keep * v).collect();
        state[1 + low] += (1.0 - keep) * (1.0 - part / 2.0);
        state[1 + (low + 1).min(last)] += (1.0 - keep) * part / 2.0;
        (prediction, state)
    }

    /// What a schedule's mean distance to the teacher would be.
    fn distance(&self, schedule: &Schedule) -> f64 {
        let basis = self.recording.basis();
        let mut x = vec![0.0; basis];
        x[0] = schedule.sigma(0) / schedule.sigma_start();
        let mut predictions: Vec<Vec<f64>> = Vec::with_capacity(schedule.nfe());
        for n in 0..schedule.nfe() {
            let sigma = schedule.model_sigma(n);
            let alpha = if schedule.process() == Process::Flow { 1.0 - sigma } else { 1.0 };
            let variance = (self.deviation * self.deviation).min(1e12);
            let response = alpha * variance / (alpha * alpha * variance + sigma * sigma);
            let (mut prediction, state) = self.at(sigma);
            let off = x.iter().zip(&state);
            prediction.iter_mut().zip(off).for_each(|(d, (x, s))| *d += response * (x - s));
            predictions.push(prediction);
            let (r, row) = schedule.row(n);
            x.iter_mut().for_each(|v| *v *= r);
            for (age, weight) in row.iter().enumerate() {
                x.iter_mut().zip(&predictions[n - age]).for_each(|(v, d)| *v += weight * d);
            }
        }
        let end = &self.recording.states[self.recording.schedule.nfe()];
        let off: Vec<f64> = x.iter().zip(end).map(|(a, b)| a - b).collect();
        self.recording.length(&off)
    }
}

/// The noise levels that a dynamic program picks from those of the recorded run, so that Euler's steps
/// between them stay near it: `nfe + 1` with the end. The first may be below the top, where the step
/// from x_T has no prediction yet.
fn gits(recording: &Recording, nfe: usize, factor: f64) -> Option<Vec<f64>> {
    let run = &recording.schedule;
    let (ends, basis) = (run.nfe(), recording.basis());
    let off = |from: Option<usize>, to: usize| {
        let mut step = recording.states[to].clone();
        match from {
            None => step[0] -= run.sigma(to) / run.sigma_start(),
            Some(from) => {
                let keep = run.sigma(to) / run.sigma(from);
                step.iter_mut().zip(&recording.states[from]).for_each(|(v, x)| *v -= keep * x);
                step[1 + from] -= 1.0 - keep;
            }
        }
        debug_assert_eq!(step.len(), basis);
        recording.length(&step)
    };
    // best[n]: least cost of reaching level n by so many steps, and from where.
    let mut best: Vec<(f64, Vec<usize>)> = (0..ends).map(|n| (off(None, n), vec![n])).collect();
    best.push((f64::INFINITY, Vec::new()));
    for _ in 0..nfe {
        best = (0..=ends)
            .map(|to| {
                let costs = (0..to).map(|from| (factor * best[from].0 + off(Some(from), to), from));
                let least = costs.min_by(|a, b| a.0.total_cmp(&b.0));
                least.map_or((f64::INFINITY, Vec::new()), |(cost, from)| {
                    (cost, best[from].1.iter().copied().chain([to]).collect())
                })
            })
            .collect();
    }
    let (cost, path) = best.pop()?;
    let sigmas: Vec<f64> = path.iter().map(|&n| run.sigma(n)).collect();
    (cost.is_finite() && sigmas.len() == nfe + 1).then_some(sigmas)
}
