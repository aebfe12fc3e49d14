//! The Jacobian of the residual on one batch, by forward differences: only nodes that a change reaches are called
//! again, and the columns of the last row cost no call of the model. It stays in memory while trials correct it, and leaves
//! normal equations behind.

use std::borrow::Cow;
use std::rc::Rc;

use nalgebra::{DMatrix, DVector};

use super::WeightSums;
use super::account::Caller;
use super::evaluator::Evaluator;
use super::optimise::{Correction, Normal};
use super::residual::Goal;
use super::unknowns::{Parameter, Unknown, Unknowns};
use crate::error::Result;
use crate::sample::Sampler;
use crate::schedule::{Schedule, advance};
use crate::tensor::Tensors;

/// Model calls for the Jacobian of a schedule on one batch, the schedule's own run not counted.
pub fn cost(unknowns: &Unknowns, nfe: usize) -> u64 {
    unknowns.list.iter().map(|unknown| (nfe - unknown.first_call().min(nfe)) as u64).sum()
}

/// The Jacobian on one batch. All of it is k + 2 tensors for k unknowns, and the goal, times the parts of a residual.
pub struct Local<T> {
    pub index: u64,
    /// For each unknown, as the residual.
    pub columns: Vec<Vec<T>>,
    pub residual: Vec<T>,
    pub goal: Rc<Goal<T>>,
    /// The residual of the trial in work.
    pub tried: Option<Vec<T>>,
}

/// The schedule's own run on the batch.
struct Run<T> {
    x_t: T,
    /// The states at each node, and the model's predictions there.
    states: Vec<T>,
    predictions: Vec<T>,
    end: T,
    residual: Vec<T>,
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
        let run = Run::new(eval, schedule, x_t, &goal)?;
        let columns =
            (0..unknowns.list.len()).map(|at| match last_row(unknowns, unknowns.list[at], schedule) {
                Some(term) => run.known_column(eval, &goal, term),
                None => run.column(eval, &goal, unknowns, values, at),
            });
        let columns = columns.collect::<Result<_>>()?;
        Ok(Self { index, columns, residual: run.residual, goal, tried: None })
    }

    /// Corrects the columns by what the trial missed, and goes on from where it ended if that is `accepted`.
    pub fn update<B: Tensors<Tensor = T>>(
        &mut self,
        tensors: &B,
        accepted: bool,
        correction: Option<&Correction>,
    ) -> Result<()> {
        let Some(tried) = self.tried.take() else { return Ok(()) };
        if let Some(correction) = correction {
            for (part, (there, here)) in tried.iter().zip(&self.residual).enumerate() {
                let columns: Vec<&mut T> = self.columns.iter_mut().map(|column| &mut column[part]).collect();
                correct(tensors, columns, there, here, correction)?;
            }
        }
        if accepted {
            self.residual = tried;
        }
        Ok(())
    }
}

/// Broyden's correction of one part: by what a trial's residual `there` is off what the columns say from `here`.
fn correct<B: Tensors>(
    tensors: &B,
    columns: Vec<&mut B::Tensor>,
    there: &B::Tensor,
    here: &B::Tensor,
    Correction { step, weights }: &Correction,
) -> Result<()> {
    let mut missed = tensors.alloc(there)?;
    let predicted = step.iter().zip(&columns).map(|(by, column)| (-by, &**column));
    let terms: Vec<_> = [(1.0, there), (-1.0, here)].into_iter().chain(predicted).collect();
    tensors.lincomb(&mut missed, &terms)?;
    let mut spare = tensors.alloc(there)?;
    for (column, weight) in columns.into_iter().zip(weights) {
        tensors.lincomb(&mut spare, &[(1.0, &*column), (*weight, &missed)])?;
        std::mem::swap(column, &mut spare);
    }
    Ok(())
}

/// For a number of the last row: the node whose prediction it goes with, and by what the end follows that. None
/// for other unknowns.
fn last_row(unknowns: &Unknowns, unknown: Unknown, schedule: &Schedule) -> Option<(usize, f64)> {
    let node = unknown.node;
    match unknown.parameter {
        _ if unknown.first_call() < schedule.nfe() => None,
        Parameter::Coefficient(age) => Some((node - age, unknowns.unit(unknown))),
        Parameter::Weight(age) => Some((node - age, advance(schedule.sigma(node), schedule.sigma_end()).1)),
        Parameter::Sigma | Parameter::ModelSigma | Parameter::Guidance => None,
    }
}

