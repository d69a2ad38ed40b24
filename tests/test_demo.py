"""What `make demo` does, in a smaller world and with one epoch per run."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
RECIPE = """
title: CRKD, tiny
data: {scenes: 5, keyframes: 3, image_size: [400, 225], lidar_sweeps: 1, radar_sweeps: 3, reach: 28}
data_cost: 10
runs:
  teacher: {config: synthetic/camera+lidar/demo.yaml, shared: true, cost: 0.5, overrides: {max_epochs: 1}}
  control: {config: synthetic/camera+radar/demo.yaml, cost: 0.5, overrides: {max_epochs: 1}}
  distilled:
    config: synthetic/crkd/demo.yaml
    cost: 0.5
    overrides: {max_epochs: 1, model.teacher.checkpoint: "{teacher}", model.teacher.min_score: null}
table: {teacher: teacher, control: control, distilled: distilled}
pictures: {columns: [teacher, control, distilled], samples: 2}
"""

pytestmark = pytest.mark.slow


def demo(folder: Path) -> subprocess.CompletedProcess[str]:
    places = ["--run-dir", f"{folder}/runs/demo", "--data-dir", f"{folder}/data"]
    command = [sys.executable, "tools/demo.py", *places, "--recipe", f"{folder}/crkd_demo.yaml"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Folder and lines of a demo."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "crkd_demo.yaml").write_text(RECIPE)
    return folder, demo(folder).stdout.splitlines()


def test_make_demo_runs_this_tool() -> None:
    command = ["make", "--no-print-directory", "-n", "demo"]  # tests are run by make, too
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert lines.splitlines()[-1].endswith("python tools/demo.py --run-dir runs/demo --seed 0")


def test_the_picture_comes_before_the_training(done: tuple[Path, list[str]]) -> None:
    folder, lines = done
    places = [next(i for i, line in enumerate(lines) if word in line) for word in ("picture: ", "3 runs, 0 of them")]
    assert places == sorted(places) and "about 0:0" in lines[places[1]]
    picture = Path(lines[places[0]].split()[1])
    assert Image.open(picture).width == 1920
    assert picture.stat().st_mtime < (folder / "runs/demo/teacher-seed0/configs.yaml").stat().st_mtime


def test_it_ends_with_a_table_and_where_everything_lies(done: tuple[Path, list[str]]) -> None:
    folder, lines = done
    run = folder / "runs" / "demo"
    assert lines[-2:] == [f"results: {run}/results.json", f"pictures: {run}/pictures"]
    assert len(list((run / "pictures").glob("*.png"))) == 2
    assert Image.open(run / "curves.png").width > 1000
    results = json.loads((run / "results.json").read_text())
    assert {"teacher", "control", "distilled"} <= set(results["table"]["roles"])
    control, distilled = (results["runs"][name]["0"] for name in ("control", "distilled"))
    assert control["iterations"] == distilled["iterations"]
    assert all(runs["0"]["cpu_seconds"] > 1 for runs in results["runs"].values())


def test_again_reuses_what_is_there(done: tuple[Path, list[str]]) -> None:
    folder, lines = done
    weights = {p: os.stat(p).st_mtime_ns for p in folder.rglob("*.safetensors")}
    assert demo(folder).stdout.splitlines()[-12:] == lines[-12:]
    assert {p: os.stat(p).st_mtime_ns for p in folder.rglob("*.safetensors")} == weights


def test_audit_of_the_demo(done: tuple[Path, list[str]]) -> None:
    """The documented command, on what was trained here."""
    readme = (ROOT / "docs" / "extending.md").read_text().splitlines()
    line = next(line for line in readme if line.startswith("python tools/audit_distillation"))
    for folder in ("data/", "runs/"):
        line = line.replace(f" {folder}", f" {done[0]}/{folder}")
    command = [sys.executable, *shlex.split(line)[1:], "--batches", "2", "--model.teacher.min_score", "null"]
    audit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert audit.returncode == 0, audit.stderr[-2000:]
    rows = {row.split()[0]: row.split()[1:] for row in audit.stdout.splitlines() if row.split()}
    assert {"detection", "radar", "fused", "camera", "relation", "response"} <= set(rows)
    assert all(float(x) == 1 for x in rows["detection"][1:])
