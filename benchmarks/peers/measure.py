"""Time and memory of a call, taken alike in the peer's environment and in ours. Needs the standard library only."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["measure"]


def measure(call: Callable[[], Any], runs: int) -> dict[str, Any]:
    """Seconds of `runs` calls after one that is not counted, and the process's peak memory.

    Returns:
        `seconds` and `cpu_seconds` (user and system, all threads), one per run; `peak_bytes`, the most resident memory
        while the calls ran, model and libraries included; `extra_bytes`, how much of it was not there before them.
    """
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
    call()
    seconds, cpu_seconds = [], []
    for _ in range(runs):
        start, cpu_start = time.perf_counter(), time.process_time()
        call()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak = _resident("VmHWM")
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_bytes": peak, "extra_bytes": peak - before}


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
