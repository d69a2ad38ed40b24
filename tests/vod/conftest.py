"""The synthetic world in the layout of View-of-Delft, with its info files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.datasets.synthetic.vod import VodSettings, generate_vod
from mmdet3d.datasets.vod.create import create_vod

SMALL = VodSettings(frames=8, image_size=(484, 304), val_fraction=0.5)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world of eight frames with info files; do not change it."""
    root = generate_vod(tmp_path_factory.mktemp("vod") / "world", SMALL, progress=False)
    create_vod(root, root)
    return root
