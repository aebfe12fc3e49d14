//! Distillation on an exact denoiser: what it gains, what it keeps, and that it can be stopped,
//! killed, repeated, and shared by ranks. The data are a mixture of Gaussians, whose denoiser is known.

mod noise;

use std::cell::{Cell, RefCell};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use lmsd::distill::{Config, Distilled, Objective, Phase, Problem, Progress, WeightSums, compare, distill};
use lmsd::schedule::{Process, Schedule};
use lmsd::tensor::{Cpu, CpuTensor, Dtype};
use lmsd::{Call, Error, Purpose, Result, Status};
use noise::Noise;

const DIMENSIONS: usize = 8;
const BATCH: usize = 4;
const DEVIATION: f64 = 0.15;

/// Ranks that are threads. Sums in the order in which they arrive.
struct Team {
    count: usize,
    timeout: Duration,
    /// Meetings so far, ranks that are there, their sum, the sum of the last meeting.
    now: Mutex<(u64, usize, Vec<f64>, Vec<f64>)>,
    bell: Condvar,
}

impl Team {
    fn new(count: usize) -> Self {
        Self { count, timeout: Duration::from_secs(60), now: Mutex::default(), bell: Condvar::new() }
    }

    fn sum(&self, values: &mut [f64]) -> Result<()> {
        let mut now = self.now.lock().unwrap();
        let meeting = now.0;
        if now.1 == 0 {
            now.2 = vec![0.0; values.len()];
        }
        assert_eq!(now.2.len(), values.len(), "ranks meet with as many values each");
        now.2.iter_mut().zip(&*values).for_each(|(sum, value)| *sum += value);
        now.1 += 1;
        if now.1 == self.count {
            *now = (meeting + 1, 0, Vec::new(), std::mem::take(&mut now.2));
            self.bell.notify_all();
        } else {
            let waiting = |now: &mut (u64, usize, Vec<f64>, Vec<f64>)| now.0 == meeting;
            let (then, late) = self.bell.wait_timeout_while(now, self.timeout, waiting).unwrap();
            if late.timed_out() {
                return Err(Error::new(Status::Stopped, "a rank did not come"));
            }
            now = then;
        }
        values.copy_from_slice(&now.3);
        Ok(())
    }

    /// What every rank's run comes to, and how many calls its own model had.
    fn run(
        &self,
        config: impl Fn(usize) -> Config + Sync,
        change: impl Fn(usize, &mut Mixture) + Sync,
    ) -> Vec<(Result<Distilled>, u64)> {
        let one = |rank| {
            let config = config(rank);
            let mut mixture = Mixture { team: Some((rank, self)), ..Mixture::new(config.process) };
            change(rank, &mut mixture);
            (distill(&Cpu, &config, &like(), &mut mixture), mixture.calls.get())
        };
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..self.count).map(|rank| scope.spawn(move || one(rank))).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }
}

/// Of one trajectory.
type Features = fn(&[f64]) -> Vec<f64>;

/// The model: E[x0 | x] for a mixture of Gaussians, under either process.
struct Mixture<'a> {
    means: Vec<[f64; DIMENSIONS]>,
    process: Process,
    calls: Cell<u64>,
    /// Stop by progress, or fail in the model, at this call.
    stop_at: Option<u64>,
    fail_at: Option<u64>,
    reports: RefCell<Vec<Progress>>,
    asked: RefCell<Vec<Call>>,
    /// x_T of odd batches is of another shape.
    reshapes: bool,
    team: Option<(usize, &'a Team)>,
    features: Option<Features>,
}

impl Mixture<'_> {
    fn new(process: Process) -> Self {
        let mut noise = Noise(7);
        let means = (0..12).map(|_| std::array::from_fn(|_| noise.normal())).collect();
        let (calls, reports, asked) = (Cell::new(0), RefCell::default(), RefCell::default());
        Self {
            means,
            process,
            calls,
            stop_at: None,
            fail_at: None,
            reports,
            asked,
            reshapes: false,
            team: None,
            features: None,
        }
    }

    fn denoised(&self, x: &[f64], sigma: f64) -> Vec<f64> {
        let alpha = if self.process == Process::Ve { 1.0 } else { 1.0 - sigma };
        let variance = (alpha * DEVIATION).powi(2) + sigma * sigma;
        let far: Vec<f64> = self
            .means
            .iter()
            .map(|m| m.iter().zip(x).map(|(m, x)| (x - alpha * m).powi(2)).sum::<f64>() / (2.0 * variance))
            .collect();
        let near = far.iter().copied().fold(f64::INFINITY, f64::min);
        let total: f64 = far.iter().map(|f| (near - f).exp()).sum();
        let mut out = vec![0.0; x.len()];
        for (mean, f) in self.means.iter().zip(&far) {
            let p = (near - f).exp() / total;
            for ((out, m), x) in out.iter_mut().zip(mean).zip(x) {
                *out += p * (m + alpha * DEVIATION * DEVIATION / variance * (x - alpha * m));
            }
        }
        out
    }
}

fn values(tensor: &CpuTensor) -> Vec<f64> {
    tensor.to_f64()
}

fn write(tensor: &mut CpuTensor, values: &[f64]) {
    let data = tensor.descriptor().data.cast::<f64>();
    // SAFETY: a float64 tensor of this many elements, of the library's own.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), data, values.len()) };
}

