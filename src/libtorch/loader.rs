//! What `libtorch.rs` needs of the system's dynamic loader. Libraries stay loaded for good.

use std::io::{Error, Result};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

#[cfg(unix)]
use libloading::os::unix as os;
#[cfg(windows)]
use libloading::os::windows as os;

/// A library that is not unloaded when this is dropped.
pub type Library = ManuallyDrop<os::Library>;

/// The name that the loader knows libtorch's CPU library by.
pub const LIBTORCH: &str = match () {
    () if cfg!(windows) => "torch_cpu.dll",
    () if cfg!(target_os = "macos") => "@rpath/libtorch_cpu.dylib",
    () => "libtorch_cpu.so",
};

/// A library that this process has; loads nothing.
#[cfg(unix)]
pub fn already_loaded(name: &str) -> Option<Library> {
    // SAFETY: nothing is loaded, so no code runs.
    unsafe { os::Library::open(Some(name), os::RTLD_NOW | libc::RTLD_NOLOAD) }.ok().map(ManuallyDrop::new)
}

#[cfg(windows)]
pub fn already_loaded(name: &str) -> Option<Library> {
    os::Library::open_already_loaded(name).ok().map(ManuallyDrop::new)
}

/// Loads a library, without giving its symbols to others.
///
/// # Safety
/// The code that it runs when it is loaded is fit for this process.
pub unsafe fn load(path: &Path) -> Result<Library> {
    // SAFETY: as promised to this function.
    #[cfg(unix)]
    let library = unsafe { os::Library::open(Some(path), os::RTLD_NOW | os::RTLD_LOCAL) };
    // SAFETY: likewise. The libraries that it needs are looked for beside it, too.
    #[cfg(windows)]
    let library = unsafe {
        let flags = os::LOAD_LIBRARY_SEARCH_DLL_LOAD_DIR | os::LOAD_LIBRARY_SEARCH_DEFAULT_DIRS;
        os::Library::load_with_flags(path, flags)
    };
    library.map(ManuallyDrop::new).map_err(|e| Error::other(reason(&e)))
}

/// The system's own words.
fn reason(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| source.to_string())
}

/// The file of the library that this code is in.
#[cfg(unix)]
pub fn own_path() -> Result<PathBuf> {
    use std::ffi::{CStr, OsStr, c_void};
    use std::os::unix::ffi::OsStrExt;

    // SAFETY: plain data, which dladdr fills in.
    let mut about: libc::Dl_info = unsafe { std::mem::zeroed() };
    // SAFETY: an address in this library.
    if unsafe { libc::dladdr(own_path as *const c_void, &mut about) } == 0 || about.dli_fname.is_null() {
        return Err(Error::other("the loader does not know this library"));
    }
    // SAFETY: a text that lives as long as this library.
    let path = unsafe { CStr::from_ptr(about.dli_fname) };
    // Relative to where the process was when it loaded it: as near as one can come.
    std::path::absolute(OsStr::from_bytes(path.to_bytes()))
}

#[cfg(windows)]
pub fn own_path() -> Result<PathBuf> {
    use std::ffi::{OsString, c_void};
    use std::os::windows::ffi::OsStringExt;

    #[link(name = "kernel32")]
    unsafe extern "system" {
        fn GetModuleHandleExW(flags: u32, address: *const c_void, module: *mut *mut c_void) -> i32;
        fn GetModuleFileNameW(module: *mut c_void, path: *mut u16, length: u32) -> u32;
    }
    /// The address is one in the module; the count of its users stays.
    const FROM_ADDRESS_UNCHANGED: u32 = 4 | 2;

    let mut module = std::ptr::null_mut();
    // SAFETY: an address in this library, and room for its handle.
    if unsafe { GetModuleHandleExW(FROM_ADDRESS_UNCHANGED, own_path as *const c_void, &mut module) } == 0 {
        return Err(Error::last_os_error());
    }
    // The longest path that Windows knows.
    let mut path = vec![0u16; 1 << 15];
    // SAFETY: room for as many units as are named.
    let length = unsafe { GetModuleFileNameW(module, path.as_mut_ptr(), path.len() as u32) };
    if length == 0 {
        return Err(Error::last_os_error());
    }
    Ok(OsString::from_wide(&path[..length as usize]).into())
}
