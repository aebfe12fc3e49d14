//! A distillation from start to end: checks, teacher, ranking, plan, fits, and what is kept. Sees
//! schedules and distances, no tensor.

use super::account::By;
use super::bench::{self, Bench};
use super::jacobian::{self, Fitting};
use super::optimise::Online;
use super::plan::{self, Bounds, Item, Plan};
use super::ranks::Ranks;
use super::starts::Ranked;
use super::teacher::{self, Recording};
use super::unknowns::{Unknowns, inserted, padded};
use super::{Config, Distilled, Fitted, HELD_OUT_BATCHES, Phase, Problem, TEST_BATCHES, Trace, grow, starts};
use crate::error::{Error, Result};
use crate::schedule::{Baseline, MadeBy, Schedule};
use crate::tensor::Tensors;

/// Trajectories that rank the field.
const RANKING: usize = 8;
/// Trajectories that tell where a node is missing.
pub const GROWING: usize = 4;
/// The best of these on the ranking batches are measured on the held-out ones too.
const BASELINES: usize = 3;
/// The method of published solvers, in their records.
const HANDCRAFTED: &str = "handcrafted";
/// Fits of one number of calls take their batches from a range of this length.
const RANGE: u64 = 1024;
/// Held-out trajectories are few. Of two looks at a fit the later one, which more trajectories were fitted to,
/// is kept unless it is so much worse on them: by the least of them alone a fit of 18,000 image-calls
/// was kept as it had been after 4,000 (0.259 instead of 0.235 on a test set).
const CLEARLY_WORSE: f64 = 1.1;
/// For the same reason another start than the nearest wins a race only if it comes out so much nearer (the mixture, 5
/// NFE: 0.168 without, 0.160 with 1.15, 0.146 with 1.4; but photographs 5.4 without and 5.8 with 1.4).
const CLEARLY_NEARER: f64 = 1.2;

/// One NFE of the family in work.
struct Entry {
    nfe: usize,
    /// Where its fit starts, the nearest first.
    starts: Vec<(Schedule, f64)>,
    /// The teacher that its fit has.
    teacher: Schedule,
    /// The best so far with its distance: on the held-out batches once they are measured.
    best: (Schedule, f64),
    /// Held-out distances of handcrafted solvers, best first; on the ranking batches until then.
    handcrafted: Vec<(Schedule, f64)>,
    /// What the best started from, with its distance: on the held-out batches where it is known there.
    start: Option<(Schedule, f64)>,
    trace: Vec<Trace>,
}

/// Distils schedules for the model of `problem`. `like` gives the shape of a batch; its contents
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
    let mut ranks = Ranks::of(problem)?;
    let result = distill_on(&mut ranks, tensors, config, like, problem);
    ranks.part(problem, &result);
    result
}

fn distill_on<B: Tensors>(
    ranks: &mut Ranks,
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
) -> Result<Distilled> {
    config.validate()?;
    let least = 2 * config.nfe;
    if let Some(given) = config.teacher_nfe.filter(|given| *given < least) {
        let message = format!("teacher_nfe is {given}; it must be at least twice nfe, {least}");
        return Err(Error::argument(message));
    }
    // Before any work.
    teacher::schedule(config, teacher::COARSE)?;
    let count = ranks.count;
    let mut bench = Bench::new(tensors, config, like, problem, ranks)?;
    let mut run = Run { bench: &mut bench, entries: Vec::new(), ranking_calls: 0, teacher: None };
    let ended = run.all();
    let Run { entries, ranking_calls, teacher, .. } = run;
    if let Err(error) = ended
        && (bench.account.stopped.is_none() || entries.is_empty())
    {
        return Err(error);
    }
    let batch = bench.batch;
    let account = &bench.account;
    let calls = account.all_calls();
    Ok(Distilled {
        library_version: env!("CARGO_PKG_VERSION").into(),
        config: config.clone(),
        ranks: count,
        batch,
        image_calls: calls * batch as u64,
        teacher_nfe: teacher.map_or(0, |teacher| teacher.nfe()),
        teacher_calls: account.calls(By::Teacher),
        model_calls: account.calls(By::Student),
        ranking_calls,
        seconds: account.seconds(),
        callback_seconds: account.callback_seconds,
        stopped: account.stopped.map(|why| why.word().into()),
        family: entries.into_iter().map(|entry| finished(&bench, entry)).collect(),
    })
}

