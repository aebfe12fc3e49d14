//! What happens to files when things go wrong: kills, damage, two runs on one checkpoint, a full disk, a clock that
//! goes back. docs/faults.md has the results. `LMSD_FAULTS=200` has each of these tried as often instead of a few times.
#![cfg(unix)]

mod noise;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};
use std::{env, fs, thread};

use lmsd::distill::{Config, Distilled, Problem, distill};
use lmsd::schedule::Schedule;
use lmsd::solver::{Spec, solve};
use lmsd::tensor::{Cpu, CpuTensor, Dtype};
use lmsd::{Call, Purpose, Result, Status};
use noise::Noise;

const DIMENSIONS: usize = 4;
const BATCH: usize = 4;

/// The exact model of data that are +1 or -1 in every dimension, with variance 0.04 around these.
#[derive(Default)]
struct Model {
    calls: usize,
    pause: Duration,
    /// Infinite for all but the teacher.
    diverges: bool,
}

impl Problem<CpuTensor> for Model {
    fn begin(&mut self, batch: u64, x_t: &mut CpuTensor) -> Result<()> {
        let mut random = Noise::of(batch);
        let x: Vec<f64> = (0..BATCH * DIMENSIONS).map(|_| 80.0 * random.normal()).collect();
        *x_t = CpuTensor::from_f64(Dtype::F64, x_t.shape(), &x)?;
        Ok(())
    }

    fn denoise(&mut self, x: &CpuTensor, call: &Call, denoised: &mut CpuTensor) -> Result<()> {
        self.calls += 1;
        thread::sleep(self.pause);
        let variance = 0.04 + call.sigma * call.sigma;
        let diverges = self.diverges && matches!(call.purpose, Purpose::Ranking | Purpose::Fit);
        let one = |x: f64| {
            if diverges {
                return f64::INFINITY;
            }
            let mean = (x / variance).tanh();
            mean + 0.04 / variance * (x - mean)
        };
        let all: Vec<f64> = x.to_f64().into_iter().map(one).collect();
        *denoised = CpuTensor::from_f64(Dtype::F64, x.shape(), &all)?;
        Ok(())
    }
}

fn run(checkpoint: Option<&Path>, pause: Duration) -> Result<Distilled> {
    run_with(checkpoint, &mut Model { pause, ..Model::default() })
}

fn run_with(checkpoint: Option<&Path>, model: &mut Model) -> Result<Distilled> {
    let checkpoint = checkpoint.map(PathBuf::from);
    let config = Config { nfe: 3, trajectories: 16, held_out: 8, checkpoint, ..Config::default() };
    let like = CpuTensor::zeros(Dtype::F64, &[BATCH as i64, DIMENSIONS as i64])?;
    distill(&Cpu, &config, &like, model)
}

/// All that must not depend on what a run went through.
fn found(distilled: &Distilled) -> String {
    let calls = [distilled.teacher_calls, distilled.model_calls, distilled.ranking_calls];
    let nodes: Vec<_> = distilled.schedules().map(|schedule| schedule.nodes()).collect();
    format!("{calls:?} {nodes:?}")
}

fn times(quick: usize) -> usize {
    env::var("LMSD_FAULTS").map_or(quick, |times| times.parse().expect("LMSD_FAULTS is a number"))
}

