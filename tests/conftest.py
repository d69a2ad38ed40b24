"""Shared fixtures. Real data and conformance values lie beside the checkout, in `../shared`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import hypothesis
import published
import pytest

from mmdet3d.machine import cpus, share

SHARED = Path(__file__).resolve().parents[2] / "shared"


# No test is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Each of several pytest processes, and whatever its tests start, gets its share of the cores."""
    cores = max(1, cpus() // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    os.environ["DISTILL3D_CPUS"] = str(cores)
    import torch  # after mmdet3d, which says how its threads wait

    torch.set_num_threads(share().threads)


@pytest.fixture(autouse=True)
def propagating_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's log reaches pytest once, whatever a run that redirected it has left in this process."""
    monkeypatch.setattr(logging.getLogger("mmdet3d"), "propagate", True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; its absence is a skip, and a failure where DISTILL3D_REQUIRE_SHARED is set (CI)."""
    if not SHARED.is_dir():
        message = "needs ../shared (real data and conformance values), which is not beside this checkout"
        if os.environ.get("DISTILL3D_REQUIRE_SHARED"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(scope="session")
def crkd_values() -> dict:
    return published.crkd_values()
