//! A linearisation in work, as the optimiser sees it: measured on all ranks, corrected by trials, and made again
//! where a run resumes in the middle of one.

use std::borrow::Cow;

use super::evaluator::Evaluator;
use super::jacobian::{Local, add_normal, normal, width};
use super::journal::{Key, Kind};
use super::measure::{Rows, with_schedule};
use super::optimise::{Correction, Normal, Objective};
use super::unknowns::Unknowns;
use crate::error::{Error, Result, Status};
use crate::sample::Sampler;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

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

/// The unknowns of one schedule, and what measures them.
pub struct Fitting<'b, 'a, B: Tensors> {
    eval: &'b mut Evaluator<'a, B>,
    unknowns: &'b Unknowns<'a>,
    teacher: &'b Schedule,
    /// The next fresh batch.
    next: &'b mut u64,
    linear: Option<Linear<B::Tensor>>,
}

impl<'b, 'a, B: Tensors> Fitting<'b, 'a, B> {
    pub fn new(
        eval: &'b mut Evaluator<'a, B>,
        unknowns: &'b Unknowns<'a>,
        teacher: &'b Schedule,
        next: &'b mut u64,
    ) -> Self {
        Self { eval, unknowns, teacher, next, linear: None }
    }

    fn schedule(&self, point: &[f64]) -> Result<Schedule> {
        let nowhere = || Error::new(Status::Internal, "a step to sigmas that do not decrease");
        self.unknowns.schedule(point).ok_or_else(nowhere)
    }

    /// Makes the linearisation on this rank's batches.
    fn make(&mut self, linear: &mut Linear<B::Tensor>) -> Result<()> {
        let own: Vec<u64> = self.eval.own(&linear.batches).map(|(_, index)| index).collect();
        let Linear { schedule, values, .. } = &*linear;
        let one = |index| Local::new(self.eval, self.unknowns, self.teacher, index, schedule, values);
        linear.live = Some(own.into_iter().map(one).collect::<Result<_>>()?);
        Ok(())
    }

    /// Makes it again, with all that was done to it, if it was read back: by calls that are counted already.
    fn revive(&mut self, linear: &mut Linear<B::Tensor>) -> Result<()> {
        if linear.live.is_some() {
            return Ok(());
        }
        self.eval.account.again = true;
        let revived = self.make(linear).and_then(|()| self.redo(linear));
        self.eval.account.again = false;
        revived
    }

    fn redo(&mut self, linear: &mut Linear<B::Tensor>) -> Result<()> {
        for done in linear.done.clone() {
            match done {
                Done::Trial(schedule) => self.try_on(linear, &schedule).map(drop)?,
                Done::Update(accepted, correction) => {
                    self.correct(linear, accepted, correction.as_ref())?;
                }
            }
        }
        Ok(())
    }

    fn correct(
        &self,
        linear: &mut Linear<B::Tensor>,
        accepted: bool,
        correction: Option<&Correction>,
    ) -> Result<()> {
        let tensors = self.eval.tensors;
        linear.live.iter_mut().flatten().try_for_each(|local| local.update(tensors, accepted, correction))
    }

    fn try_on(&mut self, linear: &mut Linear<B::Tensor>, schedule: &Schedule) -> Result<Rows> {
        let mut rows = Rows::new(linear.batches.len(), 1)?;
        let factors = self.eval.factors(schedule.nfe());
        let places: Vec<usize> = self.eval.own(&linear.batches).map(|(place, _)| place).collect();
        for (local, place) in linear.live.iter_mut().flatten().zip(places) {
            let x_t = self.eval.begin(local.index)?;
            let start = Sampler::new(self.eval.tensors, Cow::Borrowed(schedule), &x_t)?;
            let residual = self.eval.residual(&local.goal, start)?;
            rows.of(place)[0] = self.eval.summed_length(&residual, &factors)?;
            local.tried = Some(residual);
        }
        Ok(rows)
    }

    /// Sums of the normal equations over this rank's batches.
    fn sums(&self, linear: &Linear<B::Tensor>) -> Result<Rows> {
        let k = self.unknowns.list.len();
        let mut rows = Rows::new(linear.batches.len(), width(k))?;
        let places = self.eval.own(&linear.batches);
        let factors = self.eval.factors(linear.schedule.nfe());
        for (local, (place, _)) in linear.live.iter().flatten().zip(places) {
            for (part, (residual, factor)) in local.residual.iter().zip(&factors).enumerate() {
                let columns = local.columns.iter().map(|column| &column[part]);
                let all: Vec<&B::Tensor> = columns.chain([residual]).collect();
                for one in self.eval.tensors.gram(&all)?.chunks_exact((k + 1) * (k + 1)) {
                    add_normal(rows.of(place), one, k, *factor);
                }
            }
        }
        Ok(rows)
    }

    fn count(&self, linear: &Linear<B::Tensor>) -> f64 {
        (linear.batches.len() * self.eval.batch) as f64
    }
}

impl<B: Tensors> Objective for Fitting<'_, '_, B> {
    fn bounded(&self, point: &[f64]) -> Option<Vec<f64>> {
        self.unknowns.bounded(point)
    }

    fn linearise(&mut self, point: &[f64], trajectories: usize) -> Result<Option<Normal>> {
        let count = self.eval.batches_of(trajectories) as u64;
        let batches: Vec<u64> = (*self.next..*self.next + count).collect();
        *self.next += count;
        let schedule = self.schedule(point)?;
        let key = Key::of(Kind::Linearise).and_all(batches.iter().copied());
        let key = with_schedule(with_schedule(key, &schedule), self.teacher);
        let (values, done) = (point.to_vec(), Vec::new());
        let mut linear = Linear { batches, schedule, values, done, key: key.clone(), live: None };
        if self.eval.knows(&key) && self.eval.shares_ends() {
            self.eval.lose_ends(&linear.batches);
        }
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
        linear.key = with_schedule(key, &schedule);
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
            own.correct(linear, accepted, correction)?;
            own.sums(linear)
        });
        linear.done.push(Done::Update(accepted, correction.cloned()));
        self.linear = Some(linear);
        let broken = || Error::new(Status::NonFinite, "a Jacobian that was finite no longer is");
        normal(found?, k, trajectories).ok_or_else(broken)
    }
}

impl<'a, B: Tensors> Fitting<'_, 'a, B> {
    /// [`Evaluator::recorded`] of something on a linearisation, whose tensors are given up where it is read back.
    fn recorded(
        &mut self,
        kind: Kind,
        key: Key,
        linear: &mut Linear<B::Tensor>,
        length: usize,
        measure: impl FnOnce(&mut Self, &mut Linear<B::Tensor>) -> Result<Rows>,
    ) -> Result<Vec<f64>> {
        let measured = if self.eval.knows(&key) {
            linear.live = None;
            None
        } else {
            Some(measure(self, linear))
        };
        let made = |_: &mut Evaluator<'a, B>| measured.expect("read back where it was not measured");
        self.eval.recorded(kind, key, made, length, |rows| rows.total())
    }
}