impl Problem<CpuTensor> for Mixture<'_> {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        let mut noise = Noise::of(batch);
        let start = if self.process == Process::Ve { 80.0 } else { 1.0 };
        let x: Vec<f64> = (0..BATCH * DIMENSIONS).map(|_| start * noise.normal()).collect();
        if self.reshapes && batch % 2 == 1 {
            *x_t = CpuTensor::zeros(Dtype::F64, &[BATCH as i64, 1, DIMENSIONS as i64])?;
        }
        write(x_t, &x);
        Ok(())
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        self.calls.set(self.calls.get() + 1);
        self.asked.borrow_mut().push(*call);
        assert_eq!(x.shape(), denoised.shape());
        if self.fail_at == Some(self.calls.get()) {
            return Err(Error::new(Status::Stopped, "the model gave up"));
        }
        let all: Vec<f64> = values(x).chunks(DIMENSIONS).flat_map(|x| self.denoised(x, call.sigma)).collect();
        write(denoised, &all);
        Ok(())
    }

    fn has_features(&self) -> bool {
        self.features.is_some()
    }

    fn features(&mut self, x: &CpuTensor) -> Result<CpuTensor> {
        let all: Vec<f64> = values(x).chunks(DIMENSIONS).flat_map(self.features.unwrap()).collect();
        CpuTensor::from_f64(Dtype::F64, &[BATCH as i64, 1, (all.len() / BATCH) as i64], &all)
    }

    fn progress(&mut self, progress: &Progress) -> bool {
        self.reports.borrow_mut().push(*progress);
        self.stop_at != Some(self.calls.get())
    }

    fn ranks(&self) -> (usize, usize) {
        self.team.map_or((0, 1), |(rank, team)| (rank, team.count))
    }

    fn sum(&mut self, values: &mut [f64]) -> Result<()> {
        self.team.map_or(Ok(()), |(_, team)| team.sum(values))
    }
}

fn like() -> CpuTensor {
    CpuTensor::zeros(Dtype::F64, &[BATCH as i64, DIMENSIONS as i64]).unwrap()
}

fn config(process: Process) -> Config {
    let sigma_max = if process == Process::Ve { 80.0 } else { 1.0 };
    Config { nfe: 5, process, sigma_max, trajectories: 32, held_out: 32, ..Config::default() }
}

fn run(config: &Config) -> Distilled {
    distill(&Cpu, config, &like(), &mut Mixture::new(config.process)).unwrap()
}

/// The calls of a run: by the teacher, by others, and those of them that ranked.
fn account(distilled: &Distilled) -> [u64; 3] {
    [distilled.teacher_calls, distilled.model_calls, distilled.ranking_calls]
}

fn nodes(distilled: &Distilled) -> Vec<String> {
    distilled.schedules().map(|s| format!("{:?}", s.nodes())).collect()
}

#[test]
fn it_gains_on_trajectories_it_never_saw_for_both_processes_and_both_ends() {
    for (process, sigma_end) in [(Process::Ve, 0.0), (Process::Ve, 0.002), (Process::Flow, 0.0)] {
        let config = Config { sigma_end, ..config(process) };
        let distilled = run(&config);
        let schedule = distilled.schedules().next().unwrap();
        let by = schedule.made_by.clone().unwrap();
        let best = &by.handcrafted[0];
        assert!(distilled.family[0].improved && by.distance.unwrap() < 0.5 * best.distance, "{by:?}");
        let euler = lmsd::solver::solve(&lmsd::solver::Spec {
            solver: best.solver.clone(),
            nfe: 5,
            process,
            sigma_max: Some(config.sigma_max),
            sigma_end: Some(sigma_end),
            ..lmsd::solver::Spec::default()
        })
        .unwrap();
        let unseen = Config { held_out: 128, ..config };
        let mut mixture = Mixture::new(process);
        let found = compare(&Cpu, &unseen, &like(), &mut mixture, &[schedule, &euler]).unwrap();
        assert!(found[0] < 0.6 * found[1], "{process:?} {sigma_end}: {found:?}");
    }
}

