"""The synthetic world in the layout of TruckScenes, with its info files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.commands import create_data


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world of two scenes with info files; do not change it."""
    root = tmp_path_factory.mktemp("truckscenes") / "world"
    size = ["--scenes", "2", "--keyframes", "2", "--lidar-sweeps", "1", "--radar-sweeps", "1", "--val-fraction", "0.5"]
    assert create_data.main(["synthetic-truckscenes", "--out-dir", str(root), "--workers", "1", *size]) == 0
    assert create_data.main(["truckscenes", "--root-path", str(root), "--workers", "1"]) == 0
    return root
