"""Weight files in and out."""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_toy import EngineToyModel

from mmdet3d import load_checkpoint
from mmdet3d.engine.checkpoint import RunCheckpoints, random_state, set_random_state
from mmdet3d.io.weights import save_weights


def test_safetensors_and_mmcv_layout(tmp_path: Path) -> None:
    source = EngineToyModel()
    save_weights(source.state_dict(), tmp_path / "a.safetensors", {"epoch": 3})
    save_weights(source.state_dict(), tmp_path / "c.pth", {"epoch": 3})
    mmcv = {"meta": {"epoch": 3}, "state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}
    torch.save(mmcv, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth", "c.pth"):
        target = EngineToyModel()
        report = load_checkpoint(target, tmp_path / name)
        assert torch.equal(target.head.weight, source.head.weight)
        assert report.metadata["epoch"] == 3
        assert report.loaded == len(source.state_dict())


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        save_weights({"a": torch.ones(2)}, tmp_path / "w.safetensors", {})
        save_weights({"a": torch.ones(2)}, tmp_path / "w.pth", {})
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {"0o644"}


def test_prefix_and_allowed_gaps(tmp_path: Path) -> None:
    source = EngineToyModel()
    save_weights({f"student.{k}": v for k, v in source.backbone.state_dict().items()}, tmp_path / "a.safetensors", {})
    target = EngineToyModel()
    load_checkpoint(target.backbone, tmp_path / "a.safetensors", prefix="student")
    assert torch.equal(target.backbone[0].weight, source.backbone[0].weight)
    with pytest.raises(ValueError, match="nothing below 'teacher'"):
        load_checkpoint(target, tmp_path / "a.safetensors", prefix="teacher")

    state = {k: v for k, v in source.state_dict().items() if not k.startswith("head")}
    save_weights(state, tmp_path / "b.safetensors", {})
    with pytest.raises(ValueError, match=r"2 missing \(head.weight, head.bias\)"):
        load_checkpoint(target, tmp_path / "b.safetensors")
    report = load_checkpoint(target, tmp_path / "b.safetensors", allow_missing=["head"])
    assert report.missing == ("head.weight", "head.bias")
    assert "2 keep their initial values" in str(report)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    save_weights(EngineToyModel(width=4).state_dict(), tmp_path / "a.safetensors", {})
    with pytest.raises(ValueError, match=r"a.safetensors does not fit EngineToyModel"):
        load_checkpoint(EngineToyModel(), tmp_path / "a.safetensors")


def test_tied_weights_are_stored(tmp_path: Path) -> None:
    weight = torch.randn(2, 2)
    save_weights({"a": weight, "b": weight.T}, tmp_path / "tied.safetensors", {})
    assert (tmp_path / "tied.json").is_file()


def test_random_states_survive_safe_loading(tmp_path: Path) -> None:
    np.random.randn()  # leaves a cached Gaussian
    torch.save(random_state(), tmp_path / "r.pt")
    drawn = (random.random(), np.random.randn(3), torch.randn(3))
    set_random_state(torch.load(tmp_path / "r.pt", weights_only=True))
    again = (random.random(), np.random.randn(3), torch.randn(3))
    assert drawn[0] == again[0]
    assert (drawn[1] == again[1]).all()
    assert torch.equal(drawn[2], again[2])


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The system refuses to let files grow beyond it, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("too_large", ["state.pt", "safetensors"])
def test_a_full_disk_is_one_sentence_and_leaves_no_partial_file(too_large: str, tmp_path: Path) -> None:
    small, large = {"w": torch.zeros(1)}, {"w": torch.zeros(1 << 19)}
    weights, state = (large, small) if too_large == "safetensors" else (small, large)
    message = (
        rf"cannot write .*epoch_1\.{too_large} \(.+\); free space or write to another folder \(--run-dir\); what was"
    )
    with files_up_to(1 << 20), pytest.raises(ValueError, match=message):
        RunCheckpoints(tmp_path).save("epoch_1", weights, state, {"iteration": 1})
    assert not list(tmp_path.glob(".*"))
    assert RunCheckpoints(tmp_path).resumable() == []
