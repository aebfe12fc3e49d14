//! Jacobians of the end point, by forward differences on a few batches at a time: only nodes that a
//! change reaches are called again, and the columns of the last row cost nothing. They stay in memory
//! while trials correct them, and leave normal equations behind.

use std::borrow::Cow;

use nalgebra::{DMatrix, DVector};

use super::WeightSums;
use super::account::By;
use super::bench::{Bench, Rows, hashed};
use super::journal::{Key, Kind};
use super::optimise::{Correction, Measurements, Normal};
use super::unknowns::{Kind as Of, Unknowns};
use crate::error::{Error, Result, Status};
use crate::sample::Sampler;
use crate::schedule::{Schedule, advance};
use crate::tensor::Tensors;

/// Model calls for the Jacobian of a schedule on one batch, the schedule's own run not counted.
pub fn cost(unknowns: &Unknowns, nfe: usize) -> u64 {
    unknowns.list.iter().map(|unknown| (nfe - unknown.first_call().min(nfe)) as u64).sum()
}

/// One batch of a linearisation. All of it is k + 3 tensors for k unknowns.
struct Local<T> {
    index: u64,
    columns: Vec<T>,
    end: T,
    goal: T,
    /// The end of the trial in work.
    tried: Option<T>,
}

/// What was done to a linearisation: enough to make it again.
#[derive(Clone)]
enum Done {
    Trial(Box<Schedule>),
    Update(bool, Option<Correction>),
}

/// A linearisation in work.
struct Linear<T> {
    batches: Vec<u64>,
    schedule: Schedule,
    values: Vec<f64>,
    done: Vec<Done>,
    key: Key,
    /// This rank's batches; None where they were read back from a checkpoint, until a measurement
    /// that was not made yet needs them.
    live: Option<Vec<Local<T>>>,
}

/// The unknowns of one schedule, on the bench.
pub struct Fitting<'b, 'a, B: Tensors> {
    bench: &'b mut Bench<'a, B>,
    unknowns: &'b Unknowns<'a>,
    teacher: &'b Schedule,
    /// The next fresh batch.
    next: &'b mut u64,
    linear: Option<Linear<B::Tensor>>,
}

impl<'b, 'a, B: Tensors> Fitting<'b, 'a, B> {
    pub fn new(
        bench: &'b mut Bench<'a, B>,
        unknowns: &'b Unknowns<'a>,
        teacher: &'b Schedule,
        next: &'b mut u64,
    ) -> Self {
        Self { bench, unknowns, teacher, next, linear: None }
    }

    fn schedule(&self, point: &[f64]) -> Result<Schedule> {
        let nowhere = || Error::new(Status::Internal, "a step to sigmas that do not decrease");
        self.unknowns.schedule(point).ok_or_else(nowhere)
    }

    /// The columns of the Jacobian, the end point and the goal on one batch.
    fn columns(&mut self, index: u64, schedule: &Schedule, values: &[f64]) -> Result<Local<B::Tensor>> {
        let tensors = self.bench.tensors;
        let step = self.bench.config.difference_step;
        let x_t = self.bench.begin(index)?;
        let goal = self.bench.goal(self.teacher, index, &x_t)?;
        let (mut states, mut predictions) = (Vec::new(), Vec::new());
        // Side by side, as they are combined; in the order of their use.
        let mut slots = tensors.alloc_many(&x_t, schedule.nfe())?.into_iter();
        let mut start = Sampler::new(tensors, Cow::Borrowed(schedule), &x_t)?.unchecked();
        let bench = &mut *self.bench;
        start.run(&mut |x, sigma, denoised| bench.call(By::Student, x, sigma, denoised), &mut |step| {
            states.push(tensors.copy(step.x)?);
            let mut kept = slots.next().expect("a slot for each node");
            tensors.lincomb(&mut kept, &[(1.0, step.denoised)])?;
            predictions.push(kept);
            Ok(())
        })?;
        let end = tensors.copy(start.state())?;
        let mut columns = Vec::with_capacity(self.unknowns.list.len());
        for (at, unknown) in self.unknowns.list.iter().enumerate() {
            let mut column = tensors.alloc(&end)?;
            let first = unknown.first_call();
            let last = first == schedule.nfe();
            if let (Of::Coefficient(age) | Of::Weight(age), true) = (unknown.kind, last) {
                let g = match unknown.kind {
                    Of::Coefficient(_) => self.unknowns.unit(*unknown),
                    _ => advance(schedule.sigma(unknown.node), schedule.sigma_end()).1,
                };
                let affine = bench.config.weight_sums == WeightSums::Affine;
                let newest = if affine { -g } else { 0.0 };
                let terms = [(g, &predictions[unknown.node - age]), (newest, &predictions[unknown.node])];
                tensors.lincomb(&mut column, &terms)?;
            } else {
                let (other, moved) = self.unknowns.nudged(values, at, step)?;
                let other = Cow::Borrowed(&other);
                let run = match first {
                    0 => Sampler::new(tensors, other, &x_t)?,
                    m => Sampler::branch(tensors, other, &predictions[..m], &states[m - 1])?,
                };
                let there = bench.finish(By::Student, run)?;
                tensors.lincomb(&mut column, &[(1.0 / moved, &there), (-1.0 / moved, &end)])?;
            }
            columns.push(column);
        }
        Ok(Local { index, columns, end, goal, tried: None })
    }

