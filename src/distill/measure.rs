//! What distillation asks of the model: mean distances to the teacher's end points, and the normal
//! equations of a schedule's unknowns. Nothing above this file sees a tensor, or that other processes
//! share the run. Batches are handled one after another; only one end point a trajectory is kept.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Instant;

use nalgebra::{DMatrix, DVector};

use super::journal::{Journal, Record};
use super::ranks::{Part, Ranks};
use super::{Config, HELD_OUT_BATCHES, Phase, Problem, Progress, TEST_BATCHES};
use crate::error::{Error, Result, Status};
use crate::sample::Sampler;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// Which trajectories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Set {
    /// Fitted to.
    Train,
    /// Decide what is kept.
    Held,
    /// Never seen by a distillation.
    Test,
}

/// A number of a schedule that may move.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unknown {
    /// log sigma of a node. The noise level that the model is told stays, unless scales are fixed.
    Sigma(usize),
    /// log of the noise level that the model is told at a node.
    ModelSigma(usize),
    /// Weight of a node, by age.
    Weight(usize, usize),
}

impl Unknown {
    /// The first node whose model call it changes.
    pub fn first_call(self) -> usize {
        match self {
            Self::Sigma(n) | Self::ModelSigma(n) => n,
            Self::Weight(n, _) => n + 1,
        }
    }
}

/// Normal equations of the mean distance at a schedule, trajectories re-weighted by 1 / distance.
pub struct Normal {
    /// Mean distance.
    pub distance: f64,
    /// mean over trajectories of J^T J / distance.
    pub jtj: DMatrix<f64>,
    /// Gradient of the mean distance: mean of J^T r / distance.
    pub gradient: DVector<f64>,
}

/// The bench on which schedules are measured.
pub struct Bench<'a, B: Tensors> {
    tensors: &'a B,
    like: &'a B::Tensor,
    problem: &'a mut dyn Problem<B::Tensor>,
    pub config: &'a Config,
    teacher: Schedule,
    /// Trajectories in a batch.
    batch: usize,
    ends: HashMap<u64, B::Tensor>,
    ranks: &'a mut Ranks,
    /// Of rank 0.
    journal: Journal,
    /// Measurements that are read back, not made.
    replays: usize,
    started: Instant,
    /// Seconds of the run that this one resumes.
    seconds_before: f64,
    pub progress: Progress,
    /// Of all ranks, up to the last measurement.
    pub teacher_calls: u64,
    pub model_calls: u64,
    /// Of this rank since then: the teacher's calls, all others.
    own_calls: [u64; 2],
    pub callback_seconds: f64,
    /// Why the run was ended, once it was.
    pub stopped: Option<&'static str>,
}

impl<'a, B: Tensors> Bench<'a, B> {
    pub fn new(
        tensors: &'a B,
        config: &'a Config,
        like: &'a B::Tensor,
        problem: &'a mut dyn Problem<B::Tensor>,
        ranks: &'a mut Ranks,
        teacher: Schedule,
    ) -> Result<Self> {
        let mut probe = tensors.alloc(like)?;
        tensors.lincomb(&mut probe, &[(0.0, like)])?;
        let batch = tensors.gram(&[&probe])?.len();
        if batch == 0 {
            return Err(Error::tensor("a batch has no trajectories; dimension 0 must be at least 1"));
        }
        let plain = Config { checkpoint: None, max_calls: None, max_seconds: None, ..config.clone() };
        let version = env!("CARGO_PKG_VERSION");
        let head = serde_json::json!({"lmsd": version, "batch": batch, "config": plain}).to_string();
        let mut options = DefaultHasher::new();
        head.hash(&mut options);
        let same =
            [("number of trajectories in a batch", batch as u64), ("set of options", options.finish())];
        ranks.meet(problem, &same)?;
        let journal = match &config.checkpoint {
            Some(path) if ranks.rank == 0 => Journal::open(path, &head)?,
            _ => Journal::default(),
        };
        let replays = Part::Values(vec![journal.len() as f64]);
        let replays = match ranks.together(problem, Ok(replays), &mut [0; 2])? {
            Part::Values(values) => values.first().map_or(0, |n| *n as usize),
            Part::Stop(_) => 0,
        };
        let progress = Progress {
            phase: Phase::Teacher,
            nfe: config.nfe_from(),
            calls: 0,
            calls_expected: 0,
            distance: f64::INFINITY,
            handcrafted: f64::INFINITY,
            seconds_left: f64::INFINITY,
        };
        Ok(Self {
            tensors,
            like,
            problem,
            config,
            teacher,
            batch,
            ends: HashMap::new(),
            ranks,
            journal,
            replays,
            started: Instant::now(),
            seconds_before: 0.0,
            progress,
            teacher_calls: 0,
            model_calls: 0,
            own_calls: [0; 2],
            callback_seconds: 0.0,
            stopped: None,
        })
    }

