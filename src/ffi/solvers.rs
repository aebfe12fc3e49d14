//! The published solvers, the options of every call, the field that a distilled schedule must beat.

use std::ffi::c_char;
use std::mem::MaybeUninit;

use super::guard::guard;
use super::pointers::{Text, given, put_text};
use crate::error::Status;
use crate::field::Rivals;
use crate::memory;
use crate::solver;

/// The published solvers as a JSON array of objects, to be freed with `lmsd_string_free`: `"name"`, `"about"`,
/// `"arxiv"` (where it was published), `"order"` (of a whole run), `"competes"` (false for another name of one
/// before it), and the numbers of model calls up to 50 that it can have: `"nfes"` where the last step ends at
/// 0, `"nfes_above_zero"` where it ends above.
///
/// # Safety
/// `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_solvers(out: Option<&mut MaybeUninit<*mut c_char>>) -> Status {
    guard(|| {
        let out = given(out, "out")?;
        let list = solver::solvers().iter().map(|s| {
            serde_json::json!({
                "name": s.name,
                "about": s.about,
                "arxiv": s.arxiv,
                "order": s.order,
                "competes": s.competes,
                "nfes": s.nfes(true),
                "nfes_above_zero": s.nfes(false),
            })
        });
        let list: Vec<_> = list.collect();
        put_text(out, serde_json::Value::from(list).to_string())
    })
}

/// Every option that a call takes as JSON, to be freed with `lmsd_string_free`: an object with a list for each
/// of `"solve"`, `"distill"`, `"compare"` and `"rivals"`. An option is an object of `"name"`, `"type"`,
/// `"default"` (null where it depends on others), `"default_text"`, `"range"` (in words), `"unit"`, `"about"`,
/// `"values"` where it is one of a few words, `"min"` and `"max"` where these bound a number. Types:
/// `"integer"`, `"number"`, `"boolean"`, `"string"`, `"path"`, `"object"`, `"grid"` (an object with `"kind"`),
/// `"grids"` (arrays of noise levels) and `"schedules"` (objects as in their files).
///
/// # Safety
/// `out` is writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_options(out: Option<&mut MaybeUninit<*mut c_char>>) -> Status {
    guard(|| {
        let out = given(out, "out")?;
        put_text(out, crate::options::all().to_string())
    })
}

/// The field of published solvers that a distilled schedule must beat, as a JSON array of schedules
/// in the format of their file, to be freed with `lmsd_string_free`. No two have the same table.
/// Their `made_by` says which solver each is and on which grid, such as "karras rho=5, straight to
/// 0, from sigma 8".
///
/// `options`: a JSON object, all fields optional:
/// [options of rivals]
///
/// `LMSD_STATUS_INVALID_ARGUMENT` names the value that is out of range.
///
/// # Safety
/// `options` is a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_rivals(options: Text, out: Option<&mut MaybeUninit<*mut c_char>>) -> Status {
    guard(|| {
        let out = given(out, "out")?;
        let list = Rivals::from_json(options.read("options")?)?.list()?;
        let mut text = String::from("[");
        for (i, schedule) in list.iter().enumerate() {
            memory::append(&mut text, if i == 0 { "" } else { "," })?;
            memory::append(&mut text, &schedule.text()?)?;
        }
        memory::append(&mut text, "]")?;
        put_text(out, text)
    })
}
