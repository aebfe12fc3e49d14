//! What the teacher's recorded run says of schedules and of grids, without a call of the model.

use super::teacher::Recording;
use crate::schedule::{Process, Schedule};

/// How strongly the denoised image follows an error of the state: as that of a Gaussian of this standard
/// deviation, relative to the data's. Networks differ (one is best described by 0.13, a mixture by 0.4), so
/// both have a say: half of those asked by each.
const STIFFNESS: [f64; 2] = [0.13, 0.4];
/// Weight of what is accumulated before a step, in the cost of GITS (arXiv 2405.11326): its own choice,
/// and none.
const GITS: [f64; 2] = [1.15, 1.0];

/// So many of `all`, by the recorded run.
pub fn promising(recording: &Recording, all: &[Schedule], count: usize) -> Vec<Schedule> {
    let mut chosen: Vec<usize> = Vec::new();
    for stiffness in STIFFNESS {
        let model = Recorded::new(recording, stiffness);
        let predicted: Vec<f64> = all.iter().map(|schedule| model.distance(schedule)).collect();
        let mut order: Vec<usize> = (0..all.len()).collect();
        order.sort_by(|a, b| predicted[*a].total_cmp(&predicted[*b]));
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
        let fraction = ((above / sigma).ln() / (above / below).ln()).clamp(0.0, 1.0);
        let mut prediction = vec![0.0; basis];
        prediction[1 + low] += 1.0 - fraction;
        prediction[1 + (low + 1).min(last)] += fraction;
        // From the node above, by the mean of the predictions on the way.
        let keep = (sigma / above).min(1.0);
        let mut state: Vec<f64> = self.recording.states[low].iter().map(|v| keep * v).collect();
        state[1 + low] += (1.0 - keep) * (1.0 - fraction / 2.0);
        state[1 + (low + 1).min(last)] += (1.0 - keep) * fraction / 2.0;
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

/// Grids for `nfe` calls, each with the weight that it comes of.
pub fn grids(recording: &Recording, nfe: usize) -> Vec<(f64, Vec<f64>)> {
    GITS.into_iter().filter_map(|factor| Some((factor, gits(recording, nfe, factor)?))).collect()
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
