"""What is no schedule is written as schedules are: whole or not at all."""

import os
import stat
import sys
import threading

import lmsd
import pytest
from lmsd._files import replacing, write

posix = pytest.mark.skipif(sys.platform == "win32", reason="links, modes and pipes")
WAYS = {"schedule": lambda path, text: lmsd.solve("euler", nfe=3).save(path), "text": write}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@posix
@pytest.mark.parametrize("way", WAYS)
def test_links_are_followed_and_modes_kept(tmp_path, way):
    real, link, plain = tmp_path / "real", tmp_path / "link", tmp_path / "plain"
    plain.touch()
    link.symlink_to("real")
    for kept in (mode(plain), 0o600, 0o640):
        if real.exists():
            real.chmod(kept)
        WAYS[way](link, "text")
        assert link.is_symlink() and real.read_text() and mode(real) == kept
    assert names(tmp_path) == ["link", "plain", "real"]


@posix
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_regular_file_is_refused(tmp_path, way):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "round").symlink_to("round")
    for name in ("pipe", "folder", "round", "missing/file"):
        with pytest.raises((OSError, lmsd.Error)):
            WAYS[way](tmp_path / name, "text")
    assert names(tmp_path) == ["folder", "pipe", "round"]


def test_what_fails_midway_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    write(path, "before")
    with pytest.raises(KeyboardInterrupt), replacing(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "before" and names(tmp_path) == ["file"]


def test_many_may_write_while_others_read(tmp_path):
    path, met = tmp_path / "file", set()
    write(path, "0" * 10_000)

    def writes(letter):
        for _ in range(20):
            write(path, letter * 10_000)
            text = path.read_text()
            met.add((len(text), len(set(text))))

    threads = [threading.Thread(target=writes, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert met == {(10_000, 1)} and names(tmp_path) == ["file"]
