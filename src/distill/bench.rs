//! The bench on which schedules are measured: batches, the model behind them, and the way of every
//! measurement through the checkpoint and the meeting of the ranks. Only here, in `jacobian` and in
//! `teacher` are there tensors; batches are handled one after another.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

use super::account::{Account, By};
use super::journal::{Journal, Key, Kind, Record};
use super::ranks::{Part, Ranks, Stop};
use super::{Config, Phase, Problem};
use crate::error::{Error, Result, Status};
use crate::sample::Sampler;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

pub struct Bench<'a, B: Tensors> {
    pub tensors: &'a B,
    like: &'a B::Tensor,
    problem: &'a mut dyn Problem<B::Tensor>,
    pub config: &'a Config,
    pub account: Account,
    ranks: &'a mut Ranks,
    /// Of rank 0.
    journal: Journal,
    /// What it has: every rank knows.
    known: HashSet<u64>,
    /// Trajectories in a batch.
    pub batch: usize,
    /// The teacher's end points of the batches that decide: as many as `held_out`, and the ranking's.
    ends: HashMap<u64, B::Tensor>,
    /// Those of the batches that several fits are in work on, while they are.
    shared: Option<HashMap<u64, B::Tensor>>,
}

impl<'a, B: Tensors> Bench<'a, B> {
    pub fn new(
        tensors: &'a B,
        config: &'a Config,
        like: &'a B::Tensor,
        problem: &'a mut dyn Problem<B::Tensor>,
        ranks: &'a mut Ranks,
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
        let options = Key::of(Kind::Check).and_all(head.bytes().map(u64::from)).number();
        ranks.meet(
            problem,
            &[("number of trajectories in a batch", batch as u64), ("set of options", options)],
        )?;
        let journal = match &config.checkpoint {
            Some(path) if ranks.rank == 0 => Journal::open(path, &head)?,
            _ => Journal::default(),
        };
        // float64 takes whole numbers of 32 bits as they are.
        let halves = journal.keys().into_iter().flat_map(|n| [(n >> 32) as f64, (n & 0xffff_ffff) as f64]);
        let halves = Ok(Part::Values(halves.collect()));
        let known = match ranks.together(problem, halves, &mut [0; 2])? {
            Part::Values(all) => all.chunks_exact(2).map(|h| ((h[0] as u64) << 32) | h[1] as u64).collect(),
            Part::Stop(_) => HashSet::new(),
        };
        let account = Account::new(config, ranks.count, batch);
        let (ends, shared) = (HashMap::new(), None);
        Ok(Self { tensors, like, problem, config, account, ranks, journal, known, batch, ends, shared })
    }

    /// How many batches have so many trajectories, or somewhat more.
    pub fn batches_of(&self, trajectories: usize) -> usize {
        trajectories.div_ceil(self.batch)
    }

