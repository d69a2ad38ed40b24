"""Info files of a View-of-Delft folder, and every file of it read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np

from mmdet3d.datasets.checking import REPORT, Fault, Looked, check_all
from mmdet3d.datasets.nuscenes.infos import check_calibration, drop_bad_boxes, write_infos
from mmdet3d.datasets.plausible import check_objects
from mmdet3d.datasets.records import CameraRecord, FrameRecord, SensorRecord
from mmdet3d.datasets.tally import Tally
from mmdet3d.datasets.transforms.images import image_size, read_image
from mmdet3d.datasets.transforms.lidar import read_points
from mmdet3d.datasets.transforms.radar4d import read_vod_radar
from mmdet3d.datasets.vod.files import RADARS, SPLITS, FrameFiles, frame_files, read_matrices, read_pose, split_ids
from mmdet3d.datasets.vod.labels import boxes_of, read_truth
from mmdet3d.evaluation.kitti_objects import DONT_CARE
from mmdet3d.evaluation.vod import CLASSES
from mmdet3d.io.files import check_place
from mmdet3d.progress import progress_bar
from mmdet3d.shell import number_of

__all__ = ["CAMERA", "RADAR", "check_vod", "create_vod"]

CAMERA, RADAR = "CAMERA", "RADAR"
_INTERVAL = 100_000  # microseconds from one frame number to the next


def create_vod(root: str | Path, out_dir: str | Path, tag: str = "vod", radar: str = RADARS[-1]) -> dict[str, Path]:
    """Write `{tag}_infos_{train, val, test}.pkl` of the splits in `lidar/ImageSets`.

    The LiDAR frame is that of the LiDAR: x forward, y left, z up.

    Args:
        root: folder with `lidar`, `radar`, ...
        out_dir: where the files go; the data set expects them in `root`.
        tag: first part of the file names.
        radar: folder of the radar points, of one scan, three or five.

    Returns:
        Paths by split, as far as there are lists.

    Raises:
        FileNotFoundError: a folder, list or file is missing.
        ValueError: a malformed file, or one that does not fit.
    """
    root, out_dir = Path(root), Path(out_dir)
    check_place(out_dir, "--out-dir")
    if not tag:
        raise ValueError("the prefix of the info files is empty; give one by --extra-tag")
    written = {}
    for split, frames in _splits(root).items():
        records = []
        for frame, before, after in progress_bar(list(_neighbours(frames)), desc=split, unit="frame"):
            records.append(_record(root, frame, radar, before, after, annotated=split != "test"))
        for first, record in zip(_scene_starts(frames), records, strict=True):
            record.scene_token = f"clip-{first}"
        path = out_dir / f"{tag}_infos_{split}.pkl"
        write_infos(records, {"dataset": "vod", "split": split, "radar": radar}, path)
        written[split] = path
        tally = Tally()
        for record in records:
            if record.names is not None:
                tally.add(record.names.tolist(), CLASSES, record.left_out)
        print(f"{path}: {number_of(len(records), 'frame')}" + (f"; {tally}" if tally.frames else ""))
    return written


def _splits(root: Path) -> dict[str, list[str]]:
    there = [s for s in SPLITS if (root / "lidar" / "ImageSets" / f"{s}.txt").is_file()]
    return {split: split_ids(root, split) for split in there or SPLITS}


def _neighbours(frames: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Every frame with those before and after it, empty at the ends of a clip, whose numbers are consecutive."""
    padded = ["", *frames, ""]
    for before, frame, after in zip(padded, frames, padded[2:], strict=False):
        if not frame.isdigit():
            raise ValueError(f"frame {frame!r} of View-of-Delft is no number, by which frames follow each other")
        joined = [near if near and abs(int(near) - int(frame)) == 1 else "" for near in (before, after)]
        yield frame, joined[0], joined[1]


def _scene_starts(frames: Sequence[str]) -> list[str]:
    """The first frame of each frame's clip."""
    starts = [frames[0]]
    for before, frame in pairwise(frames):
        starts.append(starts[-1] if int(frame) - int(before) == 1 else frame)
    return starts


def _record(root: Path, frame: str, radar: str, before: str, after: str, annotated: bool) -> FrameRecord:
    files = frame_files(root, frame, radar)
    matrices = read_matrices(root, files)
    camera2lidar = np.linalg.inv(matrices.lidar2camera)
    time = int(frame) * _INTERVAL
    for name in (files.lidar, files.radar):
        if not (root / name).is_file():
            raise FileNotFoundError(f"{root / name} is missing; complete the data set")
    record = FrameRecord(
        token=frame,
        timestamp=time,
        lidar=SensorRecord(files.lidar, time, np.eye(4)),
        lidar2ego=np.eye(4),
        ego2global=read_pose(root / files.pose) @ matrices.lidar2camera,
        cameras={
            CAMERA: CameraRecord(
                files.image,
                time,
                camera2lidar,
                intrinsics=matrices.intrinsics,
                camera2ego=camera2lidar,
                size=_image_size(root / files.image),
            )
        },
        radars={RADAR: [SensorRecord(files.radar, time, camera2lidar @ matrices.radar2camera)]},
        prev_token=before,
        next_token=after,
    )
    if annotated:
        objects = read_truth(root / files.label)
        objects = objects[objects.names != DONT_CARE]
        record.boxes, record.names = boxes_of(objects, camera2lidar), objects.names
    check_calibration(record, root)
    drop_bad_boxes(record)
    return record


def _image_size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except ValueError as error:
        raise ValueError(
            f"{error}, or if it is a link that became a text file, take the one in the folder lidar"
        ) from None


# -- every file -----------------------------------------------------------------------------------------------------


def check_vod(root: str | Path, radar: str = RADARS[-1], workers: int = 1) -> None:
    """Read every file of the splits, and print what is there; `check.json` in the folder lists the faults.

    Raises:
        FileNotFoundError: the folder or a list of frames is missing.
        ValueError: something is wrong with the files, see `check_all`.
    """
    root = Path(root)
    frames = [(split, frame) for split, frames in _splits(root).items() for frame in frames]
    print("\n".join(check_all(partial(_look_at_frame, root, radar), frames, workers, root / REPORT)))


def _look_at_frame(root: Path, radar: str, frame: tuple[str, str]) -> Looked:
    split, name = frame
    read: dict[str, int] = {}
    faults = []
    for kind, path, look in _files(root, frame_files(root, name, radar), split != "test"):
        try:
            look()
        except FileNotFoundError as error:
            faults.append(Fault("missing file", path, str(error)))
            continue
        except ValueError as error:
            faults.append(Fault(kind, path, str(error)))
        read[kind] = read.get(kind, 0) + 1
    return Looked(read, faults)


def _files(root: Path, files: FrameFiles, annotated: bool) -> Iterator[tuple[str, str, Callable[[], object]]]:
    """Kind, path and reader of the files of a frame."""
    yield "image", files.image, partial(read_image, root / files.image)
    yield "points", files.lidar, partial(read_points, root / files.lidar, 4)
    yield "radar", files.radar, partial(read_vod_radar, root / files.radar)
    yield "calibration", files.lidar_calibration, partial(read_matrices, root, files)
    yield "pose", files.pose, partial(read_pose, root / files.pose)
    if annotated:
        yield "label", files.label, lambda: check_objects(read_truth(root / files.label), root / files.label)
