//! Where fits start, and what they must beat: the strongest published field, ranked. First by the
//! teacher's recorded run, at no calls at all; then by the model, by successive halving.

use std::collections::HashMap;

use super::evaluator::Evaluator;
use super::journal::{Key, Kind};
use super::measure::with_schedule;
use super::recorded::promising;
use super::teacher::Recording;
use super::{Config, Phase, generic, recorded};
use crate::error::{Error, Result};
use crate::field::{self, Field, Levels};
use crate::schedule::{Process, Schedule};
use crate::solver::{Grid, Spec};
use crate::tensor::Tensors;

/// The model is asked about so many schedules of the field, of published starts, and of the levels that a generic
/// one may have; about the best quarter of the field again.
const ASKED: [usize; 3] = [16, 4, 2];
/// Solvers that the recorded run thinks worse of than they are: where calls suffice, the model is asked about so many
/// more of each kind. Without them the best of what it was asked about ends 1.31 and 1.19 times as far from the teacher as
/// the best of the field (emoji pixel model, 5 and 8 NFE), with them 1.04 times; on the latent model, by which this was not
/// chosen, 1.31 and 1.07 times at 5 NFE.
const UNDERRATED: [&[&str]; 2] = [&["euler"], &["lms_2", "lms_3", "lms_4"]];
const OF_A_KIND: usize = 2;
/// So many generic starts race: two that are as near may end half as far from each other, by what they are made for
/// (photographs, 5 NFE: 5.1 from a table for pictures, 7.6 from one that was nearer).
const GENERIC: usize = 3;
/// Where calls are few the ranking takes its share of them, but asks about so many of each.
const SPARE: f64 = 2.2;
const LEAST_ASKED: usize = 2;
/// Solvers and grids that fits start from. Not all of the field: from rho 10 or the log grid, whose last
/// levels are too low, fits end a tenth farther from the teacher than from rho 5 or 7 (guidance 1, 5
/// NFE: 0.105 against 0.093 and 0.096), though they start nearer. Those of order 2 are for models that are rough
/// at guidance (emoji flow model, 7 NFE: 3.3 with them, 4.1 without).
const SOLVERS: [&str; 8] =
    ["ipndm_3", "ipndm_2", "deis_3", "lms_4", "dpmpp_2m", "deis_2", "lms_2", "unipc_bh2_1"];
const RHOS: [f64; 2] = [5.0, 7.0];
/// First nodes of a flow model's grids in the ratio of noise to signal, as parts of sigma_max.
const TOPS: [f64; 5] = [0.985, 0.97, 0.93, 0.85, 0.75];

/// What the ranking of one number of calls found, with distances on the ranking batches, best first.
pub struct Ranked {
    /// The strongest published field.
    pub field: Vec<(Schedule, f64)>,
    /// What fits start from: the best of each kind.
    pub starts: Vec<(Schedule, f64)>,
}

