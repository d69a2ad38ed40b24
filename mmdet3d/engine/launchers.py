"""Which launcher started this process, by what it left in the environment; known before torch is imported."""

from __future__ import annotations

import os
from collections.abc import Mapping

__all__ = ["TORCHRUN", "environment_rank", "launcher"]

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
