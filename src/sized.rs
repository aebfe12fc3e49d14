//! Structs that cross the C ABI and may grow at their end. Each starts with its size as its maker knows it, so
//! that a host and a library of different versions understand each other:
//!
//! - One of an older version is taken; the fields that it lacks are 0.
//! - One of a newer version is taken if what lies beyond this version's fields is 0, else refused.
//! - In one that the library writes, fields beyond the caller's size are left out, and what the caller has beyond
//!   this version's fields becomes 0.
//!
//! A struct that the library makes for a callback has the library's size: the host reads the fields that lie
//! within it.

use std::mem::MaybeUninit;
use std::ptr;

use crate::error::{Error, Result};

/// No struct is longer: such a size was never set.
const LONGEST: usize = 4096;

/// Made by `growing!`.
///
/// # Safety
/// The type is `repr(C)`, starts with a `usize`, its size, and all bytes 0 are one of its values. `SIZES` ascend
/// to its own.
pub unsafe trait Growing: Copy {
    /// In C.
    const NAME: &str;
    /// What it has been since its first version.
    const SIZES: &[usize];
}

/// `growing!(Type, "name in C", { fields of the first version }, { fields since })`: all of them in order. The
/// type must be `repr(C)`, of fields for which 0 is a value.
#[macro_export]
macro_rules! growing {
    ($type:ident, $name:literal, { $($first:ident),+ $(,)? }, { $($later:ident),* $(,)? }) => {
        // SAFETY: `repr(C)` and zeros by the rule of this macro; it has all fields, or the pattern below does not
        // compile; the first is its size, or the assertion fails.
        unsafe impl $crate::sized::Growing for $type {
            const NAME: &str = $name;
            const SIZES: &[usize] = &[$(std::mem::offset_of!($type, $later),)* size_of::<$type>()];
        }
        const _: fn($type) = |$type { $($first: _,)+ $($later: _,)* }| ();
        const _: fn(&$type) -> &usize = |value| &value.struct_size;
        const _: () = assert!(std::mem::offset_of!($type, struct_size) == 0);
        const _: () = assert!($crate::sized::ascend(<$type as $crate::sized::Growing>::SIZES));
    };
}

/// Whether each is above the one before.
pub const fn ascend(sizes: &[usize]) -> bool {
    let mut i = 1;
    while i < sizes.len() {
        if sizes[i - 1] >= sizes[i] {
            return false;
        }
        i += 1;
    }
    true
}

/// Refuses a size that is neither of an older version nor at least this version's.
fn check<T: Growing>(size: usize) -> Result<()> {
    let own = size_of::<T>();
    if T::SIZES.contains(&size) || (own..=LONGEST).contains(&size) {
        return Ok(());
    }
    let name = T::NAME;
    Err(Error::argument(format!("struct_size of {name} is {size}; set it to sizeof({name}), here {own}")))
}

