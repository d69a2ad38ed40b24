"""The teachers of all five systems: what is stored per sample is what a batch is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from distill_inputs import road, street
from safetensors.torch import save_file
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves

from mmdet3d.config import load_config
from mmdet3d.distill import LiveTeacher, StoredTeacher
from mmdet3d.distill.teacher import build_detector
from mmdet3d.structures import Batch

SYSTEMS = [
    "synthetic/crkd/small.yaml",
    "synthetic/simdistill/small.yaml",
    "synthetic/labeldistill/small.yaml",
    "kitti/synthetic/monoskd.yaml",
    "kitti/synthetic/monommkd.yaml",
]


@pytest.mark.parametrize("name", SYSTEMS)
def test_stored_answers_are_the_teachers(name: str, tmp_path: Path) -> None:
    cfg = load_config(name)
    block, checkpoint = cfg.model.teacher.model, tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    save_file(build_detector(block).state_dict(), checkpoint)
    named = [loss["teacher"] for loss in cfg.model.losses.values() if loss]
    taps = sorted({tap for taps in named for tap in ([taps] if isinstance(taps, str) else taps)})
    size = tuple(load_config(cfg.model.teacher.config).image_size)
    samples = [(road if "kitti" in name else street)(k, size) for k in range(2)]
    batch, turned = Batch.collate(samples), Batch.collate(samples[::-1])

    live = LiveTeacher.load(block, checkpoint)
    written = StoredTeacher(live, tmp_path / "answers").extract(batch, taps)
    reader = StoredTeacher(LiveTeacher.load(block, checkpoint, later=True), tmp_path / "answers")
    assert taps and list(written) == taps
    torch.testing.assert_close(reader.extract(batch, taps), written, rtol=0, atol=0)
    for other in (batch, turned):
        expected = live.extract(other, taps)
        torch.testing.assert_close(reader.extract(other, taps), {t: expected[t] for t in taps}, rtol=2e-3, atol=1e-4)
    assert reader.source._checkpoint is not None, "weights were loaded although everything is stored"


@pytest.mark.parametrize("name", SYSTEMS)
def test_folded_norms_change_no_answer(name: str) -> None:
    cfg = load_config(name)
    torch.manual_seed(0)
    teacher = LiveTeacher(build_detector(cfg.model.teacher.model))
    for norm in (m for m in teacher.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
        nn.init.normal_(norm.running_mean, std=0.1)
    weights = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    named = [loss["teacher"] for loss in cfg.model.losses.values() if loss]
    taps = sorted({tap for taps in named for tap in ([taps] if isinstance(taps, str) else taps)})
    size = tuple(load_config(cfg.model.teacher.config).image_size)
    first, second = (Batch.collate([(road if "kitti" in name else street)(k, size)]) for k in range(2))
    for batch in (first, second):
        with torch.no_grad():
            plain = teacher.model.extract(batch, taps)
        expected, found = _tensors({tap: plain[tap] for tap in taps}), _tensors(teacher.extract(batch, taps))
        assert expected
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max() if other.numel() else 0))
    (folded,) = teacher.folded.values()
    assert sum(isinstance(m, nn.Identity) for m in folded.modules()) > 10
    assert all(torch.equal(value, weights[key]) for key, value in teacher.model.state_dict().items())


def _tensors(value: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
