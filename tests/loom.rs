//! The library's own lock in every order of two threads, by loom: `make loom`.
#![cfg(loom)]

/// What the lock is made of, here loom's.
mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering};
    pub use loom::thread::yield_now as pause;
}
#[path = "../src/ffi/spin.rs"]
mod spin;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::AtomicBool;
use spin::Spin;

/// Behind the lock.
struct Counted {
    lock: Spin,
    count: UnsafeCell<u32>,
}

// SAFETY: loom sees every use of `count`, and fails where two threads are at it.
unsafe impl Sync for Counted {}
// SAFETY: as above.
unsafe impl Send for Counted {}

impl Counted {
    /// Whether it was this thread's turn.
    fn add(&self) -> bool {
        // SAFETY: the pointer is loom's own.
        self.lock.with(|| self.count.with_mut(|count| unsafe { *count += 1 })).is_some()
    }
}

#[test]
fn one_thread_at_a_time_and_each_sees_what_the_other_wrote() {
    loom::model(|| {
        let busy = AtomicBool::new(false);
        let counted = Arc::new(Counted { lock: Spin { busy }, count: UnsafeCell::new(0) });
        let other = Arc::clone(&counted);
        let other = loom::thread::spawn(move || u32::from(other.add()));
        let own = u32::from(counted.add());
        let added = own + other.join().unwrap();
        let read = counted.lock.with(|| counted.count.with(|count| unsafe { *count }));
        assert_eq!(read, Some(added));
        assert!(added > 0);
    });
}
