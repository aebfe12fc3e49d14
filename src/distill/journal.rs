//! The checkpoint: every measurement of a run, one line each, under a key that says what was measured
//! on what. The run is a deterministic function of its measurements, so one that was killed, or that
//! had fewer calls to spend, goes on by reading them back instead of calling the model. Knows
//! nothing of what the numbers mean.
//!
//! The first line says which process the file is open in and which run it is of. Every other line has its
//! number and a checksum, so what was damaged is never read as a measurement: at the end it is dropped and
//! measured again, elsewhere the file is refused. A lock on the file, which ends with the process that has it,
//! keeps a second run out.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use fs4::{FileExt, TryLockError};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Status};

/// A checkpoint larger than this is refused unread.
const MAX_BYTES: u64 = 1 << 30;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Whether noise and model are what they should be.
    Check,
    /// The teacher's run, recorded.
    Record,
    /// Distances of schedules.
    Distances,
    /// A Jacobian.
    Linearise,
    /// A step tried.
    Trial,
    /// The Jacobian after a trial.
    Update,
    /// Calls that are left, by the clock.
    Clock,
}

/// A key: the same for the same measurement, whatever the machine and the version of the compiler.
#[derive(Clone)]
pub struct Key(u64);

impl Key {
    pub fn of(kind: Kind) -> Self {
        Self(0xcbf2_9ce4_8422_2325).and(kind as u64)
    }

    /// FNV-1a.
    pub fn and(mut self, value: u64) -> Self {
        for byte in value.to_le_bytes() {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self
    }

    pub fn and_all(self, values: impl IntoIterator<Item = u64>) -> Self {
        values.into_iter().fold(self, Self::and)
    }

    pub fn number(&self) -> u64 {
        self.0
    }
}

/// A measurement.
#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was measured.
    pub kind: Kind,
    /// On what: [`Key::number`].
    pub key: u64,
    /// Batch calls that it took: the teacher's, all others.
    pub calls: [u64; 2],
    /// Seconds into the run when it was done.
    pub seconds: f64,
    /// Null where not finite.
    pub values: Vec<Option<f64>>,
}

/// A record as it stands in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    /// That of the file's second line is 1.
    line: u64,
    record: Record,
    sum: u64,
}

impl Line {
    fn new(line: u64, record: Record) -> Self {
        let text = serde_json::to_string(&record).expect("plain data always serializes");
        let sum = Key::of(record.kind).and(line).and_all(text.bytes().map(u64::from)).number();
        Self { line, record, sum }
    }

    fn text(&self) -> String {
        serde_json::to_string(self).expect("plain data always serializes") + "\n"
    }

    /// None where a byte of `text`, newline included, is not as it was written.
    fn read(text: &[u8]) -> Option<Self> {
        let Self { line, record, .. } = serde_json::from_slice(text).ok()?;
        Some(Self::new(line, record)).filter(|line| line.text().as_bytes() == text)
    }
}

/// The first line: a number of the process, of fixed width so that the next one can write its own there, and the run.
struct Head(String);

impl Head {
    const BEFORE: &str = "{\"process\":";
    const DIGITS: usize = 10;
    const AFTER: &str = ",\"run\":";

    /// As this process writes it.
    fn new(run: &str) -> Self {
        let (before, width, after) = (Self::BEFORE, Self::DIGITS, Self::AFTER);
        Self(format!("{before}{:>width$}{after}{run}}}\n", std::process::id()))
    }

    /// Where the number of the process stands.
    fn place() -> std::ops::Range<usize> {
        Self::BEFORE.len()..Self::BEFORE.len() + Self::DIGITS
    }

    fn process(&self) -> &[u8] {
        &self.0.as_bytes()[Self::place()]
    }

    /// Whether `bytes` are the beginning of a line of this run, in whatever process.
    fn begins_with(&self, bytes: &[u8]) -> bool {
        let same =
            |(at, byte): (usize, &u8)| Self::place().contains(&at) || self.0.as_bytes().get(at) == Some(byte);
        bytes.iter().enumerate().all(same)
    }
}

/// A run's measurements, and its file where it has one.
#[derive(Default)]
pub struct Journal {
    file: Option<Written>,
    past: HashMap<u64, Record>,
}