    pub fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Indices of the batches of a set.
    fn batches(&self, set: Set) -> std::ops::Range<u64> {
        let (first, trajectories) = match set {
            Set::Train => (0, self.config.trajectories),
            Set::Held => (HELD_OUT_BATCHES, self.config.held_out),
            Set::Test => (TEST_BATCHES, self.config.held_out),
        };
        first..first + trajectories.div_ceil(self.batch) as u64
    }

    /// Those that this rank measures, each with its place among all of the set.
    fn own_batches(&self, set: Set) -> impl Iterator<Item = (usize, u64)> + use<B> {
        self.batches(set).enumerate().skip(self.ranks.rank).step_by(self.ranks.count)
    }

    /// Number of batches of a set.
    pub fn batch_count(&self, set: Set) -> u64 {
        let range = self.batches(set);
        range.end - range.start
    }

    /// Calls of the teacher for one set.
    pub fn teacher_cost(&self, set: Set) -> u64 {
        self.batch_count(set) * self.teacher.nfe() as u64
    }

    /// Mean Euclidean distance to the teacher's end points of each schedule; infinite where a
    /// schedule diverges.
    pub fn distances(&mut self, set: Set, schedules: &[&Schedule]) -> Result<Vec<f64>> {
        let count = (self.batch_count(set) * self.batch as u64) as f64;
        let measure = |bench: &mut Self| {
            let mut sums = Rows::new(bench.batch_count(set), schedules.len());
            for (place, index) in bench.own_batches(set) {
                let x_t = bench.prepare(index)?;
                for (sum, schedule) in sums.of(place).iter_mut().zip(schedules) {
                    let start = Sampler::new(bench.tensors, Cow::Borrowed(*schedule), &x_t)?;
                    let end = bench.finish(start)?;
                    let residual = bench.residual(&end, index)?;
                    *sum = bench.lengths(&residual)?.iter().sum::<f64>();
                }
            }
            Ok(sums)
        };
        // JSON has no infinity.
        let finish = |s: f64| if s.is_finite() { s / count } else { f64::MAX };
        let values = self.recorded("distances", measure, |sums| sums.into_iter().map(finish).collect())?;
        if values.len() != schedules.len() {
            return Err(damaged());
        }
        Ok(values.into_iter().map(|v| if v == f64::MAX { f64::INFINITY } else { v }).collect())
    }

    /// Normal equations on the training set, by forward differences: `changed(unknown)` is the
    /// schedule with that unknown moved, and by how much. Only nodes that a change reaches are
    /// called again. None where a difference is not finite.
    pub fn normal(
        &mut self,
        schedule: &Schedule,
        unknowns: &[Unknown],
        changed: &dyn Fn(Unknown) -> Result<(Schedule, f64)>,
    ) -> Result<Option<Normal>> {
        let k = unknowns.len();
        let count = (self.batch_count(Set::Train) * self.batch as u64) as f64;
        let measure = |bench: &mut Self| {
            let mut sums = Rows::new(bench.batch_count(Set::Train), 1 + k + k * k);
            for (place, index) in bench.own_batches(Set::Train) {
                let columns = bench.columns(index, schedule, unknowns, changed)?;
                let gram = bench.tensors.gram(&columns.iter().collect::<Vec<_>>())?;
                for one in gram.chunks_exact((k + 1) * (k + 1)) {
                    add_normal(sums.of(place), one, k);
                }
            }
            Ok(sums)
        };
        let finish = |sums: Vec<f64>| {
            let finite = sums.iter().all(|v| v.is_finite());
            if finite { sums.into_iter().map(|v| v / count).collect() } else { Vec::new() }
        };
        let values = self.recorded("normal", measure, finish)?;
        if values.is_empty() {
            return Ok(None);
        }
        if values.len() != 1 + k + k * k {
            return Err(damaged());
        }
        Ok(Some(Normal {
            distance: values[0],
            gradient: DVector::from_row_slice(&values[1..1 + k]),
            jtj: DMatrix::from_row_slice(k, k, &values[1 + k..]),
        }))
    }