#[test]
fn a_family_is_monotone_and_no_worse_than_handcrafted() {
    let distilled = run(&Config { nfe: 6, nfe_from: Some(2), sigma_end: 0.002, ..config(Process::Ve) });
    assert_eq!(distilled.family.iter().map(|f| f.nfe).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    for pair in distilled.family.windows(2) {
        assert!(pair[1].distance <= pair[0].distance, "{:?} then {:?}", pair[0].distance, pair[1].distance);
    }
    for fitted in &distilled.family {
        let by = fitted.schedule.made_by.as_ref().unwrap();
        assert!(
            fitted.distance.unwrap() <= by.handcrafted[0].distance && fitted.schedule.nfe() == fitted.nfe
        );
    }
}

#[test]
fn the_same_seeds_give_the_same_schedule() {
    assert_eq!(nodes(&run(&config(Process::Ve))), nodes(&run(&config(Process::Ve))));
}

#[test]
fn what_may_not_move_does_not() {
    let sums = |s: &Schedule| -> Vec<f64> { s.nodes().iter().map(|n| n.weights.iter().sum()).collect() };
    let affine = run(&Config { weight_sums: WeightSums::Affine, iterations: 4, ..config(Process::Ve) });
    assert!(affine.family[0].improved);
    for sum in sums(&affine.family[0].schedule) {
        assert!((sum - 1.0).abs() < 1e-9, "{sum}");
    }
    let scales = run(&Config { fit_scales: false, iterations: 4, ..config(Process::Ve) });
    assert!(scales.family[0].improved);
    assert!(scales.family[0].schedule.nodes().iter().all(|n| (n.scale - 1.0).abs() < 1e-12));
    let order = run(&Config { order: Some(2), iterations: 4, ..config(Process::Ve) });
    assert!(order.family[0].improved);
    assert!(order.family[0].schedule.nodes().iter().all(|n| n.weights.len() <= 2));
    let weights = run(&Config { fit_sigmas: false, fit_scales: false, ..config(Process::Ve) });
    let top = weights.family[0].schedule.nodes()[0].sigma;
    assert!(weights.family[0].improved && top == 80.0, "{top}");
    for process in [Process::Ve, Process::Flow] {
        let kept = run(&Config { fit_start: false, nfe: 4, nfe_from: Some(3), ..config(process) });
        for f in &kept.family {
            assert!(f.improved && f.schedule.sigma(0) == f.schedule.sigma_start(), "{process:?} {f:?}");
        }
    }
}

/// Noise levels nearer to one another than the difference step: shorter steps are taken.
#[test]
fn close_sigmas_do_not_end_a_run() {
    let dense = Config { nfe: 12, difference_step: 0.2, iterations: 4, ..config(Process::Flow) };
    let fitted = run(&dense).family.remove(0);
    // It was looked at after 1, 2 and 4 linearisations, and with the losers of the race.
    assert!(fitted.trace.len() >= 3 && fitted.trace.iter().all(|look| look.held_out.is_finite()));
}

#[test]
fn where_nothing_better_is_found_it_hands_out_the_handcrafted_one_and_says_so() {
    // Enough for the ranking and the held-out batches, not for a fit.
    let published = Config { fit_weights: false, ..config(Process::Ve) };
    let few = run(&published).ranking_calls + 200;
    let ranked = run(&Config { max_calls: Some(few), ..published });
    let fitted = &ranked.family[0];
    let by = fitted.schedule.made_by.as_ref().unwrap();
    assert!(ranked.model_calls + ranked.teacher_calls <= few);
    assert!(!fitted.improved && by.method == "handcrafted");
    assert_eq!(fitted.distance, Some(by.handcrafted[0].distance));
}

#[test]
fn a_stop_keeps_the_best_so_far_and_a_failure_is_carried_out() {
    let full = run(&config(Process::Ve));
    let mut mixture = Mixture::new(Process::Ve);
    mixture.stop_at = Some(full.teacher_calls + full.model_calls * 3 / 4);
    let stopped = distill(&Cpu, &config(Process::Ve), &like(), &mut mixture).unwrap();
    assert_eq!(stopped.stopped.as_deref(), Some("cancelled"));
    assert!(stopped.family[0].improved && stopped.family[0].distance >= full.family[0].distance);

    let mut early = Mixture::new(Process::Ve);
    early.stop_at = Some(3);
    assert_eq!(
        distill(&Cpu, &config(Process::Ve), &like(), &mut early).unwrap_err().status,
        Status::Stopped,
        "there is nothing to keep yet"
    );
    let hasty = Config { max_seconds: Some(1e-9), ..config(Process::Ve) };
    let error = distill(&Cpu, &hasty, &like(), &mut Mixture::new(Process::Ve)).unwrap_err();
    assert!(error.status == Status::Stopped && error.message.contains("seconds"), "{error}");
    let mut failing = Mixture::new(Process::Ve);
    failing.fail_at = Some(full.teacher_calls + full.model_calls);
    let error = distill(&Cpu, &config(Process::Ve), &like(), &mut failing).unwrap_err();
    assert_eq!(error.message, "the model gave up");
}

#[test]
fn progress_counts_every_call_and_its_estimate_is_no_idle_one() {
    let mut mixture = Mixture::new(Process::Ve);
    let distilled = distill(&Cpu, &config(Process::Ve), &like(), &mut mixture).unwrap();
    let (plans, reports): (Vec<_>, Vec<_>) =
        mixture.reports.into_inner().into_iter().partition(|report| report.phase == Phase::Plan);
    assert_eq!(reports.len() as u64, distilled.teacher_calls + distilled.model_calls);
    assert!(reports.windows(2).all(|p| p[1].calls == p[0].calls + 1));
    let [plan] = plans.as_slice() else { panic!("{} plans", plans.len()) };
    assert!(reports.iter().all(|report| report.phase != Phase::Fit || report.calls > plan.calls));
    assert!(plan.seconds_left > 0.0 && plan.seconds_left.is_finite());
    assert!(plan.calls < reports.len() as u64 / 2 && plan.batch == BATCH && plan.gain_expected > 1.0);
    let guess = plan.calls_expected as f64 / reports.len() as f64;
    assert!((0.7..1.5).contains(&guess), "{guess} of the calls expected by the plan");
    assert!(reports[reports.len() / 2].seconds_left > 0.0);
}

#[test]
fn a_killed_run_resumes_to_the_same_schedule_from_wherever_it_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let config = Config { nfe_from: Some(4), checkpoint: Some(path.clone()), ..config(Process::Ve) };
    let full = run(&config);
    let text = std::fs::read(&path).unwrap();
    for part in [1, 3, 7, 9] {
        std::fs::write(&path, &text[..text.len() * part / 10]).unwrap();
        let mut mixture = Mixture::new(Process::Ve);
        let again = distill(&Cpu, &config, &like(), &mut mixture).unwrap();
        assert_eq!(nodes(&again), nodes(&full), "cut at {part}/10");
        assert_eq!(account(&again), account(&full), "cut at {part}/10");
        assert!(std::fs::read(&path).unwrap().len() > text.len() / 2);
        assert!(mixture.calls.get() < full.teacher_calls + full.model_calls);
    }
    let other = Config { nfe: 6, ..config.clone() };
    let error = distill(&Cpu, &other, &like(), &mut Mixture::new(Process::Ve)).unwrap_err();
    assert_eq!(error.status, Status::Mismatch);
    std::fs::write(&path, b"{}\n[1]\n").unwrap();
    assert!(distill(&Cpu, &config, &like(), &mut Mixture::new(Process::Ve)).is_err());
}

