//! The only list of failure kinds. Knows nothing of schedules, tensors or the ABI that reports it.

use std::fmt;

/// What went wrong, as a number that never changes its meaning. Zero is success; new kinds are
/// appended. The sentence that goes with it names the value at fault and what would be right.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// An argument is null, out of range, or of the wrong kind.
    InvalidArgument = 1,
    /// A schedule, or a schedule file, breaks a rule of the format.
    InvalidSchedule = 2,
    /// A tensor has a shape, dtype, device or layout that this call does not take.
    InvalidTensor = 3,
    /// A file could not be read or written.
    Io = 4,
    /// The host's callback asked to stop (returned nonzero).
    Stopped = 5,
    /// The model returned a value that is not finite.
    NonFinite = 6,
    /// A schedule, checkpoint or library does not fit the model, the run or the process that it is used with.
    Mismatch = 7,
    /// The call does not fit the object's present state, such as a step after the last.
    WrongState = 8,
    /// Memory could not be had.
    OutOfMemory = 9,
    /// A fault of the library itself; please report it with the text.
    Internal = 10,
}

impl Status {
    /// The kind with this number; one that this version does not know is `Internal`.
    pub fn from_code(code: i32) -> Self {
        use Status::*;
        let all = [
            Ok,
            InvalidArgument,
            InvalidSchedule,
            InvalidTensor,
            Io,
            Stopped,
            NonFinite,
            Mismatch,
            WrongState,
            OutOfMemory,
            Internal,
        ];
        all.into_iter().find(|status| *status as i32 == code).unwrap_or(Internal)
    }
}

/// A failure: its kind and one sentence for the person who has to mend it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What went wrong, for programs.
    pub status: Status,
    /// The value at fault and what would be right, for people.
    pub message: String,
}

/// A result of this library.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A failure of any kind.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// `InvalidArgument`.
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// `InvalidSchedule`.
    pub fn schedule(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidSchedule, message)
    }

    /// `InvalidTensor`.
    pub fn tensor(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidTensor, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
