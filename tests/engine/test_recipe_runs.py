"""Recipes that run, each training a process: at the same time or not, interrupted, killed, resumed, run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import recipe_toy
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from mmdet3d.engine import recipe as module
from mmdet3d.engine.recipe import Plan, Recipe, run_recipe
from mmdet3d.io.weights import read_metadata, save_metadata
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.registry import MODELS

CONFIG = """
seed: 0
dataset_root: none
max_epochs: 2
load_from: null
model: {type: EngineToyModel}
data:
  samples_per_gpu: 3
  workers_per_gpu: 1
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
FINAL = ("teacher-seed0/epoch_2", "control-seed0/epoch_1")


def write_recipe(folder: Path) -> None:
    """Two toy trainings, the second from the weights of the first."""
    (folder / "toy.yaml").write_text(CONFIG)
    (folder / "recipe.yaml").write_text(RECIPE)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "RUN_COMMAND", recipe_toy.RUN_COMMAND)
    write_recipe(tmp_path)
    return Recipe.load("recipe.yaml")


def start_tool(folder: Path, *words: str, delay: float = 0.0) -> subprocess.Popen:
    """tools/run_recipe.py with slow training samples, its output into a pipe."""
    command = [sys.executable, recipe_toy.__file__, "tool", "recipe.yaml", "--run-dir", "run", *words]
    environment = {**os.environ, "ENGINE_TOY_DELAY": str(delay), "DISTILL3D_CPUS": "2"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.05)


def processes_of(folder: Path) -> list[int]:
    """Those whose current folder is `folder`: the tool, its runs and their loaders."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
        except OSError:  # another user's, or gone
            continue
    return found


def same_weights(folder: Path, other: Path) -> bool:
    pairs = [(load_file(folder / f"{name}.safetensors"), load_file(other / f"{name}.safetensors")) for name in FINAL]
    return all(a.keys() == b.keys() and all(a[key].equal(b[key]) for key in a) for a, b in pairs)


def plan(recipe: Recipe, **arguments: Any) -> Plan:
    return Plan.make(recipe, "run", **{"seeds": [0], **arguments})


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe with two seeds, in one go, two runs at once, loaders in the processes that train."""
    folder = tmp_path_factory.mktemp("whole")
    write_recipe(folder)
    tool = start_tool(folder, "--seeds", "0", "1", "--jobs", "2")
    output, errors = (stream.decode() for stream in tool.communicate())
    assert tool.returncode == 0, errors
    (folder / "output.txt").write_text(output + errors)
    return folder


def test_what_a_recipe_leaves_and_says(whole: Path) -> None:
    runs = json.loads((whole / "run" / "results.json").read_text())["runs"]
    results = {f"{name}-seed{seed}": result for name, seeds in runs.items() for seed, result in seeds.items()}
    assert list(results) == ["teacher-seed0", "control-seed0", "control-seed1"]
    for name, result in results.items():
        assert result["iterations"] == (8 if name == "teacher-seed0" else 4)
        assert result["seconds"] > 0.1 and result["cpu_seconds"] > 0.1 and result["config"] == "toy.yaml"
        assert result["checkpoint"] == f"{name}/epoch_{2 if 'teacher' in name else 1}.safetensors"
        assert not (whole / "run" / name / "progress.json").exists()
    text = (whole / "output.txt").read_text()
    assert "3 runs, 0 of them finished; 16 steps of training, up to 2 runs at once" in text
    assert "control-seed1: finished in " in text and "\r" not in text and "\x1b" not in text


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_signal_ends_all_processes_and_the_same_command_continues(
    whole: Path, tmp_path: Path, number: signal.Signals
) -> None:
    """With another number of jobs, and with loaders of their own, yet to the same bits."""
    write_recipe(tmp_path)
    tool = start_tool(tmp_path, "--jobs", "1", delay=0.2)
    wait_for(tmp_path / "run" / "teacher-seed0" / "epoch_1.safetensors", tool)
    tool.send_signal(number)
    errors = tool.communicate()[1].decode()
    if number == signal.SIGKILL:
        assert tool.returncode == -signal.SIGKILL
        deadline = time.monotonic() + 10
        while processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.1)
    else:
        assert tool.returncode == 128 + number
        assert "interrupted: teacher-seed0 and 1 more are not finished; the same command continues" in errors
        assert list((tmp_path / "run" / "teacher-seed0").glob("epoch_*.state.pt"))
    assert processes_of(tmp_path) == []
    tool = start_tool(tmp_path, "--jobs", "1")
    assert tool.wait() == 0, tool.stderr.read().decode()
    runs = json.loads((tmp_path / "run" / "results.json").read_text())["runs"]
    # The time of the first stretch is not known; that of a run in one go is.
    assert runs["teacher"]["0"]["seconds"] is None and runs["control"]["0"]["seconds"] > 0
    assert same_weights(tmp_path / "run", whole / "run")