    /// The batches that this rank measures, each with its place among all.
    pub fn own<'s>(&self, batches: &'s [u64]) -> impl Iterator<Item = (usize, u64)> + use<'s, B> {
        batches.iter().copied().enumerate().skip(self.ranks.rank).step_by(self.ranks.count)
    }

    /// Makes a batch current and returns its x_T.
    pub fn begin(&mut self, index: u64) -> Result<B::Tensor> {
        let mut x_t = self.tensors.alloc(self.like)?;
        let clock = Instant::now();
        self.problem.begin(index, &mut x_t)?;
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        Ok(x_t)
    }

    /// One model call, with the budget and the host's wish to stop looked after.
    pub fn call(&mut self, by: By, x: &B::Tensor, sigma: f64, denoised: &mut B::Tensor) -> Result<()> {
        if let Some(why) = self.account.limit() {
            return self.stop(why);
        }
        self.account.calling();
        let clock = Instant::now();
        self.problem.denoise(x, sigma, denoised)?;
        self.account.called(by);
        let go_on = self.problem.progress(&self.account.progress);
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        if go_on { Ok(()) } else { self.stop(Stop::Cancelled) }
    }

    /// Tells the host where things are, without a call.
    pub fn tell(&mut self) -> Result<()> {
        let go_on = self.problem.progress(&self.account.progress);
        if go_on { Ok(()) } else { self.stop(Stop::Cancelled) }
    }

    fn stop(&mut self, why: Stop) -> Result<()> {
        self.account.stopped = Some(why);
        let why = why.word();
        let message = format!("the distillation was ended ({why}) before its first result");
        Err(Error::new(Status::Stopped, message))
    }

    /// The end point of a run on the current batch.
    pub fn finish(&mut self, by: By, run: Sampler<&B>) -> Result<B::Tensor> {
        let mut run = run.unchecked();
        run.run(&mut |x, sigma, denoised| self.call(by, x, sigma, denoised), &mut |_| Ok(()))?;
        Ok(run.into_state())
    }

    /// The teacher's end point on the current batch, in memory of its own.
    pub fn taught(&mut self, teacher: &Schedule, index: u64, x_t: &B::Tensor) -> Result<B::Tensor> {
        let phase = std::mem::replace(&mut self.account.progress.phase, Phase::Teacher);
        let mut run = Sampler::new(self.tensors, Cow::Borrowed(teacher), x_t)?;
        run.run(&mut |x, sigma, denoised| self.call(By::Teacher, x, sigma, denoised), &mut |_| Ok(()))
            .map_err(|e| Error::new(e.status, format!("the teacher on batch {index}: {}", e.message)))?;
        self.account.progress.phase = phase;
        self.tensors.copy(run.state())
    }

    /// The same, from memory where it is there: on the ranking batches, and where another fit was taught on
    /// this batch just before.
    pub fn goal(&mut self, teacher: &Schedule, index: u64, x_t: &B::Tensor) -> Result<B::Tensor> {
        let shared = self.shared.as_ref().and_then(|shared| shared.get(&index));
        if let Some(end) = shared.or_else(|| self.ends.get(&index)) {
            return self.tensors.copy(end);
        }
        let end = self.taught(teacher, index, x_t)?;
        if let Some(shared) = &mut self.shared {
            shared.insert(index, self.tensors.copy(&end)?);
        }
        Ok(end)
    }

    /// Whether the teacher's end points of the next linearisation are kept for others on the same
    /// batches. Those so far are let go.
    pub fn share_ends(&mut self, sharing: bool) {
        self.shared = sharing.then(HashMap::new);
    }

    pub fn difference(&self, a: &B::Tensor, b: &B::Tensor) -> Result<B::Tensor> {
        let mut out = self.tensors.alloc(a)?;
        self.tensors.lincomb(&mut out, &[(1.0, a), (-1.0, b)])?;
        Ok(out)
    }

    /// Sum over the batch's trajectories of the distance between two states.
    pub fn far(&self, a: &B::Tensor, b: &B::Tensor) -> Result<f64> {
        let difference = self.difference(a, b)?;
        Ok(self.tensors.gram(&[&difference])?.into_iter().map(f64::sqrt).sum())
    }

    /// Keeps a batch's end point for [`Bench::distances`].
    pub fn keep_end(&mut self, index: u64, end: B::Tensor) {
        self.ends.insert(index, end);
    }

    /// Mean Euclidean distance to the teacher's end points of each schedule over `batches`; infinite where
    /// one diverges. `keep`: end points are wanted again.
    pub fn distances(
        &mut self,
        teacher: &Schedule,
        batches: &[u64],
        schedules: &[&Schedule],
        keep: bool,
    ) -> Result<Vec<f64>> {
        let key = schedules.iter().fold(Key::of(Kind::Distances).and_all(batches.iter().copied()), hashed);
        let measure = |bench: &mut Self| {
            let mut sums = Rows::new(batches.len(), schedules.len());
            for (place, index) in bench.own(batches) {
                let x_t = bench.begin(index)?;
                let goal = match bench.ends.remove(&index) {
                    Some(goal) => goal,
                    None => bench.taught(teacher, index, &x_t)?,
                };
                let mut measured = || -> Result<()> {
                    for (sum, schedule) in sums.of(place).iter_mut().zip(schedules) {
                        let start = Sampler::new(bench.tensors, Cow::Borrowed(*schedule), &x_t)?;
                        let end = bench.finish(By::Student, start)?;
                        *sum = bench.far(&end, &goal)?;
                    }
                    Ok(())
                };
                let done = measured();
                if keep {
                    bench.ends.insert(index, goal);
                }
                done?;
            }
            Ok(sums)
        };
        let count = (batches.len() * self.batch) as f64;
        let key = hashed(key, &teacher);
        self.recorded(Kind::Distances, key, measure, schedules.len(), |rows| {
            rows.total().into_iter().map(|sum| sum / count).collect()
        })
    }

    /// A measurement: read back from the checkpoint where it is there, else made by all ranks, `finish`ed
    /// from the rows of all batches, and written down. What is not finite comes out as infinite.
    pub fn recorded(
        &mut self,
        kind: Kind,
        key: Key,
        measure: impl FnOnce(&mut Self) -> Result<Rows>,
        length: usize,
        finish: impl FnOnce(Rows) -> Vec<f64>,
    ) -> Result<Vec<f64>> {
        let replayed = self.known.remove(&key.number());
        let mut shape = (0, 0);
        let part = if replayed {
            self.replay(kind, &key)
        } else {
            match measure(self) {
                Ok(rows) => {
                    shape = (rows.width, rows.values.len());
                    Ok(Part::Values(rows.values))
                }
                Err(error) => self.account.stopped.map(Part::Stop).ok_or(error),
            }
        };
        let clock = Instant::now();
        let mut calls = self.account.own();
        let part = self.ranks.together(self.problem, part, &mut calls);
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        self.account.share(calls);
        let mut values = match part? {
            Part::Values(values) if replayed => values,
            Part::Values(values) => finish(Rows { width: shape.0, values }),
            Part::Stop(why) => return self.stop(why).map(|()| Vec::new()),
        };
        values.iter_mut().filter(|v| !v.is_finite()).for_each(|v| *v = f64::INFINITY);
        if values.len() != length {
            let message = "a line of the checkpoint does not fit this run; remove the checkpoint";
            return Err(Error::new(Status::Mismatch, message));
        }
        if !replayed {
            let seconds = self.account.seconds();
            let finite = values.iter().map(|v| v.is_finite().then_some(*v)).collect();
            self.journal.append(&Record { kind, key: key.number(), calls, seconds, values: finite })?;
        }
        Ok(values)
    }

    /// Whether a measurement with this key can be read back.
    pub fn knows(&self, key: &Key) -> bool {
        self.known.contains(&key.number())
    }

    /// The record of the checkpoint, on rank 0; nothing on the others.
    fn replay(&mut self, kind: Kind, key: &Key) -> Result<Part> {
        let Some(record) = self.journal.replay(kind, key)? else { return Ok(Part::Values(Vec::new())) };
        self.account.read_back(record.calls, record.seconds);
        Ok(Part::Values(record.values.into_iter().map(|v| v.unwrap_or(f64::INFINITY)).collect()))
    }

    /// Calls that the limits leave, the same number on every rank; None where there is no limit.
    pub fn calls_left(&mut self) -> Result<Option<u64>> {
        let own = self.account.calls_left().map_or(f64::INFINITY, |calls| calls as f64);
        let part = if self.ranks.rank == 0 { vec![own] } else { Vec::new() };
        match self.ranks.together(self.problem, Ok(Part::Values(part)), &mut [0; 2])? {
            Part::Values(values) => Ok(values.first().filter(|v| v.is_finite()).map(|v| *v as u64)),
            Part::Stop(why) => self.stop(why).map(|()| None),
        }
    }

    /// Finds out, on the first rank in seven model calls, what would make a fit worthless: noise that is not the same for
    /// the same batch, or the same for all; noise of another level than sigma_max; a model that
    /// depends on the call before.
    pub fn check(&mut self) -> Result<()> {
        let measure = |bench: &mut Self| {
            if bench.ranks.rank == 0 {
                bench.check_batches()?;
            }
            Ok(Rows::new(0, 0))
        };
        self.recorded(Kind::Check, Key::of(Kind::Check), measure, 0, |_| Vec::new()).map(|_| ())
    }

    fn check_batches(&mut self) -> Result<()> {
        let refused = |m: String| Err(Error::argument(m));
        let x_t = self.begin(0)?;
        let other = self.begin(1)?;
        if self.far(&x_t, &other)? == 0.0 {
            return refused(
                "begin gives the same x_T for batches 0 and 1; each needs noise of its own".into(),
            );
        }
        let again = self.begin(0)?;
        if self.far(&x_t, &again)? != 0.0 {
            let message = "begin gives another x_T for batch 0 when it is asked again; the same batch must \
                           always be the same noise: seed it by the batch's number";
            return refused(message.into());
        }
        let squares: f64 = self.tensors.gram(&[&x_t])?.iter().sum();
        if let Some(elements) = self.tensors.elements(&x_t).filter(|n| *n >= 32) {
            let level = (squares / elements as f64).sqrt() / self.config.sigma_max;
            if !(0.5..=2.0).contains(&level) {
                return refused(format!(
                    "x_T of batch 0 has a standard deviation of {:.4}; it must be near sigma_max, {}: \
                     begin returns sigma_max times normal noise",
                    level * self.config.sigma_max,
                    self.config.sigma_max
                ));
            }
        }
        // Noise at the top, between the ends, and near that the other way round.
        let (high, low) = (self.config.sigma_max, (self.config.sigma_max * self.config.sigma_min).sqrt());
        let near = 1.05 * low;
        let mut asked = Vec::new();
        for (sigma, factor) in [(high, 1.0), (low, low / high), (near, -near / high)] {
            let mut state = self.tensors.alloc(&x_t)?;
            self.tensors.lincomb(&mut state, &[(factor, &x_t)])?;
            asked.push((sigma, state));
        }
        let mut found: Vec<Vec<B::Tensor>> = asked.iter().map(|_| Vec::new()).collect();
        for at in ORDER {
            let mut denoised = self.tensors.alloc(&x_t)?;
            self.call(By::Student, &asked[at].1, asked[at].0, &mut denoised)?;
            found[at].push(denoised);
        }
        for ((sigma, _), results) in asked.iter().zip(&found) {
            let length: f64 = self.tensors.gram(&[&results[0]])?.into_iter().map(f64::sqrt).sum();
            for other in &results[1..] {
                let moved = self.far(&results[0], other)?;
                // Not for NaN, which the teacher's run names. Half precision and unordered sums are far below.
                if moved > 0.05 * length {
                    return refused(format!(
                        "the model gives another result for the same x at sigma {sigma} when it is asked again \
                         (off by {:.0} %); caches between calls, dropout and other randomness must be off",
                        100.0 * moved / length
                    ));
                }
            }
        }
        Ok(())
    }
}

