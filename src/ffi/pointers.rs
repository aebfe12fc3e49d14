//! What C hands to an export: pointers that may be NULL, texts, arrays with a count. The types here are plain
//! pointers to C. Only a caller of an export makes values of them, and its promise, in the export's comment,
//! is what their methods rely on. cbindgen.toml says what each is in C.

use std::ffi::{CStr, CString, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use crate::error::{Error, Result, Status};
use crate::host::{Backend, Handle, LmsdHost, null};
use crate::memory;

/// A field of solvers has a thousand at each NFE, and comparisons take many NFEs at once.
const MOST_ITEMS: usize = 1 << 16;

/// What a pointer points to; refuses NULL.
pub fn given<T>(pointer: Option<T>, what: &str) -> Result<T> {
    pointer.ok_or_else(|| null(what))
}

/// No text is longer: a thousand schedules of ten nodes have two million bytes.
const MOST_BYTES: usize = 16 << 20;
/// What is read from a text takes at most so many bytes for each of its own.
const READ: usize = 48;

/// A NUL-terminated text, or NULL.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    pub fn is_null(&self) -> bool {
        self.0.is_null()
    }

    /// The text; refuses NULL, what is not UTF-8, and more than there is memory to read.
    pub fn read(&self, what: &str) -> Result<&str> {
        if self.is_null() {
            return Err(null(what));
        }
        // SAFETY: not NULL; callers of exports promise a NUL at the end, and that the text stays during the call.
        let text = unsafe { CStr::from_ptr(self.0) };
        let bytes = text.count_bytes();
        if bytes > MOST_BYTES {
            return Err(Error::argument(format!("{what} has {bytes} bytes; {MOST_BYTES} at most are read")));
        }
        memory::room(READ * bytes)?;
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

/// Writes an object or a text to hand out, unless memory is short: it would keep that of the reserve.
pub fn put<T>(out: &mut MaybeUninit<T>, value: T) -> Result<()> {
    memory::check()?;
    out.write(value);
    Ok(())
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

/// Writes a text to hand out; [`free_text`] takes it back.
pub fn put_text(out: &mut MaybeUninit<*mut c_char>, text: String) -> Result<()> {
    memory::room(text.len() + 1)?; // a NUL may move it
    let text = CString::new(text).map_err(|_| Error::new(Status::Internal, "a text with a NUL in it"))?;
    memory::check()?;
    out.write(text.into_raw());
    Ok(())
}

/// # Safety
/// `text` is NULL or of [`put_text`], as long as it was then, and handed in once.
pub unsafe fn free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: `put_text` made it by `into_raw`, and the caller promises the rest.
        drop(unsafe { CString::from_raw(text) });
    }
}