def test_a_failed_run_is_named_with_its_cause_and_log(recipe: Recipe) -> None:
    with pytest.raises(
        ValueError,
        match=r"^run teacher-seed0 failed: sample 7: points.bin is cut short; copy it again \(log: run/teacher-seed0/"
        r"console.log\); not finished therefore: control-seed0; the same command continues with what is not finished$",
    ):
        run_recipe(recipe, "run", [0], {"data.train.broken": 7})
    assert "Traceback" in Path("run/teacher-seed0/console.log").read_text()


def test_finished_runs_are_reused_however_the_folder_is_written(
    whole: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["cp", "-r", str(whole / "run"), "run"], check=True)
    written = Path("run/results.json").read_text()
    assert "\ndistilled & " in Path("run/table.tex").read_text()
    monkeypatch.setattr(Plan, "train", lambda *_: pytest.fail("trained again"))
    first = run_recipe(recipe, tmp_path / "run", [0, 1])
    assert Path("run/results.json").read_text() == written and str(tmp_path) not in written
    # As an earlier version wrote it.
    settings = Path("run/control-seed0/configs.yaml")
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text())))
    Path("run").rename("moved")
    assert run_recipe(recipe, "moved", [0, 1]) == first
    assert Path("moved/results.json").read_text() == written
    note = Path("moved/control-seed1/done.json")
    note.write_text('{"seconds": 3.5}\n')
    times = run_recipe(recipe, "moved", [0, 1])["runs"]["control"][1]
    assert (times["seconds"], times["cpu_seconds"]) == (3.5, None)
    changed = r"moved/control-seed0 holds a run of another config \(max_epochs: 1, now 2\); remove that folder to train"
    with pytest.raises(ValueError, match=changed):
        run_recipe(recipe, "moved", [0], {"max_epochs": 2})


