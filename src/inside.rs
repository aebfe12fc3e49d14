//! Whose code a thread runs: this library's, in a call through the C ABI, or the host's, in a callback. Inside the
//! library floating point rounds to nearest and keeps denormal numbers, panics print nothing, and small pieces of memory
//! can come from the reserve (`memory.rs`); a callback finds all that as the host has set it. A Rust program that uses
//! this crate without the C ABI is never inside. Knows nothing of what is called.

use std::cell::Cell;

/// What memory the thread may have of the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// None: the host's code, or a piece whose failure is looked after.
    Closed,
    /// Pieces that would end the process otherwise.
    Open,
    /// Likewise, and some came from there: the call is to end with `OutOfMemory`.
    Used,
}

// None of these has a destructor or is made when first used, so that no access asks for memory: a dip into the reserve
// reads them.
thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
    static RESERVE: Cell<Reserve> = const { Cell::new(Reserve::Closed) };
    /// The control register of the host.
    static HOSTS: Cell<u64> = const { Cell::new(0) };
}

/// Puts the thread back where it was, also where a panic goes through.
struct Before(bool, Reserve, u64, u64);

impl Before {
    /// Enters or leaves the library, and has floating point as `control` says.
    fn switch(inside: bool, reserve: Reserve, control: u64, hosts: u64) -> Self {
        let before = Self(INSIDE.get(), RESERVE.replace(reserve), float::control(), HOSTS.replace(hosts));
        INSIDE.set(inside);
        float::set_control(control);
        before
    }
}

impl Drop for Before {
    fn drop(&mut self) {
        INSIDE.set(self.0);
        RESERVE.set(self.1);
        float::set_control(self.2);
        HOSTS.set(self.3);
    }
}

/// Runs the library's code, on a thread of the host's.
pub fn inside<T>(work: impl FnOnce() -> T) -> T {
    let _before = Before::switch(true, Reserve::Open, float::DEFAULT, float::control());
    work()
}

/// Runs a callback of the host's.
pub fn outside<T>(callback: impl FnOnce() -> T) -> T {
    if !INSIDE.get() {
        return callback();
    }
    let _before = Before::switch(false, Reserve::Closed, HOSTS.get(), HOSTS.get());
    callback()
}

/// From now on this thread is inside: it is one of the library's own.
pub fn stay() {
    std::mem::forget(Before::switch(true, Reserve::Open, float::DEFAULT, float::DEFAULT));
}

/// Whether this thread runs the library's code in a call through the C ABI, or for one.
pub fn is_inside() -> bool {
    INSIDE.get()
}

/// What this thread may have of the reserve.
pub fn reserve() -> Reserve {
    RESERVE.get()
}

/// The reserve gave a piece to this thread, or would have had to.
pub fn used_reserve() {
    if RESERVE.get() == Reserve::Open {
        RESERVE.set(Reserve::Used);
    }
}

/// Runs `work` without the reserve: it looks after a failure itself.
pub fn without_reserve<T>(work: impl FnOnce() -> T) -> T {
    let before = RESERVE.replace(Reserve::Closed);
    let result = work();
    RESERVE.set(before);
    result
}

/// The register that says how floating point rounds and whether denormal numbers are 0.
#[cfg(all(target_arch = "x86_64", not(miri)))]
mod float {
    use std::arch::asm;

    /// To nearest, denormals kept, no exception traps.
    pub const DEFAULT: u64 = 0x1f80;

    pub fn control() -> u64 {
        let mut value = 0u32;
        // SAFETY: writes MXCSR to four bytes of this frame.
        unsafe { asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack, preserves_flags)) };
        value.into()
    }

    pub fn set_control(value: u64) {
        let value = value as u32;
        // SAFETY: a value that was read from MXCSR, or its default. Code of Rust runs with the default only.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, preserves_flags, readonly)) };
    }
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
mod float {
    use std::arch::asm;

    /// To nearest, denormals kept, no exception traps.
    pub const DEFAULT: u64 = 0;

    pub fn control() -> u64 {
        let value;
        // SAFETY: reads FPCR.
        unsafe { asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }

    pub fn set_control(value: u64) {
        // SAFETY: a value that was read from FPCR, or its default. Code of Rust runs with the default only.
        unsafe { asm!("msr fpcr, {}", in(reg) value, options(nostack, preserves_flags)) };
    }
}

#[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod float {
    pub const DEFAULT: u64 = 0;

    pub fn control() -> u64 {
        DEFAULT
    }

    pub fn set_control(_: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callback_is_outside_and_a_call_in_it_inside_again() {
        let now = || (is_inside(), reserve());
        let (closed, open) = ((false, Reserve::Closed), (true, Reserve::Open));
        assert_eq!(now(), closed);
        inside(|| {
            assert_eq!(now(), open);
            used_reserve();
            outside(|| {
                assert_eq!(now(), closed);
                inside(|| assert_eq!(now(), open));
                assert_eq!(now(), closed);
            });
            assert_eq!(now(), (true, Reserve::Used), "the call inside the callback had its own");
            without_reserve(|| assert_eq!(now(), (true, Reserve::Closed)));
        });
        assert_eq!(now(), closed);
        assert!(std::panic::catch_unwind(|| inside(|| panic!("expected"))).is_err());
        assert_eq!(now(), closed);
    }

    #[test]
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn floating_point_is_the_librarys_inside_and_the_hosts_in_callbacks() {
        // Toward minus infinity, denormals are 0.
        const HOSTS: u64 = 0x1f80 | 0x2000 | 0x8000 | 0x40;
        float::set_control(HOSTS);
        inside(|| {
            assert_eq!(float::control(), float::DEFAULT);
            outside(|| assert_eq!(float::control(), HOSTS));
            assert_eq!(float::control(), float::DEFAULT);
        });
        let after = float::control();
        float::set_control(float::DEFAULT);
        assert_eq!(after, HOSTS);
    }
}