/// A file that no other run can have. The lock is given back, not left to the closing of the file: a process that was
/// forked meanwhile has the file open as well.
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        let _ = FileExt::unlock(&self.0);
    }
}

/// The file, and what it could not take yet.
struct Written {
    path: PathBuf,
    file: Locked,
    /// Bytes that are there: whole lines.
    length: u64,
    /// Number of the next line.
    next: u64,
    /// Lines that are not, and why.
    waiting: Vec<String>,
    error: Option<Error>,
}

impl Written {
    /// Writes what is waiting. Where that fails, as on a full disk, the file ends with its last whole line.
    fn catch_up(&mut self) {
        let lines = self.waiting.concat();
        match write_at(&mut self.file.0, self.length, lines.as_bytes()) {
            Ok(()) => {
                self.length += lines.len() as u64;
                (self.waiting, self.error) = (Vec::new(), None);
            }
            Err(e) => {
                let _ = self.file.0.set_len(self.length); // else the next reader drops the half of a line
                self.error = Some(io(&self.path, e));
            }
        }
    }
}

/// Has a file end with `bytes` after its first `length`.
fn write_at(file: &mut File, length: u64, bytes: &[u8]) -> std::io::Result<()> {
    file.set_len(length)?;
    file.seek(SeekFrom::Start(length))?;
    file.write_all(bytes)
}

fn io(path: &Path, e: std::io::Error) -> Error {
    Error::new(Status::Io, format!("checkpoint {}: {e}", path.display()))
}

/// What can be used of a checkpoint: its measurements in order, and how many bytes they are, with the head.
fn records(path: &Path, head: &Head, bytes: &[u8]) -> Result<(Vec<Record>, usize)> {
    let mut lines = bytes.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    if first.len() != head.0.len() || !head.begins_with(first) {
        return Err(Error::new(
            Status::Mismatch,
            format!(
                "checkpoint {} was made with other options, another shape or another version; \
                 remove it or go on as before",
                path.display()
            ),
        ));
    }
    let (mut records, mut length) = (Vec::new(), first.len());
    for text in lines.by_ref() {
        match Line::read(text).filter(|line| line.line == records.len() as u64 + 1) {
            Some(line) => records.push(line.record),
            None => break,
        }
        length += text.len();
    }
    if lines.any(|text| Line::read(text).is_some()) {
        let (path, number) = (path.display(), records.len() + 2);
        let message = format!(
            "checkpoint {path}, line {number}: damaged, missing or there twice; remove the file, \
             or this line and all after it"
        );
        return Err(Error::new(Status::Io, message));
    }
    Ok((records, length))
}

/// Keeps other runs out, of this process too, until the file is closed; the system sees to that where a process is
/// killed. Where the file system knows no locks there is none.
fn lock(path: &Path, mut file: File) -> Result<Locked> {
    let Err(TryLockError::WouldBlock) = FileExt::try_lock(&file) else { return Ok(Locked(file)) };
    let mut start = [0; Head::BEFORE.len() + Head::DIGITS];
    let read =
        file.read_exact(&mut start).ok().and_then(|()| std::str::from_utf8(&start[Head::place()]).ok());
    let process = read.and_then(|number| number.trim().parse::<u32>().ok());
    let whose = match process {
        Some(own) if own == std::process::id() => "another run of this process".into(),
        Some(other) => format!("a run of process {other}"),
        None => "another run".into(),
    };
    let message = format!(
        "checkpoint {} is in use by {whose}; let that end, or give this run another file",
        path.display()
    );
    Err(Error::new(Status::Io, message))
}

