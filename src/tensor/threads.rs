//! The threads that large tensors are worked on with, or none where the system gives none.

use parking_lot::RwLock;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::{inside, memory};

/// Threads are made where so many bytes can be had.
const FOR_THREADS: usize = 1 << 20;

/// The pool of this library, with the process that it is of. Nobody waits for the lock: in a child of fork a thread that
/// is not there any more may hold it.
static POOL: RwLock<Option<(u32, &'static ThreadPool)>> = RwLock::new(None);

/// Threads to work on.
pub enum Threads {
    /// Those of the pool that the calling thread is of: a Rust program's own.
    Callers,
    /// Those of this library.
    Own(&'static ThreadPool),
}

impl Threads {
    /// None where no threads can be made, and while another thread makes them: then the calling thread does all, with
    /// the same results, and the next call tries again.
    pub fn get() -> Option<Self> {
        if rayon::current_thread_index().is_some() {
            return Some(Self::Callers);
        }
        pool().map(Self::Own)
    }

    /// Runs `work`, whose parallel iterators take these threads.
    pub fn run(self, work: impl FnOnce() + Send) {
        match self {
            Self::Callers => work(),
            Self::Own(pool) => pool.install(work),
        }
    }
}

/// The pool of this process, with as many threads as it may use cores (or `RAYON_NUM_THREADS` says). A child of
/// fork has the memory of its parent's pool and none of its threads, so it gets one of its own.
fn pool() -> Option<&'static ThreadPool> {
    let process = std::process::id();
    let own = |pool: Option<(u32, &'static ThreadPool)>| pool.filter(|(of, _)| *of == process);
    if let Some((_, pool)) = own(*POOL.try_read()?) {
        return Some(pool);
    }
    let mut pool = POOL.try_write()?;
    if let Some((_, pool)) = own(*pool) {
        return Some(pool);
    }
    // What Rust and the C library need for a thread itself, less than 64 bytes a piece, they end the process without.
    memory::room(FOR_THREADS).ok()?;
    let made = ThreadPoolBuilder::new()
        .spawn_handler(|thread| {
            let named = std::thread::Builder::new().name(format!("lmsd {}", thread.index()));
            let work = move || {
                inside::stay();
                thread.run();
            };
            named.spawn(work).map(drop)
        })
        .build()
        .ok()?;
    made.broadcast(|_| ()); // now each has what it needs for itself
    // Never taken down: that of a parent cannot be, and threads may be at work when the process ends.
    let made: &'static ThreadPool = Box::leak(Box::new(made));
    *pool = Some((process, made));
    Some(made)
}
