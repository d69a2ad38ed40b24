"""Training on two machines, which are network namespaces with a link between them, and a link that is cut."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel
from test_launch import config, environment  # noqa: F401

from mmdet3d import load_checkpoint
from mmdet3d.engine.evaluate import evaluate

PROBE = ["unshare", "-Urn", "unshare", "-nu", "ip", "link", "add", "a", "type", "veth", "peer", "b"]


@pytest.fixture(scope="module", autouse=True)
def _allowed() -> None:
    try:
        done = subprocess.run(PROBE, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f"needs {error.filename}")
    if done.returncode:
        pytest.skip(f"network namespaces are not allowed here: {done.stderr.strip()}")


def run(scenario: str, folder: Path) -> dict[str, Any]:
    command = ["unshare", "-Urn", sys.executable, str(Path(__file__).with_name("machines.py")), str(folder), scenario]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def check(found: dict[str, Any], folder: Path) -> None:
    """It ended well, and the metrics of both machines are those of one process."""
    assert set(found["codes"]) == {0}, found["output"]
    model = EngineToyModel()
    load_checkpoint(model, folder / "run" / "epoch_2.safetensors")
    metrics = evaluate(model, EngineToyDataset(5, seed=9), folder / "one", torch.device("cpu"))
    assert json.loads((folder / "run" / "epoch_2.json").read_text())["metrics"] == pytest.approx(metrics, abs=1e-9)


@pytest.mark.slow
def test_dist_run_on_two_machines(config: Path, tmp_path: Path) -> None:  # noqa: F811
    found = run("dist-run", tmp_path)
    assert "'launcher': 'MPI', 'processes': 2" in found["output"]
    check(found, tmp_path)


@pytest.mark.slow
def test_a_cut_link_is_an_error_and_the_training_goes_on(config: Path, tmp_path: Path) -> None:  # noqa: F811
    """Through torchrun, a launcher on each machine."""
    found = run("cut", tmp_path)
    assert 0 not in found["codes"] and found["seconds"] < 80, found
    assert "error: another rank has ended or cannot be reached" in found["output"]
    after = found["after"]
    assert "resumed " in after["output"], after["output"]
    check(after, tmp_path)
