"""What this process may use of the machine: cores, shared between processes, their threads and their loader workers.

One rule holds for the whole program: processes x (threads + loader workers) never exceed `cpus()`, and threads that
wait for work sleep (`mmdet3d/__init__.py`); docs/performance.md says what it gains.

    python -m mmdet3d.machine       # prints the number of cores, for scripts
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["VARIABLE", "Share", "bound", "cpus", "die_with_parent", "share", "single_threaded"]

VARIABLE = "DISTILL3D_CPUS"
CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def cpus() -> int:
    """Cores that this process may keep busy: its affinity mask, less where a cgroup quota allows less.

    `DISTILL3D_CPUS` overrides both.

    Raises:
        ValueError: that variable holds no such number.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        # More than any machine has; what starts threads takes no larger ones.
        if not given.isdecimal() or len(given) > 5 or int(given) < 1:
            raise ValueError(
                f"the environment variable {VARIABLE} must be a whole number from 1 to 99999, got {given!r}"
            )
        return int(given)
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min([allowed, *map(_quota, _cgroups())])))


@dataclass(frozen=True)
class Share:
    """What each of several equal processes does with its part of the cores.

    Args:
        cores: that all processes together may keep busy.
        processes: on this machine.
        threads: of a process that compute.
        workers: loader processes of a process, one thread each.
        asked: loader processes that it wanted.
    """

    cores: int
    processes: int
    threads: int
    workers: int
    asked: int

    def __str__(self) -> str:
        own = _count(self.threads, "thread")
        if self.asked:
            given = _count(self.workers, "loader worker")
            given = given if self.workers == self.asked else f"{self.workers} of {_count(self.asked, 'loader worker')}"
            own = f"({own} + {given})"
        return f"{_count(self.cores, 'core')}: {_count(self.processes, 'process')} x {own}"


def share(processes: int = 1, workers: int = 0) -> Share:
    """How one of `processes` equal processes on this machine uses its part of `cpus()`.

    Loader workers come first, because they keep an accelerator or a single compute thread fed; the threads get what is
    left, no more than `OMP_NUM_THREADS` where that is set. A process computes in at least one thread, and loads its
    samples itself if that takes its only core.

    Args:
        processes: that share the machine.
        workers: loader processes that each of them asks for, an upper bound.
    """
    cores = cpus()
    own = max(1, cores // processes)
    given = min(workers, own - 1)
    return Share(cores, processes, int(min(own - given, _thread_limit())), given, workers)


def single_threaded(cores: int = 1) -> dict[str, str]:
    """Environment of a process that is to compute in one thread, whatever library does it.

    Args:
        cores: that it may keep busy; those beyond the first are for its loader workers.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FOR_THREADS_NUM")
    return {VARIABLE: str(cores), **dict.fromkeys(names, "1")}


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when `parent`, the process that started it, ends in whatever way."""
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before
        os._exit(1)


def bound() -> Callable[[], None]:
    """For the `preexec_fn` of `subprocess`: what is started, whatever program it is, dies with this process."""
    _libc()  # a forked process had better load no library
    return functools.partial(die_with_parent, os.getpid())


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _thread_limit() -> float:
    """The first number of `OMP_NUM_THREADS` (others are for nested teams); libraries ignore what is no number."""
    outer = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(outer) if outer.isdecimal() and int(outer) > 0 else math.inf


def _cgroups() -> Iterator[Path]:
    """Folders of the control groups (v2 and v1) that this process is in, and of all around them.

    In a container the path may be that of the host, where it leads nowhere; the container's own group is then the root.
    """
    with contextlib.suppress(OSError):
        for line in MEMBERSHIP.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or "cpu" in controllers.split(","):
                inside = CGROUPS / controllers / path.strip("/")
                yield from (inside, *inside.parents)


def _quota(group: Path) -> float:
    """Cores' worth of time that a control group allows its processes together."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        allowed = int((group / "cpu.cfs_quota_us").read_text())
        return allowed / int((group / "cpu.cfs_period_us").read_text()) if allowed > 0 else math.inf
    return math.inf


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 'es' if noun.endswith('s') else 's'}"


if __name__ == "__main__":
    print(cpus())
