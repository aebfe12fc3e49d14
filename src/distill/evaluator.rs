//! What schedules are evaluated with: the host's batches and model, what is kept of the teacher's runs, and distances
//! to it. Only here, in `check`, `jacobian`, `residual` and `teacher` are there tensors; batches are handled one after
//! another.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::time::Instant;

use super::account::{Account, Caller};
use super::config::Objective;
use super::journal::{Journal, Key, Kind};
use super::measure::{self, Rows, with_schedule};
use super::ranks::{Ranks, Stop};
use super::residual::{Goal, Mix};
use super::{Call, Config, HELD_OUT_BATCHES, Phase, Problem, Purpose};
use crate::error::{Error, Result, Status};
use crate::memory;
use crate::sample::Sampler;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

pub struct Evaluator<'a, B: Tensors> {
    pub tensors: &'a B,
    like: &'a B::Tensor,
    pub(super) problem: &'a mut dyn Problem<B::Tensor>,
    pub config: &'a Config,
    pub account: Account,
    pub(super) ranks: &'a mut Ranks,
    /// Of rank 0.
    pub(super) journal: Journal,
    /// The numbers of the journal's keys that are not read back yet: every rank knows them.
    pub(super) known: HashSet<u64>,
    /// Trajectories in a batch.
    pub batch: usize,
    /// What distances are made of.
    pub(super) mix: Mix,
    /// What the teacher's runs left on the batches that decide: as many as `held_out`, and the ranking's.
    ends: HashMap<u64, Rc<Goal<B::Tensor>>>,
    /// On the batches that several fits are in work on, while they are.
    shared: Option<HashMap<u64, Rc<Goal<B::Tensor>>>>,
    /// Batches whose end points the run that this one resumes had in memory.
    lost: HashSet<u64>,
}

impl<'a, B: Tensors> Evaluator<'a, B> {
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
        let (journal, known) = measure::open(config, problem, ranks, batch)?;
        let account = Account::new(config, ranks.count, batch);
        let (ends, shared, lost) = (HashMap::new(), None, HashSet::new());
        let mix = Mix::of(config);
        Ok(Self {
            tensors,
            like,
            problem,
            config,
            account,
            ranks,
            journal,
            known,
            batch,
            mix,
            ends,
            shared,
            lost,
        })
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

    /// The host's features of an end point on the current batch.
    pub fn features(&mut self, end: &B::Tensor) -> Result<B::Tensor> {
        let clock = Instant::now();
        let features = self.problem.features(end)?;
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        Ok(features)
    }

    /// One model call, unless the budget is spent or the host wishes to stop.
    pub fn call(&mut self, by: Caller, x: &B::Tensor, call: &Call, denoised: &mut B::Tensor) -> Result<()> {
        if let Some(why) = self.account.limit() {
            return self.stop(why);
        }
        memory::check()?;
        self.account.calling();
        let clock = Instant::now();
        self.problem.denoise(x, &Call { purpose: self.purpose(by), ..*call }, denoised)?;
        self.account.called(by);
        let go_on = self.problem.progress(&self.account.progress);
        self.account.callback_seconds += clock.elapsed().as_secs_f64();
        if go_on { Ok(()) } else { self.stop(Stop::Cancelled) }
    }

    fn purpose(&self, by: Caller) -> Purpose {
        match (by, self.account.progress.phase) {
            (Caller::Teacher, _) => Purpose::Teacher,
            (Caller::Student, Phase::Teacher | Phase::Plan) => Purpose::Check,
            (Caller::Student, Phase::Rank) => Purpose::Ranking,
            (Caller::Student, Phase::Fit | Phase::Grow) => Purpose::Fit,
            (Caller::Student, Phase::Compare) => Purpose::Compare,
        }
    }

    /// Tells the host where things are, without a call.
    pub fn tell(&mut self) -> Result<()> {
        let go_on = self.problem.progress(&self.account.progress);
        if go_on { Ok(()) } else { self.stop(Stop::Cancelled) }
    }

    pub(super) fn stop(&mut self, why: Stop) -> Result<()> {
        self.account.stopped = Some(why);
        let why = why.word();
        let message = format!("the distillation was ended ({why}) before its first result");
        Err(Error::new(Status::Stopped, message))
    }

    /// The end point of a run on the current batch.
    fn finish(&mut self, run: Sampler<&B>) -> Result<B::Tensor> {
        let mut run = run.unchecked();
        run.run(&mut |x, call, denoised| self.call(Caller::Student, x, call, denoised), &mut |_| Ok(()))?;
        Ok(run.into_state())
    }

    /// What the teacher's run on the current batch leaves.
    pub fn teacher_end(
        &mut self,
        teacher: &Schedule,
        index: u64,
        x_t: &B::Tensor,
    ) -> Result<Rc<Goal<B::Tensor>>> {
        let again = self.account.again;
        self.account.again |= self.lost.remove(&index);
        // Nothing is fitted to held-out batches.
        let keeps_path = self.config.objective == Objective::Trajectory && index < HELD_OUT_BATCHES;
        let goal = self.teach(teacher, index, x_t, keeps_path)?;
        self.account.again = again;
        Ok(goal)
    }

