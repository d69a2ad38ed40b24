"""How many cores there are, how they are shared, and that all tools keep to it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdet3d import machine
from mmdet3d.commands import create_data
from mmdet3d.datasets.processes import in_processes
from mmdet3d.machine import Share, cpus, share, single_threaded

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def sixteen_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without limits and settings."""
    for name in (machine.VARIABLE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(machine, "MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroups")


def run(program: str, **variables: str) -> str:
    """Standard output and error of a Python program in a fresh process that may use all cores."""
    settings = (machine.VARIABLE, "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "PYTEST_XDIST_WORKER_COUNT")
    environment = {k: v for k, v in os.environ.items() if k not in settings} | variables
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout + done.stderr


# -- how many cores ---------------------------------------------------------------------------------------------------


def test_affinity_limits_the_cores() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); import runpy;" + (
        "runpy.run_module('mmdet3d.machine', run_name='__main__')"
    )
    assert run(program) == "1\n"
    assert run(program, DISTILL3D_CPUS="3") == "3\n"


@pytest.mark.parametrize(
    ("membership", "files", "expected"),
    [
        ("0::/", {"cpu.max": "350000 100000"}, 3),
        ("0::/", {"cpu.max": "max 100000"}, 16),
        ("0::/", {"cpu.max": "50000 100000"}, 1),
        ("0::/", {"cpu.max": "6400000 100000"}, 16),
        ("0::/job/step", {"job/cpu.max": "400000 100000", "job/step/cpu.max": "max 100000"}, 4),
        ("0::/host/container", {"cpu.max": "200000 100000"}, 2),
        ("0::/job", {"elsewhere/cpu.max": "200000 100000"}, 16),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
        (
            "5:memory:/\n4:cpu,cpuacct:/job",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000", "cpu,cpuacct/job/cpu.cfs_period_us": "50000"},
            6,
        ),
        ("5:memory:/", {}, 16),
        (None, {}, 16),
    ],
)
def test_quotas_limit_the_cores(
    membership: str | None, files: dict[str, str], expected: int, sixteen_cores: None, tmp_path: Path
) -> None:
    if membership is not None:
        (tmp_path / "cgroup").write_text(membership + "\n")
    for name, text in files.items():
        path = tmp_path / "cgroups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert cpus() == expected


