//! A lock that asks the system for nothing: those of the system may ask for memory, and this one is taken where there is
//! none. Nobody waits for it for ever, since in a child of fork a thread that is not there any more may hold it.
//!
//! `tests/loom.rs` tries every order of two threads, with its own `sync`.

use super::sync::{AtomicBool, Ordering, pause};

/// Attempts before a thread gives up. The lock is held for some microseconds.
const PATIENCE: usize = if cfg!(loom) { 3 } else { 1000 };

pub struct Spin {
    pub busy: AtomicBool,
}

impl Spin {
    /// Does `work` while no other thread does; None where the lock could not be had.
    pub fn with<T>(&self, work: impl FnOnce() -> T) -> Option<T> {
        for _ in 0..PATIENCE {
            if self.busy.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                let result = work();
                self.busy.store(false, Ordering::Release);
                return Some(result);
            }
            pause();
        }
        None
    }
}
