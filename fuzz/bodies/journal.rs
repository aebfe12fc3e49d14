//! Checkpoints: the file that a distillation wrote, spoilt; or any bytes at all.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use arbitrary::Unstructured;
use lmsd::distill::{Journal, Kind, Record};

use super::rarely;
use super::readers::{distill, schedules};
use super::toy::{Tensor, Toy, c_text};

/// Small, and with each kind of measurement.
const OPTIONS: &str = r#"{"nfe": 1, "trajectories": 4, "held_out": 4, "teacher_nfe": 4, "iterations": 2}"#;

/// How the short file describes its run.
const RUN: &str = "{\"of\":\"fuzz\"}";

struct Base {
    /// This process's own.
    path: PathBuf,
    /// What a whole run wrote, and found.
    file: Vec<u8>,
    found: Vec<String>,
    /// A short file, and the keys of its measurements by the number of lines that are there.
    few: Vec<u8>,
    keys: Vec<Vec<u64>>,
    _folder: tempfile::TempDir,
}

fn run(path: &str, patience: usize) -> Result<Vec<String>, i32> {
    let options = OPTIONS.replacen('{', &format!("{{\"checkpoint\": \"{path}\", "), 1);
    let toy = Toy::new(false, 80.0, patience);
    let like = Tensor::new(2, &[4, 2], 0.0, 0);
    distill(&c_text(options.as_bytes()), &toy, &like).map(|distilled| schedules(&distilled))
}

/// What does not depend on the clock.
fn timeless(found: &[String]) -> Vec<String> {
    let lines = found.iter().flat_map(|text| text.lines());
    lines.filter(|line| !line.contains("\"seconds\"")).map(String::from).collect()
}

/// A file of a few measurements, and their keys after each of them.
fn short(path: &Path) -> (Vec<u8>, Vec<Vec<u64>>) {
    fs::remove_file(path).unwrap();
    let mut keys = vec![vec![]];
    let kinds = [Kind::Check, Kind::Distances, Kind::Trial, Kind::Update, Kind::Clock];
    for (key, kind) in (1..).map(|n| n * 0x0123_4567_89ab_cdef).zip(kinds) {
        let values = vec![Some(0.1), None, Some(-3e300)];
        let record = Record { kind, key, calls: [0, 7], seconds: 1.5, values };
        let mut journal = Journal::open(path, RUN).unwrap();
        journal.append(&record);
        drop(journal);
        keys.push(Journal::open(path, RUN).expect("nothing spoilt it").keys());
    }
    (fs::read(path).unwrap(), keys)
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let shared = PathBuf::from("/dev/shm"); // in memory
        let folder =
            if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }.unwrap();
        let path = folder.path().join("checkpoint");
        let found = run(path.to_str().unwrap(), usize::MAX).expect("the options are fine");
        let file = fs::read(&path).unwrap();
        let (few, keys) = short(&path);
        Base { path, file, found, few, keys, _folder: folder }
    })
}

/// What a run wrote, changed as the bytes say, or the bytes themselves.
fn spoilt(whole: &[u8], data: &[u8]) -> Vec<u8> {
    let mut u = Unstructured::new(data);
    let mut byte = || u.arbitrary::<u8>().unwrap_or_default();
    if byte() % 8 == 0 {
        return data[1.min(data.len())..].to_vec();
    }
    let mut lines: Vec<Vec<u8>> = whole.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    for _ in 0..byte() % 8 {
        let count = lines.len();
        if count == 0 {
            break;
        }
        // Two bytes say where, and the first lines are as likely as the others together.
        let at = if byte() % 2 == 0 { byte() as usize % count.min(4) } else { byte() as usize % count };
        let line = &mut lines[at];
        let column = (usize::from(byte()) << 8 | usize::from(byte())) % line.len().max(1);
        match byte() % 8 {
            0 if !line.is_empty() => line[column] = byte(),
            1 if !line.is_empty() => line[column] ^= 1 << (byte() % 8),
            2 => line.insert(column.min(line.len()), byte()),
            3 if !line.is_empty() => drop(line.remove(column)),
            4 => drop(lines.remove(at)),
            5 => {
                let again = lines[at].clone();
                lines.insert(byte() as usize % count, again);
            }
            6 => lines.truncate(at),
            _ => line.truncate(column),
        }
    }
    lines.concat()
}

/// A spoilt checkpoint is refused, or read to the measurements with which its run began, the whole one to all of them.
pub fn journal(data: &[u8]) {
    let base = base();
    let spoilt = spoilt(&base.few, data);
    fs::write(&base.path, &spoilt).unwrap();
    let read = Journal::open(&base.path, RUN);
    assert!(read.is_ok() || spoilt != base.few, "the whole file is refused");
    if let Ok(journal) = read {
        let keys = journal.keys();
        assert!(base.keys.contains(&keys), "read to something else: {keys:?}");
        assert!(spoilt != base.few || Some(&keys) == base.keys.last(), "the whole file is not read");
    }
    if rarely(data, 8192) {
        resumed(base, data);
    }
}

/// A run from a spoilt checkpoint is refused or finds what the unbroken one found: never anything else.
fn resumed(base: &Base, data: &[u8]) {
    let spoilt = spoilt(&base.file, data);
    fs::write(&base.path, &spoilt).unwrap();
    let found = run(base.path.to_str().unwrap(), usize::MAX).map(|found| timeless(&found));
    let is_known = found == Ok(timeless(&base.found));
    assert!(is_known || found.is_err(), "resumed to something else: {found:?}");
    assert!(is_known || spoilt != base.file, "the whole file is refused: {found:?}");
}
