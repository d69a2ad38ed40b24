"""The synthetic world in the layout of View-of-Delft, with its info files."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.commands import create_data


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic world of eight frames with info files; do not change it."""
    root = tmp_path_factory.mktemp("vod") / "world"
    size = ["--image-size", "484", "304", "--val-fraction", "0.5", "--workers", "1"]
    assert create_data.main(["synthetic-vod", "--out-dir", str(root), "--frames", "8", *size]) == 0
    assert create_data.main(["vod", "--root-path", str(root)]) == 0
    return root