#[test]
fn ranks_find_what_one_alone_does_with_a_share_of_the_calls_each() {
    let config = Config { nfe: 4, nfe_from: Some(3), trajectories: 64, ..config(Process::Ve) };
    let alone = run(&config);
    for count in [2, 3] {
        let ranks = Team::new(count).run(|_| config.clone(), |_, _| ());
        let calls: u64 = ranks.iter().map(|(_, calls)| calls).sum();
        assert_eq!(calls, alone.teacher_calls + alone.model_calls);
        for (rank, (found, own)) in ranks.iter().enumerate() {
            let found = found.as_ref().unwrap();
            assert_eq!(nodes(found), nodes(&alone), "rank {rank} of {count}");
            assert_eq!((found.ranks, found.model_calls), (count, alone.model_calls));
            // A linearisation is one or two batches, of which rank 0 has the first.
            let share = *own as f64 / calls as f64;
            assert!((0.02..0.8).contains(&share), "{share} of the calls on rank {rank} of {count}");
        }
        let test = Config { held_out: 64, ..config.clone() };
        let (team, schedule) = (Team::new(count), alone.schedules().next().unwrap());
        let compared = |team: Option<(usize, &Team)>| {
            let mut mixture = Mixture { team, ..Mixture::new(Process::Ve) };
            compare(&Cpu, &test, &like(), &mut mixture, &[schedule]).unwrap()
        };
        let want = compared(None);
        std::thread::scope(|scope| {
            let ranks: Vec<_> = (0..count)
                .map(|rank| {
                    scope.spawn({
                        let team = &team;
                        move || compared(Some((rank, team)))
                    })
                })
                .collect();
            ranks.into_iter().for_each(|rank| assert_eq!(rank.join().unwrap(), want));
        });
    }
}

#[test]
fn what_ends_one_rank_ends_all() {
    let config = config(Process::Ve);
    // A failure, early and late, is every rank's.
    for (at, text) in [(3, "the teacher on batch 1: the model gave up"), (400, "the model gave up")] {
        let ranks = Team::new(2).run(|_| config.clone(), |rank, m| m.fail_at = (rank == 1).then_some(at));
        let errors: Vec<_> = ranks.into_iter().map(|(found, _)| found.unwrap_err()).collect();
        assert_eq!(
            (errors[0].status, &errors[0].message),
            (Status::Stopped, &format!("rank 1: {}", errors[1]))
        );
        assert!(errors[1].message.ends_with(text), "{}", errors[1]);
    }
    // A stop too, and all keep the same.
    let late = Team::new(2).run(|_| config.clone(), |_, _| ())[1].1 * 9 / 10;
    let ranks = Team::new(2).run(|_| config.clone(), |rank, m| m.stop_at = (rank == 1).then_some(late));
    let found: Vec<_> = ranks.iter().map(|(found, _)| found.as_ref().unwrap()).collect();
    assert!(found.iter().all(|f| f.stopped.as_deref() == Some("cancelled") && f.family[0].improved));
    assert_eq!(nodes(found[0]), nodes(found[1]));
    // Fewer calls on one rank: options must be alike but for the limits, and the plan is the first one's.
    let ranks = Team::new(2)
        .run(|rank| Config { max_calls: (rank == 0).then_some(1500), ..config.clone() }, |_, _| ());
    let found: Vec<_> = ranks.iter().map(|(found, _)| found.as_ref().unwrap()).collect();
    assert!(found.iter().all(|f| f.model_calls + f.teacher_calls <= 1500 && f.family[0].improved));
    assert_eq!(nodes(found[0]), nodes(found[1]));
    // Other options, and a rank that is there twice.
    let nfe = |rank| Config { nfe: 4 + rank, ..config.clone() };
    for (found, _) in Team::new(2).run(nfe, |_, _| ()) {
        let error = found.unwrap_err();
        assert_eq!(error.status, Status::Mismatch);
        assert!(error.message.contains("rank 1 was given another set of options"), "{error}");
    }
    let twice = |_: usize, m: &mut Mixture| m.team = m.team.map(|(_, team)| (0, team));
    for (found, _) in Team::new(2).run(|_| config.clone(), twice) {
        assert!(found.unwrap_err().message.contains("2 processes say that they are rank 0 of 2"));
    }
    let refused = |rank: usize, m: &mut Mixture| m.team = m.team.map(|(_, team)| (rank + 1, team));
    let error = Team::new(1).run(|_| config.clone(), refused).remove(0).0.unwrap_err();
    assert!(error.message.contains("rank is 1; with 1 ranks it must be below 1"), "{error}");
    // An error before the first meeting.
    let teacher = |rank| Config { teacher_nfe: Some(if rank == 0 { 5 } else { 100 }), ..config.clone() };
    let ranks = Team::new(2).run(teacher, |_, _| ());
    let messages: Vec<_> = ranks.into_iter().map(|(found, _)| found.unwrap_err().message).collect();
    assert!(messages[1].contains("rank 0: teacher_nfe is 5"), "{messages:?}");
    // One that never comes.
    let mut team = Team::new(2);
    (team.count, team.timeout) = (2, Duration::from_millis(50));
    let mut mixture = Mixture { team: Some((0, &team)), ..Mixture::new(Process::Ve) };
    let error = distill(&Cpu, &config, &like(), &mut mixture).unwrap_err();
    assert_eq!(error.message, "a rank did not come");
}

#[test]
fn a_killed_run_resumes_on_another_number_of_ranks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let config = Config { checkpoint: Some(path.clone()), ..config(Process::Ve) };
    let full = run(&config);
    let text = std::fs::read(&path).unwrap();
    for part in [2, 6] {
        std::fs::write(&path, &text[..text.len() * part / 10]).unwrap();
        for (found, calls) in Team::new(2).run(|_| config.clone(), |_, _| ()) {
            let found = found.unwrap();
            assert_eq!(nodes(&found), nodes(&full), "cut at {part}/10");
            assert_eq!(account(&found), account(&full), "cut at {part}/10");
            let most = (full.teacher_calls + full.model_calls) * 7 / 10;
            assert!(calls < most, "{calls} of {most} from {part}/10 on");
        }
        assert_eq!(
            std::fs::read(&path).unwrap().iter().filter(|b| **b == b'\n').count(),
            text.iter().filter(|b| **b == b'\n').count()
        );
    }
    // A checkpoint that cannot be read is every rank's failure.
    std::fs::write(&path, b"{}\n").unwrap();
    for (found, _) in Team::new(2).run(|_| config.clone(), |_, _| ()) {
        assert!(found.unwrap_err().message.contains("made with other options"));
    }
}

