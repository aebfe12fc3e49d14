//! The JSON text of a schedule, and its file. Whatever breaks the format is refused with the place and the reason.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{MadeBy, MadeFor, Node, Process, Schedule};
use crate::error::{Error, Result, Status};
use crate::json::{self, Named};
use crate::{files, memory};

/// The file format that this library reads and writes.
pub const FORMAT: u32 = 1;
/// A schedule file is refused unread above this many bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 20;

/// The file, field by field.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    #[serde(default)]
    name: Option<String>,
    process: Process,
    nfe: usize,
    sigma_start: f64,
    sigma_end: f64,
    #[serde(deserialize_with = "json::list")]
    nodes: Vec<Named<Node>>,
    #[serde(default)]
    made_for: Option<Named<MadeFor>>,
    #[serde(default)]
    made_by: Option<Named<MadeBy>>,
}

impl Schedule {
    /// Reads a schedule from the text of its file. Refuses unknown fields and anything out of range.
    pub fn from_json(text: &str) -> Result<Self> {
        check_length(text.len() as u64)?;
        let Named(file): Named<File> = serde_json::from_str(text).map_err(|e| {
            let detail = e.to_string().chars().take(400).collect::<String>();
            Error::schedule(format!("this is not a schedule of format {FORMAT}: {detail}"))
        })?;
        if file.format != FORMAT {
            return Err(Error::schedule(format!(
                "the file says format {}; this library reads format {FORMAT}",
                file.format
            )));
        }
        if file.nfe != file.nodes.len() {
            return Err(Error::schedule(format!(
                "nfe is {} but there are {} nodes; they must be equal",
                file.nfe,
                file.nodes.len()
            )));
        }
        let nodes = file.nodes.into_iter().map(|n| n.0).collect();
        let mut schedule = Self::new(file.process, file.sigma_start, file.sigma_end, nodes)?;
        schedule.name = file.name;
        schedule.made_for = file.made_for.map(|m| m.0);
        schedule.made_by = file.made_by.map(|m| m.0);
        Ok(schedule)
    }

    /// The text of the file: one line a node, every number exact to the last bit when read back.
    ///
    /// # Panics
    /// Where there is no memory for it.
    pub fn to_json(&self) -> String {
        self.text().expect("memory for the text of a schedule")
    }

    /// The same; `OutOfMemory` where there is none for it.
    pub(crate) fn text(&self) -> Result<String> {
        fn js<T: Serialize>(value: &T) -> String {
            serde_json::to_string(value).expect("plain data always serializes")
        }
        fn indented<T: Serialize>(value: &T) -> String {
            let text = serde_json::to_string_pretty(value).expect("plain data always serializes");
            text.replace('\n', "\n  ")
        }
        let mut text = String::new();
        let mut add = |part: &str| memory::append(&mut text, part);
        add(&format!("{{\n  \"format\": {FORMAT}"))?;
        if let Some(name) = &self.name {
            add(&format!(",\n  \"name\": {}", js(name)))?;
        }
        add(&format!(",\n  \"process\": {}", js(&self.process)))?;
        add(&format!(",\n  \"nfe\": {}", self.nfe()))?;
        add(&format!(",\n  \"sigma_start\": {}", js(&self.sigma_start)))?;
        add(&format!(",\n  \"sigma_end\": {}", js(&self.sigma_end)))?;
        add(",\n  \"nodes\": [\n")?;
        for (n, node) in self.nodes.iter().enumerate() {
            add(&format!("{}    {}", if n == 0 { "" } else { ",\n" }, js(node)))?;
        }
        add("\n  ]")?;
        if let Some(made_for) = &self.made_for {
            add(&format!(",\n  \"made_for\": {}", indented(made_for)))?;
        }
        if let Some(made_by) = &self.made_by {
            add(&format!(",\n  \"made_by\": {}", indented(made_by)))?;
        }
        add("\n}\n")?;
        Ok(text)
    }

    /// Reads a schedule file; anything but a regular file of at most 1 MiB is refused unread.
    pub fn load(path: &Path) -> Result<Self> {
        let io = |e: std::io::Error| Error::new(Status::Io, format!("cannot read {}: {e}", path.display()));
        let about = fs::metadata(path).map_err(io)?;
        if !about.is_file() {
            return Err(Error::new(Status::Io, format!("{} is not a regular file", path.display())));
        }
        check_length(about.len()).map_err(|e| e.in_file(path))?;
        let mut bytes = Vec::new();
        fs::File::open(path).map_err(io)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let text = std::str::from_utf8(&bytes)
            .map_err(|e| Error::schedule(format!("this is not UTF-8 text: {e}")).in_file(path))?;
        Self::from_json(text).map_err(|e| e.in_file(path))
    }

    /// Writes the file whole or not at all. A link is written through, the permissions of an existing file are kept.
    ///
    /// # Errors
    /// `Io` where it cannot be written; `InvalidSchedule` where [`Schedule::load`] would refuse it: its text, such as
    /// that of `seeds`, is longer than [`MAX_FILE_BYTES`], or a number of its records is not finite.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.text()?;
        Self::from_json(&text).map_err(|e| e.in_file(path))?;
        files::replace(path, text.as_bytes())
            .map_err(|e| Error::new(Status::Io, format!("cannot write {}: {e}", path.display())))
    }
}

impl Error {
    fn in_file(self, path: &Path) -> Self {
        Self::new(self.status, format!("{}: {}", path.display(), self.message))
    }
}

/// Refuses a text that is too long to be a schedule.
pub(crate) fn check_length(bytes: u64) -> Result<()> {
    if bytes <= MAX_FILE_BYTES {
        return Ok(());
    }
    Err(Error::schedule(format!("the file has {bytes} bytes; a schedule has {MAX_FILE_BYTES} at most")))
}
