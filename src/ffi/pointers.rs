//! What C hands to an export: pointers that may be NULL, texts, arrays with a count. The types here are plain
//! pointers to C. Only a caller of an export makes values of them, and its promise, in the export's comment,
//! is what their methods rely on. cbindgen.toml says what each is in C.

use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;

use crate::error::{Error, Result, Status};
use crate::host::{Backend, Handle, LmsdHost, null};

/// A field of solvers has a thousand at each NFE, and comparisons take many NFEs at once.
const MOST_ITEMS: usize = 1 << 16;

/// What a pointer points to; refuses NULL.
pub fn given<T>(pointer: Option<T>, what: &str) -> Result<T> {
    pointer.ok_or_else(|| null(what))
}

/// A NUL-terminated text, or NULL.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The text; refuses NULL and what is not UTF-8.
    pub fn read(&self, what: &str) -> Result<&str> {
        if self.is_null() {
            return Err(null(what));
        }
        // SAFETY: not NULL; callers of exports promise a NUL at the end, and that the text stays during the call.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|e| Error::argument(format!("{what} is not UTF-8: {e}")))
    }
}

/// A table of the host's functions, or NULL for the built-in tensors.
#[repr(transparent)]
pub struct Host(*const LmsdHost);

impl Host {
    pub fn backend(&self) -> Result<Backend> {
        // SAFETY: callers of exports promise NULL or a table as `lmsd_host` describes it.
        unsafe { Backend::new(self.0) }
    }
}

/// A tensor that is only read, or NULL.
#[repr(transparent)]
pub struct Input(*const c_void);

impl Input {
    pub fn borrow(&self, backend: &Backend, what: &str) -> Result<Handle> {
        // SAFETY: callers of exports promise NULL or a tensor of the host that they name in the same call, or
        // that they made the sampler with.
        unsafe { backend.borrow(self.0, what) }
    }
}

/// A tensor that is written, or NULL.
#[repr(transparent)]
pub struct Output(*mut c_void);

impl Output {
    pub fn borrow(&self, backend: &Backend, what: &str) -> Result<Handle> {
        // SAFETY: as for `Input`; nothing else uses the tensor during the call, by the same promise.
        unsafe { backend.borrow(self.0, what) }
    }
}

/// An array of the caller's; refuses NULL, no entries and more than [`MOST_ITEMS`].
///
/// # Safety
/// `items` is NULL or has `count` entries, which stay as long as the result.
pub unsafe fn slice<'a, T>(items: *const T, count: usize, what: &str) -> Result<&'a [T]> {
    if count == 0 || count > MOST_ITEMS {
        return Err(Error::argument(format!("count is {count}; it must be 1 to {MOST_ITEMS}")));
    }
    if items.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, with `count` entries by the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts(items, count) })
}

/// Writes results to an array of the caller's; refuses NULL.
///
/// # Safety
/// `to` is NULL or has room for `values`.
pub unsafe fn fill(to: *mut f64, values: &[f64], what: &str) -> Result<()> {
    if to.is_null() {
        return Err(null(what));
    }
    // SAFETY: not NULL, with room by the caller's promise; `values` are the library's own, so apart from it.
    unsafe { ptr::copy_nonoverlapping(values.as_ptr(), to, values.len()) };
    Ok(())
}

/// A text to hand out; [`free_text`] takes it back.
pub fn give_text(text: String) -> Result<*mut c_char> {
    let text = CString::new(text).map_err(|_| Error::new(Status::Internal, "a text with a NUL in it"))?;
    Ok(text.into_raw())
}

/// # Safety
/// `text` is NULL or of [`give_text`], as long as it was then, and handed in once.
pub unsafe fn free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: `give_text` made it by `into_raw`, and the caller promises the rest.
        drop(unsafe { CString::from_raw(text) });
    }
}
