"""Recipes that run: interrupted and resumed, run again from elsewhere, with overrides."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import yaml
from engine_toy import EngineToyDataset, EngineToyModel  # noqa: F401  (configs name them)
from safetensors.torch import load_file

from mmdet3d.engine import recipe as module
from mmdet3d.engine.interrupt import Interrupted
from mmdet3d.engine.recipe import Recipe, run_recipe
from mmdet3d.engine.trainer import Trainer

CONFIG = """
seed: 0
max_epochs: 2
load_from: null
model: {type: EngineToyModel}
data:
  samples_per_gpu: 3
  train: {type: EngineToyDataset, augment: true}
  val: {type: EngineToyDataset, size: 5}
optimizer: {type: AdamW, lr: 1e-2}
evaluation: {interval: 1}
"""
RECIPE = """
title: T
runs:
  teacher: {config: toy.yaml, shared: true}
  control: {config: toy.yaml, overrides: {load_from: "{teacher}", max_epochs: 1}}
table: {teacher: teacher, control: control, distilled: control}
columns: {map: object/map}
"""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """Two toy trainings, the second from the weights of the first, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("toy.yaml").write_text(CONFIG)
    Path("recipe.yaml").write_text(RECIPE)
    return Recipe.load("recipe.yaml")


def stop_at(iteration: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM within that iteration, once."""
    iterate = Trainer._iterate

    def step(trainer: Trainer, batch: object) -> object:
        if trainer.iteration == iteration:
            monkeypatch.setattr(Trainer, "_iterate", iterate)
            os.kill(os.getpid(), signal.SIGTERM)
        return iterate(trainer, batch)

    monkeypatch.setattr(Trainer, "_iterate", step)


def test_an_interrupted_recipe_continues(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(5, monkeypatch)
    with pytest.raises(
        Interrupted, match=r"^run/teacher-seed0 is not finished; the same command continues it$"
    ) as stop:
        run_recipe(recipe, "run", [0])
    assert stop.value.number == signal.SIGTERM
    runs = run_recipe(recipe, "run", [0])["runs"]
    assert runs["teacher"][0]["iterations"] == 8
    # The time of the first stretch is not known; that of a run in one go is.
    assert runs["teacher"][0]["seconds"] is None and runs["control"][0]["seconds"] > 0
    run_recipe(recipe, "other", [0])
    for name in ("teacher-seed0/epoch_2", "control-seed0/epoch_1"):
        resumed, whole = (load_file(f"{folder}/{name}.safetensors") for folder in ("run", "other"))
        assert all(resumed[key].equal(whole[key]) for key in whole)


def test_finished_runs_are_reused_however_the_folder_is_written(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_recipe(recipe, "run", [0, 1])
    written = Path("run/results.json").read_text()
    checkpoints = [result["checkpoint"] for runs in first["runs"].values() for result in runs.values()]
    assert checkpoints == [
        f"{n}.safetensors" for n in ("teacher-seed0/epoch_2", "control-seed0/epoch_1", "control-seed1/epoch_1")
    ]
    assert str(tmp_path) not in written and json.loads(written)["runs"]["teacher"]["0"]["config"] == "toy.yaml"
    monkeypatch.setattr(module, "_fit", lambda *_: pytest.fail("trained again"))
    assert run_recipe(recipe, tmp_path / "run", [0, 1]) == first
    # As an earlier version wrote it.
    settings = Path("run/control-seed0/configs.yaml")
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text())))
    Path("run").rename("moved")
    assert run_recipe(recipe, "moved", [0, 1]) == first
    assert Path("moved/results.json").read_text() == written
    with pytest.raises(ValueError, match=r"moved/control-seed0 holds a run of another config; remove that folder"):
        run_recipe(recipe, "moved", [0], {"max_epochs": 2})


def test_overrides_of_the_user_have_the_last_word(recipe: Recipe) -> None:
    runs = run_recipe(recipe, "run", [0], {"max_epochs": 2})["runs"]
    assert runs["control"][0]["iterations"] == 8
    with pytest.raises(
        ValueError, match="--load_from has no effect in this recipe: run control gets the checkpoint of"
    ):
        run_recipe(recipe, "other", [0], {"load_from": "mine.safetensors"})
    # A block that the user replaces is replaced as a whole.
    run = recipe.runs["control"].__class__("toy.yaml", {"optimizer.lr": 1, "x": 2})
    assert run.overrides_with({"optimizer": {"lr": 3}}, {}) == {"optimizer": {"lr": 3}, "x": 2}


def test_a_run_that_is_not_evaluated_at_its_end_is_found_before_anything_is_trained(recipe: Recipe) -> None:
    for plan in ({"evaluation.interval": 3}, {"evaluation.start": 3}, {"evaluation.start": 2}):
        with pytest.raises(ValueError, match=r"run \w+ has \d epochs and is not evaluated after the last one"):
            run_recipe(recipe, "run", [0], plan)
    with pytest.raises(ValueError, match=r"run teacher has no data\.val"):
        run_recipe(recipe, "run", [0], {"data.val": None})
    assert not Path("run").exists()
