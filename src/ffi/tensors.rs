//! Operations on tensors, the built-in ones or the host's.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::path::Path;

use super::guard::guard;
use super::pointers::{Host, Input, Output, Text, fill, given, slice};
use crate::error::{Error, Result, Status};
use crate::host::{Backend, Handle, LmsdHost};
use crate::memory;
use crate::tensor::Tensors;

/// The tensors of the libtorch that this process has loaded, on its CPU and CUDA devices: a host
/// whose tensors are `lmsd_tensor *` of any strides but negative ones, in memory of the caller's, used
/// as it is, without copies. Its operations run on libtorch's current stream of the calling thread.
///
/// This library links no libtorch and loads none. `library` is the path of the library of tensors
/// that fits the loaded one, such as liblmsd_torch_2_11.so, or NULL for that beside this library. It
/// is loaded once and for good. `LMSD_STATUS_WRONG_STATE` where no libtorch is loaded,
/// `LMSD_STATUS_MISMATCH` where there is no library for its version; use the host's own tensors then.
/// `*out` is static.
///
/// # Safety
/// `library` is NULL or a NUL-terminated string, `out` writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_torch_host(
    library: Text,
    out: Option<&mut MaybeUninit<*const LmsdHost>>,
) -> Status {
    guard(|| {
        let out = given(out, "out")?;
        let library = if library.is_null() { None } else { Some(library.read("library")?) };
        out.write(crate::libtorch::host(library.map(Path::new))?);
        Ok(())
    })
}

/// The library's own linear combination: `out = sum_i factors[i] * terms[i]` in one pass over
/// memory, summed in float32 or float64. `out` may not be one of the terms.
///
/// # Safety
/// `host` is NULL or valid; `factors` and `terms` have `count` entries; tensors are of this host.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_lincomb(
    host: Host,
    count: usize,
    factors: *const f64,
    terms: *const *const c_void,
    out: Output,
) -> Status {
    guard(|| {
        let backend = host.backend()?;
        // SAFETY: `count` entries by the promise above.
        let terms = borrow_all(&backend, unsafe { slice(terms.cast(), count, "terms") }?, "terms")?;
        // SAFETY: as many.
        let factors = unsafe { slice(factors, count, "factors") }?;
        let mut out = out.borrow(&backend, "out")?;
        let terms: Vec<_> = factors.iter().copied().zip(&terms).collect();
        backend.lincomb(&mut out, &terms)
    })
}

/// The library's own inner products within each trajectory, summed in float64:
/// `out[(b * count + i) * count + j] = <columns[i][b], columns[j][b]>`; `length` is the room in
/// `out`, the batch times count squared.
///
/// # Safety
/// `host` is NULL or valid; `columns` has `count` entries; `out` has room for `length` values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lmsd_gram(
    host: Host,
    count: usize,
    columns: *const *const c_void,
    length: usize,
    out: *mut f64,
) -> Status {
    guard(|| {
        let backend = host.backend()?;
        // SAFETY: `count` entries by the promise above.
        let columns = borrow_all(&backend, unsafe { slice(columns.cast(), count, "columns") }?, "columns")?;
        let trajectories = backend.trajectories(&columns[0]);
        let all = trajectories.saturating_mul(count * count);
        if all != length {
            return Err(Error::argument(format!("length is {length}; this Gram matrix has {all}")));
        }
        let mut borrowed = memory::list(count)?;
        borrowed.extend(&columns);
        let gram = backend.gram(&borrowed)?;
        // SAFETY: room for `length` values by the promise above, and there are as many.
        unsafe { fill(out, &gram, "out") }
    })
}

fn borrow_all(backend: &Backend, tensors: &[Input], what: &str) -> Result<Vec<Handle>> {
    let mut borrowed = memory::list(tensors.len())?;
    for (i, tensor) in tensors.iter().enumerate() {
        borrowed.push(tensor.borrow(backend, &format!("{what}[{i}]"))?);
        memory::check()?;
    }
    Ok(borrowed)
}