def test_one_setting_overrides_everything(sixteen_cores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup").write_text("0::/\n")
    (tmp_path / "cgroups").mkdir()
    (tmp_path / "cgroups" / "cpu.max").write_text("200000 100000\n")
    monkeypatch.setenv("DISTILL3D_CPUS", "24")
    assert cpus() == 24


@pytest.mark.parametrize("value", ["0", "-1", "two", "", "1.5", "9" * 20, "9" * 5000])
def test_a_wrong_setting_is_named(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", value)
    with pytest.raises(ValueError, match=f"DISTILL3D_CPUS must be a whole number from 1 to 99999, got '{value}'"):
        cpus()


# -- how they are shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cores", "processes", "asked", "limit", "expected", "text"),
    [
        (1, 1, 0, None, (1, 0), "1 core: 1 process x 1 thread"),
        (1, 1, 2, None, (1, 0), "1 core: 1 process x (1 thread + 0 of 2 loader workers)"),
        (2, 1, 0, None, (2, 0), "2 cores: 1 process x 2 threads"),
        (2, 1, 1, None, (1, 1), "2 cores: 1 process x (1 thread + 1 loader worker)"),
        (2, 1, 2, None, (1, 1), "2 cores: 1 process x (1 thread + 1 of 2 loader workers)"),
        (2, 4, 2, None, (1, 0), "2 cores: 4 processes x (1 thread + 0 of 2 loader workers)"),
        (16, 1, 8, None, (8, 8), "16 cores: 1 process x (8 threads + 8 loader workers)"),
        (64, 8, 4, None, (4, 4), "64 cores: 8 processes x (4 threads + 4 loader workers)"),
        (64, 8, 8, None, (1, 7), "64 cores: 8 processes x (1 thread + 7 of 8 loader workers)"),
        (16, 1, 4, "2", (2, 4), "16 cores: 1 process x (2 threads + 4 loader workers)"),
        (2, 1, 0, "8", (2, 0), "2 cores: 1 process x 2 threads"),
        (8, 1, 0, "3,2", (3, 0), "8 cores: 1 process x 3 threads"),
        (8, 1, 0, "many", (8, 0), "8 cores: 1 process x 8 threads"),
    ],
)
def test_share(
    cores: int,
    processes: int,
    asked: int,
    limit: str | None,
    expected: tuple[int, int],
    text: str,
    sixteen_cores: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", str(cores))
    if limit is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", limit)
    found = share(processes, asked)
    assert (found.threads, found.workers) == expected
    assert str(found) == text


@given(st.integers(1, 300), st.integers(1, 40), st.integers(0, 40), st.none() | st.integers(1, 40))
def test_the_cores_are_never_exceeded(cores: int, processes: int, asked: int, limit: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTILL3D_CPUS", str(cores))
        patch.delenv("OMP_NUM_THREADS", raising=False)
        if limit is not None:
            patch.setenv("OMP_NUM_THREADS", str(limit))
        found = share(processes, asked)
    assert found.threads >= 1 and 0 <= found.workers <= asked
    assert found == Share(cores, processes, found.threads, found.workers, asked)
    if processes * (found.threads + found.workers) > cores:
        assert (found.threads, found.workers) == (1, 0) and processes > cores
    if limit is not None:
        assert found.threads <= limit
    else:  # no core stays idle that equal processes could use
        assert found.threads + found.workers == max(1, cores // processes)


# -- that it is kept --------------------------------------------------------------------------------------------------


def threads_of(_: int) -> tuple[int, int]:
    return torch.get_num_threads(), share(workers=3).workers


@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_processes_of_data_tools_compute_in_one_thread(start_method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", "4")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before, threads = dict(os.environ), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        # A forked process keeps the variables that it was started with, as the environment is changed for both.
        assert list(in_processes(threads_of, [0, 1], 2, start_method)) == [(1, 0)] * 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert dict(os.environ) == before


def test_a_single_threaded_child_may_have_loader_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in single_threaded(cores=3).items():
        monkeypatch.setenv(name, value)
    assert (share(workers=8).threads, share(workers=8).workers) == (1, 2)
    assert share(workers=0).threads == 1


@pytest.mark.parametrize("user", [{}, {"OMP_WAIT_POLICY": "active"}], ids=["default", "active"])
def test_waiting_threads_sleep_unless_the_user_wants_otherwise(user: dict[str, str]) -> None:
    """GNU's OpenMP says how often a thread looks for work before it sleeps."""
    output = run("import mmdet3d, torch", OMP_DISPLAY_ENV="verbose", **user)
    assert "GOMP_SPINCOUNT" in output
    assert ("GOMP_SPINCOUNT = '0'" in output) == (not user)


@pytest.mark.parametrize(
    "file",
    [*ROOT.glob("tools/*.py"), *ROOT.glob("mmdet3d/commands/[!_]*.py")],
    ids=lambda path: f"{path.parent.name}-{path.name}",
)
def test_no_tool_loads_torch_before_the_package(file: Path) -> None:
    """It would be too late to say how threads wait. Benchmarks load the package in their `__init__.py`."""
    top = [n for n in ast.parse(file.read_text()).body if isinstance(n, (ast.Import, ast.ImportFrom))]
    names = [n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in top]
    assert "torch" not in names
    assert "numpy" not in names


@pytest.mark.parametrize("command", ["nuscenes", "depth", "kitti", "synthetic", "synthetic-kitti"])
def test_data_tools_use_the_cores_and_no_more(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", "3")
    parse = create_data.parse_arguments
    workers = [parse([command, *words]).workers for words in ([], ["--workers", "2"], ["--workers", "8"])]
    assert workers == [3, 2, 3]
