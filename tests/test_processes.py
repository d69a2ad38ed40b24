"""What a command starts ends when the command does, whatever ends it."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mmdet3d.commands import create_data

ROOT = Path(__file__).resolve().parents[1]
STARTS = ("subprocess.Popen", "subprocess.run", "subprocess.check_output", "ProcessPoolExecutor", "DataLoader")
STARTS += ("context.Process", "torch.multiprocessing.spawn")
# Files whose processes call `die_with_parent` themselves.
CALLED = {
    "mmdet3d/datasets/processes.py",
    "mmdet3d/engine/data.py",
    "mmdet3d/engine/executor.py",
    "benchmarks/growth.py",
    "benchmarks/gpu/runner.py",
}
# Those of a compiler, git and the like end by themselves.
SHORT = {
    "mmdet3d/ops/build.py",
    "mmdet3d/engine/run_record.py",
    "mmdet3d/commands/doctor.py",
    "tools/ship_weights.py",
    "benchmarks/framework.py",
    "benchmarks/gpu/environment.py",
}


def test_every_process_is_bound_to_what_starts_it() -> None:
    """By `preexec_fn=bound()`, or in the files above."""
    loose, found = [], set()
    for file in (f for folder in ("mmdet3d", "tools", "benchmarks") for f in sorted((ROOT / folder).rglob("*.py"))):
        name = file.relative_to(ROOT).as_posix()
        for call in (n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Call)):
            if ast.unparse(call.func) in STARTS and "git" not in ast.unparse(call):
                found.add(name)
                if name not in CALLED | SHORT and not any(k.arg == "preexec_fn" for k in call.keywords):
                    loose.append(f"{name}:{call.lineno}")
    assert loose == [] and found >= CALLED


def test_a_program_dies_with_what_started_it() -> None:
    """However that ends; the pipe closes with the last of them."""
    parent = "import subprocess; from mmdet3d.machine import bound\n"
    parent += "subprocess.run(['sh', '-c', 'echo ready; exec sleep 600'], preexec_fn=bound())"
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.kill()
    assert process.communicate(timeout=60)[0] == ""


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in the nuScenes format and eight frames in KITTI's, without dense depth."""
    folder = tmp_path_factory.mktemp("worlds")
    small = ["--image-size", "64", "36", "--workers", "1"]
    sweeps = ["--keyframes", "2", "--lidar-sweeps", "0", "--radar-sweeps", "0"]
    create_data.main(["synthetic", "--out-dir", f"{folder}/nuscenes", "--scenes", "4", *sweeps, *small])
    create_data.main(["synthetic-kitti", "--out-dir", f"{folder}/kitti", "--frames", "8", "--test-frames", "0", *small])
    shutil.rmtree(folder / "kitti" / "training" / "depth_dense")
    return folder


NUSCENES = ["--root-path", "{}/nuscenes", "--version", "v1.0-synthetic"]
KINDS = {
    "nuscenes": ["nuscenes", *NUSCENES, "--extra-tag", "synthetic"],
    "nuscenes --check": ["nuscenes", *NUSCENES, "--check"],
    "depth": ["depth", *NUSCENES],
    "kitti --depth": ["kitti", "--root-path", "{}/kitti", "--depth"],
    "kitti --check": ["kitti", "--root-path", "{}/kitti", "--check"],
    "synthetic": ["synthetic", "--out-dir", "new"],
    "synthetic-kitti": ["synthetic-kitti", "--out-dir", "new"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, signal.SIGTERM) for kind in KINDS), ("nuscenes", signal.SIGINT), ("synthetic", signal.SIGKILL)],
)
def test_create_data_leaves_no_process(kind: str, number: signal.Signals, worlds: Path, tmp_path: Path) -> None:
    process = creating(kind, worlds, tmp_path)
    process.send_signal(number)
    process.communicate(timeout=10)
    wait_until(lambda: not processes_in(tmp_path), seconds=10)
    assert process.returncode == (130 if number == signal.SIGINT else -number)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["nuscenes", "synthetic"])
def test_create_data_says_that_a_worker_was_killed(kind: str, worlds: Path, tmp_path: Path) -> None:
    process = creating(kind, worlds, tmp_path)
    worker, _ = tmp_path.glob("worker-*")
    os.kill(int(worker.name.removeprefix("worker-")), signal.SIGKILL)
    errors = process.communicate(timeout=10)[1]
    assert process.returncode == 2 and "a worker process was killed, probably for lack of memory" in errors
    wait_until(lambda: not processes_in(tmp_path), seconds=10)


def creating(kind: str, worlds: Path, folder: Path) -> subprocess.Popen[str]:
    """`create_data` with two workers at work, in `folder`."""
    words = [word.format(worlds) for word in KINDS[kind]]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "slow_tool.py"), *words, "--workers", "2"],
        cwd=folder,
        env={**os.environ, "DISTILL3D_CPUS": "2"},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_interrupts,
    )
    wait_until(lambda: process.poll() is not None or len(list(folder.glob("worker-*"))) == 2, seconds=120)
    assert process.poll() is None, process.communicate()[1]
    return process


def obey_interrupts() -> None:
    """A shell lets what it starts in the background ignore SIGINT, and so the tests, and so this program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_end_with_their_parent(method: str, number: signal.Signals, tmp_path: Path) -> None:
    program = (
        "import time; from mmdet3d.datasets.processes import in_processes\n"
        f"if __name__ == '__main__': list(in_processes(time.sleep, [60, 60], 2, {method!r}))"
    )
    (tmp_path / "program.py").write_text(program)
    parent = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        start_new_session=True,
        stderr=subprocess.DEVNULL,
        preexec_fn=obey_interrupts,
    )
    try:
        wait_until(lambda: len(processes_in(tmp_path)) >= 3)
        parent.send_signal(number)
        parent.wait(20)
        wait_until(lambda: not processes_in(tmp_path))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def processes_in(folder: Path) -> list[int]:
    """Those whose current folder is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and (entry / "cwd").readlink() == folder:
                found.append(int(entry.name))
    return found


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
