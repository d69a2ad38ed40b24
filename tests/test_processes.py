"""Workers of data tools end when their parent does, whatever ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest


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
        # A shell lets what it starts in the background ignore SIGINT, and so the tests, and so this program.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)