    /// The columns of the Jacobian of the end point, then the residual.
    fn columns(
        &mut self,
        index: u64,
        schedule: &Schedule,
        unknowns: &[Unknown],
        changed: &dyn Fn(Unknown) -> Result<(Schedule, f64)>,
    ) -> Result<Vec<B::Tensor>> {
        let tensors = self.tensors;
        let x_t = self.prepare(index)?;
        let (mut states, mut predictions) = (Vec::new(), Vec::new());
        // Side by side, as they are combined; in the order of their use.
        let mut slots = tensors.alloc_many(&x_t, schedule.nfe())?.into_iter();
        let mut start = Sampler::new(tensors, Cow::Borrowed(schedule), &x_t)?.unchecked();
        start.run(&mut |x, sigma, denoised| self.call(x, sigma, denoised), &mut |step| {
            states.push(tensors.copy(step.x)?);
            let mut kept = slots.next().expect("a slot for each node");
            tensors.lincomb(&mut kept, &[(1.0, step.denoised)])?;
            predictions.push(kept);
            Ok(())
        })?;
        let end = start.into_state();
        let mut columns = Vec::with_capacity(unknowns.len() + 1);
        for &unknown in unknowns {
            let (other, difference) = changed(unknown)?;
            let other = Cow::Borrowed(&other);
            let start = match unknown.first_call() {
                0 => Sampler::new(tensors, other, &x_t)?,
                m => Sampler::branch(tensors, other, &predictions[..m], &states[m - 1])?,
            };
            let moved = self.finish(start)?;
            let mut column = tensors.alloc(&end)?;
            tensors.lincomb(&mut column, &[(1.0 / difference, &moved), (-1.0 / difference, &end)])?;
            columns.push(column);
        }
        columns.push(self.residual(&end, index)?);
        Ok(columns)
    }

    /// The end point of a run on the current batch.
    fn finish(&mut self, run: Sampler<&B>) -> Result<B::Tensor> {
        let mut run = run.unchecked();
        run.run(&mut |x, sigma, denoised| self.call(x, sigma, denoised), &mut |_| Ok(()))?;
        Ok(run.into_state())
    }

    fn residual(&self, end: &B::Tensor, index: u64) -> Result<B::Tensor> {
        let mut residual = self.tensors.alloc(end)?;
        self.tensors.lincomb(&mut residual, &[(1.0, end), (-1.0, &self.ends[&index])])?;
        Ok(residual)
    }

    fn lengths(&self, residual: &B::Tensor) -> Result<Vec<f64>> {
        Ok(self.tensors.gram(&[residual])?.into_iter().map(f64::sqrt).collect())
    }

    /// Makes a batch current, finds its teacher's end point if need be, and returns its x_T.
    fn prepare(&mut self, index: u64) -> Result<B::Tensor> {
        let mut x_t = self.tensors.alloc(self.like)?;
        let clock = Instant::now();
        self.problem.begin(index, &mut x_t)?;
        self.callback_seconds += clock.elapsed().as_secs_f64();
        if !self.ends.contains_key(&index) {
            let phase = std::mem::replace(&mut self.progress.phase, Phase::Teacher);
            let teacher = self.teacher.clone();
            let mut run = Sampler::new(self.tensors, Cow::Borrowed(&teacher), &x_t)?;
            run.run(&mut |x, sigma, denoised| self.call(x, sigma, denoised), &mut |_| Ok(()))
                .map_err(|e| Error::new(e.status, format!("the teacher on batch {index}: {}", e.message)))?;
            // A copy, as the state may share memory with all else that the run has used.
            let end = self.tensors.copy(run.state())?;
            self.ends.insert(index, end);
            self.progress.phase = phase;
        }
        Ok(x_t)
    }

    /// Finds the teacher's end points of a set, unless a checkpoint makes them unneeded so far.
    pub fn teach(&mut self, set: Set) -> Result<()> {
        let measure = |bench: &mut Self| {
            for (_, index) in bench.own_batches(set) {
                bench.prepare(index)?;
            }
            Ok(Rows::new(0, 0))
        };
        self.recorded("teacher", measure, |none| none).map(|_| ())
    }

