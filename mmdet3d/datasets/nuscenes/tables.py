"""nuScenes tables and splits, by the official devkit."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmdet3d.blocks import nearest
from mmdet3d.datasets.nuscenes.rows import check_links, read_rows
from mmdet3d.io.files import read_json

if TYPE_CHECKING:
    from nuscenes import NuScenes

__all__ = [
    "CATEGORIES",
    "CLASS_OF_CATEGORY",
    "OFFICIAL_SPLITS",
    "evaluation_split",
    "load_tables",
    "split_tokens",
    "version_splits",
]

CLASS_OF_CATEGORY = {
    "movable_object.barrier": "barrier",
    "movable_object.trafficcone": "traffic_cone",
    "vehicle.bicycle": "bicycle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.car": "car",
    "vehicle.construction": "construction_vehicle",
    "vehicle.motorcycle": "motorcycle",
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
    "animal",
    "human.pedestrian.personal_mobility",
    "human.pedestrian.stroller",
    "human.pedestrian.wheelchair",
    "movable_object.debris",
    "movable_object.pushable_pullable",
    "static_object.bicycle_rack",
    "vehicle.emergency.ambulance",
    "vehicle.emergency.police",
)
# Own data may call a category by its class.
_CATEGORY_OF_CLASS = {name: category for category, name in reversed(CLASS_OF_CATEGORY.items())}

# Version -> role -> split name of the devkit.
OFFICIAL_SPLITS = {
    "v1.0-mini": {"train": "mini_train", "val": "mini_val"},
    "v1.0-trainval": {"train": "train", "val": "val"},
    "v1.0-test": {"test": "test"},
}

_TABLES = (
    "attribute",
    "calibrated_sensor",
    "category",
    "ego_pose",
    "instance",
    "log",
    "map",
    "sample",
    "sample_annotation",
    "sample_data",
    "scene",
    "sensor",
    "visibility",
)


def load_tables(root: str | Path, version: str) -> NuScenes:
    """The devkit's `NuScenes` object, kept for later calls in this process as long as the tables do not change.

    A category that has the name of a detection class (`car`) counts as one of that class (`vehicle.car`).

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: a table holds what it must not, see `read_rows` and `check_links`.
    """
    root = Path(root).resolve()
    folder = root / version
    if not folder.is_dir():
        found = sorted(p.parent.name for p in root.glob("*/sample_data.json"))
        raise FileNotFoundError(
            f"no nuScenes tables of version {version!r} in {root} (versions there: {', '.join(found) or 'none'})"
        )
    files = [folder / f"{table}.json" for table in _TABLES]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"nuScenes table {file} is missing")
    return _load_tables(str(root), version, tuple(f.stat().st_mtime_ns for f in files))


@functools.lru_cache(maxsize=2)
def _load_tables(root: str, version: str, changed: tuple[int, ...]) -> NuScenes:
    from nuscenes import NuScenes

    folder = Path(root) / version

    class Tables(NuScenes):
        """The devkit's, whose rows are checked before they are linked."""

        def __load_table__(self, table_name: str) -> list[dict[str, Any]]:
            return read_rows(folder, table_name)

        def __make_reverse_index__(self, verbose: bool) -> None:
            check_links({table: getattr(self, table) for table in self.table_names}, folder)
            super().__make_reverse_index__(verbose)

    tables = Tables(version=version, dataroot=root, verbose=False)
    for annotation in tables.sample_annotation:
        name = annotation["category_name"]
        annotation["category_name"] = _CATEGORY_OF_CLASS.get(name, name)
    return tables


def version_splits(root: str | Path, version: str) -> dict[str, dict[str, list[str]]]:
    """Role (train, val, test) to {split name: scene names} of a data version.

    The splits are those of `{root}/{version}/splits.json` (split name to list of scene names), where the role is how
    the split's name ends. Without that file an official version has the devkit's splits, and any other version none.

    Raises:
        FileNotFoundError: no such `splits.json`.
        ValueError: it does not hold what it should.
    """
    if _is_official(root, version):
        from nuscenes.utils.splits import create_splits_scenes

        scenes = create_splits_scenes()
        return {role: {name: scenes[name]} for role, name in OFFICIAL_SPLITS[version].items()}
    splits = _custom_splits(root, version)
    roles: dict[str, dict[str, list[str]]] = {}
    for role in ("train", "val", "test"):
        names = [n for n in splits if n.endswith(role)]
        if len(names) > 1:
            raise ValueError(
                f"splits.json of {version} has several splits that end in {role!r}: {', '.join(names)}; keep one"
            )
        if names:
            roles[role] = {names[0]: splits[names[0]]}
    if not roles:
        raise ValueError(f"splits.json of {version} has no split whose name ends in train, val or test: {list(splits)}")
    return roles


def evaluation_split(root: str | Path, version: str) -> str:
    """The split that results of `version` are scored on (`mini_val`, `val`, or the one of `splits.json`).

    Raises:
        ValueError: the version has no annotated validation split.
    """
    if version == "v1.0-test":
        raise ValueError(
            "v1.0-test has no public annotations, so it cannot be scored here; submit results_nusc.json to the "
            "nuScenes evaluation server"
        )
    roles = version_splits(root, version)
    if "val" not in roles:
        raise ValueError(f"version {version} has no split whose name ends in 'val' to score on; name one")
    return next(iter(roles["val"]))


def split_tokens(root: str | Path, version: str, split: str) -> list[str]:
    """Sample tokens of a split, in the order of `sample.json`.

    Raises:
        ValueError: the version has no such split, or none of its scenes is in the tables.
    """
    scenes = set(_split_scenes(root, version, split))
    tables = load_tables(root, version)
    chosen = {s["token"] for s in tables.scene if s["name"] in scenes}
    tokens = [s["token"] for s in tables.sample if s["scene_token"] in chosen]
    if not tokens:
        raise ValueError(f"no scene of split {split!r} is in the {version} tables of {root}")
    return tokens


def _split_scenes(root: str | Path, version: str, split: str) -> list[str]:
    if _is_official(root, version):
        known: Mapping[str, list[str]] = {k: v for r in version_splits(root, version).values() for k, v in r.items()}
    else:
        known = _custom_splits(root, version)
    if split not in known:
        raise ValueError(
            f"version {version} has no split {split!r}{nearest(split, known)} (splits: {', '.join(known)})"
        )
    return known[split]


def _is_official(root: str | Path, version: str) -> bool:
    """Whether the devkit's splits hold: own scenes in a folder of an official name bring splits of their own."""
    return version in OFFICIAL_SPLITS and not (Path(root) / version / "splits.json").is_file()


def _custom_splits(root: str | Path, version: str) -> dict[str, list[str]]:
    file = Path(root) / version / "splits.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{version} is no official version ({', '.join(OFFICIAL_SPLITS)}), so it needs {file}: "
            "a JSON object from split name to list of scene names"
        )
    splits = read_json(file, "splits file")
    lists = list(splits.values()) if isinstance(splits, dict) else [None]
    if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists):
        raise ValueError(f"{file} must be a JSON object from split name to list of scene names")
    return splits