    /// Makes the linearisation on this rank's batches.
    fn make(&mut self, linear: &mut Linear<B::Tensor>) -> Result<()> {
        let own: Vec<u64> = self.bench.own(&linear.batches).map(|(_, index)| index).collect();
        let locals = own.into_iter().map(|index| self.columns(index, &linear.schedule, &linear.values));
        linear.live = Some(locals.collect::<Result<_>>()?);
        Ok(())
    }

    /// Makes it again, with all that was done to it, if it was read back.
    fn revive(&mut self, linear: &mut Linear<B::Tensor>) -> Result<()> {
        if linear.live.is_some() {
            return Ok(());
        }
        self.make(linear)?;
        for done in linear.done.clone() {
            match done {
                Done::Trial(schedule) => self.try_on(linear, &schedule).map(drop)?,
                Done::Update(accepted, correction) => {
                    for local in linear.live.iter_mut().flatten() {
                        local.update(self.bench.tensors, accepted, correction.as_ref())?;
                    }
                }
            }
        }
        Ok(())
    }

    fn try_on(&mut self, linear: &mut Linear<B::Tensor>, schedule: &Schedule) -> Result<Rows> {
        let mut rows = Rows::new(linear.batches.len(), 1);
        let places: Vec<usize> = self.bench.own(&linear.batches).map(|(place, _)| place).collect();
        for (local, place) in linear.live.iter_mut().flatten().zip(places) {
            let x_t = self.bench.begin(local.index)?;
            let start = Sampler::new(self.bench.tensors, Cow::Borrowed(schedule), &x_t)?;
            let end = self.bench.finish(By::Student, start)?;
            rows.of(place)[0] = self.bench.far(&end, &local.goal)?;
            local.tried = Some(end);
        }
        Ok(rows)
    }

    /// Sums of the normal equations over this rank's batches.
    fn sums(&self, linear: &Linear<B::Tensor>) -> Result<Rows> {
        let k = self.unknowns.list.len();
        let mut rows = Rows::new(linear.batches.len(), width(k));
        let places = self.bench.own(&linear.batches);
        for (local, (place, _)) in linear.live.iter().flatten().zip(places) {
            let residual = self.bench.difference(&local.end, &local.goal)?;
            let all: Vec<&B::Tensor> = local.columns.iter().chain([&residual]).collect();
            for one in self.bench.tensors.gram(&all)?.chunks_exact((k + 1) * (k + 1)) {
                add_normal(rows.of(place), one, k);
            }
        }
        Ok(rows)
    }

    fn count(&self, linear: &Linear<B::Tensor>) -> f64 {
        (linear.batches.len() * self.bench.batch) as f64
    }
}

