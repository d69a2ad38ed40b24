"""Several ranks of which one fails, hangs or dies, and launchers that die: all end, soon, and it is said why."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from test_launch import CONFIG, DIST_RUN, TOOL, TORCHRUN, environment


def begin(launcher: list[str], folder: Path, *words: str, **extra: str) -> subprocess.Popen[str]:
    """A training of `FailingToy`."""
    toy = CONFIG.replace("{type: EngineToyModel}", "{type: FailingToy, how: nothing, once: null}")
    (folder / "toy.yaml").write_text(f"{toy}imports: [failing_toy]\n")
    command = [*launcher, *TOOL, "train.py", str(folder / "toy.yaml"), "--run-dir", str(folder / "run"), *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(**extra), start_new_session=True, **pipes)


def end(process: subprocess.Popen[str], folder: Path) -> str:
    """What it prints; with it all have ended."""
    try:
        output, _ = process.communicate(timeout=480)
        assert not ranks(folder), output
    finally:
        for pid in (process.pid, *ranks(folder)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return output


def ranks(folder: Path) -> list[int]:
    """Processes on whose command line `folder` stands: ranks, their loader workers, and the launcher."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


@pytest.mark.slow
def test_the_reason_of_any_rank_is_printed_by_rank_0(tmp_path: Path) -> None:
    """dist-run hides what the others print."""
    process = begin(DIST_RUN, tmp_path, "--model.how", "fails")
    output = end(process, tmp_path)
    assert process.returncode and output.count("error: RuntimeError: broken on purpose (rank 1)") == 1, output


@pytest.mark.slow
def test_torchrun_starts_anew_from_the_newest_checkpoint(tmp_path: Path) -> None:
    """After rank 1 was killed. The launcher's store still knows where the ranks of the first start listened."""
    words = ("--model.how", "is_killed", "--model.once", str(tmp_path / "once"))
    process = begin([*TORCHRUN, "--max-restarts", "1"], tmp_path, *words)
    output = end(process, tmp_path)
    assert "error: another rank has ended or cannot be reached" in output
    assert process.returncode == 0 and "epoch_1.safetensors: epoch 1, iteration 3" in output, output
    assert (tmp_path / "run" / "epoch_2.safetensors").is_file()


@pytest.mark.slow
def test_a_rank_that_hangs_is_shown_and_ended(tmp_path: Path) -> None:
    process = begin(TORCHRUN, tmp_path, "--model.how", "hangs", DISTILL3D_TIMEOUT="15")
    output = end(process, tmp_path)
    report = output.partition("no step has ended for 5 s; where the ranks are:")[2]
    assert "in hangs" in report.partition("rank 1, innermost call last:")[2], output
    assert process.returncode and "error: another rank has ended or cannot be reached" in report, output


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, DIST_RUN], ids=["torchrun", "dist-run"])
def test_ranks_end_with_their_launcher(launcher: list[str], tmp_path: Path) -> None:
    process = begin(launcher, tmp_path, "--max_epochs", "9999", ENGINE_TOY_DELAY="0.2")
    deadline = time.monotonic() + 120
    while not list((tmp_path / "run").glob("*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    process.kill()
    deadline = time.monotonic() + 10
    while ranks(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.1)
    end(process, tmp_path)
