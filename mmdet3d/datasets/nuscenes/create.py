"""Info files and the ground-truth database of a nuScenes folder."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet3d.blocks import at_least
from mmdet3d.datasets.nuscenes.database import create_database
from mmdet3d.datasets.nuscenes.infos import FORMAT, record_from_dict, write_infos
from mmdet3d.datasets.nuscenes.plausible import check_files
from mmdet3d.datasets.nuscenes.report import report
from mmdet3d.datasets.nuscenes.resumable import digest, digest_files, resumable_map
from mmdet3d.datasets.nuscenes.source import NUSCENES, Source
from mmdet3d.io.files import check_place
from mmdet3d.io.pickles import load_pickle
from mmdet3d.shell import number_of

__all__ = ["check_scenes", "create_nuscenes", "list_frames"]

_NAMED = 5  # scenes that a message names


def create_nuscenes(
    root: str | Path,
    out_dir: str | Path,
    tag: str = "nuscenes",
    version: str = "v1.0-trainval",
    workers: int = 1,
    max_sweeps: int = 10,
    allow_missing: bool = False,
    database: bool = True,
    source: Source = NUSCENES,
) -> dict[str, Path]:
    """Write `{tag}_infos_{train, val, test}.pkl` and, from the train infos, the ground-truth database.

    What is unusual or lost is printed: scenes and with them frames that belong to no split, absent files, channels and
    categories of other names than nuScenes', see `report`. Finished files of the same tables and settings are kept, so
    that an interrupted run continues.

    Args:
        root: folder with `{version}/`, `samples/`, `sweeps/`, `maps/`.
        out_dir: where the files go; the data set expects them in `root`.
        tag: first part of the file names.
        version: `v1.0-mini`, `v1.0-trainval` or `v1.0`, `v1.0-test`, or any version with a `splits.json`, whose splits
            count as train, val or test by how their names end and hold for official versions too.
        workers: processes.
        max_sweeps: LiDAR history per frame.
        allow_missing: use what exists of an incomplete data set.
        database: also cut out the objects that `ObjectPaste` needs.
        source: whose tables they are.

    Returns:
        Paths by name: `train`, `val`, `test`, `database`, as far as the version has them.

    Raises:
        FileNotFoundError: tables or (without `allow_missing`) sensor files are missing.
        ValueError: a bad split file or calibration, no scene of a split, or files of another layout, see `check_files`.
    """
    root, out_dir = Path(root), Path(out_dir)
    check_place(out_dir, "--out-dir")
    at_least(0, max_sweeps, "max_sweeps")
    if not tag:
        raise ValueError("the prefix of the info files is empty; give one by --extra-tag")
    version = "v1.0-trainval" if version == "v1.0" else version
    roles = source.splits(root, version)
    check_scenes(root, version, roles, source)
    made_from = {
        "version": version,
        "max_sweeps": max_sweeps,
        "splits": {role: next(iter(split)) for role, split in roles.items()},
        "tables": digest_files(sorted((root / version).glob("*.json"))),
    }
    written = {}
    for role, split in roles.items():
        name, scenes = next(iter(split.items()))
        path = out_dir / f"{tag}_infos_{role}.pkl"
        metadata = {**made_from, "split": name, "allow_missing": allow_missing}
        if _create_infos(root, path, metadata, scenes, role != "test", workers, source):
            written[role] = path
    if database and "train" in written:
        written["database"] = create_database(written["train"], root, out_dir, tag, workers)
    return written


def check_scenes(root: Path, version: str, roles: Mapping[str, Mapping[str, list[str]]], source: Source) -> None:
    """Print which scenes of the tables are in no split; raises ValueError if none is in one."""
    splits = {name: set(scenes) for split in roles.values() for name, scenes in split.items()}
    listed = set().union(*splits.values())
    scenes = [s["name"] for s in source.load(root, version).scene]
    outside = [name for name in scenes if name not in listed]
    if not outside:
        return
    named = ", ".join(outside[:_NAMED]) + (", ..." if len(outside) > _NAMED else "")
    if len(outside) == len(scenes):
        raise ValueError(
            f"none of the {len(scenes)} scenes of {version} ({named}) is in its splits {', '.join(splits)}; for own "
            f"scenes write {root / version / 'splits.json'}, a JSON object from split name (own_train, own_val) to a "
            "list of scene names"
        )
    print(f"{len(outside)} of {len(scenes)} scenes are in no split ({', '.join(splits)}) and left out: {named}")


def _create_infos(
    root: Path,
    path: Path,
    metadata: dict[str, Any],
    scenes: list[str],
    annotated: bool,
    workers: int,
    source: Source,
) -> bool:
    if _is_current(path, metadata):
        print(f"{path} is up to date")
        return True
    tables = source.load(root, metadata["version"])
    chosen = {s["token"]: s["token"] for s in tables.scene if s["name"] in set(scenes)}
    if not chosen:
        warnings.warn(
            f"no scene of split {metadata['split']!r} is in {root}; {path.name} was not written", stacklevel=3
        )
        return False
    reader = source.reader(tables, metadata["max_sweeps"], metadata["allow_missing"], annotated)

    def read(scene_token: str) -> dict[str, Any]:
        frames = reader.scene(scene_token)
        check_files(frames, root, source)
        return {"frames": [dataclasses.asdict(r) for r in frames], "missing": sorted(reader.missing)}

    parts = path.with_name(f".{path.stem}.{digest(metadata)}.parts")
    results = resumable_map(read, chosen, parts, workers, f"{path.name}, scenes")
    records = [record_from_dict(f) for r in results for f in r["frames"]]
    missing = sorted({m for r in results for m in r["missing"]})
    write_infos(records, {**metadata, "missing": len(missing)}, path)
    print(
        f"{path}: {number_of(len(records), 'frame')}"
        + (f"; {number_of(len(missing), 'file')} missing, e.g. {missing[0]}" if missing else "")
    )
    for line in report(records, missing, source):
        print(f"  {line}")
    return True


def _is_current(path: Path, metadata: Mapping[str, Any]) -> bool:
    """Whether `path` was made from the same tables with the same settings, and all files were there then."""
    if not path.is_file():
        return False
    try:
        found = load_pickle(path).get("metadata", {})
    except (ValueError, AttributeError):
        return False
    return found == {**metadata, "format": FORMAT, "missing": 0}


def list_frames(root: Path, path: Path, max_sweeps: int = 10, source: Source = NUSCENES) -> Path:
    """Write an info file of all frames of the tables in `root`, without looking at splits; for detection.

    Files that are not there are left out, see `allow_missing` of `create_nuscenes`.

    Raises:
        FileNotFoundError: no such folder, or not exactly one version of tables in it.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder; name one in the layout of {source.name}")
    versions = sorted(p.name for p in root.glob("v[0-9].*-*") if p.is_dir())
    if not versions:
        raise FileNotFoundError(
            f"{root} has neither the info file of the model's config nor {source.name} tables (v1.0-...); name an info "
            "file in it (--info), or another folder"
        )
    if len(versions) > 1:
        raise FileNotFoundError(
            f"{root} has no info file of the model's config, and {len(versions)} versions of {source.name} tables "
            f"({', '.join(versions)}) instead of one; name an info file (--info)"
        )
    tables = source.load(root, versions[0])
    reader = source.reader(tables, max_sweeps, allow_missing=True, annotated=bool(tables.sample_annotation))
    records, missing = [], 0
    for scene in tables.scene:
        records += reader.scene(scene["token"])
        missing += len(reader.missing)
    write_infos(records, {"version": versions[0], "missing": missing}, path)
    return path