impl Journal {
    /// Opens a checkpoint, or starts one, and keeps other runs out of it. `run` is JSON, one line, that describes the
    /// run; a file of another one is refused. Damaged lines at the end, such as one that a kill cut short, are
    /// cut off; elsewhere they are refused.
    pub fn open(path: &Path, run: &str) -> Result<Self> {
        let named = |e| io(path, e);
        if fs::metadata(path).is_ok_and(|about| !about.is_file() || about.len() > MAX_BYTES) {
            let message = format!("checkpoint {} is no regular file of at most 1 GiB", path.display());
            return Err(Error::new(Status::Io, message));
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(path).map_err(named)?;
        let mut locked = lock(path, file)?;
        let file = &mut locked.0;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(named)?;
        let head = Head::new(run);
        let (records, length) = if head.begins_with(&bytes) && bytes.len() < head.0.len() {
            // New, or cut short within its first line.
            write_at(file, 0, head.0.as_bytes()).map_err(named)?;
            (Vec::new(), head.0.len())
        } else {
            let (records, length) = records(path, &head, &bytes)?;
            file.set_len(length as u64).map_err(named)?;
            let _ = file
                .seek(SeekFrom::Start(Head::place().start as u64))
                .and_then(|_| file.write_all(head.process()));
            (records, length)
        };
        let next = records.len() as u64 + 1;
        let mut past = HashMap::new();
        for record in records {
            past.entry(record.key).or_insert(record);
        }
        let (path, waiting, length) = (path.into(), Vec::new(), length as u64);
        Ok(Self { file: Some(Written { path, file: locked, length, next, waiting, error: None }), past })
    }

    /// The keys of what can be read back, in order.
    pub fn keys(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = self.past.keys().copied().collect();
        keys.sort_unstable();
        keys
    }

    /// The measurement with this key, once. None on ranks that have no checkpoint.
    pub fn replay(&mut self, kind: Kind, key: &Key) -> Result<Option<Record>> {
        let Some(record) = self.past.remove(&key.number()) else { return Ok(None) };
        if record.kind != kind {
            let message =
                format!("the checkpoint has {:?} where this run measures {kind:?}; remove it", record.kind);
            return Err(Error::new(Status::Mismatch, message));
        }
        Ok(Some(record))
    }

    /// Adds a measurement: one line, written whole. A run does not end because its checkpoint cannot be written:
    /// what the file does not take is kept and tried again with the next one.
    pub fn append(&mut self, record: &Record) {
        let Some(written) = &mut self.file else { return };
        written.waiting.push(Line::new(written.next, record.clone()).text());
        written.next += 1;
        written.catch_up();
    }

    /// How many measurements are not in the file.
    pub fn unwritten(&self) -> usize {
        self.file.as_ref().map_or(0, |written| written.waiting.len())
    }

    /// Why.
    pub fn error(&self) -> Option<String> {
        self.file.as_ref()?.error.as_ref().map(|error| error.message.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: u64) -> Record {
        Record { kind: Kind::Trial, key, calls: [0, 3], seconds: 1.0, values: vec![Some(0.5)] }
    }

    /// Whether this byte of a file is tried: all but under Miri, which takes a second for a few readings.
    fn is_tried(at: usize) -> bool {
        !cfg!(miri) || at.is_multiple_of(41)
    }

    /// As where a disk is full for a while: the file is that of a run whose disk never was, and has whole lines only
    /// at any time.
    #[test]
    fn what_cannot_be_written_is_written_later() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut journal = Journal::open(&path, "head").unwrap();
        journal.append(&record(1));
        let before = fs::read(&path).unwrap();
        let mut written = journal.file.take().unwrap();
        let writable = std::mem::replace(&mut written.file, Locked(File::open(&path).unwrap()));
        journal.file = Some(written);
        (2..4).for_each(|key| journal.append(&record(key)));
        assert_eq!((journal.unwritten(), fs::read(&path).unwrap()), (2, before));
        assert!(journal.error().unwrap().starts_with(&format!("checkpoint {}: ", path.display())));
        journal.file.as_mut().unwrap().file = writable;
        journal.append(&record(4));
        assert_eq!((journal.unwritten(), journal.error()), (0, None));
        drop(journal);
        assert_eq!(Journal::open(&path, "head").unwrap().keys(), [1, 2, 3, 4]);
    }

    /// Also where the disk is full: nothing is written in the place of what is cut off.
    #[test]
    fn wherever_it_is_cut_its_whole_lines_are_read_and_the_rest_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut journal = Journal::open(&path, "head").unwrap();
        (1..3).for_each(|key| journal.append(&record(key)));
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for length in (0..=whole.len()).filter(|at| is_tried(*at)) {
            fs::write(&path, &whole[..length]).unwrap();
            let journal = Journal::open(&path, "head").unwrap();
            let kept = lines.iter().rev().find(|end| **end <= length).unwrap_or(&lines[0]);
            assert_eq!(fs::read(&path).unwrap(), whole[..*kept], "cut at {length}");
            assert_eq!(journal.keys().len(), lines[1..].iter().filter(|end| **end <= length).count());
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        }
        assert_eq!(Journal::open(&path, "other").err().unwrap().status, Status::Mismatch);
        fs::write(&path, "something else").unwrap();
        assert_eq!(Journal::open(&path, "head").err().unwrap().status, Status::Mismatch);
        assert_eq!(fs::read_to_string(&path).unwrap(), "something else");
        assert_eq!(Journal::open(folder.path(), "head").err().unwrap().status, Status::Io);
    }

