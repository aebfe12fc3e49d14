//! Files that are there whole or as they were before: whatever ends the process, however many write at
//! once, a reader meets one writer's bytes. Knows nothing of what is in them.

use std::fs::{self, File, Metadata};
use std::io::{Error, ErrorKind, Result, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Temporary files are called `.lmsd-`, six random letters or digits, `.tmp`.
const NAME: (&str, &str) = (".lmsd-", ".tmp");
/// One that is older was left by a process that was killed.
const LEFT: Duration = Duration::from_secs(24 * 3600);

/// Links are followed this far, as Linux does.
const MOST_LINKS: usize = 40;

/// Writes `bytes` to `path`, or leaves what is there. A link is followed to the file that it names, and a file
/// that is replaced keeps its permissions and, where the system allows it, its owner and group; a new one gets what the
/// umask leaves of 0666.
///
/// The bytes go to a temporary file in the same folder, whose random name only this call can have made; then it is
/// renamed. File and folder are synced. Temporary files of a day ago and older, which killed processes left, are removed.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let path = followed(path)?;
    if path.file_name().is_none() {
        return Err(Error::new(ErrorKind::InvalidInput, "it names no file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let before = match fs::metadata(&path) {
        Ok(about) if about.is_file() => Some(about),
        Ok(_) => return Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
        Err(e) if e.kind() == ErrorKind::NotFound => None,
        Err(e) => return Err(e),
    };
    let mut temporary = temporary_in(folder, before.is_none())?;
    temporary.as_file_mut().write_all(bytes)?;
    if let Some(before) = before {
        keep_owner(temporary.as_file(), &before);
        temporary.as_file().set_permissions(before.permissions())?;
    }
    temporary.as_file().sync_all()?;
    temporary.persist(&path).map_err(|e| e.error)?;
    sync_folder(folder);
    sweep(folder);
    Ok(())
}

/// Owner and group where that is allowed, else the group, else neither.
fn keep_owner(file: &File, before: &Metadata) {
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, fchown};
        let _ = fchown(file, Some(before.uid()), Some(before.gid()))
            .or_else(|_| fchown(file, None, Some(before.gid())));
    }
    #[cfg(not(unix))]
    let _ = (file, before);
}

/// Removes what killed processes left. By a clock that is a day fast it could be what another process is writing now,
/// which is then told that its file is gone.
fn sweep(folder: &Path) {
    let old = |about: &Metadata| {
        about.is_file() && about.modified().is_ok_and(|at| at.elapsed().is_ok_and(|age| age > LEFT))
    };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with(NAME.0) && name.ends_with(NAME.1));
        if ours && entry.metadata().is_ok_and(|about| old(&about)) {
            let _ = fs::remove_file(entry.path()); // else the next one that saves tries
        }
    }
}

/// A temporary file, which this process alone may read unless it is `shared` as new files are. Deleted when dropped.
fn temporary_in(folder: &Path, shared: bool) -> Result<tempfile::NamedTempFile> {
    let mut named = tempfile::Builder::new();
    named.prefix(NAME.0).suffix(NAME.1);
    #[cfg(unix)]
    if shared {
        use std::os::unix::fs::PermissionsExt;
        named.permissions(fs::Permissions::from_mode(0o666));
    }
    #[cfg(not(unix))]
    let _ = shared;
    named.tempfile_in(folder)
}

/// The file that a chain of links ends at, which need not exist.
fn followed(path: &Path) -> Result<PathBuf> {
    let mut path = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        match fs::read_link(&path) {
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(_) => return Ok(path), // no link; what else is wrong with it, the writing will say
        }
    }
    Err(Error::other("too many links"))
}

/// Makes a rename last through a power cut. The file is there already, so a folder that cannot be
/// synced (no read permission, a network file system) is no failure.
fn sync_folder(folder: &Path) {
    if cfg!(unix) {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}
