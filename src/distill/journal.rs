//! The checkpoint: every measurement of a run, one line each, under a key that says what was measured
//! on what. The run is a deterministic function of its measurements, so one that was killed, or that
//! had fewer calls to spend, goes on by reading them back instead of calling the model. Knows
//! nothing of what the numbers mean.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

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

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub kind: Kind,
    pub key: u64,
    /// Batch calls that it took: the teacher's, all others.
    pub calls: [u64; 2],
    /// Seconds into the run when it was done.
    pub seconds: f64,
    /// Null where not finite.
    pub values: Vec<Option<f64>>,
}

#[derive(Default)]
pub struct Journal {
    file: Option<Written>,
    past: HashMap<u64, Record>,
}

/// The file, and what it could not take yet.
struct Written {
    path: PathBuf,
    file: File,
    /// Bytes that are there: whole lines.
    length: u64,
    /// Lines that are not, and why.
    waiting: Vec<String>,
    error: Option<Error>,
}

impl Written {
    /// Writes what is waiting. Where that fails, as on a full disk, the file ends with its last whole line.
    fn catch_up(&mut self) {
        let lines = self.waiting.concat();
        let written = self.file.set_len(self.length).and_then(|()| self.file.write_all(lines.as_bytes()));
        match written {
            Ok(()) => {
                self.length += lines.len() as u64;
                (self.waiting, self.error) = (Vec::new(), None);
            }
            Err(e) => {
                let _ = self.file.set_len(self.length); // else the next reader drops the half of a line
                self.error = Some(io(&self.path, e));
            }
        }
    }
}

fn io(path: &Path, e: std::io::Error) -> Error {
    Error::new(Status::Io, format!("checkpoint {}: {e}", path.display()))
}

/// The measurements in the text of a checkpoint, which ends with a whole line.
fn records(path: &Path, head: &str, text: &str) -> Result<HashMap<u64, Record>> {
    let mut lines = text.lines();
    if lines.next() != Some(head) {
        return Err(Error::new(
            Status::Mismatch,
            format!(
                "checkpoint {} was made with other options, another shape or another version; \
                 remove it or go on as before",
                path.display()
            ),
        ));
    }
    let mut past = HashMap::new();
    for (number, line) in lines.enumerate() {
        let record: Record = serde_json::from_str(line).map_err(|e| {
            let message = format!("checkpoint {}, line {}: {e}", path.display(), number + 2);
            Error::new(Status::Io, message)
        })?;
        past.entry(record.key).or_insert(record);
    }
    Ok(past)
}

impl Journal {
    /// Opens a checkpoint, or starts one. `head` is one line that describes the run; a file with
    /// another one is refused. A last line that a kill cut short is dropped.
    pub fn open(path: &Path, head: &str) -> Result<Self> {
        let named = |e| io(path, e);
        if fs::metadata(path).is_ok_and(|about| !about.is_file() || about.len() > MAX_BYTES) {
            let message = format!("checkpoint {} is no regular file of at most 1 GiB", path.display());
            return Err(Error::new(Status::Io, message));
        }
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(named)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(named)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let past = if whole == 0 && head.starts_with(&text) {
            // New, or cut short within its first line.
            file.set_len(0).and_then(|()| file.write_all(format!("{head}\n").as_bytes())).map_err(named)?;
            HashMap::new()
        } else {
            let past = records(path, head, &text[..whole])?;
            if whole < text.len() {
                file.set_len(whole as u64).map_err(named)?;
            }
            past
        };
        let length = file.metadata().map_err(named)?.len();
        Ok(Self {
            file: Some(Written { path: path.into(), file, length, waiting: Vec::new(), error: None }),
            past,
        })
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
        let mut line = serde_json::to_string(record).expect("plain data always serializes");
        line.push('\n');
        written.waiting.push(line);
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
        let writable = std::mem::replace(&mut written.file, File::open(&path).unwrap());
        journal.file = Some(written);
        (2..4).for_each(|key| journal.append(&record(key)));
        assert_eq!((journal.unwritten(), fs::read(&path).unwrap()), (2, before));
        assert!(journal.error().unwrap().starts_with(&format!("checkpoint {}: ", path.display())));
        journal.file.as_mut().unwrap().file = writable;
        journal.append(&record(4));
        assert_eq!((journal.unwritten(), journal.error()), (0, None));
        assert_eq!(Journal::open(&path, "head").unwrap().keys(), [1, 2, 3, 4]);
    }

    /// Also where the disk is full: nothing is written in the place of what is cut off.
    #[test]
    fn wherever_it_is_cut_its_whole_lines_are_read_and_the_rest_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("checkpoint");
        let mut journal = Journal::open(&path, "head").unwrap();
        (1..3).for_each(|key| journal.append(&record(key)));
        let whole = fs::read(&path).unwrap();
        let lines: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] == b'\n').map(|at| at + 1).collect();
        for length in 0..=whole.len() {
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
}
