//! The exports of the C ABI, by subject. The comments on them are the manual: cbindgen makes `include/lmsd.h` of
//! them, of `host.rs` and of the other files that `tests/header.rs` names.
//!
//! ```text
//! library  schedule  solvers  tensors  sample  distill   the exports, in the header's order
//! problem    the host's side of a distillation
//! guard      no panic leaves an export
//! pointers   what C hands in
//! reserve    small memory where the system has none     spin   its lock
//! ```

mod distill;
mod guard;
mod library;
mod pointers;
mod problem;
mod reserve;
mod sample;
mod schedule;
mod solvers;
mod spin;
mod tensors;

/// What `spin` is made of.
mod sync {
    pub use std::sync::atomic::{AtomicBool, Ordering};

    pub fn pause() {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
}
