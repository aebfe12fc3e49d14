//! Nothing panics across the C ABI: the body of every export is a closure that [`guard`] or [`guard_or`] runs, inside
//! the library (`inside.rs`).

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt::Write;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use crate::error::{Error, Result, Status};
use crate::inside::{inside, is_inside};
use crate::memory;

/// Bytes of an error's text, with the NUL; what is longer is cut.
const TEXT: usize = 2048;

thread_local! {
    // Not a `CString`: it would ask for memory, and be gone where the thread is ending.
    static LAST_ERROR: [Cell<u8>; TEXT] = const { [const { Cell::new(0) }; TEXT] };
    /// Where in the library's source the last panic of this thread was.
    static PLACE: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Keeps a text for `lmsd_last_error`: as much of it as there is room for, without control characters, which have a
/// meaning to terminals.
fn remember(message: &str) {
    let mut at = 0;
    LAST_ERROR.with(|text| {
        for character in message.chars() {
            let plain = !character.is_control() || matches!(character, '\n' | '\t');
            let (mut buffer, escaped) = ([0; 4], character.escape_default());
            let mut put = |part: char| {
                let bytes = part.encode_utf8(&mut buffer).as_bytes();
                if at + bytes.len() < TEXT {
                    text[at..].iter().zip(bytes).for_each(|(slot, byte)| slot.set(*byte));
                    at += bytes.len();
                    return true;
                }
                false
            };
            if !(if plain { put(character) } else { escaped.into_iter().all(put) }) {
                break;
            }
        }
        text[at].set(0);
    });
}

/// The text of the last error on this thread, valid until the next.
pub fn last_error() -> *const u8 {
    LAST_ERROR.with(|text| text.as_ptr().cast())
}

/// Runs the body of an export: an error becomes its code and the thread's last error; a panic too.
pub fn guard(body: impl FnOnce() -> Result<()>) -> Status {
    inside(|| {
        silence();
        let error = match catch_unwind(AssertUnwindSafe(body)) {
            Ok(Ok(())) => return Status::Ok,
            // Whatever else it is, it came of that.
            Ok(Err(_)) | Err(_) if memory::is_short() => memory::check().unwrap_err(),
            Ok(Err(error)) => error,
            Err(panic) => Error::new(Status::Internal, panic_text(&*panic)),
        };
        remember(&error.message);
        error.status
    })
}

/// The same for exports that return a plain value.
pub fn guard_or<T>(fallback: T, body: impl FnOnce() -> T) -> T {
    inside(|| {
        silence();
        catch_unwind(AssertUnwindSafe(body)).unwrap_or(fallback)
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text");
    let place = PLACE.with(RefCell::take);
    format!("a fault of the library, please report it: {text}{place}")
}

/// Panics inside the library print nothing; their text and place are the call's error. All others go to the hook that
/// was there.
fn silence() {
    static ONCE: Once = Once::new();
    // A thread that is panicking, in a program of Rust, may not set hooks.
    if ONCE.is_completed() || std::thread::panicking() {
        return;
    }
    ONCE.call_once(|| {
        let before = take_hook();
        set_hook(Box::new(move |about| {
            if !is_inside() {
                return before(about);
            }
            if let Some(place) = about.location() {
                let _ = PLACE.try_with(|text| {
                    let mut text = text.borrow_mut();
                    text.clear();
                    let _ = write!(text, " ({}:{})", place.file(), place.line());
                });
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;
    use std::process::Command;

    use super::*;

    fn text() -> &'static str {
        // SAFETY: the text of this thread, which ends with a NUL and stays until its next error.
        unsafe { CStr::from_ptr(last_error().cast()) }.to_str().unwrap()
    }

    #[test]
    fn an_errors_text_is_kept_without_control_characters() {
        let refused = |text: &str| guard(|| Err(Error::argument(text)));
        assert_eq!(refused("a \"field\u{1b}[31m\", \0 and \u{7}\n\té"), Status::InvalidArgument);
        assert_eq!(text(), "a \"field\\u{1b}[31m\", \\u{0} and \\u{7}\n\té");
        refused(&"é".repeat(TEXT));
        assert_eq!(text(), "é".repeat((TEXT - 1) / 2));
        refused("");
        assert_eq!(text(), "");
    }

    /// Run by the test below, alone, as it looks at what the process prints.
    #[test]
    #[ignore]
    fn panics_inside() {
        assert_eq!(guard(|| panic!("a secret")), Status::Internal);
        assert!(text().contains("please report it: a secret (src/ffi/guard.rs:"), "{}", text());
        let other = std::thread::spawn(|| panic!("of the host"));
        assert!(other.join().is_err());
        assert_eq!(guard_or(7, || panic!("another secret")), 7);
        let callback = || crate::inside::outside(|| catch_unwind(|| panic!("of a callback")).is_err());
        assert!(guard_or(false, callback));
    }

    #[test]
    fn panics_inside_print_nothing_and_all_others_do() {
        let mut process = Command::new(std::env::current_exe().unwrap());
        let test = ["ffi::guard::tests::panics_inside", "--exact", "--ignored", "--nocapture"];
        let out = process.args(test).output().unwrap();
        let printed = String::from_utf8_lossy(&out.stderr);
        assert!(out.status.success(), "{printed}");
        assert!(printed.contains("of the host") && printed.contains("of a callback"), "{printed}");
        assert!(!printed.contains("secret"), "{printed}");
    }
}