fn schedule() -> Schedule {
    solve(&Spec { nfe: 20, ..Spec::default() }).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// This program as another process: a run with a checkpoint, or, of a file in .json, one that saves it again and again
/// as long as it can. `before`: shell commands that come first.
fn start(file: &Path, pause: Duration, before: &str) -> Child {
    Command::new("sh")
        .args(["-c", &format!("{before} exec \"$0\" --exact child --ignored --nocapture")])
        .arg(env::current_exe().unwrap())
        .env("LMSD_FAULTS_FILE", file)
        .env("LMSD_FAULTS_PAUSE", pause.as_micros().to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// What it had to say.
fn end(child: Child) -> String {
    let text = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let line = text.lines().find_map(|line| line.split_once("result: "));
    line.unwrap_or_else(|| panic!("no result in {text}")).1.into()
}

#[test]
#[ignore = "a part of the other tests, in a process of its own"]
fn child() {
    let path = env::var("LMSD_FAULTS_FILE").unwrap();
    if path.ends_with(".json") {
        while schedule().save(path.as_ref()).is_ok() {} // until somebody kills it
        return println!("\nresult: {}", schedule().save(path.as_ref()).unwrap_err());
    }
    let pause = Duration::from_micros(env::var("LMSD_FAULTS_PAUSE").unwrap().parse().unwrap());
    println!("\nresult: {}", run(Some(path.as_ref()), pause).map_or_else(|e| e.to_string(), |d| found(&d)));
}

fn lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

/// Waits until a checkpoint has so many lines, or the process ends.
fn wait_for(path: &Path, count: usize, child: &mut Child) {
    while lines(path) < count && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn a_run_killed_at_random_and_killed_again_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let full = folder.path().join("full");
    let wanted = found(&run(Some(&full), Duration::ZERO).unwrap());
    let (total, mut random) = (lines(&full), Noise(5));
    for round in 0..times(8) {
        let path = folder.path().join(format!("{round}.jsonl"));
        for _ in 0..1 + random.below(2) {
            let mut child = start(&path, Duration::from_micros(300), "");
            wait_for(&path, 1 + random.below(total), &mut child);
            thread::sleep(Duration::from_micros(random.below(3000) as u64));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(found(&run(Some(&path), Duration::ZERO).unwrap()), wanted, "round {round}");
        assert_eq!(lines(&path), total, "round {round}");
        fs::remove_file(path).unwrap();
    }
}

/// A digit, a bit, a line left out, a line twice.
fn damage(bytes: &[u8], random: &mut Noise) -> Vec<u8> {
    let mut damaged = bytes.to_vec();
    let digits: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at].is_ascii_digit()).collect();
    let mut lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let line = random.below(lines.len());
    match random.below(4) {
        0 => damaged[digits[random.below(digits.len())]] = b'0' + random.below(10) as u8,
        1 => damaged[random.below(bytes.len())] ^= 1 << random.below(8),
        2 => {
            lines.remove(line);
            return lines.concat();
        }
        _ => {
            lines.insert(line, lines[line]);
            return lines.concat();
        }
    }
    damaged
}

#[test]
fn a_damaged_checkpoint_gives_the_same_schedule_or_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let wanted = found(&run(Some(&path), Duration::ZERO).unwrap());
    let whole = fs::read(&path).unwrap();
    let (mut refused, mut random) = (0, Noise(6));
    let count = times(60);
    for _ in 0..count {
        let damaged = damage(&whole, &mut random);
        fs::write(&path, &damaged).unwrap();
        match run(Some(&path), Duration::ZERO) {
            Ok(distilled) => assert_eq!(found(&distilled), wanted),
            Err(e) => {
                assert!([Status::Io, Status::Mismatch].contains(&e.status), "{e}");
                assert!(e.message.contains("run.jsonl") && e.message.contains("remove"), "{e}");
                assert_eq!(fs::read(&path).unwrap(), damaged, "what is refused is left as it is");
                refused += 1;
            }
        }
    }
    assert!(refused > count / 2, "{refused} of {count} refused");
}

#[test]
fn a_second_process_is_told_which_one_has_the_checkpoint_and_takes_it_over_when_that_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let mut first = start(&path, Duration::from_millis(20), "");
    wait_for(&path, 3, &mut first);
    let error = run(Some(&path), Duration::ZERO).unwrap_err();
    let words = format!("is in use by a run of process {};", first.id());
    assert!(error.status == Status::Io && error.message.contains(&words), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    let wanted = found(&run(None, Duration::ZERO).unwrap());
    assert_eq!(found(&run(Some(&path), Duration::ZERO).unwrap()), wanted);
}

#[test]
fn of_many_that_start_at_once_one_has_the_checkpoint_and_leaves_it_whole() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = found(&run(None, Duration::ZERO).unwrap());
    for round in 0..times(4) {
        let path = folder.path().join(format!("{round}.jsonl"));
        let children: Vec<Child> = (0..3).map(|_| start(&path, Duration::from_micros(100), "")).collect();
        let ends: Vec<String> = children.into_iter().map(end).collect();
        assert!(ends.contains(&wanted), "{ends:?}");
        assert!(ends.iter().all(|end| *end == wanted || end.contains("is in use by")), "{ends:?}");
        assert_eq!(found(&run(Some(&path), Duration::ZERO).unwrap()), wanted);
    }
}

/// A distance that is not finite is left out of a schedule's file, and null in the report.
#[test]
fn where_every_candidate_diverges_the_file_can_be_read_and_the_run_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = (folder.path().join("run.jsonl"), folder.path().join("s.json"));
    let mut model = Model { diverges: true, ..Model::default() };
    let distilled = run_with(Some(&path), &mut model).unwrap();
    let [fitted] = distilled.family.as_slice() else { panic!("{} schedules", distilled.family.len()) };
    assert_eq!((fitted.distance, fitted.improved), (None, false));
    let by = fitted.schedule.made_by.as_ref().unwrap();
    assert!(by.distance.is_none() && by.start_distance.is_none() && by.handcrafted.is_empty());
    assert!(!fitted.schedule.to_json().contains("null"));
    fitted.schedule.save(&file).unwrap();
    assert_eq!(Schedule::load(&file).unwrap(), fitted.schedule);
    let report: serde_json::Value = serde_json::from_str(&distilled.to_json()).unwrap();
    assert!(report["family"][0]["distance"].is_null());
    assert_eq!(found(&run_with(Some(&path), &mut model).unwrap()), found(&distilled));
}

