//! Nothing panics across the C ABI: the body of every export is a closure that [`guard`] or [`guard_or`] runs.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Error, Result, Status};

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

fn remember(message: &str) {
    let text = CString::new(message.replace('\0', "?")).unwrap_or_default();
    // A thread that is ending may have no such text any more.
    let _ = LAST_ERROR.try_with(|slot| *slot.borrow_mut() = text);
}

/// The text of the last error on this thread, valid until the next; None where the thread is ending.
pub fn last_error() -> Option<*const c_char> {
    LAST_ERROR.try_with(|slot| slot.borrow().as_ptr()).ok()
}

/// Runs the body of an export: an error becomes its code and the thread's last error; a panic too.
pub fn guard(body: impl FnOnce() -> Result<()>) -> Status {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return Status::Ok,
        Ok(Err(error)) => error,
        Err(panic) => Error::new(Status::Internal, panic_text(&*panic)),
    };
    remember(&error.message);
    error.status
}

/// The same for exports that return a plain value.
pub fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    format!("a fault of the library, please report it: {text}")
}