#[test]
fn options_out_of_range_are_refused_by_name() {
    for (json, word) in [
        ("{\"nfe\": 0}", "nfe is 0"),
        ("{\"nfe\": 5, \"nfe_from\": 6}", "nfe_from is 6"),
        ("{\"sigma_min\": 90}", "sigma_min is 90"),
        ("{\"sigma_end\": 1}", "sigma_end is 1"),
        ("{\"process\": \"flow\"}", "sigma_max is 80"),
        ("{\"difference_step\": 0}", "difference_step is 0"),
        ("{\"fit_sigmas\": false, \"fit_scales\": false, \"fit_weights\": false}", "all false"),
        ("{\"nfee\": 5}", "unknown field"),
        ("{\"checkpoint\": \"\"}", "checkpoint is an empty path"),
        ("{\"nfe\": 5, \"nfe\": 6}", "duplicate field `nfe`"),
        ("{\"made_for\": {\"shift\": 3, \"shift\": 1}}", "duplicate field `shift`"),
        ("{\"teacher_grid\": {\"kind\": \"karras\", \"rho\": 5, \"rho\": 7}}", "duplicate field `rho`"),
        ("{\"starts\": [{\"a\": {\"nfe\": 5, \"nfe\": 5}}]}", "duplicate field `nfe`"),
        ("{\"feature_weight\": 1.5}", "feature_weight is 1.5"),
        ("{\"objective\": \"path\"}", "path"),
        ("[]", "not options"),
    ] {
        let error = Config::from_json(json).unwrap_err();
        assert!(error.status == Status::InvalidArgument && error.message.contains(word), "{json}: {error}");
    }
    // Starts of other numbers of calls alone would be passed over.
    let mut config = Config { nfe: 6, nfe_from: Some(5), ..Config::default() };
    let euler = |nfe| lmsd::solver::solve(&lmsd::solver::Spec { nfe, ..Default::default() }).unwrap();
    config.start_from(&[euler(4), euler(7)]);
    let error = config.validate().unwrap_err();
    assert!(error.message.contains("none of starts has the 5 to 6 calls"), "{error}");
    config.start_from(&[euler(4), euler(6)]);
    config.validate().unwrap();
    // What no schedule file has room for is not found out after the fit.
    let long = Config { seeds: Some("\u{1}".repeat(100_000)), ..Config::default() };
    let error = long.validate().unwrap_err();
    assert!(error.message.contains("made_for and seeds have 6000"), "{error}");
    Config { seeds: Some("s".repeat(500_000)), ..long }.validate().unwrap();
}

#[test]
fn a_model_hears_what_each_call_is_for() {
    let config = Config { nfe: 3, trajectories: 32, held_out: 16, ..Config::default() };
    let mut mixture = Mixture::new(Process::Ve);
    let found = distill(&Cpu, &config, &like(), &mut mixture).unwrap();
    let asked = mixture.asked.take();
    let told: Vec<Phase> =
        mixture.reports.take().iter().map(|p| p.phase).filter(|p| *p != Phase::Plan).collect();
    assert_eq!((asked.len(), told.len()), (mixture.calls.get() as usize, mixture.calls.get() as usize));
    let count = |purpose| asked.iter().filter(|call| call.purpose == purpose).count() as u64;
    assert_eq!(count(Purpose::Check), 7);
    assert_eq!(count(Purpose::Teacher), found.teacher_calls);
    assert_eq!(count(Purpose::Check) + count(Purpose::Ranking) + count(Purpose::Fit), found.model_calls);
    assert!(count(Purpose::Ranking) >= found.ranking_calls && count(Purpose::Fit) > found.ranking_calls);
    for (call, phase) in asked.iter().zip(&told) {
        let phases: &[Phase] = match call.purpose {
            Purpose::Check | Purpose::Teacher => &[Phase::Teacher],
            Purpose::Ranking => &[Phase::Rank],
            Purpose::Fit => &[Phase::Fit, Phase::Grow],
            other => panic!("{other:?}"),
        };
        assert!(phases.contains(phase), "{call:?} in {phase:?}");
        match call.purpose {
            Purpose::Check => assert_eq!((call.node, call.nfe), (0, 0)),
            Purpose::Teacher => assert!(call.node < call.nfe && call.nfe >= 6),
            _ => assert!(call.node < 3 && call.nfe == 3),
        }
    }
    // Nodes of one run follow one another.
    for pair in asked.windows(2).filter(|pair| pair[1].node > 0 && pair[0].nfe == pair[1].nfe) {
        assert!(pair[1].node == pair[0].node + 1 || pair[1].purpose == Purpose::Fit, "{pair:?}");
    }

    let schedules: Vec<&Schedule> = found.schedules().collect();
    compare(&Cpu, &config, &like(), &mut mixture, &schedules).unwrap();
    let asked = mixture.asked.take();
    assert!(asked.iter().all(|c| [Purpose::Teacher, Purpose::Compare].contains(&c.purpose)));
    let nodes: Vec<usize> = asked.iter().filter(|c| c.purpose == Purpose::Compare).map(|c| c.node).collect();
    assert_eq!(nodes, [0, 1, 2].repeat(16 / BATCH));
    assert!(mixture.reports.take().iter().all(|p| [Phase::Teacher, Phase::Compare].contains(&p.phase)));
}

#[test]
fn batches_of_one_run_may_differ_in_shape() {
    let config = Config { nfe: 3, trajectories: 32, held_out: 16, ..Config::default() };
    let mut one = Mixture::new(Process::Ve);
    let mut other = Mixture { reshapes: true, ..Mixture::new(Process::Ve) };
    let same = distill(&Cpu, &config, &like(), &mut one).unwrap();
    let found = distill(&Cpu, &config, &like(), &mut other).unwrap();
    let tables = |of: &Distilled| of.schedules().map(|s| s.nodes().to_vec()).collect::<Vec<_>>();
    assert_eq!(tables(&found), tables(&same));
}

