"""What this process may use of the machine: cores, shared between its processes and threads.

One rule holds for the whole program: processes x threads, loader workers included, never exceed `cpus()`, and waiting
threads sleep. Two threads that spin beside another busy process were measured ten times slower than one thread.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["cpus"]

VARIABLE = "DISTILL3D_CPUS"
CGROUP = Path("/sys/fs/cgroup")


def cpus() -> int:
    """Cores that this process may keep busy: its affinity mask, less where a cgroup quota allows less.

    `DISTILL3D_CPUS` overrides both.

    Raises:
        ValueError: that variable holds no positive integer.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        if not given.isdecimal() or int(given) < 1:
            raise ValueError(f"the environment variable {VARIABLE} must be a positive integer, got {given!r}")
        return int(given)
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return allowed if quota is None else max(1, min(allowed, math.floor(quota)))


def _cgroup_quota() -> float | None:
    """Cores' worth of time that the cgroup (v2 or v1) of this process allows; None without a limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        quota = int((CGROUP / "cpu" / "cpu.cfs_quota_us").read_text())
        return quota / int((CGROUP / "cpu" / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    except (OSError, ValueError):
        return None
