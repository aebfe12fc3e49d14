//! The libtorch that this process has loaded, and the library of tensors that fits it. Loads no libtorch:
//! a second one, or one of another version, would be the host's end.
//!
//! A library built for one version of libtorch loads beside any other and fails inside its first
//! operation, so the version is asked for first (`aoti_torch_abi_version`, part of libtorch's stable C
//! interface), and no library is opened whose name, `liblmsd_torch_<major>_<minor>`, says another one.

mod loader;

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};

use once_cell::sync::OnceCell;

use crate::error::{Error, Result, Status};
use crate::host::LmsdHost;

/// A library of tensors. It stays loaded for good: libtorch keeps addresses in it.
struct Loaded {
    path: PathBuf,
    table: &'static LmsdHost,
}

// SAFETY: the table is static and never written to; its functions are called as every host's are.
unsafe impl Send for Loaded {}
// SAFETY: likewise.
unsafe impl Sync for Loaded {}

/// The one of this process, as it has one libtorch. A failure leaves it open: the host may load
/// libtorch, or name another file, and ask again.
static LOADED: OnceCell<Loaded> = OnceCell::new();

/// The table of functions of the library that fits: `library`, or the one beside this library's own file.
/// It stays loaded for good.
///
/// # Errors
/// `WrongState` where the process has no libtorch; `Mismatch` where the library is not for that one, is not
/// there, is of another lmsd, or is not the one that the process has loaded before; `Io` where it cannot be
/// loaded.
pub fn host(library: Option<&Path>) -> Result<&'static LmsdHost> {
    let (major, minor) = version()?;
    let file = format!("{DLL_PREFIX}lmsd_torch_{major}_{minor}{DLL_SUFFIX}");
    let named = |e| Error::new(Status::Io, format!("the path of {file} cannot be found: {e}"));
    let library = match library {
        // Not by its bare name, which the loader would look for elsewhere.
        Some(path) => std::path::absolute(path).map_err(named)?,
        None => loader::own_path().map_err(named)?.with_file_name(&file),
    };
    if library.file_name() != Some(file.as_ref()) {
        return Err(mismatch(format!(
            "this process has libtorch {major}.{minor}, and {} is not made for that; it takes {file}",
            library.display()
        )));
    }
    if !library.is_file() {
        let others = others(&library);
        let others = if others.is_empty() { "none".into() } else { others.join(", ") };
        return Err(mismatch(format!(
            "this process has libtorch {major}.{minor}, and there is no {}; the libraries of tensors there: {others}",
            library.display()
        )));
    }
    let loaded = LOADED.get_or_try_init(|| load(library.clone()))?;
    if !same_file(&loaded.path, &library) {
        return Err(mismatch(format!(
            "this process has loaded {} already; it cannot take {} as well",
            loaded.path.display(),
            library.display()
        )));
    }
    Ok(loaded.table)
}

fn mismatch(message: String) -> Error {
    Error::new(Status::Mismatch, message)
}

/// Major and minor version of the libtorch that is loaded.
fn version() -> Result<(u64, u64)> {
    let Some(libtorch) = loader::already_loaded(loader::LIBTORCH) else {
        return Err(Error::new(
            Status::WrongState,
            "this process has no libtorch; load it first (import torch, or link it): this library loads none",
        ));
    };
    // SAFETY: uint64_t aoti_torch_abi_version(void), of a library that stays loaded.
    let version = unsafe { libtorch.get::<extern "C" fn() -> u64>(b"aoti_torch_abi_version\0") };
    let Ok(version) = version.map(|version| version()) else {
        return Err(mismatch(
            "the libtorch of this process does not say its version; it is older than any that is supported"
                .into(),
        ));
    };
    // The version's parts are in its bytes, from the highest on.
    Ok((version >> 56, version >> 48 & 0xff))
}

/// Names of the libraries of tensors in the folder of one that is not there.
fn others(library: &Path) -> Vec<String> {
    let prefix = format!("{DLL_PREFIX}lmsd_torch_");
    let files = library.parent().and_then(|folder| folder.read_dir().ok()).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix) && name.ends_with(DLL_SUFFIX)).collect()
}

fn same_file(a: &Path, b: &Path) -> bool {
    a == b || matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

fn load(path: PathBuf) -> Result<Loaded> {
    // SAFETY: the library that goes with this one and with the libtorch that is loaded.
    let library = unsafe { loader::load(&path) }
        .map_err(|e| Error::new(Status::Io, format!("{} cannot be loaded: {e}", path.display())))?;
    // SAFETY: the two exports of bindings/torch.
    let exports = unsafe {
        let version = library.get::<extern "C" fn() -> *const c_char>(b"lmsd_torch_version\0");
        let table = library.get::<extern "C" fn() -> *const LmsdHost>(b"lmsd_torch_table\0");
        version.and_then(|version| Ok((version(), table?)))
    };
    let none = || mismatch(format!("{} is no library of tensors for lmsd", path.display()));
    let (version, table) = exports.map_err(|_| none())?;
    if version.is_null() {
        return Err(none());
    }
    // SAFETY: not null, a static text.
    let version = unsafe { CStr::from_ptr(version) }.to_string_lossy();
    let own = env!("CARGO_PKG_VERSION");
    if version != own {
        return Err(mismatch(format!(
            "{} is of lmsd {version}, this library of {own}; take both from one release",
            path.display()
        )));
    }
    // SAFETY: null or static, of this version's layout.
    let table = unsafe { table().as_ref() }.ok_or_else(none)?;
    Ok(Loaded { table, path })
}