    /// One model call, with the budget and the host's wish to stop looked after.
    fn call(&mut self, x: &B::Tensor, sigma: f64, denoised: &mut B::Tensor) -> Result<()> {
        let teaching = self.progress.phase == Phase::Teacher;
        let ranks = self.ranks.count as u64;
        let used = self.model_calls + self.own_calls[1] * ranks;
        if !teaching && self.config.max_calls.is_some_and(|limit| used >= limit) {
            return self.stop("calls");
        }
        if self.config.max_seconds.is_some_and(|limit| self.seconds() >= limit) {
            return self.stop("seconds");
        }
        let clock = Instant::now();
        self.problem.denoise(x, sigma, denoised)?;
        self.own_calls[usize::from(!teaching)] += 1;
        let calls = self.teacher_calls + self.model_calls + self.own_calls.iter().sum::<u64>() * ranks;
        self.progress.calls = self.progress.calls.max(calls);
        self.progress.calls_expected = self.progress.calls_expected.max(self.progress.calls);
        let left = (self.progress.calls_expected - self.progress.calls) as f64;
        let seconds = self.seconds();
        self.progress.seconds_left = seconds / self.progress.calls as f64 * left;
        if let Some(limit) = self.config.max_seconds {
            self.progress.seconds_left = self.progress.seconds_left.min((limit - seconds).max(0.0));
        }
        let go_on = self.problem.progress(&self.progress);
        self.callback_seconds += clock.elapsed().as_secs_f64();
        if go_on { Ok(()) } else { self.stop("cancelled") }
    }

    fn stop(&mut self, why: &'static str) -> Result<()> {
        self.stopped = Some(why);
        Err(Error::new(
            Status::Stopped,
            format!("the distillation was ended ({why}) before its first result"),
        ))
    }

    /// A measurement: read back from the checkpoint where it is there, else made by all ranks, `finish`ed
    /// from its sums over all batches, and written down.
    fn recorded(
        &mut self,
        what: &str,
        measure: impl FnOnce(&mut Self) -> Result<Rows>,
        finish: impl FnOnce(Vec<f64>) -> Vec<f64>,
    ) -> Result<Vec<f64>> {
        let replayed = self.replays > 0;
        let mut width = 0;
        let part = if replayed {
            self.replays -= 1;
            self.replay(what)
        } else {
            let sums = measure(self);
            let stopped = |error| self.stopped.map(Part::Stop).ok_or(error);
            sums.map(|sums| {
                width = sums.width;
                Part::Values(sums.values)
            })
            .or_else(stopped)
        };
        let clock = Instant::now();
        let part = self.ranks.together(self.problem, part, &mut self.own_calls);
        self.callback_seconds += clock.elapsed().as_secs_f64();
        let [teacher, model] = std::mem::take(&mut self.own_calls);
        self.teacher_calls += teacher;
        self.model_calls += model;
        self.progress.calls = self.progress.calls.max(self.teacher_calls + self.model_calls);
        let values = match part? {
            Part::Values(values) if replayed => return Ok(values),
            Part::Values(values) => finish(Rows { width, values }.total()),
            Part::Stop(why) => return self.stop(why).map(|()| Vec::new()),
        };
        let calls = if what == "teacher" { teacher } else { model };
        let record = Record { what: what.into(), calls, seconds: self.seconds(), values };
        self.journal.append(&record)?;
        Ok(record.values)
    }

    /// The next record of the checkpoint, on rank 0; nothing on the others.
    fn replay(&mut self, what: &str) -> Result<Part> {
        let Some(record) = self.journal.replay(what)? else { return Ok(Part::Values(Vec::new())) };
        self.own_calls[usize::from(what != "teacher")] += record.calls;
        self.seconds_before = self.seconds_before.max(record.seconds);
        Ok(Part::Values(record.values))
    }
}

/// Rows over trajectories, a row for each batch of a set: so they add up in the same order on any
/// number of ranks.
struct Rows {
    width: usize,
    values: Vec<f64>,
}

impl Rows {
    fn new(batches: u64, width: usize) -> Self {
        Self { width, values: vec![0.0; batches as usize * width] }
    }

    fn of(&mut self, place: usize) -> &mut [f64] {
        &mut self.values[place * self.width..][..self.width]
    }

    fn total(&self) -> Vec<f64> {
        let mut total = vec![0.0; self.width];
        for row in self.values.chunks_exact(self.width.max(1)) {
            total.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        total
    }
}

fn damaged() -> Error {
    Error::new(Status::Mismatch, "a line of the checkpoint does not fit this run; remove the checkpoint")
}

/// Adds one trajectory's Gram matrix of [J, r] to the sums of [`Bench::normal`].
fn add_normal(sums: &mut [f64], gram: &[f64], k: usize) {
    let at = |i: usize, j: usize| gram[i * (k + 1) + j];
    let distance = at(k, k).sqrt();
    // Where the student meets the teacher to the last bit the distance has no gradient.
    let weight = if distance > 1e-12 { 1.0 / distance } else { 0.0 };
    sums[0] += distance;
    for i in 0..k {
        sums[1 + i] += weight * at(i, k);
        for j in 0..k {
            sums[1 + k + i * k + j] += weight * at(i, j);
        }
    }
}