impl<T> Local<T> {
    fn update<B: Tensors<Tensor = T>>(
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

impl<B: Tensors> Measurements for Fitting<'_, '_, B> {
    fn bounded(&self, point: &[f64]) -> Option<Vec<f64>> {
        self.unknowns.bounded(point)
    }

    fn linearise(&mut self, point: &[f64], trajectories: usize) -> Result<Option<Normal>> {
        let count = self.bench.batches_of(trajectories) as u64;
        let batches: Vec<u64> = (*self.next..*self.next + count).collect();
        *self.next += count;
        let schedule = self.schedule(point)?;
        let key = Key::of(Kind::Linearise).and_all(batches.iter().copied());
        let key = hashed(hashed(key, &&schedule), &self.teacher);
        let (values, done) = (point.to_vec(), Vec::new());
        let mut linear = Linear { batches, schedule, values, done, key: key.clone(), live: None };
        let (k, trajectories) = (self.unknowns.list.len(), self.count(&linear));
        let found = self.recorded(Kind::Linearise, key, &mut linear, width(k), |own, linear| {
            own.make(linear)?;
            own.sums(linear)
        });
        self.linear = Some(linear);
        Ok(normal(found?, k, trajectories))
    }

    fn trial(&mut self, point: &[f64]) -> Result<f64> {
        let schedule = self.schedule(point)?;
        let mut linear = self.linear.take().expect("a trial follows a linearisation");
        let key = Key::of(Kind::Trial).and(linear.key.number());
        linear.key = hashed(key, &&schedule);
        let key = linear.key.clone();
        let found = self.recorded(Kind::Trial, key, &mut linear, 1, |own, linear| {
            own.revive(linear)?;
            own.try_on(linear, &schedule)
        });
        linear.done.push(Done::Trial(Box::new(schedule)));
        let count = self.count(&linear);
        self.linear = Some(linear);
        Ok(found?[0] / count)
    }

    fn update(&mut self, accepted: bool, correction: Option<&Correction>) -> Result<Normal> {
        let mut linear = self.linear.take().expect("an update follows a trial");
        let numbers = correction.iter().flat_map(|c| c.step.iter().chain(&c.weights));
        let key = Key::of(Kind::Update).and(linear.key.number()).and(accepted.into());
        linear.key = key.and_all(numbers.map(|v| v.to_bits()));
        let key = linear.key.clone();
        let (k, trajectories) = (self.unknowns.list.len(), self.count(&linear));
        let found = self.recorded(Kind::Update, key, &mut linear, width(k), |own, linear| {
            own.revive(linear)?;
            for local in linear.live.iter_mut().flatten() {
                local.update(own.bench.tensors, accepted, correction)?;
            }
            own.sums(linear)
        });
        linear.done.push(Done::Update(accepted, correction.cloned()));
        self.linear = Some(linear);
        let broken = || Error::new(Status::NonFinite, "a Jacobian that was finite no longer is");
        normal(found?, k, trajectories).ok_or_else(broken)
    }
}

impl<'a, B: Tensors> Fitting<'_, 'a, B> {
    /// [`Bench::recorded`] of something on a linearisation, whose tensors are given up where it is read back.
    fn recorded(
        &mut self,
        kind: Kind,
        key: Key,
        linear: &mut Linear<B::Tensor>,
        length: usize,
        measure: impl FnOnce(&mut Self, &mut Linear<B::Tensor>) -> Result<Rows>,
    ) -> Result<Vec<f64>> {
        let measured = if self.bench.knows(&key) {
            linear.live = None;
            None
        } else {
            Some(measure(self, linear))
        };
        let made = |_: &mut Bench<'a, B>| measured.expect("read back where it was not measured");
        self.bench.recorded(kind, key, made, length, |rows| rows.total())
    }
}

/// Numbers of the sums: distance, gradient, lower triangle of the matrix.
fn width(k: usize) -> usize {
    1 + k + k * (k + 1) / 2
}

/// Adds one trajectory's Gram matrix of [J, r] to the sums.
fn add_normal(sums: &mut [f64], gram: &[f64], k: usize) {
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
fn normal(sums: Vec<f64>, k: usize, trajectories: f64) -> Option<Normal> {
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
