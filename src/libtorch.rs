//! The libtorch that this process has loaded, and the library of tensors that fits it. Loads no libtorch:
//! a second one, or one of another version, would be the host's end.
//!
//! A library built for one version of libtorch loads beside any other and fails inside its first
//! operation, so the version is asked for first (`aoti_torch_abi_version`, part of libtorch's stable C
//! interface), and no library is opened whose name, `liblmsd_torch_<major>_<minor>`, says another one.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result, Status};
use crate::host::LmsdHost;

/// The table of functions of the library that fits: `library`, or the one beside this library's own file.
/// It stays loaded for good.
#[cfg(unix)]
pub fn host(library: Option<&Path>) -> Result<&'static LmsdHost> {
    let (major, minor) = loaded()?;
    let name = format!("lmsd_torch_{major}_{minor}");
    let file = format!("{}{name}{}", std::env::consts::DLL_PREFIX, std::env::consts::DLL_SUFFIX);
    let library = match library {
        Some(path) => path.to_path_buf(),
        None => beside(&file)?,
    };
    let stem = library.file_stem().unwrap_or_default().to_string_lossy();
    if stem.strip_prefix(std::env::consts::DLL_PREFIX) != Some(name.as_str()) {
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
    open::table(&library)
}

#[cfg(not(unix))]
pub fn host(_library: Option<&Path>) -> Result<&'static LmsdHost> {
    Err(mismatch("a loaded libtorch cannot be found on this system; pass the host's own tensors".into()))
}

fn mismatch(message: String) -> Error {
    Error::new(Status::Mismatch, message)
}

/// Major and minor version of the libtorch that is loaded.
#[cfg(unix)]
fn loaded() -> Result<(u64, u64)> {
    let name = if cfg!(target_os = "macos") { c"@rpath/libtorch_cpu.dylib" } else { c"libtorch_cpu.so" };
    let Some(libtorch) = open::loaded(name) else {
        return Err(Error::new(
            Status::WrongState,
            "this process has no libtorch; load it first (import torch, or link it): this library loads none",
        ));
    };
    let Some(version) = open::symbol(libtorch, c"aoti_torch_abi_version") else {
        return Err(mismatch(
            "the libtorch of this process does not say its version; it is older than any that is supported"
                .into(),
        ));
    };
    // SAFETY: uint64_t aoti_torch_abi_version(void), the version's parts in its bytes from the highest on.
    let version = unsafe { std::mem::transmute::<*mut libc::c_void, extern "C" fn() -> u64>(version) }();
    Ok((version >> 56, version >> 48 & 0xff))
}

/// A file in the folder of the library that this code is in.
#[cfg(unix)]
fn beside(file: &str) -> Result<PathBuf> {
    let own = open::own_path().ok_or_else(|| mismatch("the path of liblmsd cannot be found".into()))?;
    Ok(own.with_file_name(file))
}

/// Names of the libraries of tensors in the folder of one that is not there.
#[cfg(unix)]
fn others(library: &Path) -> Vec<String> {
    let prefix = format!("{}lmsd_torch_", std::env::consts::DLL_PREFIX);
    let files = library.parent().and_then(|folder| folder.read_dir().ok()).into_iter().flatten().flatten();
    let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with(&prefix) && name.ends_with(std::env::consts::DLL_SUFFIX)).collect()
}

/// The dynamic loader.
#[cfg(unix)]
mod open {
    use std::ffi::{CStr, CString, OsStr, c_char, c_void};
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};

    use super::{Error, LmsdHost, Result, Status, mismatch};

    pub fn loaded(name: &CStr) -> Option<*mut c_void> {
        // SAFETY: loads nothing.
        let found = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
        (!found.is_null()).then_some(found)
    }

    pub fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
        // SAFETY: a library that stays loaded.
        let found = unsafe { libc::dlsym(library, name.as_ptr()) };
        (!found.is_null()).then_some(found)
    }

    pub fn own_path() -> Option<PathBuf> {
        // SAFETY: plain data, which dladdr fills in.
        let mut about: libc::Dl_info = unsafe { std::mem::zeroed() };
        // SAFETY: an address in this library.
        if unsafe { libc::dladdr(own_path as *const c_void, &mut about) } == 0 || about.dli_fname.is_null() {
            return None;
        }
        // SAFETY: a text that lives as long as this library.
        let path = unsafe { CStr::from_ptr(about.dli_fname) };
        Some(PathBuf::from(OsStr::from_bytes(path.to_bytes())))
    }

    fn last_error() -> String {
        // SAFETY: null, or a text that is valid until this thread's next call.
        let text = unsafe { libc::dlerror().as_ref().map(|text| CStr::from_ptr(text)) };
        text.map_or_else(String::new, |text| text.to_string_lossy().into_owned())
    }

    /// Loads a library of tensors, without giving its symbols to others, and never unloads it: libtorch
    /// keeps addresses in it.
    pub fn table(path: &Path) -> Result<&'static LmsdHost> {
        let io = |text: String| Error::new(Status::Io, format!("{}: {text}", path.display()));
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| io(e.to_string()))?;
        // SAFETY: the library that goes with this one and with the libtorch that is loaded.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(io(last_error()));
        }
        let (Some(version), Some(table)) =
            (symbol(library, c"lmsd_torch_version"), symbol(library, c"lmsd_torch_table"))
        else {
            return Err(mismatch(format!("{} is no library of tensors for lmsd", path.display())));
        };
        // SAFETY: the two exports of bindings/torch.
        let (version, table) = unsafe {
            let version = std::mem::transmute::<*mut c_void, extern "C" fn() -> *const c_char>(version)();
            let table = std::mem::transmute::<*mut c_void, extern "C" fn() -> *const LmsdHost>(table);
            (CStr::from_ptr(version).to_string_lossy(), table)
        };
        let own = env!("CARGO_PKG_VERSION");
        if version != own {
            return Err(mismatch(format!(
                "{} is of lmsd {version}, this library of {own}; take both from one release",
                path.display()
            )));
        }
        // SAFETY: static, of this version's layout.
        Ok(unsafe { &*table() })
    }
}
