//! The loaded library itself: its versions, its last error, its texts.

use std::ffi::c_char;
use std::ptr;

use super::guard::{guard_or, last_error};
use super::pointers::free_text;

/// Version of this ABI. A binding compares it with `lmsd_abi_version()` when it loads the library.
pub const LMSD_ABI_VERSION: u32 = 2;

/// The ABI version of the loaded library; equal to `LMSD_ABI_VERSION` of the header it goes with.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_abi_version() -> u32 {
    guard_or(0, || LMSD_ABI_VERSION)
}

/// The version of the library, such as "0.1.0". The text is static.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_version() -> *const c_char {
    guard_or(ptr::null(), || concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast())
}

/// One sentence on the last call of this thread that failed; empty before the first failure. It
/// names the value at fault and what would be right. The text is valid until the next call of
/// this library on this thread that fails.
#[unsafe(no_mangle)]
pub extern "C" fn lmsd_last_error() -> *const c_char {
    guard_or(ptr::null(), || last_error().cast())
}

/// Frees a text that a call of this library wrote into a `char **`. NULL is fine.
///
/// # Safety
/// `text` is NULL or such a text, as long as it was written, freed once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_string_free(text: *mut c_char) {
    guard_or((), || {
        // SAFETY: the promise above is that of `free_text`.
        unsafe { free_text(text) }
    })
}