    /// The same, from memory where it is there: on the ranking batches, and where another fit had it on
    /// this batch just before.
    pub fn goal(&mut self, teacher: &Schedule, index: u64, x_t: &B::Tensor) -> Result<Rc<Goal<B::Tensor>>> {
        let shared = self.shared.as_ref().and_then(|shared| shared.get(&index));
        if let Some(goal) = shared.or_else(|| self.ends.get(&index)) {
            return Ok(goal.clone());
        }
        let goal = self.teacher_end(teacher, index, x_t)?;
        if let Some(shared) = &mut self.shared {
            shared.insert(index, goal.clone());
        }
        Ok(goal)
    }

    /// Whether the teacher's end points of the next linearisation are kept for others on the same
    /// batches. Those so far are let go.
    pub fn share_ends(&mut self, sharing: bool) {
        self.shared = sharing.then(HashMap::new);
    }

    /// Whether end points are kept for others now.
    pub fn shares_ends(&self) -> bool {
        self.shared.is_some()
    }

    /// A measurement was read back that left the end points of `batches` in memory when it was made.
    pub fn lose_ends(&mut self, batches: &[u64]) {
        let own: Vec<u64> = self.own(batches).map(|(_, index)| index).collect();
        self.lost.extend(own.into_iter().filter(|index| !self.ends.contains_key(index)));
    }

    pub fn difference(&self, a: &B::Tensor, b: &B::Tensor) -> Result<B::Tensor> {
        let mut out = self.tensors.alloc(a)?;
        self.tensors.lincomb(&mut out, &[(1.0, a), (-1.0, b)])?;
        Ok(out)
    }

    /// Sum over the batch's trajectories of the distance between two states.
    pub fn summed_distance(&self, a: &B::Tensor, b: &B::Tensor) -> Result<f64> {
        let difference = self.difference(a, b)?;
        self.summed_norm(&difference)
    }

    /// Keeps a batch's end point for [`Evaluator::distances`].
    pub fn keep_end(&mut self, index: u64, end: Rc<Goal<B::Tensor>>) {
        self.ends.insert(index, end);
    }

    /// Mean distance to the teacher's end points of each schedule over `batches`; infinite where one diverges.
    /// `keep`: end points are wanted again.
    pub fn distances(
        &mut self,
        teacher: &Schedule,
        batches: &[u64],
        schedules: &[&Schedule],
        keep: bool,
    ) -> Result<Vec<f64>> {
        let key = Key::of(Kind::Distances).and_all(batches.iter().copied());
        let key = schedules.iter().chain([&teacher]).fold(key, |key, schedule| with_schedule(key, schedule));
        if keep && self.knows(&key) {
            self.lose_ends(batches);
        }
        let (mix, parts) = (self.mix, self.mix.parts());
        let measure = |eval: &mut Self| {
            let mut rows = Rows::new(batches.len(), parts * (schedules.len() + 1))?;
            for (place, index) in eval.own(batches) {
                eval.batch_distances(teacher, index, schedules, keep, rows.of(place))?;
            }
            Ok(rows)
        };
        let count = (batches.len() * self.batch) as f64;
        self.recorded(Kind::Distances, key, measure, schedules.len(), |rows| {
            let total = rows.total();
            let (squares, sums) = total.split_at(parts);
            let factors = mix.with_units(squares, count).factors();
            let mean =
                |of: &[f64]| of.iter().zip(&factors).map(|(sum, factor)| factor * sum).sum::<f64>() / count;
            sums.chunks_exact(parts).map(mean).collect()
        })
    }

    /// Sums over one batch's trajectories, for each part: the squares of the teacher's end points, then for each
    /// schedule the distances to them.
    fn batch_distances(
        &mut self,
        teacher: &Schedule,
        index: u64,
        schedules: &[&Schedule],
        keep: bool,
        sums: &mut [f64],
    ) -> Result<()> {
        let x_t = self.begin(index)?;
        let goal = match self.ends.remove(&index) {
            Some(goal) => goal,
            None => self.teacher_end(teacher, index, &x_t)?,
        };
        let (squares, sums) = sums.split_at_mut(goal.parts.len());
        if goal.parts.len() > 1 {
            for (square, part) in squares.iter_mut().zip(&goal.parts) {
                *square = self.tensors.gram(&[part])?.into_iter().sum();
            }
        }
        let done = sums.chunks_exact_mut(goal.parts.len()).zip(schedules).try_for_each(|(sums, schedule)| {
            let start = Sampler::new(self.tensors, Cow::Borrowed(*schedule), &x_t)?;
            let end = self.finish(start)?;
            for (sum, part) in sums.iter_mut().zip(self.end_residual(&goal, end)?) {
                *sum = self.summed_norm(&part)?;
            }
            Ok(())
        });
        if keep {
            self.ends.insert(index, goal);
        }
        done
    }
}
