"""`make demo`, as a new user types it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_demo_ends_with_a_table_and_pictures() -> None:
    subprocess.run(["make", "demo"], cwd=ROOT, check=True, timeout=3000, stdin=subprocess.DEVNULL)
    results = json.loads((ROOT / "runs" / "demo" / "results.json").read_text())
    roles = results["table"]["roles"]
    teacher, student = roles["teacher"]["mAP"]["mean"], roles["student"]["mAP"]["mean"]
    assert teacher > 0.50
    assert 0.10 < student < teacher
    assert {"teacher", "student", "control", "distilled"} == set(roles)
    assert len(list((ROOT / "runs" / "demo" / "pictures").glob("*.png"))) >= 4
    control, distilled = (next(iter(results["runs"][name].values())) for name in ("control", "distilled"))
    assert control["iterations"] == distilled["iterations"]
    assert all(run["cpu_seconds"] > 10 for runs in results["runs"].values() for run in runs.values())


@pytest.mark.slow
def test_demo_again_reuses_what_is_there() -> None:
    """Runs after the test above: nothing is trained again, the same table comes out."""
    path = ROOT / "runs" / "demo" / "results.json"
    if not path.is_file():
        subprocess.run(["make", "demo"], cwd=ROOT, check=True, timeout=3000, stdin=subprocess.DEVNULL)
    before = path.read_text()
    weights = {p: os.stat(p).st_mtime_ns for p in path.parent.rglob("*.safetensors")}
    subprocess.run(["make", "demo"], cwd=ROOT, check=True, timeout=300, stdin=subprocess.DEVNULL)
    assert path.read_text() == before
    assert {p: os.stat(p).st_mtime_ns for p in path.parent.rglob("*.safetensors")} == weights


@pytest.mark.slow
def test_audit_of_the_demo() -> None:
    """The README's command, on what the tests above trained."""
    line = next(
        line
        for line in (ROOT / "README.md").read_text().splitlines()
        if line.startswith("python tools/audit_distillation")
    )
    command = [sys.executable, *shlex.split(line)[1:], "--batches", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {row.split()[0]: row.split()[1:] for row in done.stdout.splitlines() if row.split()}
    assert {"detection", "radar", "fused", "camera", "relation", "response"} <= set(rows)
    assert all(float(x) == 1 for x in rows["detection"][1:])
