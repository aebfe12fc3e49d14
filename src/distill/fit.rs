//! Levenberg-Marquardt on the numbers of one schedule. Asks the [`Bench`] for normal equations and
//! distances; sees no tensor.

use nalgebra::{Cholesky, DVector};

use super::measure::{Bench, Normal, Set, Unknown};
use super::{Config, Sums};
use crate::error::{Error, Result};
use crate::schedule::{Node, Schedule};
use crate::tensor::Tensors;

/// The numbers of `schedule` that may move.
pub fn unknowns(config: &Config, schedule: &Schedule) -> Vec<Unknown> {
    let mut list = Vec::new();
    for (n, node) in schedule.nodes().iter().enumerate() {
        if config.fit_sigmas && (n > 0 || config.fit_start) {
            list.push(Unknown::Sigma(n));
        }
        if config.fit_scales {
            list.push(Unknown::ModelSigma(n));
        }
        if config.fit_weights {
            let first = usize::from(config.sums == Sums::Affine);
            list.extend((first..node.weights.len()).map(|j| Unknown::Weight(n, j)));
        }
    }
    list
}

/// Gives every node all the weights it may have, the new ones 0. Where an order limit leaves fewer,
/// the oldest one kept takes over the sum of those cut off.
pub fn padded(config: &Config, schedule: &Schedule) -> Result<Schedule> {
    let mut nodes = schedule.nodes().to_vec();
    if config.fit_weights || config.order.is_some() {
        for (n, node) in nodes.iter_mut().enumerate() {
            let count = (n + 1).min(config.order.unwrap_or(n + 1));
            let cut: f64 = node.weights.iter().skip(count).sum();
            node.weights.resize(count, 0.0);
            node.weights[count - 1] += cut;
        }
    }
    rebuilt(schedule, nodes)
}

/// The same schedule with other nodes; it keeps its record of where it came from.
pub fn rebuilt(schedule: &Schedule, nodes: Vec<Node>) -> Result<Schedule> {
    let (start, end) = (schedule.sigma_start(), schedule.sigma_end());
    let mut other = Schedule::new(schedule.process(), start, end, nodes)?;
    other.made_by = schedule.made_by.clone();
    Ok(other)
}

/// The schedule with `list[i]` moved by `by[i]`: sigmas and model sigmas in their logarithms.
/// An error where that breaks the order of the sigmas. No sigma leaves the range of the model.
pub fn moved(config: &Config, schedule: &Schedule, list: &[Unknown], by: &[f64]) -> Result<Schedule> {
    let mut nodes = schedule.nodes().to_vec();
    let mut told: Vec<f64> = (0..nodes.len()).map(|n| schedule.model_sigma(n)).collect();
    for (unknown, d) in list.iter().zip(by) {
        match *unknown {
            Unknown::Sigma(n) => {
                nodes[n].sigma = (nodes[n].sigma * d.exp()).min(schedule.sigma_start());
                if !config.fit_scales {
                    told[n] = nodes[n].scale * nodes[n].sigma;
                }
            }
            Unknown::ModelSigma(n) => told[n] = (told[n] * d.exp()).clamp(config.sigma_min, config.sigma_max),
            Unknown::Weight(n, j) => {
                nodes[n].weights[j] += d;
                if config.sums == Sums::Affine {
                    nodes[n].weights[0] -= d;
                }
            }
        }
    }
    if nodes.windows(2).any(|pair| pair[1].sigma >= pair[0].sigma) {
        return Err(Error::schedule("sigmas must decrease"));
    }
    for (node, told) in nodes.iter_mut().zip(told) {
        node.scale = told / node.sigma;
    }
    rebuilt(schedule, nodes)
}

/// Damping of the first step, relative to the diagonal of J^T J.
const FIRST_DAMPING: f64 = 0.1;
/// A Jacobian costs as much as ten trials or more, so several dampings are tried on each.
const TRIALS: usize = 8;
/// Unknowns that hardly matter yet (a new node's sigma, while its weights are 0) are damped as if
/// they mattered this much of the mean; else rounding errors would send them far away.
const DAMPING_FLOOR: f64 = 0.3;
/// A fit is done when a step lowers the distance by less than this, relatively.
const WORTH_A_STEP: f64 = 1e-3;

/// A schedule being fitted.
#[derive(Clone)]
pub struct Fit {
    pub schedule: Schedule,
    /// Distance on the training set.
    pub train: f64,
    damping: f64,
    /// The last step gained too little to take another.
    pub done: bool,
}

impl Fit {
    pub fn new(schedule: Schedule, train: f64) -> Self {
        Self { schedule, train, damping: FIRST_DAMPING, done: false }
    }

    /// One Jacobian, and the best step that it gives: damping falls while steps gain by it, and rises
    /// until one gains at all.
    pub fn step<B: Tensors>(&mut self, bench: &mut Bench<B>) -> Result<()> {
        let config = bench.config;
        let list = unknowns(config, &self.schedule);
        let normal = bench.normal(&self.schedule, &list, &|unknown| {
            let by = |h: f64| {
                let other = moved(config, &self.schedule, &[unknown], &[h]).ok()?;
                (other != self.schedule).then_some((other, h))
            };
            // Backward where forward leaves the model's range or passes a neighbour; shorter where both do.
            let lengths = (0..20).map(|halvings| config.difference_step / f64::from(1 << halvings));
            let fits = lengths.flat_map(|h| [h, -h]).find_map(by);
            fits.ok_or_else(|| Error::schedule("two sigmas are the same"))
        })?;
        self.done = true;
        let Some(normal) = normal else { return Ok(()) };
        let mut best: Option<(f64, Schedule)> = None;
        let mut damping = self.damping;
        let mut rising = false;
        for _ in 0..TRIALS {
            let trial = solve(&normal, damping)
                .and_then(|by| moved(config, &self.schedule, &list, by.as_slice()).ok());
            let train = match &trial {
                Some(trial) => bench.distances(Set::Train, &[trial])?[0],
                None => f64::INFINITY,
            };
            let bar = best.as_ref().map_or(normal.distance, |(train, _)| *train);
            match trial {
                Some(trial) if train < bar => {
                    best = Some((train, trial));
                    self.damping = damping;
                    damping /= 5.0;
                    if rising {
                        break;
                    }
                }
                _ if best.is_some() => break,
                _ => {
                    rising = true;
                    damping *= 5.0;
                }
            }
        }
        if let Some((train, schedule)) = best {
            self.done = train > normal.distance * (1.0 - WORTH_A_STEP);
            self.train = train;
            self.schedule = schedule;
        }
        Ok(())
    }
}

/// The step of (J^T J + damping D) step = -gradient, D the diagonal of J^T J with a floor.
fn solve(normal: &Normal, damping: f64) -> Option<DVector<f64>> {
    let diagonal = normal.jtj.diagonal();
    let floor = DAMPING_FLOOR * diagonal.mean();
    let mut damped = normal.jtj.clone();
    for (i, d) in diagonal.iter().enumerate() {
        damped[(i, i)] += damping * d.max(floor);
    }
    Cholesky::new(damped).map(|c| c.solve(&-&normal.gradient))
}
