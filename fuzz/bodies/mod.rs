//! What is fuzzed, as plain functions of bytes: `fuzz_targets/` hands them to libFuzzer, and `tests/fuzz_corpus.rs` runs
//! them over the corpus and some generated inputs on every toolchain. A fault is a panic, an abort, a signal or a report
//! of a sanitizer.
//!
//! Everything goes through the C ABI. What its comments ask of a host holds here for every input, whatever its bytes:
//! arrays have as many entries as they are said to have, and memory is as long as a descriptor that the library is to
//! take says.
//!
//! ```text
//! abi        the header       toy     a host: tensors, a model, failures on request
//! readers    texts            journal    checkpoints      tensor    descriptors      calls    sequences of calls
//! ```
#![allow(clippy::undocumented_unsafe_blocks)] // the reason is the second paragraph above

pub mod abi;
mod calls;
mod journal;
mod readers;
mod tensor;
mod toy;

pub use calls::calls;
pub use journal::journal;
pub use readers::{distill_options, schedule, solver_options};
pub use tensor::tensor;

/// What takes an input.
pub type Body = fn(&[u8]);

/// Every target by the name of its file in `fuzz_targets/` and of its folder in `corpus/`.
#[allow(dead_code)] // each target of libFuzzer uses one
pub const ALL: &[(&str, Body)] = &[
    ("schedule", schedule),
    ("solver_options", solver_options),
    ("distill_options", distill_options),
    ("journal", journal),
    ("tensor", tensor),
    ("calls", calls),
];
