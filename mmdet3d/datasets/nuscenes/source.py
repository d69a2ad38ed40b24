"""What data sets in nuScenes' tables differ in, as far as their info files are concerned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.tables import CATEGORIES, load_tables, version_splits
from mmdet3d.datasets.plausible import check_scan
from mmdet3d.datasets.transforms.lidar import read_points
from mmdet3d.datasets.transforms.radar import check_radar
from mmdet3d.evaluation.nuscenes import CLASSES

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = ["NUSCENES", "Source"]


@dataclass(frozen=True)
class Source:
    """A data set in nuScenes' tables. Everything can be pickled.

    Args:
        name: how messages call it.
        load: tables of (root, version), with the devkit's access.
        splits: of (root, version), see `tables.version_splits`.
        reader: of frames.
        classes, categories: detection classes, all categories of annotated objects.
        check_scan: raises ValueError if a LiDAR file does not look like what it should hold.
        read_scan, read_radar: raise ValueError if a file cannot be read.
    """

    name: str
    load: Callable[[str | Path, str], NuScenes]
    splits: Callable[[str | Path, str], dict[str, dict[str, list[str]]]]
    reader: type[FrameReader]
    classes: Sequence[str]
    categories: Sequence[str]
    check_scan: Callable[[Path], Any]
    read_scan: Callable[[Path], Any]
    read_radar: Callable[[Path], Any]


NUSCENES = Source(
    "nuScenes",
    load_tables,
    version_splits,
    FrameReader,
    CLASSES,
    CATEGORIES,
    check_scan=partial(check_scan, width=5),  # x, y, z, intensity, ring
    read_scan=read_points,
    read_radar=check_radar,
)
