"""Where schedules lie on disk."""

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

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
