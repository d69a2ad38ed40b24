"""Every file of a nuScenes folder, read once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from mmdet3d.datasets.checking import REPORT, Fault, Looked, check_all, is_singular
from mmdet3d.datasets.nuscenes.create import check_scenes
from mmdet3d.datasets.nuscenes.source import NUSCENES, Source
from mmdet3d.datasets.plausible import are_implausible
from mmdet3d.datasets.records import CameraRecord, FrameRecord
from mmdet3d.datasets.transforms.images import read_image

__all__ = ["check_nuscenes"]


def check_nuscenes(
    root: str | Path,
    out_dir: str | Path,
    version: str,
    workers: int = 1,
    max_sweeps: int = 10,
    source: Source = NUSCENES,
) -> None:
    """Read every file that info files would name, and print what is there; `check.json` in `out_dir` lists the faults.

    Raises:
        FileNotFoundError: tables are missing.
        ValueError: something is wrong with the files, see `check_all`.
    """
    root = Path(root)
    version = "v1.0-trainval" if version == "v1.0" else version
    splits = source.splits(root, version)
    check_scenes(root, version, splits, source)
    there = {s["name"] for s in source.load(root, version).scene}
    for name, names in ((name, names) for split in splits.values() for name, names in split.items()):
        if not there & set(names):
            raise ValueError(f"split {name!r} of {version} names no scene of {root / version / 'scene.json'}")
    listed = {name for split in splits.values() for scenes in split.values() for name in scenes}
    annotated = {name for role, split in splits.items() if role != "test" for names in split.values() for name in names}
    scenes = [(s["token"], s["name"] in annotated) for s in source.load(root, version).scene if s["name"] in listed]
    look = partial(_look_at_scene, root, version, max_sweeps, source)
    print("\n".join(check_all(look, scenes, workers, Path(out_dir) / REPORT)))


def _look_at_scene(root: Path, version: str, max_sweeps: int, source: Source, scene: tuple[str, bool]) -> Looked:
    token, annotated = scene
    reader = source.reader(source.load(root, version), max_sweeps, allow_missing=True, annotated=annotated)
    try:
        frames = reader.scene(token)
    except (ValueError, KeyError, np.linalg.LinAlgError) as error:
        return Looked({}, [Fault("calibration", f"scene {token}", f"scene {token}: {error}")])
    faults = [Fault("missing file", name, f"{root / name} is missing") for name in sorted(reader.missing)]
    files: Counter[str] = Counter()
    seen = set(reader.missing)
    for kind, name, read in (each for frame in frames for each in _files(frame, root, source)):
        if name in seen:
            continue
        seen.add(name)
        files[kind] += 1
        try:
            read()
        except (ValueError, FileNotFoundError) as error:
            faults.append(Fault(kind, name, str(error)))
    faults += (fault for frame in frames for fault in _of_frame(frame))
    return Looked(dict(files), faults)


def _files(frame: FrameRecord, root: Path, source: Source) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Kind, name and reader of the files of a frame."""
    for camera in frame.cameras.values():
        yield "image", camera.path, partial(_read_image, root / camera.path, camera)
    for scan in (frame.lidar, *frame.sweeps):
        yield "points", scan.path, partial(source.read_scan, root / scan.path)
    for sweep in (sweep for sweeps in frame.radars.values() for sweep in sweeps):
        yield "radar", sweep.path, partial(source.read_radar, root / sweep.path)


def _read_image(path: Path, camera: CameraRecord) -> None:
    camera.check_size(read_image(path).size)


def _of_frame(frame: FrameRecord) -> Iterable[Fault]:
    """Calibrations that cannot be inverted, objects that cannot be, or should have a velocity but have none."""
    matrices = {"LIDAR_TOP": frame.lidar2ego, "ego pose": frame.ego2global}
    matrices |= {f"{c} intrinsics": camera.intrinsics for c, camera in frame.cameras.items()}
    matrices |= {c: camera.sensor2lidar for c, camera in frame.cameras.items()}
    for name, matrix in matrices.items():
        if is_singular(matrix):
            yield Fault("calibration", frame.token, f"sample {frame.token}: the calibration of {name} is singular")
    if frame.boxes is None:
        return
    for k in np.flatnonzero(are_implausible(frame.boxes[:, :3], frame.boxes[:, 3:6])):
        box = frame.boxes[k]
        yield Fault(
            "box",
            frame.token,
            f"sample {frame.token}: a box of size {box[3:6].tolist()} at {box[:3].tolist()} from the sensor cannot be",
        )
    if len(frame.boxes) and not np.isfinite(frame.boxes[:, 7:]).any():
        yield Fault("velocity", frame.token, f"sample {frame.token}: no object has a known velocity (NaN)")
