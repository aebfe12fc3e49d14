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
use crate::schedule::write_atomic;

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
    file: Option<(PathBuf, File)>,
    past: HashMap<u64, Record>,
}

fn io(path: &Path, e: std::io::Error) -> Error {
    Error::new(Status::Io, format!("checkpoint {}: {e}", path.display()))
}

impl Journal {
    /// Opens a checkpoint, or starts one. `head` is one line that describes the run; a file with
    /// another one is refused. A last line that a kill cut short is dropped.
    pub fn open(path: &Path, head: &str) -> Result<Self> {
        let mut past = HashMap::new();
        match fs::metadata(path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                write_atomic(path, format!("{head}\n").as_bytes())?;
            }
            Err(e) => return Err(io(path, e)),
            Ok(about) if !about.is_file() || about.len() > MAX_BYTES => {
                let message = format!("checkpoint {} is no regular file of at most 1 GiB", path.display());
                return Err(Error::new(Status::Io, message));
            }
            Ok(_) => {
                let mut text = String::new();
                File::open(path).and_then(|mut f| f.read_to_string(&mut text)).map_err(|e| io(path, e))?;
                let whole = text.rfind('\n').map_or(0, |end| end + 1);
                let mut lines = text[..whole].lines();
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
                for (number, line) in lines.enumerate() {
                    let record: Record = serde_json::from_str(line).map_err(|e| {
                        let message = format!("checkpoint {}, line {}: {e}", path.display(), number + 2);
                        Error::new(Status::Io, message)
                    })?;
                    past.entry(record.key).or_insert(record);
                }
                if whole < text.len() {
                    write_atomic(path, &text.as_bytes()[..whole])?;
                }
            }
        }
        let file = OpenOptions::new().append(true).open(path).map_err(|e| io(path, e))?;
        Ok(Self { file: Some((path.into(), file)), past })
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

    /// Adds a measurement: one line, written whole.
    pub fn append(&mut self, record: &Record) -> Result<()> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let mut line = serde_json::to_string(record).expect("plain data always serializes");
        line.push('\n');
        file.write_all(line.as_bytes()).map_err(|e| io(path, e))
    }
}
