"""Settings of the wrong kind, and what one costs where it does not belong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch

from mmdet3d.blocks import check_kind
from mmdet3d.config import CONFIG_ROOT, load_config
from mmdet3d.datasets import build_dataset
from mmdet3d.engine import settings
from mmdet3d.engine.schedule import LearningRate
from mmdet3d.models import build_model
from mmdet3d.registry import DATASETS, MODELS, TRANSFORMS


def test_half_precision_on_a_cpu_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    settings._warn_of_slow.cache_clear()
    for precision in ("auto", "fp32", "fp16", "fp16", "bf16"):
        settings.autocast_dtype(precision, torch.device("cpu"))
    assert [record.args for record in caplog.records] == [("fp16",), ("bf16",)]
    assert "ten times" in caplog.text
    caplog.clear()
    settings.autocast_dtype("bf16", torch.device("cuda"))
    assert not caplog.records


TINY = {"max_epochs": 1, "optimizer": {"type": "SGD", "lr": 0.1}}
WRONG = [
    ({"evaluation": {"start": "abc"}}, "evaluation.start must be a whole number, got 'abc'"),
    ({"evaluation": {"save_best": 3}}, "evaluation.save_best must be a text, got 3"),
    ({"checkpoint_config": {"max_keep_ckpts": "few"}}, "checkpoint_config.max_keep_ckpts must be a whole number"),
    ({"checkpoint_config": {"interval": "abc"}}, "checkpoint_config.interval must be a whole number, got 'abc'"),
    ({"log_config": {"interval": [1]}}, r"log_config.interval must be a whole number, got \[1\]"),
    ({"optimizer_config": {"grad_clip": {"max_norm": "abc"}}}, "grad_clip.max_norm must be a number, got 'abc'"),
    ({"ema": {"decay": "abc"}}, "ema.decay must be a number, got 'abc'"),
    ({"ema": {"ramp": "abc"}}, "ema.ramp must be a number, got 'abc'"),
    ({"ema": {"decay": 2}}, r"ema.decay must lie in \[0, 1\), got 2"),
    ({"ema": {"ramp": 0}}, "ema.ramp must be above 0, got 0"),
    ({"optimizer_config": {"grad_clip": {"max_norm": -1}}}, "grad_clip.max_norm must be above 0, got -1"),
    ({"optimizer_config": {"grad_clip": {"norm_type": 0}}}, "grad_clip.norm_type must be above 0, got 0"),
    ({"deterministic": "no"}, "deterministic must be true or false, got 'no'"),
    ({"find_unused_parameters": "no"}, "find_unused_parameters must be true or false, got 'no'"),
    ({"optimizer": "AdamW"}, "optimizer must be a mapping, got 'AdamW'"),
    ({"lr_config": "step"}, "lr_config must be a mapping, got 'step'"),
    ({"load_from": 3}, "load_from must be a text, got 3"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_values_of_another_kind_are_named_by_their_key(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"config key .*{message}"):
        settings.Settings.from_config(TINY | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "constant", "warmup_iters": -5}, "lr_config.warmup_iters must not be negative, got -5"),
        ({"policy": "constant", "warmup_ratio": -0.1}, "lr_config.warmup_ratio must not be negative, got -0.1"),
        ({"policy": "CosineAnnealing", "min_lr": "abc"}, "lr_config.min_lr must be a number, got 'abc'"),
        (
            {"policy": "CosineAnnealing", "min_lr_ratio": 0.1, "by_epoch": "no"},
            "lr_config.by_epoch must be true or false",
        ),
        ({"policy": "cyclic", "target_ratio": "abc"}, "lr_config.target_ratio must be a number or a list of numbers"),
        ({"policy": "cyclic", "target_ratio": [1, 2, 3]}, "lr_config.target_ratio must be a number or two"),
        ({"policy": "cyclic", "cyclic_times": "abc"}, "lr_config.cyclic_times must be a whole number"),
        ({"policy": "step", "step": [1], "gamma": "abc"}, "lr_config.gamma must be a number"),
        ({"policy": "step", "step": [1], "warmup": "linear", "warmup_iters": "abc"}, "warmup_iters must be a number"),
        ({"policy": "step", "step": [1], "warmup": "linear", "warmup_ratio": "abc"}, "warmup_ratio must be a number"),
    ],
)
def test_schedules_name_values_of_another_kind(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRate(changes, 2, 3)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        (
            "camera",
            {"model.heads.object.in_channels": "abc"},
            "model.heads.object.in_channels must be a whole number, got 'abc'",
        ),
        ("camera", {"model.heads.object.norm_bbox": "no"}, "heads.object.norm_bbox must be true or false, got 'no'"),
        ("camera", {"model.heads.object.tasks": "car"}, "model.heads.object.tasks must be a list, got 'car'"),
        ("camera", {"model.heads.object.tasks": [["car", 3]]}, "model.heads.object.tasks must be a list"),
        ("camera", {"model.heads.object.test_cfg.score_threshold": "abc"}, "test_cfg.score_threshold must be a number"),
        ("camera", {"model.heads.object.train_cfg.code_weights": ["a"] * 10}, "code_weights must be a list of numbers"),
        (
            "camera",
            {"camera_encoder.vtransform.downsample": "two"},
            "model.encoders.camera.vtransform.downsample must be a whole number",
        ),
        (
            "camera",
            {"camera_encoder.vtransform.dbound": "abc"},
            "model.encoders.camera.vtransform.dbound must be a list of numbers",
        ),
        ("lidar", {"model.type": None}, r"config key model\.type must name a model type, got None"),
        ("lidar", {"model.decoder.backbone.type": 3}, r"decoder\.backbone\.type must name a model type, got 3"),
        (
            "lidar",
            {"point_cloud_range": [1, 2]},
            r"cannot be worked out \(.*with .*point_cloud_range: \[1, 2\]",
        ),
        ("lidar", {"voxel_size": [0, 0, 0]}, r"\[0, 0\] m has no cell"),
        ("lidar", {"model.encoders.lidar.voxelize.max_num_points": "abc"}, "voxelize.max_num_points must be a whole"),
    ],
)
def test_parts_name_values_of_another_kind(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(load_config(f"synthetic/{name}/demo.yaml", overrides).model)


def test_transforms_and_data_sets_name_values_of_another_kind(tmp_path: Path) -> None:
    block = {"type": "NuScenesDataset", "ann_file": "a.pkl", "dataset_root": str(tmp_path)}
    with pytest.raises(ValueError, match=r"NuScenesDataset.load_interval must be a whole number, got 'abc'"):
        build_dataset(block | {"load_interval": "abc"})
    with pytest.raises(ValueError, match=r"NuScenesDataset.test_mode must be true or false, got 'no'"):
        build_dataset(block | {"test_mode": "no"})
    with pytest.raises(ValueError, match=r"LoadPointsFromMultiSweeps.sweeps_num must be a whole number, got 'abc'"):
        TRANSFORMS.build({"type": "LoadPointsFromMultiSweeps", "sweeps_num": "abc"})
    for loader, least in (("LoadPointsFromMultiSweeps", 0), ("LoadRadarPointsMultiSweeps", 1)):
        with pytest.raises(ValueError, match=rf"{loader}.sweeps_num must be an integer of at least {least}, got -1"):
            TRANSFORMS.build({"type": loader, "sweeps_num": -1})
    with pytest.raises(ValueError, match=r"NuScenesDataset.pipeline must be a list, got null; leave it out for \(\)"):
        build_dataset(block | {"pipeline": None})


def test_every_value_of_the_shipped_configs_is_of_its_kind() -> None:
    """Without building anything, which test_config_tree does."""

    def look(node: Any) -> None:
        if isinstance(node, Mapping):
            for registry in (MODELS, TRANSFORMS, DATASETS):
                if node.get("type") in registry.names():
                    hints = get_type_hints(registry.get(node["type"]).__init__)
                    for key in node.keys() & hints.keys():
                        check_kind(node[key], hints[key], key)
        for child in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
            look(child)

    for file in sorted(CONFIG_ROOT.glob("*/**/*.yaml")):
        if not {"recipes", "_parts"} & {*file.parts} and file.name != "default.yaml":
            config = load_config(file)
            look(config.get("model"))
            look(config.get("data"))