/// Ranks the strongest field at `nfe` calls, and what fits start from. Where only so many calls are `left`, the
/// model is asked about fewer: the held-out batches need their share.
pub fn rank<B: Tensors>(
    eval: &mut Evaluator<B>,
    recording: &Recording,
    goal: &Schedule,
    batches: &[u64],
    nfe: usize,
    left: Option<u64>,
) -> Result<Ranked> {
    eval.account.progress.phase = Phase::Rank;
    eval.account.progress.nfe = nfe;
    let first = &batches[..eval.batches_of(4).min(batches.len())];
    let share = left.map_or(1.0, |left| {
        left as f64 / (SPARE * cost(eval.config, first.len(), batches.len(), nfe) as f64)
    });
    let asked = ASKED.map(|count| ((share.min(1.0) * count as f64) as usize).max(LEAST_ASKED));
    let config = eval.config;
    let of_field = of_all_kinds(recording, &field_of(config, recording, nfe), asked[0]);
    if of_field.is_empty() {
        return Err(Error::argument("no solver fits these options"));
    }
    let published = promising(recording, &starts_of(config, nfe), asked[1]);
    // Each table by itself: the recorded run overrates those whose numbers fit nothing else.
    let tables = generic::starts(config, nfe, recording.deviation()).into_iter();
    let tables = tables.flat_map(|table| promising(recording, &table, asked[2])).collect();
    let mut known = HashMap::new();
    let mut field = one_by_one(eval, goal, first, of_field, &mut known)?;
    field.truncate(asked[0].div_ceil(4));
    let field = field.into_iter().map(|(schedule, _)| schedule).collect();
    let field = one_by_one(eval, goal, batches, field, &mut known)?;
    let kinds = [(config.given(nfe)?, usize::MAX), (published, 1), (tables, GENERIC)];
    let mut starts = Vec::new();
    for (list, count) in kinds {
        let ranked = one_by_one(eval, goal, first, list, &mut known)?;
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

/// So many of `all`, by the recorded run, and some of those that it underrates.
fn of_all_kinds(recording: &Recording, all: &[Schedule], count: usize) -> Vec<Schedule> {
    let mut chosen = promising(recording, all, count);
    for kind in UNDERRATED.iter().filter(|_| count == ASKED[0]) {
        let is_of_it = |schedule: &Schedule| {
            let solver = schedule.made_by.as_ref().and_then(|by| by.solver.as_deref());
            solver.is_some_and(|solver| kind.contains(&solver))
        };
        let others = all.iter().filter(|other| is_of_it(other) && !chosen.contains(other));
        let others: Vec<Schedule> = others.cloned().collect();
        chosen.extend(promising(recording, &others, OF_A_KIND));
    }
    chosen
}

/// `list` with its distances, best first. Each is a measurement of its own: a run with more calls, which asks about more,
/// has these already. What is both in the field and a start is measured once.
fn one_by_one<B: Tensors>(
    eval: &mut Evaluator<B>,
    goal: &Schedule,
    batches: &[u64],
    list: Vec<Schedule>,
    known: &mut HashMap<u64, f64>,
) -> Result<Vec<(Schedule, f64)>> {
    let mut ranked = Vec::with_capacity(list.len());
    for schedule in list {
        let key = Key::of(Kind::Distances).and_all(batches.iter().copied());
        let key = with_schedule(key, &schedule).number();
        let distance = match known.get(&key) {
            Some(distance) => *distance,
            None => eval.distances(goal, batches, &[&schedule], true)?[0],
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
    let asked = ASKED[0] + OF_A_KIND * UNDERRATED.len() + ASKED[1] + ASKED[2] * generic::count(nfe) + given;
    (nfe * (asked * first + ASKED[0] / 4 * all)) as u64
}

/// The strongest field, with the grids that the recorded run gives.
fn field_of(config: &Config, recording: &Recording, nfe: usize) -> Vec<Schedule> {
    let levels = config.levels();
    let mut all = field::rivals(&levels, nfe, Field::Strongest, &[]);
    for (factor, sigmas) in recorded::grids(recording, nfe) {
        all.extend(field::on_grid(&levels, nfe, &sigmas, &format!("gits {factor}")));
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
    if config.process == Process::Flow {
        for (rho, part) in RHOS.iter().flat_map(|rho| TOPS.map(|part| (*rho, part))) {
            let Some(sigmas) = ratio_grid(&levels, nfe, rho, part * levels.sigma_max) else { continue };
            all.extend(field::on_grid(
                &levels,
                nfe,
                &sigmas,
                &format!("karras rho={rho} of noise to signal"),
            ));
        }
    }
    allowed(config, field::unique(all))
}

/// The karras grid (arXiv 2206.00364) of sigma / (1 - sigma), the ratio of noise to signal of a flow model, from sigma
/// `top`. From flow grids alone fits end farther from the teacher (emoji flow model, guidance 3, test prompts,
/// two seeds of 16,000 image-calls: 5.3 and 4.6 instead of 3.8 and 4.1 at 7 NFE; 6.6 with 36,000 instead of 5.9 at 5).
fn ratio_grid(levels: &Levels, nfe: usize, rho: f64, top: f64) -> Option<Vec<f64>> {
    let ratio = |sigma: f64| sigma / (1.0 - sigma);
    let last = ratio(levels.sigma_end.max(levels.sigma_min));
    let ratios = Grid::Karras { rho }.sigmas(nfe, ratio(top), last, last).ok()?;
    let mut sigmas: Vec<f64> = ratios.iter().map(|ratio| ratio / (1.0 + ratio)).collect();
    *sigmas.last_mut()? = levels.sigma_end;
    Some(sigmas)
}

/// Those that a fit may have come from: hosts that hand x_T to the model as it is start at the top.
fn allowed(config: &Config, mut all: Vec<Schedule>) -> Vec<Schedule> {
    if !(config.fit_sigmas && config.fit_start) {
        all.retain(|schedule| schedule.sigma(0) == schedule.sigma_start());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::super::{residual::Mix, teacher};
    use super::*;

    /// A run of the teacher on two numbers, whose predictions turn on the way.
    fn recording(config: &Config) -> Recording {
        let schedule = teacher::schedule(config, teacher::COARSE).unwrap();
        let basis = teacher::COARSE + 1;
        let angle = |n: usize| (schedule.sigma(n) / (1.0 + schedule.sigma(n))).powi(2);
        let vectors: Vec<[f64; 2]> = std::iter::once([schedule.sigma_start(), 0.0])
            .chain((0..teacher::COARSE).map(|n| [0.5 * angle(n).sin(), 0.5 * angle(n).cos()]))
            .collect();
        let gram = vectors.iter().flat_map(|a| vectors.iter().map(move |b| a[0] * b[0] + a[1] * b[1]));
        let padded = |mut state: Vec<f64>| {
            state.resize(basis, 0.0);
            state
        };
        Recording {
            states: (0..=teacher::COARSE).map(|n| padded(schedule.expand(n))).collect(),
            grams: vec![gram.collect()],
            error: 0.0,
            mix: Mix::of(config),
            schedule,
        }
    }

    #[test]
    fn the_model_is_asked_about_underrated_kinds_where_calls_suffice() {
        let config = Config::default();
        let recording = recording(&config);
        let all = field_of(&config, &recording, 5);
        let asked = of_all_kinds(&recording, &all, ASKED[0]);
        let by_recording = promising(&recording, &all, ASKED[0]);
        assert_eq!(asked[..ASKED[0]], by_recording);
        let solver = |s: &Schedule| s.made_by.as_ref().unwrap().solver.clone().unwrap();
        let more: Vec<String> = asked[ASKED[0]..].iter().map(solver).collect();
        let kinds = UNDERRATED.iter().flat_map(|kind| [kind; OF_A_KIND]);
        assert!(more.iter().zip(kinds).all(|(name, kind)| kind.contains(&name.as_str())), "{more:?}");
        assert_eq!((more.len(), field::unique(asked).len()), (4, 20));
        assert_eq!(of_all_kinds(&recording, &all, 8), promising(&recording, &all, 8));
    }

    #[test]
    fn flow_models_get_grids_in_the_ratio_of_noise_to_signal() {
        let config = Config { process: Process::Flow, sigma_min: 0.001, sigma_max: 1.0, ..Config::default() };
        let sigmas = ratio_grid(&config.levels(), 4, 7.0, 0.9).unwrap();
        assert_eq!((sigmas.len(), sigmas[4]), (5, 0.0));
        let roots: Vec<f64> = sigmas[..4].iter().map(|s| (s / (1.0 - s)).powf(1.0 / 7.0)).collect();
        let last = (0.001f64 / 0.999).powf(1.0 / 7.0);
        for (i, root) in roots.iter().enumerate() {
            let wanted = 9f64.powf(1.0 / 7.0) * (1.0 - i as f64 / 4.0) + last * i as f64 / 4.0;
            assert!((root - wanted).abs() < 1e-9, "{i}: {root} {wanted}");
        }
        let near = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let all = starts_of(&config, 4);
        assert!(all.iter().any(|s| near(s.sigma(0), 0.93)
            && near(s.sigma(1), ratio_grid(&config.levels(), 4, 5.0, 0.93).unwrap()[1])));
        assert!(starts_of(&Config { fit_start: false, ..config }, 4).iter().all(|s| s.sigma(0) == 1.0));
    }
}
