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

/// Whether an input is one of the few for which a body goes on to a distillation, which takes as long as hundreds of other
/// calls: one in `many`, and where nothing guides the inputs one in 8. By a hash: what is guided by coverage comes back to
/// inputs that say so themselves.
fn rarely(data: &[u8], many: u32) -> bool {
    let hash =
        data.iter().fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash >> 8).is_multiple_of(if cfg!(fuzzing) { many } else { 8 })
}

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