/// A host that does something wrong.
struct Wrong<'a> {
    mixture: Mixture<'a>,
    what: &'static str,
    count: u64,
    /// Calls of the model, its last result, and the noise level of that.
    asked: u64,
    last: Vec<f64>,
    sigma: f64,
}

impl Problem<CpuTensor> for Wrong<'_> {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        self.count += 1;
        match self.what {
            "unseeded" => self.mixture.begin(self.count, x_t),
            "constant" => self.mixture.begin(0, x_t),
            "unscaled" => {
                self.mixture.begin(batch, x_t)?;
                let unit: Vec<f64> = values(x_t).into_iter().map(|v| v / 80.0).collect();
                write(x_t, &unit);
                Ok(())
            }
            _ => self.mixture.begin(batch, x_t),
        }
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        let sigma = call.sigma;
        self.mixture.denoise(x, call, denoised)?;
        self.asked += 1;
        let is_old = match self.what {
            "every second" => self.asked.is_multiple_of(2),
            "every third" => self.asked % 3 != 1,
            "near sigma" => (sigma / self.sigma).ln().abs() < 0.1,
            _ => false,
        };
        if is_old {
            write(denoised, &self.last);
        } else if ["every second", "every third", "near sigma"].contains(&self.what) {
            (self.last, self.sigma) = (values(denoised), sigma);
        }
        if self.what == "cached" {
            let own = values(denoised);
            let mixed = match self.last.as_slice() {
                [] => own.clone(),
                last => own.iter().zip(last).map(|(a, b)| 0.5 * (a + b)).collect(),
            };
            self.last = own;
            write(denoised, &mixed);
        }
        Ok(())
    }
}

#[test]
fn noise_and_models_that_would_make_a_fit_worthless_are_refused_in_the_first_calls() {
    for (what, words) in [
        ("unseeded", "begin gives another x_T for batch 0"),
        ("constant", "begin gives the same x_T for batches 0 and 1"),
        ("unscaled", "x_T of batch 0 has a standard deviation of"),
        ("every second", "the model gives another result for the same x"),
        ("every third", "the model gives another result for the same x"),
        ("near sigma", "the model gives another result for the same x"),
        ("cached", "the model gives another result for the same x"),
    ] {
        let mixture = Mixture::new(Process::Ve);
        let mut wrong = Wrong { mixture, what, count: 0, asked: 0, last: Vec::new(), sigma: f64::NAN };
        let error = distill(&Cpu, &config(Process::Ve), &like(), &mut wrong).unwrap_err();
        assert!(error.status == Status::InvalidArgument && error.message.contains(words), "{what}: {error}");
        assert!(wrong.mixture.calls.get() <= 7);
    }
}

#[test]
fn a_budget_is_met_by_planning_and_a_second_run_goes_on_to_what_one_without_a_limit_finds() {
    let folder = tempfile::tempdir().unwrap();
    let full = run(&config(Process::Ve));
    let total = full.teacher_calls + full.model_calls;
    for calls in [375, total / 3, total * 2 / 3] {
        let path = folder.path().join(format!("{calls}.jsonl"));
        let limited =
            Config { max_calls: Some(calls), checkpoint: Some(path.clone()), ..config(Process::Ve) };
        let first = run(&limited);
        assert!(first.teacher_calls + first.model_calls <= calls, "{calls}: {first:?}");
        assert!(first.family.len() == 1 && first.family[0].distance.is_some());
        let mut mixture = Mixture::new(Process::Ve);
        let second = Config { max_calls: None, ..limited };
        let second = distill(&Cpu, &second, &like(), &mut mixture).unwrap();
        assert_eq!(nodes(&second), nodes(&full), "{calls}");
        // Of the least budget the held-out part is measured again, on more batches, and where a race ends
        // otherwise the fit is; checks, teacher and most of the ranking are not.
        let kept = if calls == 375 { 140 } else { calls / 3 };
        assert!(mixture.calls.get() < total - kept, "{} of {total} calls again", mixture.calls.get());
    }
    // 1,500 image-calls, whatever the number of calls of the schedule: a result, and no call too many. Where
    // the teacher is dear the held-out part may be cut short, and `stopped` says so.
    for nfe in 1..=12 {
        let small = Config { nfe, max_calls: Some(375), ..config(Process::Ve) };
        let small = run(&small);
        assert!(small.teacher_calls + small.model_calls <= 375, "{nfe}: {small:?}");
        assert!(small.family[0].distance.is_some(), "{nfe} NFE");
    }
    // A family in the same budget: its largest member, at least.
    let family = Config { nfe: 6, nfe_from: Some(3), max_calls: Some(700), ..config(Process::Ve) };
    let family = run(&family);
    assert_eq!(family.family.last().unwrap().nfe, 6);
    assert!(family.teacher_calls + family.model_calls <= 700);
}

/// From 50 points on: every line of the checkpoint, and the middle of one.
#[test]
fn killed_anywhere_it_ends_alike() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let config = Config { nfe: 3, checkpoint: Some(path.clone()), ..config(Process::Ve) };
    let full = run(&config);
    let text = std::fs::read(&path).unwrap();
    let mut noise = Noise(11);
    for _ in 0..50 {
        let at = (noise.uniform() * text.len() as f64) as usize;
        std::fs::write(&path, &text[..at.max(text.iter().position(|b| *b == b'\n').unwrap() + 1)]).unwrap();
        let again = run(&config);
        assert_eq!(nodes(&again), nodes(&full), "cut at {at} of {}", text.len());
        assert_eq!(account(&again), account(&full), "cut at {at} of {}", text.len());
    }
}

/// Two linear features of one trajectory.
fn two(x: &[f64]) -> Vec<f64> {
    vec![3.0 * (x[0] + x[1] - x[2]), x[3] - x[4]]
}

