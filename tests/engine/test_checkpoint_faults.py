"""Checkpoints under faults: killed at every step of a save, disks that fail, damaged files."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from mmdet3d.config import Config
from mmdet3d.engine.checkpoint import RunCheckpoints, read_training_state
from mmdet3d.engine.run_dir import choose_run_dir
from mmdet3d.io import files
from mmdet3d.io.weights import read_metadata, read_weights, save_weights


def values(number: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((40,), float(number)), "b": torch.full((3, 5), float(number))}


def state(number: int) -> dict[str, Any]:
    return {"epoch": number, "batch": 0, "optimizer": {"exp_avg": values(number)}}


def save_epoch(folder: Path, number: int, max_keep: int | None = 1) -> None:
    metadata = {"epoch": number, "iteration": 4 * number, "metrics": None}
    RunCheckpoints(folder, max_keep).save(f"epoch_{number}", values(number), state(number), metadata)


def number_of(weights: dict[str, torch.Tensor]) -> int:
    """Which checkpoint the weights are of, all of them."""
    (number,) = {float(v) for tensor in weights.values() for v in tensor.flatten()}
    return int(number)


# -- what is saved, and which of old and new is there ------------------------------------------------------------------


def save_full(folder: Path) -> None:
    save_epoch(folder, 2)


def full_there(folder: Path) -> int:
    newest = RunCheckpoints(folder).newest_intact()
    whole, metadata = read_training_state(newest)
    weights, _ = read_weights(newest)
    pointed, pointed_metadata = read_weights(folder / "latest.safetensors")
    assert number_of(pointed) == pointed_metadata["epoch"]
    (number,) = {whole["epoch"], metadata["epoch"], number_of(weights), number_of(whole["optimizer"]["exp_avg"])}
    return number


def save_best(folder: Path) -> None:
    save_weights(values(2), folder / "best.safetensors", {"epoch": 2})


def best_there(folder: Path) -> int:
    weights, metadata = read_weights(folder / "best.safetensors")
    assert number_of(weights) == metadata["epoch"]
    return metadata["epoch"]


def note_metrics(folder: Path) -> None:
    RunCheckpoints(folder).annotate(folder / "epoch_1.safetensors", {"metrics": {"object/map": 0.5}})


def metrics_there(folder: Path) -> int:
    assert full_there(folder) == 1
    return 1 if read_metadata(folder / "epoch_1.safetensors")["metrics"] is None else 2


SAVES = {
    "full state": (save_full, full_there),
    "weights": (save_best, best_there),
    "metadata": (note_metrics, metrics_there),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run with one checkpoint, which is the best so far."""
    save_epoch(tmp_path, 1)
    save_weights(values(1), tmp_path / "best.safetensors", {"epoch": 1})
    return tmp_path


# -- every step that a save asks of the system -------------------------------------------------------------------------

Fault = Callable[[str], None]
STEPS = ("write", "fsync", "replace", "unlink", "symlink")


