"""Where schedules lie on disk, and how what is no schedule is written: as the library writes schedules."""

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import BinaryIO

from ._abi import Error, Status


def schedule_files(paths: Iterable[str | PathLike]) -> list[Path]:
    """Files as they are; of a folder, its schedules nfe*.json in the order of their names.

    Raises Error where a folder has none.
    """
    files = []
    for path in map(Path, paths):
        found = sorted(path.glob("nfe*.json")) if path.is_dir() else [path]
        if not found:
            raise Error(f"there are no schedules nfe*.json in the folder {path}", Status.IO)
        files += found
    return files


@contextlib.contextmanager
def replacing(path: str | PathLike) -> Iterator[BinaryIO]:
    """A stream whose bytes take the place of the file at the end: whole, or not at all where that raises.

    As the library does it (src/files.rs): by a temporary file in the same folder that nobody else can have
    made; a link is followed; a file that is replaced keeps its permissions and, where that is allowed, its
    owner.

    Raises OSError where it cannot be written, or is no regular file.
    """
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    before = target.stat() if target.exists() else None
    if before and not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    part = target.with_name(f".lmsd-{secrets.token_hex(8)}.tmp")

    def private(name, flags):
        return os.open(name, flags, 0o600 if before else 0o666)

    try:
        with open(part, "xb", opener=private) as stream:
            yield stream
            stream.flush()
            if before:
                with contextlib.suppress(OSError, AttributeError):  # only root gives files away
                    os.chown(part, before.st_uid, before.st_gid)
                part.chmod(stat.S_IMODE(before.st_mode))
            os.fsync(stream.fileno())
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every system syncs folders
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path: str | PathLike, text: str) -> None:
    """A text file, written so."""
    with replacing(path) as stream:
        stream.write(text.encode())