/// Features that are not linear, of another number.
fn bent(x: &[f64]) -> Vec<f64> {
    x.windows(2).map(|pair| (pair[0] * pair[1]).tanh() + 0.3 * pair[0]).collect()
}

fn with_features(features: Features) -> Mixture<'static> {
    Mixture { features: Some(features), ..Mixture::new(Process::Ve) }
}

fn fitted(config: &Config, mixture: &mut Mixture) -> Schedule {
    distill(&Cpu, config, &like(), mixture).unwrap().schedules().next().unwrap().clone()
}

fn tested(config: &Config, mixture: &mut Mixture, schedules: &[&Schedule]) -> Vec<f64> {
    compare(&Cpu, &Config { held_out: 128, ..config.clone() }, &like(), mixture, schedules).unwrap()
}

#[test]
fn features_that_are_the_end_points_give_the_fit_without_any() {
    let config = config(Process::Ve);
    let plain = fitted(&config, &mut Mixture::new(Process::Ve));
    for weight in [None, Some(0.0), Some(0.5)] {
        let featured = Config { feature_weight: weight, ..config.clone() };
        let same = fitted(&featured, &mut with_features(|x| x.to_vec()));
        let found = tested(&config, &mut Mixture::new(Process::Ve), &[&plain, &same]);
        assert!((found[0] / found[1] - 1.0).abs() < 0.01, "{weight:?}: {found:?}");
        let weight = same.made_by.unwrap().feature_weight;
        assert_eq!(weight, featured.feature_weight.or(Some(1.0)).filter(|weight| *weight > 0.0));
    }
}

/// Data whose numbers have standard deviations 2, 1, 1/2, ...: no schedule of two calls is good for all of them.
struct Spread {
    inner: Mixture<'static>,
}

impl Problem<CpuTensor> for Spread {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        self.inner.begin(batch, x_t)
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        let variance = |at: usize| 4.0 * 0.25f64.powi((at % DIMENSIONS) as i32);
        let share = |at: usize| variance(at) / (variance(at) + call.sigma * call.sigma);
        let all: Vec<f64> = values(x).into_iter().enumerate().map(|(at, x)| share(at) * x).collect();
        write(denoised, &all);
        Ok(())
    }

    fn has_features(&self) -> bool {
        self.inner.has_features()
    }

    fn features(&mut self, x: &CpuTensor) -> Result<CpuTensor> {
        self.inner.features(x)
    }
}

#[test]
fn a_fit_to_features_is_nearer_in_them_and_a_mixed_one_in_the_mix() {
    let narrow = |x: &[f64]| vec![x[4] - x[5], x[6], x[7]];
    let bent = |x: &[f64]| x[4..6].iter().map(|v| (8.0 * v).tanh()).collect();
    for features in [narrow as Features, bent] {
        let config = Config { nfe: 2, ..config(Process::Ve) };
        let mixed = Config { feature_weight: Some(0.7), ..config.clone() };
        let on_the_way = Config { objective: Objective::Trajectory, ..mixed.clone() };
        let problem = |features| Spread { inner: Mixture { features, ..Mixture::new(Process::Ve) } };
        let fit = |config: &Config, features| {
            let found = distill(&Cpu, config, &like(), &mut problem(features)).unwrap();
            found.schedules().next().unwrap().clone()
        };
        let own = Some(features);
        let all = [fit(&config, None), fit(&config, own), fit(&mixed, own), fit(&on_the_way, own)];
        let all = all.each_ref();
        let measured = |config: &Config| {
            let unseen = Config { held_out: 128, ..config.clone() };
            compare(&Cpu, &unseen, &like(), &mut problem(own), &all).unwrap()
        };
        let found = measured(&config);
        assert!(found[1] < 0.7 * found[0], "in the features: {found:?}");
        let found = measured(&mixed);
        assert!(found[2] < 0.8 * found[0] && found[2] < found[1] && found[3] < found[1], "mixed: {found:?}");
    }
}

/// A mix by hand: from the distances in each space and the lengths of the teacher's end points and features.
#[test]
fn a_mixed_distance_is_that_of_both_in_their_own_units() {
    let mixed =
        Config { feature_weight: Some(0.25), held_out: 16, teacher_nfe: Some(40), ..config(Process::Ve) };
    let spec = |solver: &str, nfe| lmsd::solver::Spec { solver: solver.into(), nfe, ..Default::default() };
    let teacher = lmsd::solver::solve(&spec("deis_3", 40)).unwrap();
    let euler = lmsd::solver::solve(&spec("euler", 5)).unwrap();
    let mut mixture = with_features(two);
    let (mut sums, mut squares) = ([0.0; 2], [0.0; 2]);
    let spaces: [Features; 2] = [|x| x.to_vec(), two];
    for batch in 0..16 / BATCH as u64 {
        let mut x_t = like();
        mixture.begin(lmsd::distill::TEST_BATCHES + batch, &mut x_t).unwrap();
        let end = |schedule: &Schedule| {
            let model = |x: &CpuTensor, sigma: f64, out: &mut CpuTensor| {
                let all: Vec<f64> =
                    values(x).chunks(DIMENSIONS).flat_map(|x| mixture.denoised(x, sigma)).collect();
                write(out, &all);
                Ok(())
            };
            values(&lmsd::sample::sample(Cpu, schedule, &x_t, model).unwrap())
        };
        let norm = |of: Vec<f64>| of.iter().map(|v| v * v).sum::<f64>().sqrt();
        for (goal, own) in end(&teacher).chunks(DIMENSIONS).zip(end(&euler).chunks(DIMENSIONS)) {
            for (space, features) in spaces.into_iter().enumerate() {
                let (goal, own) = (features(goal), features(own));
                squares[space] += norm(goal.clone()).powi(2) / 16.0;
                sums[space] += norm(goal.iter().zip(&own).map(|(a, b)| a - b).collect()) / 16.0;
            }
        }
    }
    let wanted = 0.75 * sums[0] / squares[0].sqrt() + 0.25 * sums[1] / squares[1].sqrt();
    let found = compare(&Cpu, &mixed, &like(), &mut mixture, &[&euler]).unwrap()[0];
    assert!((found / wanted - 1.0).abs() < 1e-9, "{found}, by hand {wanted}");
}

