//! The Jacobian of the end point on one batch, by forward differences: only nodes that a change reaches are called
//! again, and the columns of the last row cost nothing. It stays in memory while trials correct it, and leaves
//! normal equations behind.

use std::borrow::Cow;

use nalgebra::{DMatrix, DVector};

use super::WeightSums;
use super::account::Caller;
use super::evaluator::Evaluator;
use super::optimise::{Correction, Normal};
use super::unknowns::{Parameter, Unknown, Unknowns};
use crate::error::Result;
use crate::sample::Sampler;
use crate::schedule::{Schedule, advance};
use crate::tensor::Tensors;

/// Model calls for the Jacobian of a schedule on one batch, the schedule's own run not counted.
pub fn cost(unknowns: &Unknowns, nfe: usize) -> u64 {
    unknowns.list.iter().map(|unknown| (nfe - unknown.first_call().min(nfe)) as u64).sum()
}

/// The Jacobian on one batch. All of it is k + 3 tensors for k unknowns.
pub struct Local<T> {
    pub index: u64,
    pub columns: Vec<T>,
    pub end: T,
    pub goal: T,
    /// The end of the trial in work.
    pub tried: Option<T>,
}

/// The schedule's own run on the batch.
struct Run<T> {
    x_t: T,
    /// The states after each node, and the model's predictions at each.
    states: Vec<T>,
    predictions: Vec<T>,
    end: T,
}

impl<T> Local<T> {
    /// Makes batch `index` current, and makes the columns of `unknowns` at `values`, which give `schedule`.
    pub fn new<B: Tensors<Tensor = T>>(
        eval: &mut Evaluator<B>,
        unknowns: &Unknowns,
        teacher: &Schedule,
        index: u64,
        schedule: &Schedule,
        values: &[f64],
    ) -> Result<Self> {
        let x_t = eval.begin(index)?;
        let goal = eval.goal(teacher, index, &x_t)?;
        let run = Run::new(eval, schedule, x_t)?;
        let columns =
            (0..unknowns.list.len()).map(|at| match last_row(unknowns, unknowns.list[at], schedule) {
                Some(term) => run.known_column(eval, term),
                None => run.column(eval, unknowns, values, at),
            });
        let columns = columns.collect::<Result<_>>()?;
        Ok(Self { index, columns, end: run.end, goal, tried: None })
    }

    /// Corrects the columns by what the trial missed, and goes on from its end if that is `accepted`.
    pub fn update<B: Tensors<Tensor = T>>(
        &mut self,
        tensors: &B,
        accepted: bool,
        correction: Option<&Correction>,
    ) -> Result<()> {
        let Some(tried) = self.tried.take() else { return Ok(()) };
        if let Some(Correction { step, weights }) = correction {
            let mut missed = tensors.alloc(&tried)?;
            let predicted = step.iter().zip(&self.columns).map(|(by, column)| (-by, column));
            let terms: Vec<_> = [(1.0, &tried), (-1.0, &self.end)].into_iter().chain(predicted).collect();
            tensors.lincomb(&mut missed, &terms)?;
            let mut spare = tensors.alloc(&tried)?;
            for (column, weight) in self.columns.iter_mut().zip(weights) {
                tensors.lincomb(&mut spare, &[(1.0, &*column), (*weight, &missed)])?;
                std::mem::swap(column, &mut spare);
            }
        }
        if accepted {
            self.end = tried;
        }
        Ok(())
    }
}

/// For a number of the last row: the node whose prediction it goes with, and by what the end follows that. None
/// for other unknowns.
fn last_row(unknowns: &Unknowns, unknown: Unknown, schedule: &Schedule) -> Option<(usize, f64)> {
    let node = unknown.node;
    match unknown.parameter {
        _ if unknown.first_call() < schedule.nfe() => None,
        Parameter::Coefficient(age) => Some((node - age, unknowns.unit(unknown))),
        Parameter::Weight(age) => Some((node - age, advance(schedule.sigma(node), schedule.sigma_end()).1)),
        Parameter::Sigma | Parameter::ModelSigma => None,
    }
}