/// In which order three states are asked for, so that each comes after different ones: caches that skip every
/// second or third call show, and those that take a noise level near the last one for the same.
const ORDER: [usize; 7] = [0, 1, 2, 0, 2, 0, 1];
/// Calls of [`Bench::check`].
pub const CHECKS: u64 = ORDER.len() as u64;

/// Adds a schedule's numbers to a key.
pub fn hashed(key: Key, schedule: &&Schedule) -> Key {
    let ends = [schedule.sigma_start(), schedule.sigma_end()].into_iter();
    let nodes = schedule.nodes().iter();
    let numbers =
        nodes.flat_map(|node| [node.sigma, node.scale].into_iter().chain(node.weights.iter().copied()));
    key.and_all(ends.chain(numbers).map(f64::to_bits))
}

/// A row for each batch of a set: so they add up in the same order on any number of ranks.
pub struct Rows {
    pub width: usize,
    pub values: Vec<f64>,
}

impl Rows {
    pub fn new(batches: usize, width: usize) -> Self {
        Self { width, values: vec![0.0; batches * width] }
    }

    pub fn of(&mut self, place: usize) -> &mut [f64] {
        &mut self.values[place * self.width..][..self.width]
    }

    pub fn total(&self) -> Vec<f64> {
        let mut total = vec![0.0; self.width];
        for row in self.values.chunks_exact(self.width.max(1)) {
            total.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        total
    }
}
