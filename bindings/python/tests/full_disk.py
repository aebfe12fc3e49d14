"""A disk that is full: of the tests of the library and of the ComfyUI pack."""

import contextlib
import sys

import pytest

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="no limit on the length of files")


@contextlib.contextmanager
def files_end_at(length):
    """No file of this process grows beyond so many bytes: writing then fails midway, as on a full disk."""
    import resource  # not there on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (length, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
