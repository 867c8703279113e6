"""Directories for checkpoints: each file is written once, and whatever is cut is not lost."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.anchors import folder, notes_in, put

ORIGIN = "prod/receiver"


def names(directory):
    return sorted(path.name for path in folder(directory, ORIGIN).iterdir())


def test_put_and_read(tmp_path):
    """What is put is there, by size; again is the same; another text of a size is beside it."""
    put(tmp_path, ORIGIN, 300, "c")
    put(tmp_path, ORIGIN, 5, "a")
    put(tmp_path, ORIGIN, 5, "b")
    for note in "ab":
        put(tmp_path, ORIGIN, 5, note)
    assert list(notes_in(tmp_path, ORIGIN)) == ["a", "b", "c"]
    assert names(tmp_path) == [f"{5:016}", f"{5:016}.1", f"{300:016}"]
    assert (tmp_path / "prod%2Freceiver").is_dir()


def test_what_is_there_stays(tmp_path):
    """A file that a crash has cut is left as it is: the checkpoint is put beside it."""
    put(tmp_path, ORIGIN, 7, "whole note")
    path = folder(tmp_path, ORIGIN) / f"{7:016}"
    path.write_text("whole n")
    before = path.stat()
    put(tmp_path, ORIGIN, 7, "whole note")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert list(notes_in(tmp_path, ORIGIN)) == ["whole n", "whole note"]


def test_a_disk_that_takes_half(tmp_path, monkeypatch):
    """What did not get there whole is an error, and the next attempt succeeds."""
    put(tmp_path, ORIGIN, 1, "first")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:3]))
    with pytest.raises(OSError, match="cut"):
        put(tmp_path, ORIGIN, 2, "second")
    monkeypatch.undo()
    put(tmp_path, ORIGIN, 2, "second")
    assert list(notes_in(tmp_path, ORIGIN)) == ["first", "second"]


def test_nothing_is_made_up(tmp_path):
    """A directory that is not there (its disk is not mounted) is not made."""
    with pytest.raises(FileNotFoundError):
        put(tmp_path / "mnt", ORIGIN, 1, "note")
    assert not (tmp_path / "mnt").exists()
    with pytest.raises(FileNotFoundError):
        list(notes_in(tmp_path, ORIGIN))


def test_other_files_are_passed_over(tmp_path):
    """Only what bears a checkpoint's name is read, and bytes that are no text do no harm."""
    put(tmp_path, ORIGIN, 1, "note")
    place = folder(tmp_path, ORIGIN)
    for name in ("README", "1", f"{2:016}.tmp", f".{3:016}"):
        (place / name).write_text("no")
    (place / f"{4:016}").write_bytes(b"\xff\xfe")
    assert list(notes_in(tmp_path, ORIGIN)) == ["note", "\ufffd\ufffd"]


@given(st.text(min_size=1, max_size=40), st.text(min_size=1, max_size=40))
def test_each_log_has_its_own(one, other):
    """Whatever a log is called, its folder is directly in the directory, and no other log's."""
    try:
        place = folder(Path("/worm"), one)
        beside = folder(Path("/worm"), other)
    except UnicodeEncodeError:
        return
    assert place.parent == Path("/worm")
    assert not place.name.startswith(".")
    assert (place == beside) == (one == other)
