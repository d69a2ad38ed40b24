"""Tables and splits of MAN TruckScenes.

The tables are nuScenes' without logs and maps, and with the motion of cabin and chassis, so nuScenes' devkit links
them. The names of the scenes in the official splits are the authors' (truckscenes-devkit on PyPI).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.blocks import nearest
from mmdet3d.datasets.nuscenes import tables as nuscenes
from mmdet3d.datasets.nuscenes.rows import NUMBER, TIME, check_links, read_rows

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = ["CATEGORIES", "CLASS_OF_CATEGORY", "load_tables", "only_version", "split_tokens", "version_splits"]

CLASS_OF_CATEGORY = {
    "animal": "animal",
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "static_object.traffic_sign": "traffic_sign",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "other_vehicle",
    "vehicle.ego_trailer": "trailer",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.other": "other_vehicle",
    "vehicle.trailer": "trailer",
    "vehicle.truck": "truck",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
}
# All categories of annotated objects, those of no detection class too.
CATEGORIES = (
    *CLASS_OF_CATEGORY,
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "static_object.bicycle_rack",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
    "vehicle.train",
)

_LINKED = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)
_MOTION = "ego_motion_cabin"
# Beside those of nuScenes.
_COLUMNS = {
    "ego_pose": {"timestamp": TIME},
    _MOTION: {"timestamp": TIME, **dict.fromkeys(("vx", "vy", "vz", "roll_rate", "pitch_rate", "yaw_rate"), NUMBER)},
}
# The end of a version's name -> role -> official split.
_OFFICIAL_SPLITS = {
    "mini": {"train": "mini_train", "val": "mini_val"},
    "trainval": {"train": "train", "val": "val"},
    "test": {"test": "test"},
}


def only_version(root: str | Path) -> str:
    """The version whose tables are in `root`.

    Raises:
        FileNotFoundError: none.
        ValueError: several.
    """
    found = sorted(p.parent.name for p in Path(root).glob("*/sample_data.json"))
    if not found:
        raise FileNotFoundError(f"no TruckScenes tables in {root}; name the folder with samples, sweeps and v1...-...")
    if len(found) > 1:
        raise ValueError(f"{root} has tables of several versions ({', '.join(found)}); name one with --version")
    return found[0]


def load_tables(root: str | Path, version: str) -> NuScenes:
    """The tables with the access of nuScenes' devkit, and `ego_motion_cabin`; kept while they do not change.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table holds what it must not, see `read_rows` and `check_links`.
    """
    folder = Path(root).resolve() / version
    files = [folder / f"{table}.json" for table in (*_LINKED, _MOTION)]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"TruckScenes table {file} is missing")
    return _load_tables(str(folder.parent), version, tuple(f.stat().st_mtime_ns for f in files))


@functools.lru_cache(maxsize=2)
def _load_tables(root: str, version: str, changed: tuple[int, ...]) -> NuScenes:
    from nuscenes import NuScenes

    folder = Path(root) / version

    class Tables(NuScenes):
        """Without logs and maps, for which the devkit's link is asked for nothing."""

        def __init__(self) -> None:
            self.version, self.dataroot, self.verbose = version, root, False
            self.table_names = list(_LINKED)
            rows = {table: read_rows(folder, table, _COLUMNS.get(table)) for table in (*_LINKED, _MOTION)}
            check_links(rows, folder)
            for table, of_table in rows.items():
                setattr(self, table, of_table)
            self.log: list[dict[str, Any]] = []
            self.map: list[dict[str, Any]] = [{"log_tokens": []}]
            self.__make_reverse_index__(False)

    return Tables()


def version_splits(root: str | Path, version: str) -> dict[str, dict[str, list[str]]]:
    """Role (train, val, test) to {split name: scene names}, see nuScenes' `version_splits`.

    The splits are those of `{root}/{version}/splits.json`, otherwise the official ones of truckscenes-devkit.

    Raises:
        FileNotFoundError: neither is there.
        ValueError: the file does not hold what it should.
    """
    file = Path(root) / version / "splits.json"
    if file.is_file():
        return nuscenes.version_splits(root, version)
    names = _OFFICIAL_SPLITS.get(version.rpartition("-")[2])
    if names is None:
        raise FileNotFoundError(
            f"{version} is no official version (v1.0-mini, v1.0-trainval, v1.0-test and later ones), so it needs "
            f"{file}: a JSON object from split name to list of scene names"
        )
    try:
        from truckscenes.utils.splits import create_splits_scenes
    except ImportError:
        raise FileNotFoundError(
            f"the scenes of the splits of {version} are listed in truckscenes-devkit, which is not installed "
            f"(pip install --no-deps truckscenes-devkit); or write {file}, a JSON object from split name to scene names"
        ) from None
    scenes = create_splits_scenes()
    return {role: {name: list(scenes[name])} for role, name in names.items()}


def split_tokens(root: str | Path, version: str, split: str | None) -> list[str]:
    """Sample tokens of a split, of the one for validation if None, in the order of `sample.json`.

    Raises:
        ValueError: the version has no such split, or none of its scenes is in the tables.
    """
    roles = version_splits(root, version)
    known: Mapping[str, list[str]] = {name: scenes for part in roles.values() for name, scenes in part.items()}
    split = split or next(iter(roles.get("val", known)))
    if split not in known:
        raise ValueError(
            f"version {version} has no split {split!r}{nearest(split, known)} (splits: {', '.join(known)})"
        )
    tables, scenes = load_tables(root, version), set(known[split])
    chosen = {s["token"] for s in tables.scene if s["name"] in scenes}
    tokens = [s["token"] for s in tables.sample if s["scene_token"] in chosen]
    if not tokens:
        raise ValueError(f"no scene of split {split!r} is in the {version} tables of {root}")
    return tokens
