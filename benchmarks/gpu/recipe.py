"""One recipe trained on the GPU from its data to its table, beside the table recorded on the CPU."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.runner import Piece, Row, Setup
from mmdet3d.machine import bound

__all__ = ["RECIPE"]

ROOT = Path(__file__).resolve().parents[2]
NAME, RECORDED = "crkd_small", ROOT / "benchmarks" / "results" / "crkd_small.json"
COLUMNS = ("mAP", "NDS")
# Seeds of one machine scatter by 0.04 in these columns (docs/results.md); 0.05 is what a broken kernel would exceed.
ALLOWED = 0.05
_SAVING = 60  # seconds that a training needs to stop with a checkpoint
_DRY = """title: dry run
data: {scenes: 4, keyframes: 2, image_size: [400, 225], lidar_sweeps: 1, radar_sweeps: 1, reach: 28}
runs: {student: {config: synthetic/camera+radar/demo.yaml, overrides: {max_epochs: 1}}}
table: {teacher: student, control: student, distilled: student}
"""


def _recipe(setup: Setup, item: str, seconds: float) -> Row:
    """What is interrupted is resumed by the next call."""
    folder = setup.work / "recipe"
    folder.mkdir(parents=True, exist_ok=True)
    recipe = f"configs/synthetic/recipes/{NAME}.yaml"
    if setup.dry:
        recipe = str(folder / "dry.yaml")
        Path(recipe).write_text(_DRY)
    command = [sys.executable, "tools/run_recipe.py", recipe, "--run-dir", str(folder / "runs")]
    command += ["--data-dir", str(folder / "world"), "--seeds", "0"]
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, preexec_fn=bound())
        try:
            process.wait(seconds - _SAVING)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_SAVING - 5)
            finally:
                process.kill()
            return {"status": "unfinished", "cause": "the time was up; the next call goes on"}
    if process.returncode:
        text = (folder / "log.txt").read_text()
        return {"status": "failed", "cause": text.strip().splitlines()[-1][:300], "traceback": text[-8000:]}
    return _compared(json.loads((folder / "runs" / "results.json").read_text()), setup)


def _compared(found: Mapping[str, Any], setup: Setup) -> Row:
    roles, recorded = (r["table"]["roles"] for r in (found, json.loads(RECORDED.read_text())))
    table, wrong = {}, []
    for role, columns in roles.items():
        for column in COLUMNS:
            here, there = (math.nan if m is None else m for m in (r[column]["mean"] for r in (columns, recorded[role])))
            table[f"{role} {column}"] = [here, there]
            if not abs(here - there) <= ALLOWED:
                wrong.append(f"{role} {column} {here:.3f}, on the CPU {there:.3f}")
    seconds = {name: runs["0"]["seconds"] for name, runs in found["runs"].items()}
    row: Row = {"table": table, "allowed": ALLOWED, "seconds of runs": seconds}
    return row | ({"status": "failed", "cause": "; ".join(wrong)} if wrong and not setup.dry else {})


def _table(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| run, metric | on the GPU | on the CPU, recorded | allowed difference |", "|---|---|---|---|"]
    for item, row in rows.items():
        for name, (here, there) in row.get("table", {}).items():
            lines.append(f"| {name} | {here:.3f} | {there:.3f} | {row['allowed']} |")
        if row["status"] != "ok":
            lines.append(f"| {item} | {row['status']}: {row.get('cause', '')} | | |")
    return lines


RECIPE = Piece(
    f"the recipe {NAME} trained and compared with its table from the CPU",
    lambda _: [NAME],
    _recipe,
    150,
    _table,
    stretches=True,
)
