//! A distillation from start to end: checks, teacher, ranking, plan, fits, and what is kept. Sees
//! schedules and distances, no tensor.

use super::account::Caller;
use super::evaluator::Evaluator;
use super::plan::{self, Bounds, Item, Plan};
use super::race::{HeldOut, Runner};
use super::ranks::Ranks;
use super::report::{Entry, HANDCRAFTED};
use super::starts::Ranked;
use super::teacher::{self, Recording};
use super::unknowns::{Unknowns, inserted};
use super::{Config, Distilled, HELD_OUT_BATCHES, Phase, Problem, check, grow, jacobian, starts};
use crate::error::{Error, Result};
use crate::memory;
use crate::schedule::Schedule;
use crate::tensor::Tensors;

/// Trajectories that rank the field.
const RANKING: usize = 8;
/// Trajectories that tell where a node is missing.
pub const GROWING: usize = 4;
/// The best of these on the ranking batches are measured on the held-out ones too.
const BASELINES: usize = 3;
/// Fits of one number of calls take their batches from a range of this length.
const RANGE: u64 = 1024;
/// Distills schedules for the model of `problem`. `like` gives the shape of a batch; its contents
/// are not read.
///
/// # Errors
/// Whatever a callback returns; `InvalidArgument` where noise or model are not what they should be, as far
/// as the first calls tell; `NonFinite` where the teacher diverges; `Mismatch` where the
/// checkpoint was made for something else; `Stopped` where the run was ended before the first result.
/// Where one rank fails, all do.
pub fn distill<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    Ranks::with(problem, |ranks, problem| distill_on(ranks, tensors, config, like, problem))
}

fn distill_on<B: Tensors>(
    ranks: &mut Ranks,
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    config.validate()?;
    let config = &config.with_features(problem.has_features())?;
    let least = 2 * config.nfe;
    if let Some(given) = config.teacher_nfe.filter(|given| *given < least) {
        let message = format!("teacher_nfe is {given}; it must be at least twice nfe, {least}");
        return Err(Error::argument(message));
    }
    // Before any work.
    teacher::schedule(config, teacher::COARSE)?;
    let count = ranks.count;
    let mut eval = Evaluator::new(tensors, config, like, problem, ranks)?;
    let mut run = Run { eval: &mut eval, entries: Vec::new(), ranking_calls: 0, teacher: None };
    let ended = run.all();
    let Run { entries, ranking_calls, teacher, .. } = run;
    if let Err(error) = ended
        && (eval.account.stopped.is_none() || entries.is_empty())
    {
        return Err(error);
    }
    let batch = eval.batch;
    let account = &eval.account;
    let calls = account.all_calls();
    Ok(Distilled {
        library_version: env!("CARGO_PKG_VERSION").into(),
        config: config.clone(),
        ranks: count,
        batch,
        image_calls: calls * batch as u64,
        teacher_nfe: teacher.map_or(0, |teacher| teacher.nfe()),
        teacher_calls: account.calls(Caller::Teacher),
        model_calls: account.calls(Caller::Student),
        ranking_calls,
        seconds: account.seconds(),
        callback_seconds: account.callback_seconds,
        stopped: account.stopped.map(|why| why.word().into()),
        checkpoint_error: eval.journal.error(),
        family: entries.into_iter().map(|entry| entry.finished(&eval)).collect(),
    })
}

/// Bytes that each batch of a set takes beside its tensors, amply.
const A_BATCH: usize = 256;

/// So many batches from the first on. Refuses where there is no memory to keep an account of so many.
pub fn range(first: u64, count: usize) -> Result<Vec<u64>> {
    memory::room(A_BATCH.saturating_mul(count))?;
    Ok((first..first + count as u64).collect())
}

pub struct Run<'r, 'a, B: Tensors> {
    pub eval: &'r mut Evaluator<'a, B>,
    pub entries: Vec<Entry>,
    ranking_calls: u64,
    /// That of the held-out batches.
    teacher: Option<Schedule>,
}