/// Mean distances of `schedules` to the teacher's end points over `config.held_out` trajectories
/// that no distillation sees (batches from [`TEST_BATCHES`]). Ranks share them too.
pub fn compare<B: Tensors>(
    tensors: &B,
    config: &Config,
    like: &B::Tensor,
    problem: &mut dyn Problem<B::Tensor>,
    schedules: &[&Schedule],
) -> Result<Vec<f64>> {
    let mut ranks = Ranks::of(problem)?;
    let mut measured = || {
        config.validate()?;
        let config = Config { checkpoint: None, ..config.clone() };
        let teacher = teacher::schedule(&config, config.teacher_nfe.unwrap_or(teacher::OF_COMPARISONS))?;
        let mut bench = Bench::new(tensors, &config, like, problem, &mut ranks)?;
        let batches = range(TEST_BATCHES, bench.batches_of(config.held_out));
        let own: usize = schedules.iter().map(|s| s.nfe()).sum();
        bench.account.progress.calls_expected = (batches.len() * (teacher.nfe() + own)) as u64;
        bench.account.progress.phase = Phase::Rank;
        bench.distances(&teacher, &batches, schedules, false)
    };
    let result = measured();
    ranks.part(problem, &result);
    result
}

fn range(first: u64, count: usize) -> Vec<u64> {
    (first..first + count as u64).collect()
}

struct Run<'r, 'a, B: Tensors> {
    bench: &'r mut Bench<'a, B>,
    entries: Vec<Entry>,
    ranking_calls: u64,
    /// That of the held-out batches.
    teacher: Option<Schedule>,
}