    /// Key and values of all that is read from these bytes.
    fn read(bytes: &[u8]) -> Result<Vec<(u64, Vec<Option<f64>>)>> {
        let (records, length) = records(Path::new("c"), &Head::new("{}"), bytes)?;
        assert_eq!(bytes[..length].iter().filter(|byte| **byte == b'\n').count(), records.len() + 1);
        Ok(records.into_iter().map(|record| (record.key, record.values)).collect())
    }

    #[test]
    fn what_is_damaged_is_refused_or_dropped_from_there_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut journal = Journal::open(&path, "{}").unwrap();
        (1..6).for_each(|key| journal.append(&record(key)));
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let all = read(&whole).unwrap();
        let lines: Vec<&[u8]> = whole.split_inclusive(|byte| *byte == b'\n').collect();
        let check = |bytes: &[u8], what: &str, at: usize, last: bool| match read(bytes) {
            Ok(found) => assert!(last && all.starts_with(&found), "{what} {at}"),
            Err(e) if at == 0 && what != "doubled" => assert_eq!(e.status, Status::Mismatch, "{what} {at}"),
            Err(e) => {
                let near = e.message.contains(&format!("line {}:", at + 1))
                    || e.message.contains(&format!("line {}:", at + 2));
                assert!(near && e.status == Status::Io && !last, "{what} {at}: {e}");
            }
        };
        let (mut number, pid) = (0, Head::place());
        for at in 0..whole.len() {
            let values = (0..8).map(|bit| whole[at] ^ (1 << bit)).chain(b'0'..=b'9');
            for flipped in values.filter(|_| is_tried(at)) {
                let mut bytes = whole.clone();
                bytes[at] = flipped;
                if pid.contains(&at) || bytes == whole {
                    // The number of the process says nothing of the run.
                    assert_eq!(read(&bytes).unwrap(), all);
                } else {
                    // The end of the last line but one damages both.
                    check(&bytes, "changed", number, number == 5 || at + 1 == whole.len() - lines[5].len());
                }
            }
            number += usize::from(whole[at] == b'\n');
        }
        let joined =
            |order: &[usize]| order.iter().flat_map(|n| lines[*n].iter().copied()).collect::<Vec<u8>>();
        for at in 0..6 {
            let (mut dropped, mut doubled) = ((0..6).collect::<Vec<_>>(), (0..6).collect::<Vec<_>>());
            dropped.remove(at);
            doubled.insert(at, at);
            // Of the last but one the last goes too: it is in the wrong place, and nothing comes after it.
            check(&joined(&dropped), "dropped", at, at >= 4);
            check(&joined(&doubled), "doubled", at, at == 5);
        }
        check(&joined(&[0, 1, 3, 2, 4, 5]), "swapped", 2, false);
        // As a power cut leaves it: whole blocks of zeros.
        check(&[&whole[..], &[0; 4096]].concat(), "zeros after", 6, true);
    }

    #[test]
    fn one_run_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let first = Journal::open(&path, "{}").unwrap();
        for run in ["{}", "{\"other\":1}"] {
            let error = Journal::open(&path, run).err().unwrap();
            assert_eq!(error.status, Status::Io);
            let words = if cfg!(unix) {
                "is in use by another run of this process"
            } else {
                "is in use by another run"
            };
            assert!(error.message.contains(words), "{error}");
        }
        // As a process has it that was forked meanwhile.
        let _open = first.file.as_ref().unwrap().file.0.try_clone().unwrap();
        drop(first);
        Journal::open(&path, "{}").unwrap();
    }
}
