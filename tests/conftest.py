"""Shared fixtures. Real data and conformance values lie beside the checkout, in `../shared`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import hypothesis
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


# No test is timed.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))


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
def crkd_values(shared: Path) -> dict:
    """Conformance values of CRKD's targets, losses, masks, geometry."""
    return json.loads((shared / "fixtures" / "crkd.json").read_text())