impl<T> Run<T> {
    fn new<B: Tensors<Tensor = T>>(eval: &mut Evaluator<B>, schedule: &Schedule, x_t: T) -> Result<Self> {
        let tensors = eval.tensors;
        let (mut states, mut predictions) = (Vec::new(), Vec::new());
        // Side by side, as they are combined; in the order of their use.
        let mut slots = tensors.alloc_many(&x_t, schedule.nfe())?.into_iter();
        let mut run = Sampler::new(tensors, Cow::Borrowed(schedule), &x_t)?.unchecked();
        run.run(&mut |x, call, denoised| eval.call(Caller::Student, x, call, denoised), &mut |step| {
            states.push(tensors.copy(step.x)?);
            let mut kept = slots.next().expect("a slot for each node");
            tensors.lincomb(&mut kept, &[(1.0, step.denoised)])?;
            predictions.push(kept);
            Ok(())
        })?;
        let end = tensors.copy(run.state())?;
        Ok(Self { x_t, states, predictions, end })
    }

    /// The column of a number of the last row, which no call of the model follows.
    fn known_column<B: Tensors<Tensor = T>>(
        &self,
        eval: &Evaluator<B>,
        (node, factor): (usize, f64),
    ) -> Result<T> {
        let mut column = eval.tensors.alloc(&self.end)?;
        let newest = if eval.config.weight_sums == WeightSums::Affine { -factor } else { 0.0 };
        let last = self.predictions.last().expect("a schedule has a node");
        eval.tensors.lincomb(&mut column, &[(factor, &self.predictions[node]), (newest, last)])?;
        Ok(column)
    }

    /// The column of unknown `at`, by a run that leaves this one at the first call that it changes.
    fn column<B: Tensors<Tensor = T>>(
        &self,
        eval: &mut Evaluator<B>,
        unknowns: &Unknowns,
        values: &[f64],
        at: usize,
    ) -> Result<T> {
        let tensors = eval.tensors;
        let mut column = tensors.alloc(&self.end)?;
        let (other, moved) = unknowns.nudged(values, at, eval.config.difference_step)?;
        let other = Cow::Borrowed(&other);
        let run = match unknowns.list[at].first_call() {
            0 => Sampler::new(tensors, other, &self.x_t)?,
            m => Sampler::branch(tensors, other, &self.predictions[..m], &self.states[m - 1])?,
        };
        let there = eval.finish(Caller::Student, run)?;
        tensors.lincomb(&mut column, &[(1.0 / moved, &there), (-1.0 / moved, &self.end)])?;
        Ok(column)
    }
}

/// Numbers of the sums: distance, gradient, lower triangle of the matrix.
pub fn width(k: usize) -> usize {
    1 + k + k * (k + 1) / 2
}

/// Adds one trajectory's Gram matrix of [J, r] to the sums.
pub fn add_normal(sums: &mut [f64], gram: &[f64], k: usize) {
    let at = |i: usize, j: usize| gram[i * (k + 1) + j];
    let distance = at(k, k).sqrt();
    // Where the student meets the teacher to the last bit the distance has no gradient.
    let weight = if distance > 1e-12 { 1.0 / distance } else { 0.0 };
    sums[0] += distance;
    let mut place = 1 + k;
    for i in 0..k {
        sums[1 + i] += weight * at(i, k);
        for j in 0..=i {
            sums[place] += weight * at(i, j);
            place += 1;
        }
    }
}

/// What [`add_normal`] summed, over so many trajectories; None where something is not finite.
pub fn normal(sums: Vec<f64>, k: usize, trajectories: f64) -> Option<Normal> {
    if !sums.iter().all(|v| v.is_finite()) {
        return None;
    }
    let mean: Vec<f64> = sums.into_iter().map(|v| v / trajectories).collect();
    let place = |i: usize, j: usize| 1 + k + i.max(j) * (i.max(j) + 1) / 2 + i.min(j);
    Some(Normal {
        distance: mean[0],
        gradient: DVector::from_column_slice(&mean[1..=k]),
        matrix: DMatrix::from_fn(k, k, |i, j| mean[place(i, j)]),
    })
}
