"""Scenes whose labels are taken away, beside others that keep theirs, through the real pipeline of a config."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdet3d.config import load_config
from mmdet3d.datasets import MixedDataset, build_split
from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.engine.data import batches, build_loader, train_sampler
from mmdet3d.models import build_model

WORLD = WorldSettings(scenes=5, keyframes=2, lidar_sweeps=1, radar_sweeps=1, image_size=(160, 90), val_fraction=0.2)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = generate(tmp_path_factory.mktemp("unlabelled") / "world", WORLD, progress=False)
    create_nuscenes(root, root, "synthetic", VERSION, workers=1, database=False)
    return root


def mixed(root: Path, **changes: object):
    overrides = {"dataset_root": f"{root}/", "data.cache": "none", "data.train.part": [0, 0.5]}
    unlabelled = {"data.unlabelled": {"part": [0.5, 1], "share": 0.5}}
    return load_config("synthetic/camera+radar/demo.yaml", overrides | unlabelled | changes)


def scenes(dataset) -> set[str]:
    return {dataset.frame(k).scene_token for k in range(len(dataset))}


def test_parts_have_no_scene_in_common_and_are_together_the_whole(root: Path):
    data = mixed(root).data
    both = build_split(data, "train")
    assert isinstance(both, MixedDataset) and both.share == 0.5
    whole = build_split(mixed(root, **{"data.train.part": [0, 1], "data.unlabelled": None}).data, "train")
    assert not scenes(both.labelled) & scenes(both.unlabelled)
    assert scenes(both.labelled) | scenes(both.unlabelled) == scenes(whole)
    assert len(both) == len(whole) == 8


def test_a_student_trains_on_both(root: Path):
    cfg = mixed(root)
    both = build_split(cfg.data, "train")
    sample = both[len(both) - 1]
    assert sample.unlabelled and sample.boxes is None and sample.images is not None
    loader = build_loader(both, train_sampler(both, 2, seed=0), workers=0)
    batch = next(iter(batches(loader)))
    assert batch.unlabelled == 1 and len(batch.boxes) == 1 and len(batch.images) == 2
    torch.manual_seed(0)
    model = build_model(cfg.model)
    losses = model.loss(batch)
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data.train.part": [0, 0.01]}, r"part: \[0, 0.01\] of 4 scenes is none"),
        ({"data.train.part": [0.6, 0.5]}, "two rising numbers"),
        ({"data.unlabelled": {"part": [0.5, 1]}}, "data.unlabelled.share is missing"),
        ({"data.unlabelled": {"share": 1.5}}, "share must lie between 0 and 1"),
    ],
)
def test_parts_and_shares_that_make_no_sense(root: Path, changes, message):
    with pytest.raises(ValueError, match=message):
        build_split(mixed(root, **changes).data, "train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.train.part": 0.5}, "data.train.part must be a list of numbers, got 0.5"),
        ({"data.train.part": ["a", 1]}, r"data.train.part must be a list of numbers, got \['a', 1\]"),
        ({"data.train.part": [0, 0.01]}, r"\[0, 0.01\] of 4 scenes is none"),
        ({"data.unlabelled": {"share": "half"}}, r"data\.unlabelled\.share must be a number, got 'half'"),
        ({"data.unlabelled": {"share": 0.5}}, "data.unlabelled has 4 of the 4 frames of data.train"),
        ({"data.unlabelled": {"share": 0.5, "part": [0.25, 1]}}, "data.unlabelled has 2 of the 4 frames of data.train"),
        ({"data.unlabelled": 0.5}, "data.unlabelled must be a mapping, got 0.5"),
    ],
)
def test_parts_and_shares_that_are_none(root: Path, changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build_split(mixed(root, **changes).data, "train")
