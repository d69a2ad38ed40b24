"""KITTI folders: real frames, and a small synthetic world."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from kitti_world import SMALL

from mmdet3d.datasets.synthetic.kitti import generate_kitti


@pytest.fixture(scope="session")
def real(shared: Path) -> Path:
    """Frames 000000 to 000009 of KITTI."""
    return shared / "data" / "kitti"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world of eight frames; do not change it."""
    return generate_kitti(tmp_path_factory.mktemp("kitti") / "world", SMALL, progress=False)


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the world, without some folders."""

    def copy(*without: str) -> Path:
        root = tmp_path / "world"
        shutil.copytree(world, root)
        for folder in without:
            shutil.rmtree(root / folder)
        return root

    return copy
