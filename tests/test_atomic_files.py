"""Files are whole or absent, whoever writes them and whatever happens meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.io.files import atomic_write, in_words


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.txt"
    with atomic_write(path) as file:
        file.write("first")
    with pytest.raises(RuntimeError, match="stop"), atomic_write(path) as file:
        file.write("half")
        raise RuntimeError("stop")
    assert path.read_text() == "first"
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    with atomic_write(path) as outer:
        outer.write("outer")
        with atomic_write(path) as inner:
            inner.write("inner")
        assert path.read_text() == "inner"
    assert path.read_text() == "outer"


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_rights_are_those_of_the_umask(tmp_path: Path, mask: int, rights: int) -> None:
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "file.txt") as file:
            file.write("x")
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == rights


def test_what_others_are_deleted_for_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(os, "fsync", lambda _: seen.append((tmp_path / "other" / "file.txt").exists()))
    with atomic_write(tmp_path / "file.txt") as file:
        file.write("x")
    assert seen == []
    with atomic_write(tmp_path / "other" / "file.txt", durable=True) as file:
        file.write("x")
    assert seen == [False]


def test_half_a_checkpoint_of_a_killed_training_goes_with_the_next(tmp_path: Path) -> None:
    half, mine = tmp_path / ".epoch_1.state.pt.0123.partial", tmp_path / ".notes.partial"
    half.touch()
    mine.touch()
    RunCheckpoints(tmp_path).save("epoch_1", {"w": torch.zeros(1)}, {}, {"iteration": 1})
    assert not half.exists() and mine.exists()


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """It is noticed where bytes are written, and the system knows no name there."""
    path = tmp_path / "file.txt"
    with pytest.raises(OSError) as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert in_words(caught.value) == f"{path}: no space is left; make room, or choose another place"
