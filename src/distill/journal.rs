//! The checkpoint: every measurement of a run, one line each, in the order they were made. The
//! optimiser is a deterministic function of its measurements, so a killed run resumes by reading
//! them back instead of calling the model, and goes on to the same result. Knows nothing of what
//! the numbers mean.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result, Status};
use crate::schedule::write_atomic;

/// A checkpoint larger than this is refused unread.
const MAX_BYTES: u64 = 1 << 30;

#[derive(Serialize, Deserialize, Clone)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// What was measured; checked on reading back.
    pub what: String,
    /// Batch calls of the model that it took.
    pub calls: u64,
    /// Seconds into the run when it was done.
    pub seconds: f64,
    pub values: Vec<f64>,
}

#[derive(Default)]
pub struct Journal {
    file: Option<(PathBuf, File)>,
    past: std::collections::VecDeque<Record>,
}

fn io(path: &Path, e: std::io::Error) -> Error {
    Error::new(Status::Io, format!("checkpoint {}: {e}", path.display()))
}

impl Journal {
    /// Opens a checkpoint, or starts one. `head` is one line that describes the run; a file with
    /// another one is refused. A last line that a kill cut short is dropped.
    pub fn open(path: &Path, head: &str) -> Result<Self> {
        let mut past = std::collections::VecDeque::new();
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
                    past.push_back(serde_json::from_str(line).map_err(|e| {
                        let message = format!("checkpoint {}, line {}: {e}", path.display(), number + 2);
                        Error::new(Status::Io, message)
                    })?);
                }
                if whole < text.len() {
                    write_atomic(path, &text.as_bytes()[..whole])?;
                }
            }
        }
        let file = OpenOptions::new().append(true).open(path).map_err(|e| io(path, e))?;
        Ok(Self { file: Some((path.into(), file)), past })
    }

    /// Number of measurements that can be read back.
    pub fn len(&self) -> usize {
        self.past.len()
    }

    /// The next measurement of the run that this one resumes, if there is one.
    pub fn replay(&mut self, what: &str) -> Result<Option<Record>> {
        let Some(record) = self.past.pop_front() else { return Ok(None) };
        if record.what != what {
            return Err(Error::new(
                Status::Mismatch,
                format!("the checkpoint has '{}' where this run measures '{what}'; remove it", record.what),
            ));
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
