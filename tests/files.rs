//! A schedule is saved whole or not at all, and nothing but the file that was named is touched.
#![cfg(unix)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use lmsd::schedule::{Baseline, MAX_FILE_BYTES, MadeBy, Schedule};
use lmsd::solver::{Spec, solve};
use lmsd::{Result, Status};

fn schedule(name: &str) -> Schedule {
    let mut schedule = solve(&Spec::default()).unwrap();
    schedule.name = Some(name.into());
    schedule
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_link_where_the_temporary_file_could_be_expected_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let (path, victim) = (folder.path().join("s.json"), folder.path().join("victim"));
    fs::write(&victim, "precious").unwrap();
    let trap = format!(".s.json.{}.tmp", std::process::id());
    symlink(&victim, folder.path().join(&trap)).unwrap();
    schedule("one").save(&path).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(fs::symlink_metadata(&path).unwrap().is_file());
    assert_eq!(names(folder.path()), [trap.as_str(), "s.json", "victim"]);
}

#[test]
fn a_link_is_written_through() {
    let folder = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    let link = folder.path().join("link.json");
    // First to a file that is not there yet; the second link of the chain is relative.
    symlink(other.path().join("next"), &link).unwrap();
    symlink("real.json", other.path().join("next")).unwrap();
    for name in ["new", "again"] {
        schedule(name).save(&link).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Schedule::load(&other.path().join("real.json")).unwrap().name.as_deref(), Some(name));
    }
    assert_eq!((names(folder.path()).len(), names(other.path()).len()), (1, 2));

    let round = folder.path().join("round");
    symlink("round", &round).unwrap();
    assert_eq!(schedule("none").save(&round).unwrap_err().status, Status::Io);
}

#[test]
fn permissions_stay_and_new_files_get_the_usual_ones() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("s.json"), folder.path().join("plain"));
    schedule("new").save(&path).unwrap();
    fs::write(&plain, "").unwrap();
    assert_eq!(mode(&path), mode(&plain));
    for kept in [0o600, 0o640, 0o666] {
        fs::set_permissions(&path, Permissions::from_mode(kept)).unwrap();
        schedule("again").save(&path).unwrap();
        assert_eq!(mode(&path), kept);
    }
}

/// Only root may give a file away.
#[test]
fn the_owner_stays_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    schedule("new").save(&path).unwrap();
    let given = chown(&path, Some(12345), Some(23456)).is_ok();
    fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
    let owner =
        || fs::metadata(&path).map(|about| (about.uid(), about.gid(), about.mode() & 0o7777)).unwrap();
    let before = owner();
    assert!(!given || before == (12345, 23456, 0o640));
    schedule("again").save(&path).unwrap();
    assert_eq!(owner(), before);
}

#[test]
fn temporary_files_of_killed_processes_go_after_a_day_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let (day, now) = (Duration::from_secs(24 * 3600), SystemTime::now());
    let times = [("old", now - 2 * day), ("new", now - day / 2), ("future", now + 9 * day)];
    for (name, time) in times {
        for name in [format!(".lmsd-{name}.tmp"), format!("{name}.tmp"), format!(".lmsd-{name}.json")] {
            fs::File::create(folder.path().join(name)).unwrap().set_modified(time).unwrap();
        }
    }
    fs::create_dir(folder.path().join(".lmsd-folder.tmp")).unwrap();
    symlink("old.tmp", folder.path().join(".lmsd-link.tmp")).unwrap();
    let mut expected = names(folder.path());
    expected.retain(|name| name != ".lmsd-old.tmp");
    expected.push("s.json".into());
    schedule("s").save(&folder.path().join("s.json")).unwrap();
    assert_eq!(names(folder.path()), expected);
}

#[test]
fn what_cannot_be_replaced_stays_and_leaves_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    schedule("first").save(&path).unwrap();
    let mut long = schedule("long");
    let seeds = Some("0".repeat(MAX_FILE_BYTES as usize));
    long.made_by = Some(MadeBy { method: "distilled".into(), seeds, ..MadeBy::default() });
    let error = long.save(&path).unwrap_err();
    assert!(error.status == Status::InvalidSchedule && error.message.contains("1048576 at most"), "{error}");
    let mut infinite = schedule("infinite");
    let baseline = Baseline { solver: "s".into(), grid: "g".into(), nfe: None, distance: f64::INFINITY };
    infinite.made_by = Some(MadeBy { handcrafted: vec![baseline], ..MadeBy::default() });
    let error = infinite.save(&path).unwrap_err();
    assert!(error.status == Status::InvalidSchedule && error.message.contains("null"), "{error}");
    fs::create_dir(folder.path().join("folder")).unwrap();
    for none in ["folder", "folder/..", "missing/s.json", "s.json/s.json"] {
        assert_eq!(schedule("no").save(&folder.path().join(none)).unwrap_err().status, Status::Io, "{none}");
    }
    for special in ["pipe", "link"] {
        let path = folder.path().join(special);
        if special == "pipe" {
            assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        } else {
            symlink("pipe", &path).unwrap();
        }
        assert!(schedule("no").save(&path).unwrap_err().message.ends_with("it is not a regular file"));
        assert!(Schedule::load(&path).unwrap_err().message.ends_with("is not a regular file"));
    }
    assert!(fs::metadata(folder.path().join("link")).unwrap().file_type().is_fifo());
    assert!(schedule("no").save(Path::new("/dev/null")).unwrap_err().message.contains("regular file"));
    assert_eq!(Schedule::load(&path).unwrap().name.as_deref(), Some("first"));
    assert_eq!(names(folder.path()), ["folder", "link", "pipe", "s.json"]);
}

#[test]
fn a_bare_name_is_a_file_of_the_current_folder() {
    let name = format!("lmsd-{}-bare.json", std::process::id());
    schedule("bare").save(Path::new(&name)).unwrap();
    let read = Schedule::load(Path::new(&name));
    fs::remove_file(&name).unwrap();
    assert_eq!(read.unwrap().name.as_deref(), Some("bare"));
}

/// Eight threads have one process id, as one process has in each of two containers.
#[test]
fn many_may_save_to_one_path_while_another_reads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("s.json");
    schedule("0").save(&path).unwrap();
    let done = AtomicBool::new(false);
    let results: Vec<Result<()>> = std::thread::scope(|scope| {
        let path = &path;
        let write =
            |writer: usize| move || (0..40).try_for_each(|_| schedule(&writer.to_string()).save(path));
        let writers: Vec<_> = (0..8).map(|writer| scope.spawn(write(writer))).collect();
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                Schedule::load(path)?;
            }
            Ok(())
        });
        let mut results: Vec<_> = writers.into_iter().map(|writer| writer.join().unwrap()).collect();
        done.store(true, Ordering::Relaxed);
        results.push(reader.join().unwrap());
        results
    });
    results.into_iter().collect::<Result<()>>().unwrap();
    assert_eq!(names(folder.path()), ["s.json"]);
}