#[test]
fn a_fit_to_trajectories_is_nearer_on_the_way_with_either_kind_of_weights() {
    for (weight_sums, process) in [(WeightSums::Affine, Process::Ve), (WeightSums::Free, Process::Flow)] {
        let end = Config { weight_sums, ..config(process) };
        let trajectory = Config { objective: Objective::Trajectory, ..end.clone() };
        let [of_end, of_trajectory] =
            [&end, &trajectory].map(|c| on_the_way(&fitted(c, &mut Mixture::new(process)), &end));
        assert!(of_trajectory < 0.9 * of_end, "{process:?}: {of_trajectory} {of_end}");
    }
}

/// Mean distance, over nodes and trajectories, to a teacher that runs to each node's noise level by itself.
fn on_the_way(schedule: &Schedule, config: &Config) -> f64 {
    let mut mixture = Mixture::new(config.process);
    let mut sum = 0.0;
    for batch in 0..8 {
        let mut x_t = like();
        mixture.begin(lmsd::distill::TEST_BATCHES + batch, &mut x_t).unwrap();
        let mut states = Vec::new();
        let mut sampler =
            lmsd::sample::Sampler::new(Cpu, std::borrow::Cow::Borrowed(schedule), &x_t).unwrap();
        let mut model = |x: &CpuTensor, call: &Call, out: &mut CpuTensor| {
            let all: Vec<f64> =
                values(x).chunks(DIMENSIONS).flat_map(|x| mixture.denoised(x, call.sigma)).collect();
            write(out, &all);
            Ok(())
        };
        sampler
            .run(&mut model, &mut |step| {
                states.push(values(step.x));
                Ok(())
            })
            .unwrap();
        states.push(values(sampler.state()));
        for (node, state) in states.iter().enumerate().skip(1) {
            let spec = lmsd::solver::Spec {
                solver: "deis_3".into(),
                nfe: 60,
                process: config.process,
                sigma_max: Some(config.sigma_max),
                sigma_end: Some(schedule.sigma(node)),
                ..Default::default()
            };
            let teacher = lmsd::solver::solve(&spec).unwrap();
            let there = lmsd::sample::sample(Cpu, &teacher, &x_t, |x, sigma, out| {
                let all: Vec<f64> =
                    values(x).chunks(DIMENSIONS).flat_map(|x| mixture.denoised(x, sigma)).collect();
                write(out, &all);
                Ok(())
            });
            let there = values(&there.unwrap());
            for (a, b) in state.chunks(DIMENSIONS).zip(there.chunks(DIMENSIONS)) {
                sum += a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
            }
        }
    }
    sum / (8 * BATCH * schedule.nfe()) as f64
}

#[test]
fn with_features_and_by_trajectories_a_killed_run_resumes_and_ranks_agree() {
    let folder = tempfile::tempdir().unwrap();
    for objective in [Objective::End, Objective::Trajectory] {
        let path = folder.path().join(format!("{objective:?}.jsonl"));
        let feature_weight = Some(0.5);
        let config = Config {
            nfe: 4,
            nfe_from: Some(3),
            feature_weight,
            objective,
            trajectories: 24,
            ..config(Process::Ve)
        };
        let kept = Config { checkpoint: Some(path.clone()), ..config.clone() };
        let full = distill(&Cpu, &kept, &like(), &mut with_features(bent)).unwrap();
        let text = std::fs::read(&path).unwrap();
        for part in [2, 5, 8] {
            std::fs::write(&path, &text[..text.len() * part / 10]).unwrap();
            let again = distill(&Cpu, &kept, &like(), &mut with_features(bent)).unwrap();
            assert_eq!(nodes(&again), nodes(&full), "{objective:?} cut at {part}/10");
            assert_eq!(account(&again), account(&full), "{objective:?} cut at {part}/10");
        }
        let ranks = Team::new(2).run(|_| config.clone(), |_, mixture| mixture.features = Some(bent));
        for (found, _) in &ranks {
            assert_eq!(nodes(found.as_ref().unwrap()), nodes(&full), "{objective:?} on two ranks");
        }
        let other = Config { feature_weight: Some(0.4), ..kept };
        let error = distill(&Cpu, &other, &like(), &mut with_features(bent)).unwrap_err();
        assert_eq!(error.status, Status::Mismatch);
    }
}

#[test]
fn features_that_cannot_be_fitted_to_are_refused() {
    let refused = |config: &Config, mixture: &mut Mixture, status: Status, words: &str| {
        let error = distill(&Cpu, config, &like(), mixture).unwrap_err();
        assert!(error.status == status && error.message.contains(words), "{words}: {error}");
    };
    let plain = config(Process::Ve);
    let half = Config { feature_weight: Some(0.5), ..plain.clone() };
    let bad = Status::InvalidArgument;
    refused(
        &half,
        &mut Mixture::new(Process::Ve),
        bad,
        "feature_weight is 0.5 but the problem has no features",
    );
    let by_end = Config { objective: Objective::Trajectory, ..plain.clone() };
    refused(&by_end, &mut with_features(two), bad, "objective is \"trajectory\" and feature_weight 1");
    let nan = |x: &[f64]| vec![if x[0] > 0.0 { f64::NAN } else { x[0] }];
    refused(
        &plain,
        &mut with_features(nan),
        Status::NonFinite,
        "features of the teacher's end point on batch 0",
    );
    thread_local!(static ASKED: Cell<f64> = const { Cell::new(0.0) });
    let random = |x: &[f64]| {
        ASKED.set(ASKED.get() + 1.0);
        vec![x[0] + ASKED.get()]
    };
    refused(&plain, &mut with_features(random), bad, "features gives another result for the same x");
}
