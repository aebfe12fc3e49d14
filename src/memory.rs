//! Memory that may not be there: how to ask for a size that a host or a file decides, and what becomes of all else.
//!
//! Small pieces (texts, lists, boxes) are asked for as in any Rust program. In a call through the C ABI those that the system
//! does not give come from a reserve (`ffi/reserve.rs`), and the call ends with `OutOfMemory` at the next [`check`].

use crate::error::{Error, Result, Status};
use crate::inside::{self, Reserve};

/// Whether this call is to end with `OutOfMemory`: it has been living on the reserve. What goes on
/// making small pieces by the thousand looks here now and then, and makes no more.
pub fn is_short() -> bool {
    inside::reserve() == Reserve::Used
}

/// Ends such a call. Before an object is handed out, for it would keep the reserve's memory; and before each call of the
/// model.
pub fn check() -> Result<()> {
    if is_short() { Err(Error::new(Status::OutOfMemory, "memory could not be had")) } else { Ok(()) }
}

/// An empty list with room for `count` values.
pub fn list<T>(count: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    inside::without_reserve(|| list.try_reserve_exact(count)).map_err(|_| none(count, size_of::<T>()))?;
    Ok(list)
}

/// Adds a value to a list, unless the call is to end with `OutOfMemory`, or is from now on.
pub fn push<T>(list: &mut Vec<T>, value: T) -> Result<()> {
    check()?;
    if inside::without_reserve(|| list.try_reserve(1)).is_err() {
        inside::used_reserve();
        return Err(none(list.len() + 1, size_of::<T>()));
    }
    list.push(value);
    Ok(())
}

/// Adds to a text, likewise.
pub fn append(text: &mut String, more: &str) -> Result<()> {
    check()?;
    if inside::without_reserve(|| text.try_reserve(more.len())).is_err() {
        inside::used_reserve();
        return Err(none(text.len() + more.len(), 1));
    }
    *text += more;
    Ok(())
}

/// Zeros, as many as the numbers multiply to.
pub fn zeros(counts: &[usize]) -> Result<Vec<f64>> {
    let count = counts.iter().fold(1usize, |all, count| all.saturating_mul(*count));
    let mut zeros = list(count)?;
    zeros.resize(count, 0.0);
    Ok(zeros)
}

/// Refuses where so many bytes are not to be had now; for what is made of pieces by others.
pub fn room(bytes: usize) -> Result<()> {
    list::<u8>(bytes).map(drop)
}

/// The error of a list that is not to be had.
pub fn none(count: usize, size: usize) -> Error {
    Error::new(Status::OutOfMemory, format!("no memory for {count} values of {size} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_machine_has_is_refused() {
        for counts in [&[usize::MAX, 2][..], &[1 << 40, 1 << 10], &[usize::MAX]] {
            assert_eq!(zeros(counts).unwrap_err().status, Status::OutOfMemory);
        }
        assert_eq!(room(isize::MAX as usize).unwrap_err().status, Status::OutOfMemory);
        assert_eq!(zeros(&[2, 3]).unwrap(), [0.0; 6]);
        assert!(list::<u64>(7).unwrap().capacity() >= 7 && check().is_ok());
    }
}