impl<'a, B: Tensors> Run<'_, 'a, B> {
    fn all(&mut self) -> Result<()> {
        let config = self.bench.config;
        let ranking = range(0, self.bench.batches_of(RANKING));
        self.bench.account.progress.calls_expected = self.calls_before_the_plan(&ranking);
        self.bench.check()?;
        let recording = teacher::record(self.bench, &ranking)?;
        let goal = teacher::schedule(config, config.teacher_nfe.unwrap_or(teacher::FINE))?;
        // The largest first: where a budget allows one schedule only, it is that.
        for nfe in (config.nfe_from()..=config.nfe).rev() {
            if let (Some(left), false) = (self.bench.calls_left()?, self.entries.is_empty()) {
                // As much again must be left for the held-out batches.
                if left < 3 * starts::cost(config, 1, ranking.len(), nfe) + 40 {
                    break;
                }
            }
            let before = self.bench.account.calls(By::Student);
            let left = self.bench.calls_left()?;
            let ranked = starts::rank(self.bench, &recording, &goal, &ranking, nfe, left)?;
            self.ranking_calls += self.bench.account.calls(By::Student) - before;
            let entry = self.entry(nfe, ranked, &recording)?;
            self.entries.insert(0, entry);
        }
        let plan = self.plan()?;
        self.entries.drain(..plan.from);
        let teacher = self.entries.iter().map(|entry| &entry.teacher).max_by_key(|teacher| teacher.nfe());
        let teacher = teacher.expect("there is an entry").clone();
        self.teacher = Some(teacher.clone());
        let held = range(HELD_OUT_BATCHES, plan.held_out);
        for at in 0..self.entries.len() {
            self.compete(at, &teacher, &held)?;
        }
        let held = Held { teacher, batches: held };
        for at in 0..self.entries.len() {
            self.inherit(at)?;
            self.fit(at, &plan, &held, &goal, &ranking)?;
        }
        Ok(())
    }

    /// Until the plan is made.
    fn calls_before_the_plan(&self, ranking: &[u64]) -> u64 {
        let config = self.bench.config;
        let recorded = ranking.len() * (teacher::COARSE + config.teacher_nfe.unwrap_or(teacher::FINE));
        let first = self.bench.batches_of(4).min(ranking.len());
        let ranked = |nfe| starts::cost(config, first, ranking.len(), nfe);
        bench::CHECKS + recorded as u64 + (config.nfe_from()..=config.nfe).map(ranked).sum::<u64>()
    }

    fn entry(&self, nfe: usize, ranked: Ranked, recording: &Recording) -> Result<Entry> {
        let config = self.bench.config;
        let Ranked { field, starts } = ranked;
        let best = field[0].clone();
        let teacher = teacher::schedule(config, recording.teacher_nfe(config, nfe, best.1))?;
        let handcrafted = field.into_iter().take(BASELINES).collect();
        Ok(Entry { nfe, starts, teacher, best, handcrafted, start: None, trace: Vec::new() })
    }

    fn item(&self, at: usize) -> Result<Item> {
        let (config, entry) = (self.bench.config, &self.entries[at]);
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
        let config = self.bench.config;
        let items: Vec<Item> = (0..self.entries.len()).map(|at| self.item(at)).collect::<Result<_>>()?;
        let bounds = Bounds {
            batch: self.bench.batch,
            held_out: config.held_out,
            most: plan::most(config, self.bench.batch),
            teacher: items.iter().map(|item| item.teacher).max().unwrap_or(0),
            handcrafted: BASELINES as u64 + 1,
            calls: self.bench.calls_left()?,
        };
        let plan = Plan::of(&items, &bounds);
        let account = &mut self.bench.account;
        account.expect(account.all_calls() + plan.calls);
        account.progress.phase = Phase::Plan;
        account.progress.nfe = config.nfe;
        account.progress.gain_expected = super::usual_gain(config.nfe);
        self.bench.tell()?;
        Ok(plan)
    }

    /// Measures the best of the field, and the nearest start, on the held-out batches.
    fn compete(&mut self, at: usize, teacher: &Schedule, held: &[u64]) -> Result<()> {
        let entry = &mut self.entries[at];
        self.bench.account.progress.phase = Phase::Rank;
        self.bench.account.progress.nfe = entry.nfe;
        let all = entry.handcrafted.iter().chain(entry.starts.first());
        let schedules: Vec<&Schedule> = all.map(|(schedule, _)| schedule).collect();
        let distances = self.bench.distances(teacher, held, &schedules, true)?;
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
        let config = self.bench.config;
        let same = (1..=smaller.nfe()).find_map(|gap| inserted(config, &smaller, gap).transpose());
        if let Some(same) = same
            && config.order.is_none()
            && distance < self.entries[at].best.1
        {
            self.entries[at].best = (same?, distance);
        }
        Ok(())
    }

    fn fit(&mut self, at: usize, plan: &Plan, held: &Held, goal: &Schedule, ranking: &[u64]) -> Result<()> {
        let config = self.bench.config;
        let entry = &self.entries[at];
        let (nfe, teacher) = (entry.nfe, entry.teacher.clone());
        let progress = &mut self.bench.account.progress;
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
            let same = self.bench.distances(goal, ranking, &[&below.0], true)?[0];
            if same < starts[0].1
                && let Some(start) = grow::grown(self.bench, &below.0, goal, ranking[0], GROWING)?
            {
                racing.push(Runner::new(config, start, below.1)?);
            }
        }
        for (start, distance) in starts {
            racing.push(Runner::new(config, start, distance)?);
        }
        racing.truncate(if count < plan::WORTH_A_RACE { 1 } else { racing.len() });
        self.bench.account.progress.phase = Phase::Fit;
        self.race(at, racing, count, held, &teacher, first)
    }

    /// Linearisation after linearisation, with a look at the held-out batches now and then. At the first
    /// look the nearest of several fits goes on alone. All of them are fitted to the same batches.
    fn race(
        &mut self,
        at: usize,
        mut racing: Vec<Runner<'a>>,
        mut count: usize,
        held: &Held,
        teacher: &Schedule,
        first: u64,
    ) -> Result<()> {
        let before = self.entries[at].best.1;
        let mut next = first;
        let mut index = 0;
        while index < count {
            if at + 1 == self.entries.len() && index + 1 == count && self.has_room(at, index, held)? {
                count += 1;
            }
            let is_looked_at = plan::is_looked_at(index, count);
            let these = next;
            self.bench.share_ends(racing.len() > 1);
            for runner in &mut racing {
                next = these;
                let batch =
                    runner.fit.batch(&mut Fitting::new(self.bench, &runner.unknowns, teacher, &mut next))?;
                // Without a batch: a fit at the edge of what is finite.
                runner.ended = batch.is_none();
                if is_looked_at || runner.ended {
                    self.look(at, runner, held, before, batch.map(|batch| batch.fresh))?;
                }
            }
            if is_looked_at && racing.len() > 1 {
                let best = racing.iter().map(|runner| runner.last).fold(f64::INFINITY, f64::min);
                racing.retain(|runner| runner.last <= CLEARLY_NEARER * best);
                racing.truncate(1);
            }
            racing.retain(|runner| !runner.ended);
            if racing.is_empty() {
                break;
            }
            index += 1;
        }
        Ok(())
    }

    /// Whether, of a limited number of calls, so many are left that the last fit may have a step more after
    /// linearisation `index`: a plan allows for more trials than most fits make.
    fn has_room(&mut self, at: usize, index: usize, held: &Held) -> Result<bool> {
        let (config, batch) = (self.bench.config, self.bench.batch);
        let Some(left) = self.bench.calls_left()? else { return Ok(false) };
        let item = self.item(at)?;
        let both = plan::step(&item, batch, index) + plan::step(&item, batch, index + 1);
        let look = held.batches.len() as u64 * item.nfe as u64;
        Ok(index + 1 < plan::most(config, batch) && both + 2 * look <= left)
    }

    /// Measures a fit on the held-out batches, and keeps it if it is to be kept.
    fn look(
        &mut self,
        at: usize,
        runner: &mut Runner<'a>,
        held: &Held,
        before: f64,
        fresh: Option<f64>,
    ) -> Result<()> {
        let schedule = runner.unknowns.schedule(&runner.fit.point);
        let schedule = schedule.ok_or_else(|| Error::schedule("sigmas must decrease"))?;
        let distance = self.bench.distances(&held.teacher, &held.batches, &[&schedule], true)?[0];
        let entry = &mut self.entries[at];
        entry.trace.push(Trace { calls: self.bench.account.all_calls(), fresh, held_out: distance });
        runner.last = distance;
        runner.least = runner.least.min(distance);
        let best = if runner.kept { before } else { entry.best.1 };
        if distance < best && distance <= CLEARLY_WORSE * runner.least {
            runner.kept = true;
            entry.best = (schedule, distance);
            entry.start = Some(runner.start.clone());
            self.bench.account.progress.distance = distance;
        }
        Ok(())
    }
}

