"""The synthetic world in the layout of TruckScenes, with its info files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.datasets.nuscenes.create import create_nuscenes
from mmdet3d.datasets.synthetic import VERSION, WorldSettings
from mmdet3d.datasets.synthetic.truckscenes import IMAGE_SIZE, generate_truckscenes
from mmdet3d.datasets.truckscenes.frames import TRUCKSCENES

SMALL = WorldSettings(scenes=2, keyframes=2, lidar_sweeps=1, radar_sweeps=1, image_size=IMAGE_SIZE, val_fraction=0.5)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world of two scenes with info files; do not change it."""
    root = generate_truckscenes(tmp_path_factory.mktemp("truckscenes") / "world", SMALL, progress=False)
    create_nuscenes(root, root, "truckscenes", VERSION, workers=1, database=False, source=TRUCKSCENES)
    return root
