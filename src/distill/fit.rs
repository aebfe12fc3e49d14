//! Levenberg-Marquardt on the numbers of one schedule. Asks the [`Bench`] for normal equations and
//! distances; sees no tensor.

use nalgebra::{Cholesky, DMatrix, DVector};

use super::measure::{Bench, Set, Unknown};
use super::{Config, Sums};
use crate::error::{Error, Result};
use crate::schedule::{Node, Schedule};
use crate::tensor::Tensors;

/// The numbers of `schedule` that may move.
pub fn unknowns(config: &Config, schedule: &Schedule) -> Vec<Unknown> {
    let mut list = Vec::new();
    for (n, node) in schedule.nodes().iter().enumerate() {
        if config.fit_sigmas {
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

/// Gives every node all the weights it may have, the new ones 0.
pub fn padded(config: &Config, schedule: &Schedule) -> Result<Schedule> {
    let mut nodes = schedule.nodes().to_vec();
    if config.fit_weights {
        for (n, node) in nodes.iter_mut().enumerate() {
            let count = (n + 1).min(config.order.unwrap_or(n + 1)).max(node.weights.len());
            node.weights.resize(count, 0.0);
        }
    }
    rebuilt(schedule, nodes)
}

/// The same schedule with other nodes.
pub fn rebuilt(schedule: &Schedule, nodes: Vec<Node>) -> Result<Schedule> {
    Schedule::new(schedule.process(), schedule.sigma_start(), schedule.sigma_end(), nodes)
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

/// A schedule being fitted.
#[derive(Clone)]
pub struct Fit {
    pub schedule: Schedule,
    /// Distance on the training set.
    pub train: f64,
    /// Damping, relative to the diagonal.
    damping: f64,
    /// The last step gained less than is worth another.
    pub done: bool,
}

impl Fit {
    pub fn new(schedule: Schedule, train: f64) -> Self {
        Self { schedule, train, damping: knob("MU0", 0.1), done: false }
    }

    /// One Jacobian, and the best step that it gives.
    pub fn step<B: Tensors>(&mut self, bench: &mut Bench<B>) -> Result<()> {
        let config = bench.config;
        let list = unknowns(config, &self.schedule);
        let schedule = self.schedule.clone();
        let normal = bench.normal(&schedule, &list, &|unknown| {
            let h = config.difference_step;
            let forward = |h: f64| moved(config, &schedule, &[unknown], &[h]).map(|s| (s, h));
            // Backward where forward leaves the model's range, and so does nothing there.
            match forward(h) {
                Ok((other, h)) if other != schedule => Ok((other, h)),
                _ => forward(-h),
            }
        })?;
        let before = self.train.min(normal.distance);
        let matrix = &normal.jtj - &normal.radial * knob("THETA", 0.0);
        let mut best: Option<(f64, f64, Schedule)> = None;
        let mut damping = self.damping;
        let mut tries = 0;
        let mut raising = false;
        while tries < 8 {
            tries += 1;
            let trial = solve(&matrix, &normal.jtj, damping, &normal.gradient)
                .and_then(|by| moved(config, &schedule, &list, by.as_slice()).ok());
            let train = match &trial {
                Some(trial) => bench.distances(Set::Train, &[trial])?[0],
                None => f64::INFINITY,
            };
            let bar = best.as_ref().map_or(before, |b| b.0);
            if train < bar {
                best = Some((train, damping, trial.expect("only a trial has a finite distance")));
                if raising {
                    break;
                }
                damping *= knob("DOWN", 0.2);
            } else if best.is_some() {
                break;
            } else {
                raising = true;
                damping *= knob("UP", 5.0);
            }
        }
        match best {
            None => self.done = true,
            Some((train, damping, schedule)) => {
                self.done = train > before * (1.0 - knob("TOL", 1e-3));
                self.damping = damping;
                self.train = train;
                self.schedule = schedule;
            }
        }
        Ok(())
    }
}

pub fn knob(name: &str, default: f64) -> f64 {
    std::env::var(format!("LMSD_{name}")).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// The step of (matrix + damping diag(scale)) step = -gradient.
fn solve(
    matrix: &DMatrix<f64>,
    scale: &DMatrix<f64>,
    damping: f64,
    gradient: &DVector<f64>,
) -> Option<DVector<f64>> {
    let mut damped = matrix.clone();
    let floor = knob("FLOOR", 0.01) * scale.diagonal().mean();
    for i in 0..damped.nrows() {
        damped[(i, i)] += damping * scale[(i, i)].max(floor);
    }
    Cholesky::new(damped).map(|c| c.solve(&-gradient))
}