/// A fit in a race.
struct Runner<'a> {
    start: (Schedule, f64),
    unknowns: Unknowns<'a>,
    fit: Online,
    /// Held-out distances: the last look, the least of all.
    last: f64,
    least: f64,
    /// Whether the best so far is of this fit: then a later look at it replaces an earlier one.
    kept: bool,
    ended: bool,
}

impl<'a> Runner<'a> {
    fn new(config: &'a Config, start: Schedule, distance: f64) -> Result<Self> {
        let start = (padded(config, &start)?, distance);
        let unknowns = Unknowns::of(config, &start.0)?;
        let fit = Online::new(unknowns.values());
        Ok(Self {
            start,
            unknowns,
            fit,
            last: f64::INFINITY,
            least: f64::INFINITY,
            kept: false,
            ended: false,
        })
    }
}

struct Held {
    teacher: Schedule,
    batches: Vec<u64>,
}

/// The schedule that an entry hands out, with its record.
fn finished<B: Tensors>(bench: &Bench<B>, entry: Entry) -> Fitted {
    let config = bench.config;
    let (mut schedule, distance) = entry.best;
    let improved = distance < entry.handcrafted[0].1;
    let word = if improved { "distilled" } else { HANDCRAFTED };
    let about = |s: &Schedule| s.made_by.clone().unwrap_or_default();
    let (start, start_distance) = entry.start.as_ref().unwrap_or(&entry.handcrafted[0]);
    let start = about(start);
    let mut made_for = config.made_for.clone();
    made_for.sigma_min.get_or_insert(config.sigma_min);
    made_for.sigma_max.get_or_insert(config.sigma_max);
    schedule.made_for = Some(made_for);
    schedule.name = Some(format!("{word}, {} NFE", entry.nfe));
    let finite = |distance: f64| distance.is_finite().then_some(distance);
    let account = &bench.account;
    schedule.made_by = Some(MadeBy {
        method: word.into(),
        solver: start.solver,
        grid: start.grid,
        teacher: Some(format!("{}, {} NFE", config.teacher(), entry.teacher.nfe())),
        trajectories: Some(config.trajectories as u64),
        held_out: Some(config.held_out as u64),
        seeds: config.seeds.clone(),
        model_calls: Some(account.calls(By::Student)),
        teacher_calls: Some(account.calls(By::Teacher)),
        seconds: Some(account.seconds()),
        library_version: Some(env!("CARGO_PKG_VERSION").into()),
        distance: finite(distance),
        start_distance: finite(*start_distance),
        improved: Some(improved),
        handcrafted: entry
            .handcrafted
            .iter()
            .filter(|(_, distance)| distance.is_finite())
            .map(|(s, distance)| baseline_of(&about(s), *distance))
            .collect(),
        compared: Vec::new(),
    });
    Fitted { nfe: entry.nfe, distance: finite(distance), improved, trace: entry.trace, schedule }
}

fn baseline_of(by: &MadeBy, distance: f64) -> Baseline {
    let word = |w: &Option<String>| w.clone().unwrap_or_default();
    Baseline { solver: word(&by.solver), grid: word(&by.grid), nfe: None, distance }
}
