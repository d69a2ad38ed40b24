"""The recipe that distils a map, from a world of a few frames to table and pictures; a step per run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPE = """
base: [synthetic/recipes/seg_small.yaml]
title: Map, tiny
data: {scenes: 3, keyframes: 1}
pictures: {columns: [teacher, student, distilled], samples: 1}
"""


@pytest.mark.slow
def test_a_map_is_distilled_from_a_world_to_a_table(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    places = ["--run-dir", str(tmp_path / "runs"), "--data-dir", str(tmp_path / "data"), "--max_epochs", "1"]
    command = [sys.executable, "tools/run_recipe.py", str(tmp_path / "tiny.yaml"), *places, "--seeds", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    assert "mIoU" in done.stdout and "distilled" in done.stdout
    log = tmp_path / "runs" / "distilled-seed0" / "metrics.jsonl"
    trained = [json.loads(line) for line in log.read_text().splitlines()]
    logged = {key for entry in trained for key in entry}
    assert {"loss/kd/fused", "loss/kd/response/walkway", "loss/map/walkway/focal", "map/mean/iou@max"} <= logged
    assert list((tmp_path / "runs").rglob("*.png"))
