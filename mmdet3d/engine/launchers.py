"""Which launcher started this process, by what it left in the environment; known before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["TORCHRUN", "environment_rank", "launcher", "launching_processes", "restarts"]

# Names of the variables that hold size, rank, local size and local rank.
TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
_OPEN_MPI = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
_PMI = ("PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS", "MPI_LOCALRANKID")


def launcher(env: Mapping[str, str]) -> tuple[str, ...] | None:
    """The names that a launcher set; None for a single plain process."""
    return next((names for names in (TORCHRUN, _OPEN_MPI, _PMI) if names[0] in env and names[1] in env), None)


def environment_rank() -> int:
    """The rank that the launcher gave, known before `distributed.init`."""
    names = launcher(os.environ)
    return int(os.environ[names[1]]) if names else 0


def launching_processes() -> list[int]:
    """The ancestors of this process up to the command that launches, the shells between them included.

    Once one of them has ended, the list is another: what it had started belongs to another process then.
    """
    found: list[int] = []
    launching = 0
    pid = os.getppid()
    try:
        while pid > 1:
            found.append(pid)
            if any(word in Path(f"/proc/{pid}/cmdline").read_bytes() for word in (b"mpirun", b"prte", b"mpiexec")):
                launching = len(found)
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # another system, or one of them has just ended
        pass
    return found[:launching]


def restarts() -> tuple[int, int]:
    """How often torchrun has started the ranks anew, and how often it may (`--max-restarts`)."""
    done, most = (os.environ.get(f"TORCHELASTIC_{name}") for name in ("RESTART_COUNT", "MAX_RESTARTS"))
    return int(done or 0), int(most or 0)