impl<'a, B: Tensors> Run<'_, 'a, B> {
    fn all(&mut self) -> Result<()> {
        let config = self.eval.config;
        let ranking = range(0, self.eval.batches_of(RANKING))?;
        self.eval.account.progress.calls_expected = self.calls_before_the_plan(&ranking);
        self.eval.check()?;
        let recording = teacher::record(self.eval, &ranking)?;
        self.eval.mix = recording.mix;
        let goal = teacher::schedule(config, config.teacher_nfe.unwrap_or(teacher::FINE))?;
        // The largest first: where a budget allows one schedule only, it is that.
        for nfe in (config.nfe_from()..=config.nfe).rev() {
            if let (Some(left), false) = (self.eval.calls_left()?, self.entries.is_empty()) {
                // As much again must be left for the held-out batches.
                if left < 3 * starts::cost(config, 1, ranking.len(), nfe) + 40 {
                    break;
                }
            }
            let before = self.eval.account.calls(Caller::Student);
            let left = self.eval.calls_left()?;
            let ranked = starts::rank(self.eval, &recording, &goal, &ranking, nfe, left)?;
            self.ranking_calls += self.eval.account.calls(Caller::Student) - before;
            let entry = self.entry(nfe, ranked, &recording)?;
            self.entries.insert(0, entry);
        }
        let plan = self.plan()?;
        self.entries.drain(..plan.from);
        let teacher = self.entries.iter().map(|entry| &entry.teacher).max_by_key(|teacher| teacher.nfe());
        let teacher = teacher.expect("there is an entry").clone();
        self.teacher = Some(teacher.clone());
        let held = range(HELD_OUT_BATCHES, plan.held_out)?;
        for at in 0..self.entries.len() {
            self.compete(at, &teacher, &held)?;
        }
        let held = HeldOut { teacher, batches: held };
        for at in 0..self.entries.len() {
            self.inherit(at)?;
            self.fit(at, &plan, &held, &goal, &ranking)?;
        }
        Ok(())
    }

    /// Until the plan is made.
    fn calls_before_the_plan(&self, ranking: &[u64]) -> u64 {
        let config = self.eval.config;
        let recorded = ranking.len() * (teacher::COARSE + config.teacher_nfe.unwrap_or(teacher::FINE));
        let first = self.eval.batches_of(4).min(ranking.len());
        let ranked = |nfe| starts::cost(config, first, ranking.len(), nfe);
        check::calls(config) + recorded as u64 + (config.nfe_from()..=config.nfe).map(ranked).sum::<u64>()
    }

    fn entry(&self, nfe: usize, ranked: Ranked, recording: &Recording) -> Result<Entry> {
        let config = self.eval.config;
        let Ranked { field, starts } = ranked;
        let best = field[0].clone();
        let teacher = teacher::schedule(config, recording.teacher_nfe(config, nfe, best.1))?;
        let handcrafted = field.into_iter().take(BASELINES).collect();
        Ok(Entry { nfe, starts, teacher, best, handcrafted, start: None, trace: Vec::new() })
    }

    pub fn item(&self, at: usize) -> Result<Item> {
        let (config, entry) = (self.eval.config, &self.entries[at]);
        let unknowns = Unknowns::of(config, &entry.starts[0].0)?;
        Ok(Item {
            nfe: entry.nfe,
            teacher: entry.teacher.nfe() as u64,
            jacobian: jacobian::cost(&unknowns, entry.nfe),
            starts: entry.starts.len(),
            grown: at > 0,
        })
    }

    /// The plan for all that has an entry, within the calls that are left; the host hears it.
    fn plan(&mut self) -> Result<Plan> {
        let config = self.eval.config;
        let items: Vec<Item> = (0..self.entries.len()).map(|at| self.item(at)).collect::<Result<_>>()?;
        let bounds = Bounds {
            batch: self.eval.batch,
            held_out: config.held_out,
            most: plan::most(config, self.eval.batch),
            teacher: items.iter().map(|item| item.teacher).max().unwrap_or(0),
            handcrafted: BASELINES as u64 + 1,
            calls: self.eval.calls_left()?,
        };
        let plan = Plan::of(&items, &bounds);
        let account = &mut self.eval.account;
        account.expect(account.all_calls() + plan.calls);
        account.progress.phase = Phase::Plan;
        account.progress.nfe = config.nfe;
        account.progress.gain_expected = plan::usual_gain(config.nfe);
        self.eval.tell()?;
        Ok(plan)
    }

    /// Measures the best of the field, and the nearest start, on the held-out batches.
    fn compete(&mut self, at: usize, teacher: &Schedule, held: &[u64]) -> Result<()> {
        let entry = &mut self.entries[at];
        self.eval.account.progress.phase = Phase::Rank;
        self.eval.account.progress.nfe = entry.nfe;
        let all = entry.handcrafted.iter().chain(entry.starts.first());
        let schedules: Vec<&Schedule> = all.map(|(schedule, _)| schedule).collect();
        let distances = self.eval.distances(teacher, held, &schedules, true)?;
        let all = entry.handcrafted.iter_mut().chain(entry.starts.first_mut());
        all.zip(distances).for_each(|(of, distance)| of.1 = distance);
        let start = entry.starts[0].clone();
        let is_published = start.0.made_by.as_ref().is_some_and(|by| by.method == HANDCRAFTED);
        if is_published && !entry.handcrafted.contains(&start) {
            entry.handcrafted.push(start.clone());
        }
        entry.handcrafted.sort_by(|a, b| a.1.total_cmp(&b.1));
        entry.best = entry.handcrafted[0].clone();
        if !is_published && start.1 < entry.best.1 {
            entry.best = start.clone();
            entry.start = Some(start);
        }
        Ok(())
    }

    /// What is kept at one node less is there at this NFE too, so the family is monotone: a node that
    /// changes nothing leaves the distance as it is.
    fn inherit(&mut self, at: usize) -> Result<()> {
        let Some((smaller, distance)) = at.checked_sub(1).map(|below| self.entries[below].best.clone())
        else {
            return Ok(());
        };
        let config = self.eval.config;
        let same = (1..=smaller.nfe()).find_map(|gap| inserted(config, &smaller, gap).transpose());
        if let Some(same) = same
            && config.order.is_none()
            && distance < self.entries[at].best.1
        {
            self.entries[at].best = (same?, distance);
        }
        Ok(())
    }

    fn fit(
        &mut self,
        at: usize,
        plan: &Plan,
        held: &HeldOut,
        goal: &Schedule,
        ranking: &[u64],
    ) -> Result<()> {
        let config = self.eval.config;
        let entry = &self.entries[at];
        let (nfe, teacher) = (entry.nfe, entry.teacher.clone());
        let progress = &mut self.eval.account.progress;
        (progress.nfe, progress.distance, progress.handcrafted) = (nfe, entry.best.1, entry.handcrafted[0].1);
        let count = plan.linearisations_of(at);
        if count == 0 {
            return Ok(());
        }
        let starts = entry.starts.clone();
        let first = RANGE * (nfe - config.nfe_from()) as u64 + ranking.len() as u64;
        let mut racing = Vec::new();
        if let Some(below) = at.checked_sub(1).map(|below| self.entries[below].best.clone()) {
            progress.phase = Phase::Grow;
            let same = self.eval.distances(goal, ranking, &[&below.0], true)?[0];
            if same < starts[0].1
                && let Some(start) = grow::grown(self.eval, &below.0, goal, ranking[0], GROWING)?
            {
                racing.push(Runner::grown(config, start, below.1)?);
            }
        }
        for (start, distance) in starts {
            racing.push(Runner::new(config, start, distance)?);
        }
        racing.truncate(if count < plan::WORTH_A_RACE { 1 } else { racing.len() });
        self.eval.account.progress.phase = Phase::Fit;
        self.race(at, racing, count, held, &teacher, first)
    }
}