/// No file grows beyond so many half kilobytes: writing then fails midway, as on a full disk.
fn files_end_at(blocks: usize) -> String {
    format!("trap '' XFSZ; ulimit -f {blocks};")
}

#[test]
fn on_a_full_disk_a_run_ends_and_one_that_was_cut_short_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.jsonl");
    let wanted = found(&run(Some(&path), Duration::ZERO).unwrap());
    let whole = fs::read(&path).unwrap();
    let blocks = (whole.len() - 1) / 1024; // so that half of it fits, whatever the shell's block is
    for kept in [0, 100, whole.len() / 4] {
        fs::write(&path, &whole[..kept]).unwrap();
        assert_eq!(end(start(&path, Duration::ZERO, &files_end_at(blocks))), wanted, "from {kept} bytes on");
        let left = fs::read(&path).unwrap();
        assert!(
            left.ends_with(b"}\n") && left.len() <= whole.len(),
            "{} of {} bytes",
            left.len(),
            whole.len()
        );
    }
    assert_eq!(found(&run(Some(&path), Duration::ZERO).unwrap()), wanted);
    assert_eq!(names(folder.path()), ["run.jsonl"]);
}

#[test]
fn on_a_full_disk_a_file_that_is_saved_over_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    schedule().save(&path).unwrap();
    let said = end(start(&path, Duration::ZERO, &files_end_at(1)));
    assert!(said.contains("cannot write") && said.contains("s.json"), "{said}");
    assert_eq!((Schedule::load(&path).unwrap(), names(folder.path())), (schedule(), vec!["s.json".into()]));
}

#[test]
fn processes_that_save_to_one_path_and_are_killed_leave_a_whole_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, mut random) = (folder.path().join("s.json"), Noise(7));
    for round in 0..times(4) {
        let mut children: Vec<Child> = (0..2).map(|_| start(&path, Duration::ZERO, "")).collect();
        wait_for(&path, 1, &mut children[0]);
        for _ in 0..50 {
            assert_eq!(Schedule::load(&path).unwrap(), schedule(), "round {round}");
        }
        for child in &mut children {
            assert!(child.try_wait().unwrap().is_none(), "one of them could not save");
            thread::sleep(Duration::from_micros(random.below(2000) as u64));
            child.kill().unwrap();
            child.wait().unwrap();
        }
        assert_eq!(Schedule::load(&path).unwrap(), schedule(), "round {round}");
    }
    let left = names(folder.path());
    assert!(left.iter().all(|name| name == "s.json" || name.starts_with(".lmsd-")), "{left:?}");
    assert!(left.len() <= 1 + 2 * times(4), "at most one temporary file for each that was killed");
}

/// As root permissions say nothing, but nobody makes files in /proc.
#[test]
#[cfg(target_os = "linux")]
fn where_nothing_can_be_written_it_is_said_before_the_work() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let probe = fs::write(folder.path().join("probe"), "");
    let read_only = probe.is_err().then_some(folder.path());
    for folder in read_only.into_iter().chain([Path::new("/proc")]) {
        let error = schedule().save(&folder.join("s.json")).unwrap_err();
        assert!(error.status == Status::Io && error.message.contains("s.json"), "{error}");
        let mut model = Model::default();
        let error = run_with(Some(&folder.join("run.jsonl")), &mut model).unwrap_err();
        assert!(error.status == Status::Io && error.message.contains("run.jsonl"), "{error}");
        assert_eq!(model.calls, 0);
    }
}

/// Files are then of the future. Runs count their seconds by a clock that cannot be set.
#[test]
fn a_clock_that_goes_back_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (path, file) = (folder.path().join("run.jsonl"), folder.path().join("s.json"));
    let wanted = found(&run(Some(&path), Duration::ZERO).unwrap());
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    schedule().save(&file).unwrap();
    for name in [&path, &file] {
        let later = SystemTime::now() + Duration::from_secs(400 * 24 * 3600);
        fs::OpenOptions::new().write(true).open(name).unwrap().set_modified(later).unwrap();
    }
    assert_eq!(found(&run(Some(&path), Duration::ZERO).unwrap()), wanted);
    schedule().save(&file).unwrap();
    assert_eq!(Schedule::load(&file).unwrap(), schedule());
}
