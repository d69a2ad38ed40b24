"""The real nuScenes part, our info files of it, and writable copies of its tables."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mmdet3d.datasets.nuscenes.create import create_nuscenes


@pytest.fixture(scope="session")
def root(shared: Path) -> Path:
    return shared / "data" / "nuscenes"


@pytest.fixture(scope="session")
def created(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Paths of the info files and the database of the real data."""
    out = tmp_path_factory.mktemp("created")
    return create_nuscenes(root, out, "nuscenes", "v1.0-mini", workers=2, allow_missing=True)


@pytest.fixture
def copied(root: Path, tmp_path: Path) -> Callable[..., Path]:
    """`copied(version, splits, edit)`: a root with the tables copied under another version name, the same sensor files.

    `edit` maps a table name to a function that changes its list of rows.
    """

    def copy(version: str, splits: dict[str, list[str]] | None = None, **edit: Callable[[list[dict]], Any]) -> Path:
        new = tmp_path / "world"
        shutil.copytree(root / "v1.0-mini", new / version)
        for file in (new / version).iterdir():
            file.chmod(0o644)
        for folder in ("samples", "sweeps", "maps"):
            if not (new / folder).exists():
                (new / folder).symlink_to(root / folder)
        for table, change in edit.items():
            file = new / version / f"{table}.json"
            rows = json.loads(file.read_text())
            change(rows)
            file.write_text(json.dumps(rows))
        if splits is not None:
            (new / version / "splits.json").write_text(json.dumps(splits))
        return new

    return copy
