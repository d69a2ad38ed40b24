"""An override does something, or is refused by its key."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from engine_toy import toy_config

from mmdet3d.blocks import ConfigKeyError, hints_from
from mmdet3d.composition import TRAINING
from mmdet3d.config import load_config
from mmdet3d.engine.overrides import configured, without_effect
from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.engine.settings import Settings

CRKD = "synthetic/crkd/small.yaml"


@pytest.fixture
def run_config(tmp_path: Path) -> Path:
    """The `configs.yaml` of a run, in which no expression is left."""
    content = toy_config(dataset_root="data/then/", image_size=[4, 8], model={"type": "Toy"})
    content["data"] |= {"train": {"dataset_root": "data/then/"}, "val": {"dataset_root": "data/others/"}}
    path = tmp_path / "configs.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_constant_that_nothing_refers_to_is_refused() -> None:
    named = r"--voxel_size has no effect: .*small\.yaml refers to voxel_size.*--model\.student\.overrides\.voxel_size"
    with pytest.raises(ValueError, match=named):
        configured(CRKD, ["--voxel_size", "[1, 1, 8]"])
    with pytest.raises(ValueError, match=r"--radar_encoder\.in_channels has no effect"):
        configured("synthetic/lidar/small.yaml", {"radar_encoder.in_channels": 3})


def test_a_constant_that_something_read_refers_to_is_taken() -> None:
    # Through another constant, a data set and the student's file.
    assert configured("synthetic/lidar/small.yaml", {"lidar_sweeps": 7, "max_epochs": 3}).max_epochs == 3
    assert configured(CRKD, {"dataset_root": "data/x/"}).data.train.dataset_root == "data/x/"
    changed = configured(CRKD, {"model.student.overrides.lidar_sweeps": 7})
    assert changed.model.student.overrides == {**(load_config(CRKD).model.student.overrides or {}), "lidar_sweeps": 7}


def test_the_config_of_a_run_takes_another_place_of_its_data_and_no_other_constant(run_config: Path) -> None:
    moved = configured(run_config, {"dataset_root": "data/now/"})
    assert moved.data.train.dataset_root == "data/now/" and moved.data.val.dataset_root == "data/others/"
    assert configured(run_config, {"dataset_root": "data/then/"}) == load_config(run_config)
    with pytest.raises(ValueError, match=r"--image_size has no effect: .*configs\.yaml refers to image_size"):
        configured(run_config, {"image_size": [8, 8]})
    assert configured(run_config, {"image_size": [8, 8]}, spare=("image_size",)).image_size == [8, 8]


def test_data_that_lies_elsewhere_cannot_be_moved(run_config: Path) -> None:
    content = yaml.safe_load(run_config.read_text())
    content["data"]["train"] = {"dataset_root": "data/others/"}
    run_config.write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="--dataset_root has no effect"):
        configured(run_config, {"dataset_root": "data/now/"})


def test_an_override_of_a_recipe_has_an_effect_in_some_run() -> None:
    recipe = Recipe.load("synthetic/recipes/crkd_small.yaml")
    recipe.check({"radar_sweeps": 2})  # of the student alone
    with pytest.raises(ValueError, match="--voxel_size has no effect"):
        recipe.check({"distilled.voxel_size": [1, 1, 8]})


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("vod/default.yaml", "describes no model: it is what other configs inherit"),
        ("synthetic/recipes/crkd_small.yaml", r"is a recipe of several trainings, no config: .*recipe.* runs it"),
    ],
)
def test_what_is_no_config_of_a_model_is_said(path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(path, {})
    assert configured(path, {}, with_model=False).get("model") is None  # pictures of labels need none


def test_the_tail_of_one_key_is_answered_with_all_of_it() -> None:
    with pytest.raises(ValueError, match=r"'grad_clip', did you mean 'optimizer_config\.grad_clip\.max_norm'"):
        load_config(CRKD, {"grad_clip.max_norm": 1})


def test_every_setting_of_the_training_has_an_effect() -> None:
    assert {f.name for f in fields(Settings)} <= {*TRAINING, "data"}
    assert not without_effect(CRKD, {"fully_shard": True})  # which was said to have none


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimizer_config.samples_per_gpu", r"samples_per_gpu, did you mean 'data\.samples_per_gpu'\? \(known: "),
        ("data.save_bset", r"data\.save_bset, did you mean 'evaluation\.save_best'\?"),
        ("evaluation.intervall", r"evaluation\.intervall, did you mean 'interval'\?"),  # one beside it is nearer
    ],
)
def test_a_key_at_the_wrong_place_is_answered_with_the_right_one(key: str, message: str) -> None:
    config = load_config("synthetic/lidar/small.yaml", {key: 2})
    with pytest.raises(ConfigKeyError, match=message), hints_from(config):
        Settings.from_config(config)