class _Outer(Trainable):
    def __init__(self, part: dict[str, str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def loss(self, batch: Any) -> dict[str, Any]:
        return {}

    def predict(self, batch: Any) -> list[Any]:
        return []


def test_what_was_trained_from_other_files_is_not_reused(
    whole: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["cp", "-r", str(whole / "run"), "run"], check=True)
    final = Path("run/teacher-seed0/epoch_2.json")
    weights = final.with_suffix(".safetensors")
    record = read_metadata(weights)
    save_metadata(weights, record | {"sha256": "of other weights"})
    with pytest.raises(ValueError, match=r"run/control-seed0 was trained from weights of teacher-seed0 that are not"):
        plan(recipe)
    final.unlink()  # the teacher is to be trained anew
    with pytest.raises(
        ValueError, match=r"control-seed0 was trained from weights of teacher.* remove the folder run/c"
    ):
        plan(recipe)
    save_metadata(weights, record)
    assert not plan(recipe).tasks
    monkeypatch.setitem(MODELS._classes, "Outer", _Outer)
    # The model names a config file whose content is another one than when the run was trained.
    Path("part.yaml").write_text("model: {type: EngineToyModel}\n")
    before = {"config": "part.yaml", "model": {"type": "EngineToyModel", "width": 7}, "config_digest": "of then"}
    for file in (*Path("run").glob("*-seed0/configs.yaml"), Path("toy.yaml")):
        settings = yaml.safe_load(file.read_text())
        part = {"config": "part.yaml"} if file.name == "toy.yaml" else before
        file.write_text(yaml.safe_dump(settings | {"model": {"type": "Outer", "part": part}}))
    with pytest.raises(
        ValueError, match=r"run/teacher-seed0 holds a run of another config \(model\.part\.model\.width: 7, now None\)"
    ):
        plan(recipe)


def test_what_was_interrupted_goes_on_from_the_same_files_alone(whole: Path, recipe: Recipe) -> None:
    subprocess.run(["cp", "-r", str(whole / "run"), "run"], check=True)
    teacher, folder = Path("run/teacher-seed0/epoch_2.safetensors"), Path("run/control-seed0")
    recorded = read_metadata(teacher)

    def start(sha256: str) -> None:
        save_metadata(teacher, recorded | {"sha256": sha256})
        plan(recipe).graph["control", 0].prepare()

    for file in folder.glob("epoch_*"):
        file.unlink()
    start("first")
    start("second")  # nothing was trained from the first
    (folder / "epoch_1_iter_2.safetensors").touch()
    (folder / "epoch_1_iter_2.state.pt").touch()
    (folder / "epoch_1_iter_2.json").write_text("{}")
    start("second")
    assert json.loads((folder / "done.json").read_text())["starts"] == {"teacher-seed0": "second"}
    message = (
        r"run/control-seed0 was begun from weights of teacher-seed0 that are not .* remove the folder run/control-s"
    )
    with pytest.raises(ValueError, match=message):
        start("third")


def test_a_world_per_seed_has_its_own_teacher(recipe: Recipe, tmp_path: Path) -> None:
    roots = {1000: tmp_path / "a", 1001: tmp_path / "b"}
    found = run_recipe(recipe, "run", [1000, 1001], data_root=roots)
    assert found["worlds"] == [1000, 1001] and "seeds" not in found
    checkpoints = {seed: run["checkpoint"] for seed, run in found["runs"]["teacher"].items()}
    assert checkpoints == {seed: f"teacher-seed{seed}/epoch_2.safetensors" for seed in roots}
    control = yaml.safe_load(Path("run/control-seed1001/configs.yaml").read_text())
    assert control["load_from"].endswith("teacher-seed1001/epoch_2.safetensors")
    assert control["dataset_root"] == f"{roots[1001]}/"
    assert found["text"].startswith("T: 2 worlds, each with its own data and teacher")


def test_overrides_of_the_user_have_the_last_word(recipe: Recipe) -> None:
    assert plan(recipe, overrides={"max_epochs": 3}).graph["control", 0].config.max_epochs == 3
    with pytest.raises(
        ValueError, match="--load_from has no effect in this recipe: run control gets the checkpoint of"
    ):
        plan(recipe, overrides={"load_from": "mine.safetensors"})
    # A block that the user replaces is replaced as a whole.
    run = recipe.runs["control"].__class__("toy.yaml", {"optimizer.lr": 1, "x": 2})
    assert run.overrides_with({"optimizer": {"lr": 3}}, {}) == {"optimizer": {"lr": 3}, "x": 2}


def test_a_shared_run_is_one_node(recipe: Recipe) -> None:
    made = plan(recipe, seeds=[4, 5], jobs=2)
    assert [(task.name, task.needs) for task in made.tasks] == [
        ("teacher-seed4", ()),
        ("control-seed4", ("teacher-seed4",)),
        ("control-seed5", ("teacher-seed4",)),
    ]
    assert made.graph["teacher", 5] is made.graph["teacher", 4]
    assert made.graph["control", 5].config.load_from == "run/teacher-seed4/epoch_2.safetensors"
    with pytest.raises(ValueError, match="--jobs must be at least 1, got 0"):
        plan(recipe, jobs=0)


def test_the_announced_time_follows_costs_and_the_machine(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(recipe).seconds is None
    Path("recipe.yaml").write_text(RECIPE.replace("config: toy.yaml", "config: toy.yaml, cost: 10"))
    monkeypatch.setenv("DISTILL3D_CPUS", "2")
    for factor, jobs, seconds in ((1.0, 1, 160), (1.5, 1, 240), (1.0, 2, 120), (1.0, 8, 120)):
        monkeypatch.setattr(module, "machine_factor", lambda factor=factor: factor)
        made = plan(Recipe.load("recipe.yaml"), seeds=[0, 1], jobs=jobs)
        assert made.seconds == seconds
    assert made.describe().startswith(
        "3 runs, 0 of them finished; 16 steps of training, up to 8 runs at once: about 0:02:00"
    )
    # Three runs whose steps would take less than they need to start and to be evaluated.
    Path("recipe.yaml").write_text(RECIPE.replace("config: toy.yaml", "config: toy.yaml, cost: 0.1"))
    assert plan(Recipe.load("recipe.yaml"), seeds=[0, 1], jobs=1).seconds == 3 * 15


def test_a_run_that_is_not_evaluated_at_its_end_is_found_before_anything_is_trained(recipe: Recipe) -> None:
    for settings in ({"evaluation.interval": 3}, {"evaluation.start": 3}, {"evaluation.start": 2}):
        with pytest.raises(ValueError, match=r"run \w+ has \d epochs and is not evaluated after the last one"):
            run_recipe(recipe, "run", [0], settings)
    with pytest.raises(ValueError, match=r"run teacher has no data\.val"):
        run_recipe(recipe, "run", [0], {"data.val": None})
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lr_config.policy", "nonsense", r"lr_config\.policy must be one of .*, got 'nonsense'"),
        ("lr_config", {"policy": "step", "step": 0}, r"lr_config\.step must be an integer of at least 1"),
        ("momentum_config", {"policy": "cyclic", "turn": 1}, r"unknown config key momentum_config\.turn"),
        ("optimizer.type", "AdmW", r"optimizer\.type must be an optimiser of torch\.optim, got 'AdmW', did you mean"),
        ("optimizer.betas", 1, "config key optimizer: AdamW refuses"),
        ("optimizer.paramwise_cfg", {"custom_keys": {"nek": {}}}, "'nek' matches no parameter of EngineToyModel"),
        ("evaluation.interval", 0, r"evaluation\.interval must be an integer of at least 1"),
        ("checkpoint_config.interval", "often", r"checkpoint_config\.interval must be a whole number, got 'often'"),
    ],
)
def test_what_would_end_a_later_run_is_found_before_the_first(
    recipe: Recipe, key: str, value: object, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^--{key} fits no run: .*{message}"):
        run_recipe(recipe, "run", [0], {key: value})
    with pytest.raises(ValueError, match=rf"^--control\.{key} does not fit: .*{message}"):
        run_recipe(recipe, "run", [0], {f"control.{key}": value})
    own = yaml.safe_load(RECIPE)
    own["runs"]["control"]["overrides"][key] = value
    Path("recipe.yaml").write_text(yaml.safe_dump(own, sort_keys=False))
    with pytest.raises(ValueError, match=f"^run control: .*{message}"):
        run_recipe(Recipe.load("recipe.yaml"), "run", [0])
    assert not Path("run").exists()
