"""A training keeps to its cores, says so, and gives the same result with any number of loader workers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from safetensors.torch import load_file

from mmdet3d.engine.distributed import share_cores
from mmdet3d.engine.trainer import Trainer


@pytest.fixture(autouse=True)
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("cores", "asked", "threads", "loaders", "line"),
    [
        (2, 2, 1, 1, "2 cores: 1 process x (1 thread + 1 of 2 loader workers)"),
        (1, 2, 1, 0, "1 core: 1 process x (1 thread + 0 of 2 loader workers)"),
        (2, 0, 2, 0, "2 cores: 1 process x 2 threads"),
    ],
)
def test_a_training_keeps_no_more_threads_busy(
    cores: int, asked: int, threads: int, loaders: int, line: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("busy_training.py")), str(tmp_path), str(asked)],
        env={**os.environ, "DISTILL3D_CPUS": str(cores)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    found = json.loads(done.stdout)
    assert (found["threads"], found["loaders"]) == (threads, loaders)
    assert sum(spent > 0.25 * max(found["ticks"]) for spent in found["ticks"]) == threads
    (log,) = tmp_path.glob("*.log")
    assert log.read_text().count(line) == 1 and len(re.findall(r"cores?: ", log.read_text())) == 1


def test_the_result_does_not_depend_on_loader_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of threads it does, by rounding, so there is one."""
    monkeypatch.setenv("DISTILL3D_CPUS", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    weights = []
    for workers in (0, 1, 2):
        folder = tmp_path / str(workers)
        folder.mkdir()
        torch.manual_seed(0)
        data = {"samples_per_gpu": 3, "workers_per_gpu": workers}
        sets = EngineToyDataset(12, augment=True), EngineToyDataset(5, seed=9)
        Trainer(EngineToyModel(), *sets, toy_config(data=data), folder, torch.device("cpu")).fit()
        weights.append(load_file(folder / "epoch_2.safetensors"))
    for other in weights[1:]:
        assert all(torch.equal(weights[0][key], other[key]) for key in weights[0])


@pytest.mark.parametrize(
    ("launcher", "threads", "workers"),
    [
        ({}, 5, 3),
        ({"WORLD_SIZE": "8", "RANK": "3", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"}, 1, 3),
        ({"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"}, 1, 1),
        ({"PMI_SIZE": "8", "PMI_RANK": "0"}, 1, 0),
    ],
    ids=["none", "torchrun", "openmpi", "pmi"],
)
def test_processes_of_a_launcher_share_the_machine(
    launcher: dict[str, str], threads: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", "8")
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    share = share_cores(3)
    assert (share.threads, share.workers) == (threads, workers)
    assert torch.get_num_threads() == threads
