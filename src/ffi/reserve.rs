//! The reserve: a little memory of the library's own for the small pieces that the system does not give. Rust's
//! collections, and crates that use them, end the process where they get none, and a host's process is not the library's to
//! end. So such a piece comes from here, and the call ends with `OutOfMemory` (`memory.rs` says where).
//!
//! It is part of the library's image, costs address space only until it is used, and serves calls through the C ABI
//! alone. Freed pieces can be had again.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::ptr::{self, null_mut};

use super::spin::Spin;
use super::sync::AtomicBool;
use crate::inside::{self, Reserve};

/// A failing allocation of at most what is left of so many bytes does not end the process.
const BYTES: usize = 4 << 20;
/// Pieces are whole numbers of units, and start at one: two cache lines, the largest alignment that any asks for.
const UNIT: usize = 128;
const UNITS: usize = BYTES / UNIT;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// The system's allocator, with the reserve behind it.
struct Allocator;

static POOL: Pool = Pool {
    lock: Spin { busy: AtomicBool::new(false) },
    units: UnsafeCell::new(Units([[0; UNIT]; UNITS])),
    taken: UnsafeCell::new([0; UNITS / 64]),
};

struct Pool {
    /// Held by the thread that is at `taken`.
    lock: Spin,
    units: UnsafeCell<Units>,
    /// A bit for each unit.
    taken: UnsafeCell<[u64; UNITS / 64]>,
}

#[repr(align(128))]
struct Units(#[allow(dead_code)] [[u8; UNIT]; UNITS]);

// SAFETY: `taken` is used by the thread that holds `lock`, and a unit by whom it was given to.
unsafe impl Sync for Pool {}

impl Pool {
    fn start(&self) -> *mut u8 {
        self.units.get().cast()
    }

    fn has(&self, piece: *mut u8) -> bool {
        (self.start().addr()..self.start().addr() + BYTES).contains(&piece.addr())
    }

    fn with<T>(&self, work: impl FnOnce(&mut [u64; UNITS / 64]) -> T) -> Option<T> {
        // SAFETY: this thread holds the lock, and `work` does not come back here.
        self.lock.with(|| work(unsafe { &mut *self.taken.get() }))
    }

    /// The first free units in a row; NULL where there are none. What is in them is unspecified.
    fn take(&self, layout: Layout) -> *mut u8 {
        let count = layout.size().div_ceil(UNIT);
        if layout.align() > UNIT || count > UNITS {
            return null_mut();
        }
        let piece = self.with(|taken| {
            let mut free = 0;
            for unit in 0..UNITS {
                free = if taken[unit / 64] >> (unit % 64) & 1 == 0 { free + 1 } else { 0 };
                if free == count {
                    let first = unit + 1 - count;
                    (first..=unit).for_each(|unit| taken[unit / 64] |= 1 << (unit % 64));
                    return self.start().wrapping_add(first * UNIT);
                }
            }
            null_mut()
        });
        piece.unwrap_or(null_mut())
    }

    /// Where the lock cannot be had the piece is lost.
    fn give_back(&self, piece: *mut u8, layout: Layout) {
        let first = (piece.addr() - self.start().addr()) / UNIT;
        let units = first..first + layout.size().div_ceil(UNIT);
        let _ = self.with(|taken| units.for_each(|unit| taken[unit / 64] &= !(1 << (unit % 64))));
    }
}

/// What the system gave, or where that is nothing a piece of the reserve, if the thread may have one.
fn or_reserve(memory: *mut u8, layout: Layout) -> *mut u8 {
    if !memory.is_null() || inside::reserve() == Reserve::Closed {
        return memory;
    }
    let piece = POOL.take(layout);
    if !piece.is_null() {
        inside::used_reserve();
    }
    piece
}

// SAFETY: pieces of the reserve are apart, aligned to 128 bytes and no shorter than asked for; all others are the system's.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        or_reserve(unsafe { System.alloc(layout) }, layout)
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised to this function.
        let memory = unsafe { System.alloc_zeroed(layout) };
        if !memory.is_null() {
            return memory;
        }
        let piece = or_reserve(memory, layout);
        if !piece.is_null() {
            // SAFETY: as long as the layout says.
            unsafe { ptr::write_bytes(piece, 0, layout.size()) };
        }
        piece
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        if POOL.has(memory) {
            return POOL.give_back(memory, layout);
        }
        // SAFETY: of the system, and as promised to this function.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if !POOL.has(memory) {
            // SAFETY: of the system, and as promised to this function.
            let moved = unsafe { System.realloc(memory, layout, size) };
            // One that cannot be made shorter stays: the system's `free` asks for no size.
            let stays = cfg!(unix) && size <= layout.size();
            if !moved.is_null() || stays {
                return if moved.is_null() { memory } else { moved };
            }
        }
        // SAFETY: a size that the caller of this function has checked; the old piece is freed once its contents are in
        // the new one.
        unsafe {
            let piece = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
            if !piece.is_null() {
                ptr::copy_nonoverlapping(memory, piece, size.min(layout.size()));
                self.dealloc(memory, layout);
            }
            piece
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Its own, as the library's may be in use by other tests.
    static OWN: Pool = Pool {
        lock: Spin { busy: AtomicBool::new(false) },
        units: UnsafeCell::new(Units([[0; UNIT]; UNITS])),
        taken: UnsafeCell::new([0; UNITS / 64]),
    };

    #[test]
    fn a_lock_that_nobody_gives_back_is_not_waited_for() {
        static HELD: Pool = Pool {
            lock: Spin { busy: AtomicBool::new(true) },
            units: UnsafeCell::new(Units([[0; UNIT]; UNITS])),
            taken: UnsafeCell::new([0; UNITS / 64]),
        };
        let layout = Layout::from_size_align(16, 16).unwrap();
        assert!(HELD.take(layout).is_null());
        HELD.give_back(HELD.start(), layout);
    }

    #[test]
    fn pieces_are_apart_and_can_be_had_again() {
        let layout = |size| Layout::from_size_align(size, 16).unwrap();
        let sizes: Vec<usize> = (0..500).map(|i| 1 + i * 37 % 4000).collect();
        let pieces: Vec<*mut u8> = sizes.iter().map(|size| OWN.take(layout(*size))).collect();
        for (i, (piece, size)) in pieces.iter().zip(&sizes).enumerate() {
            assert!(piece.addr() % UNIT == 0 && OWN.has(*piece));
            // SAFETY: a piece of that size, of nobody else.
            unsafe { ptr::write_bytes(*piece, i as u8, *size) };
        }
        for (i, (piece, size)) in pieces.iter().zip(&sizes).enumerate() {
            // SAFETY: as above.
            let bytes = unsafe { std::slice::from_raw_parts(*piece, *size) };
            assert!(bytes.iter().all(|byte| *byte == i as u8));
            OWN.give_back(*piece, layout(*size));
        }
        assert!(OWN.take(layout(BYTES + 1)).is_null());
        let all = OWN.take(layout(BYTES));
        assert!(!all.is_null() && OWN.take(layout(1)).is_null());
        OWN.give_back(all, layout(BYTES));
        assert_eq!(OWN.with(|taken| taken.iter().filter(|bits| **bits != 0).count()), Some(0));
    }
}