class _File:
    """A file whose writes are steps; half of what is written is there when a write is cut off."""

    def __init__(self, file: IO, before: Fault) -> None:
        self._file, self._before = file, before

    def write(self, content: bytes) -> int:
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._before("write")
        self._file.write(content[half:])
        return len(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def steps_through(before: Fault) -> Iterator[None]:
    """`before(step)` is called before each step of `STEPS` that the block takes, and `before("end")` after the last."""
    with pytest.MonkeyPatch.context() as patch:

        def stepping(name: str) -> Callable[..., Any]:
            function = getattr(os, name)

            def step(*arguments: Any, **named: Any) -> Any:
                before(name)
                return function(*arguments, **named)

            return step

        for name in STEPS[1:]:
            patch.setattr(os, name, stepping(name))
        patch.setattr(files, "open", lambda path, mode: _File(open(path, mode), before), raising=False)  # noqa: SIM115
        yield
        before("end")


def steps_of(save: Callable[[Path], None], folder: Path) -> list[str]:
    taken: list[str] = []
    with steps_through(taken.append):
        save(folder)
    return taken


def telling(taken: list[str]) -> list[int]:
    """Numbers of the steps, of writes in a row the first one alone."""
    return [k for k, step in enumerate(taken) if step != "write" or k == 0 or taken[k - 1] != "write"]


def copied(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(folder, tmp_path_factory.mktemp("run") / "run", symlinks=True)


@pytest.mark.parametrize("kind", SAVES)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["telling", "every"])
def test_killed_at_any_step_leaves_the_old_or_the_new_one(
    every: bool, kind: str, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    save, there = SAVES[kind]
    found, taken = [], steps_of(save, copied(folder, tmp_path_factory))
    assert {"write", "fsync", "replace"} <= set(taken)
    for k in range(len(taken)) if every else telling(taken):
        run = copied(folder, tmp_path_factory)
        child = os.fork()
        if child == 0:
            left = iter(range(k + 1))

            def kill(_: str, left: Iterator[int] = left, k: int = k) -> None:
                if next(left) == k:
                    os.kill(os.getpid(), signal.SIGKILL)

            with steps_through(kill):
                save(run)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"step {k} of {taken} was not reached"
        found.append(there(run))
        save_epoch(run, 3)
        assert full_there(run) == 3
        assert not list(run.glob(".*"))
    assert found == sorted(found), "the new one disappeared again"
    assert set(found) == {1, 2}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("kind", SAVES)
def test_a_failing_disk_is_one_sentence_and_keeps_the_old_one(
    kind: str, number: int, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    save, there = SAVES[kind]
    taken = steps_of(save, copied(folder, tmp_path_factory))
    for k in telling(taken)[:-1]:
        run = copied(folder, tmp_path_factory)
        left = iter(range(1000))

        def fail(_: str, left: Iterator[int] = left, k: int = k) -> None:
            if next(left) >= k:
                raise OSError(number, os.strerror(number))

        with pytest.raises(ValueError, match=rf"{run}.*{os.strerror(number)}.*; ") as caught, steps_through(fail):
            save(run)
        assert "\n" not in str(caught.value)
        assert there(run) in ((1, 2) if "replace" in taken[:k] else (1,))


def test_a_folder_where_nothing_can_be_made_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    with pytest.raises(ValueError, match=r"cannot write .*epoch_2.state.pt \(Permission denied\); free space or"):
        save_full(folder)
    assert full_there(folder) == 1


# -- what is resumed and what is deleted -------------------------------------------------------------------------------


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("suffix", [".safetensors", ".state.pt", ".json"])
def test_resuming_falls_back_to_the_newest_intact_one_and_says_so(
    suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in (1, 2, 3):
        save_epoch(tmp_path, number, max_keep=None)
    flip(tmp_path / f"epoch_3{suffix}")
    config = Config(resume_from="auto")
    with caplog.at_level(logging.WARNING, "mmdet3d"):
        choose_run_dir(tmp_path, "x.yaml", config)
    assert config.resume_from == str(tmp_path / "epoch_2.safetensors")
    (said,) = caplog.messages
    assert said.startswith("epoch_3.safetensors is not resumed: ") and f"epoch_3{suffix}" in said
    save_epoch(tmp_path, 3)
    assert full_there(tmp_path) == 3


def test_nothing_intact_is_nothing_to_resume(folder: Path) -> None:
    flip(folder / "epoch_1.state.pt")
    with pytest.raises(ValueError, match=f"no checkpoint in {folder} is intact; pass another --run-dir"):
        choose_run_dir(folder, "x.yaml", Config(resume_from="auto"))


@pytest.mark.parametrize("suffix", [".safetensors", ".state.pt"])
def test_the_only_good_one_is_not_deleted_for_one_that_does_not_read_back(suffix: str, folder: Path) -> None:
    def lose_the_end(source: Path, target: Path, replace: Callable[..., None] = os.replace) -> None:
        replace(source, target)
        if target.name == f"epoch_2{suffix}":
            os.truncate(target, target.stat().st_size - 1)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=rf"epoch_2{suffix} is damaged"):
        patch.setattr(os, "replace", lose_the_end)
        save_epoch(folder, 2)
    assert RunCheckpoints(folder).newest_intact() == folder / "epoch_1.safetensors"