/// A struct of the caller's, as this version knows it.
///
/// # Safety
/// `from` is NULL or starts with a size and is readable for it.
pub unsafe fn read<T: Growing>(from: *const T, what: &str) -> Result<T> {
    if from.is_null() {
        return Err(Error::argument(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, and starts with its size by the caller's promise.
    let size = unsafe { from.cast::<usize>().read() };
    check::<T>(size)?;
    let own = size_of::<T>();
    // SAFETY: readable for `size` bytes by the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(from.cast::<u8>(), size) };
    if bytes.iter().skip(own).any(|byte| *byte != 0) {
        return Err(Error::argument(format!(
            "{what} is a {} of {size} bytes with values beyond the {own} that this version of lmsd knows; set \
             those to 0, or take a newer library",
            T::NAME
        )));
    }
    let mut value = MaybeUninit::<T>::zeroed();
    // SAFETY: at most the size of T is written; the rest stays 0, of which T's are valid.
    unsafe {
        ptr::copy_nonoverlapping(bytes.as_ptr(), value.as_mut_ptr().cast(), size.min(own));
        Ok(value.assume_init())
    }
}

/// Writes all fields of `value` but its size to a struct of the caller's, as far as that has them.
///
/// # Safety
/// `to` is NULL or starts with a size and is writable for it.
pub unsafe fn write<T: Growing>(to: *mut T, value: T, what: &str) -> Result<()> {
    if to.is_null() {
        return Err(Error::argument(format!("{what} is NULL")));
    }
    // SAFETY: not NULL, and starts with its size by the caller's promise.
    let size = unsafe { to.cast::<usize>().read() };
    check::<T>(size)?;
    let known = size.min(size_of::<T>());
    let first = size_of::<usize>();
    // SAFETY: both are valid for `known` bytes and the caller's for `size`, by its promise; `value` is apart from it.
    unsafe {
        let (from, to) = (ptr::from_ref(&value).cast::<u8>(), to.cast::<u8>());
        ptr::copy_nonoverlapping(from.add(first), to.add(first), known - first);
        ptr::write_bytes(to.add(known), 0, size - known);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two fields, then one more, then two.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Toy {
        struct_size: usize,
        first: u64,
        second: i32,
        third: f64,
        fourth: u64,
    }
    growing!(Toy, "toy", { struct_size, first }, { second, third, fourth });

    /// A later version, as a host has it.
    #[repr(C)]
    #[derive(Clone, Copy)]
    struct Later {
        toy: Toy,
        fifth: u64,
    }

    const FULL: Toy = Toy { struct_size: 40, first: 1, second: 2, third: 3.0, fourth: 4 };

    fn read_toy(toy: &Later) -> Result<Toy> {
        // SAFETY: a Toy with more behind it, of at most the size that it says.
        unsafe { read(ptr::from_ref(toy).cast::<Toy>(), "toy") }
    }

    #[test]
    fn the_sizes_are_the_ends_of_the_fields() {
        assert_eq!(Toy::SIZES, [16, 24, 32, 40]);
        assert!(!ascend(&[8, 8]) && !ascend(&[16, 8]) && ascend(&[8, 16]) && ascend(&[8]));
    }

    #[test]
    fn what_an_older_struct_lacks_is_0() {
        for (size, expected) in [
            (16, Toy { struct_size: 16, second: 0, third: 0.0, fourth: 0, ..FULL }),
            (24, Toy { struct_size: 24, third: 0.0, fourth: 0, ..FULL }),
            (32, Toy { struct_size: 32, fourth: 0, ..FULL }),
            (40, FULL),
        ] {
            let toy = Later { toy: Toy { struct_size: size, ..FULL }, fifth: 9 };
            assert_eq!(read_toy(&toy), Ok(expected));
        }
    }

    #[test]
    fn a_newer_struct_is_taken_where_it_has_nothing_new() {
        let newer = Toy { struct_size: 48, ..FULL };
        assert_eq!(read_toy(&Later { toy: newer, fifth: 0 }), Ok(newer));
        for fifth in [1, 1 << 63] {
            let error = read_toy(&Later { toy: newer, fifth }).unwrap_err();
            assert!(error.message.contains("48 bytes with values beyond the 40"), "{error}");
        }
    }

    #[test]
    fn a_size_that_no_version_has_is_refused() {
        for struct_size in [0, 1, 8, 15, 17, 39, LONGEST + 1, usize::MAX] {
            let toy = Later { toy: Toy { struct_size, ..FULL }, fifth: 0 };
            let error = read_toy(&toy).unwrap_err();
            assert!(error.message.contains("sizeof(toy), here 40"), "{error}");
            let mut toy = toy;
            // SAFETY: refused by its size; nothing is written.
            let error = unsafe { write(ptr::from_mut(&mut toy).cast::<Toy>(), FULL, "toy") }.unwrap_err();
            assert!(error.message.contains("sizeof(toy), here 40"), "{error}");
        }
        // SAFETY: NULL.
        assert!(unsafe { read(ptr::null::<Toy>(), "toy") }.is_err());
    }

    #[test]
    fn only_what_fits_is_written() {
        let old = Toy { struct_size: 0, first: 11, second: 12, third: 13.0, fourth: 14 };
        for (size, expected, fifth) in [
            (16, Toy { first: 1, ..old }, 9),
            (24, Toy { first: 1, second: 2, ..old }, 9),
            (32, Toy { fourth: 14, ..FULL }, 9),
            (40, FULL, 9),
            (48, FULL, 0),
        ] {
            let mut toy = Later { toy: Toy { struct_size: size, ..old }, fifth: 9 };
            // SAFETY: a Toy with more behind it, of at most the size that it says.
            unsafe { write(ptr::from_mut(&mut toy).cast::<Toy>(), FULL, "toy") }.unwrap();
            assert_eq!((toy.toy, toy.fifth), (Toy { struct_size: size, ..expected }, fifth));
        }
    }
}