impl<T> Run<T> {
    fn new<B: Tensors<Tensor = T>>(
        eval: &mut Evaluator<B>,
        schedule: &Schedule,
        x_t: T,
        goal: &Goal<T>,
    ) -> Result<Self> {
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
        let residual = eval.residual_of(goal, schedule, &states, tensors.copy(&end)?)?;
        Ok(Self { x_t, states, predictions, end, residual })
    }

    /// The column of a number of the last row, which no call of the model follows: exact, but for features.
    fn known_column<B: Tensors<Tensor = T>>(
        &self,
        eval: &mut Evaluator<B>,
        goal: &Goal<T>,
        (node, factor): (usize, f64),
    ) -> Result<Vec<T>> {
        let tensors = eval.tensors;
        let newest = if eval.config.weight_sums == WeightSums::Affine { -factor } else { 0.0 };
        let last = self.predictions.last().expect("a schedule has a node");
        let terms = |by: f64| [(by * factor, &self.predictions[node]), (by * newest, last)];
        let mut column = Vec::new();
        if eval.mix.has_state() {
            let mut state = tensors.alloc(&self.end)?;
            tensors.lincomb(&mut state, &terms(1.0))?;
            column.push(state);
        }
        if eval.mix.has_features() {
            let by = eval.config.difference_step;
            let mut end = tensors.alloc(&self.end)?;
            let [a, b] = terms(by);
            tensors.lincomb(&mut end, &[(1.0, &self.end), a, b])?;
            let there = eval.features(&end)?;
            let there = eval.difference(&there, goal.parts.last().expect("features"))?;
            column.push(self.quotient(tensors, &there, self.residual.len() - 1, by)?);
        }
        self.with_zeros(tensors, column)
    }

    /// The column of unknown `at`, by a run that leaves this one at the first call that it changes.
    fn column<B: Tensors<Tensor = T>>(
        &self,
        eval: &mut Evaluator<B>,
        goal: &Goal<T>,
        unknowns: &Unknowns,
        values: &[f64],
        at: usize,
    ) -> Result<Vec<T>> {
        let tensors = eval.tensors;
        let (other, moved) = unknowns.nudged(values, at, eval.config.difference_step)?;
        let other = Cow::Borrowed(&other);
        let run = match unknowns.list[at].first_call() {
            0 => Sampler::new(tensors, other, &self.x_t)?,
            m => Sampler::branch(tensors, other, &self.predictions[..m], &self.states[m - 1])?,
        };
        let there = eval.residual(goal, run)?;
        let first = self.residual.len() - there.len();
        let parts = there.iter().zip(first..);
        let column: Result<_> =
            parts.map(|(there, part)| self.quotient(tensors, there, part, moved)).collect();
        self.with_zeros(tensors, column?)
    }

    /// By what one part of the residual changes for each unit of an unknown that moved so far.
    fn quotient<B: Tensors<Tensor = T>>(&self, tensors: &B, there: &T, part: usize, moved: f64) -> Result<T> {
        let mut out = tensors.alloc(there)?;
        tensors.lincomb(&mut out, &[(1.0 / moved, there), (-1.0 / moved, &self.residual[part])])?;
        Ok(out)
    }

    /// A column whose last parts are these: no other part changes.
    fn with_zeros<B: Tensors<Tensor = T>>(&self, tensors: &B, last: Vec<T>) -> Result<Vec<T>> {
        let unchanged = &self.residual[..self.residual.len() - last.len()];
        let zero = |like: &T| {
            let mut zero = tensors.alloc(like)?;
            tensors.lincomb(&mut zero, &[(0.0, like)])?;
            Ok(zero)
        };
        unchanged.iter().map(zero).chain(last.into_iter().map(Ok)).collect()
    }
}

/// Numbers of the sums: distance, gradient, lower triangle of the matrix.
pub fn width(k: usize) -> usize {
    1 + k + k * (k + 1) / 2
}

/// Adds the Gram matrix of [J, r] for one part of one trajectory to the sums.
pub fn add_normal(sums: &mut [f64], gram: &[f64], k: usize, factor: f64) {
    let at = |i: usize, j: usize| gram[i * (k + 1) + j];
    let distance = at(k, k).sqrt();
    // Where the student meets the teacher to the last bit the distance has no gradient.
    let weight = if distance > 1e-12 { factor / distance } else { 0.0 };
    sums[0] += factor * distance;
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
