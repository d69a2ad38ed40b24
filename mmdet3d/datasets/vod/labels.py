"""Label and result files of View-of-Delft, and what their lines are in the LiDAR frame.

Columns are KITTI's with a score of 1 in labels; three of them mean something else: `truncated` is 1 for an object that
moves, `rotation` turns about the LiDAR's z axis, downwards, and the height stands on the LiDAR's z axis, too, although
the camera is inclined against it. Source: the authors' development kit and its example frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from mmdet3d.datasets.kitti.labels import frame_files, read_labels, read_results
from mmdet3d.datasets.kitti.results import project_corners
from mmdet3d.datasets.vod.files import VodCalibration
from mmdet3d.evaluation import vod
from mmdet3d.evaluation.kitti_objects import DONT_CARE, Objects
from mmdet3d.io.files import atomic_write
from mmdet3d.structures import Boxes3D, limit_period

__all__ = ["TYPES", "boxes_of", "evaluate_folder", "objects_of", "read_found", "read_truth", "write_objects"]

TYPES = (
    "Car",
    "Pedestrian",
    "Cyclist",
    "rider",
    "bicycle",
    "bicycle_rack",
    "human_depiction",
    "moped_scooter",
    "motor",
    "truck",
    "ride_other",
    "ride_uncertain",
    "vehicle_other",
    DONT_CARE,
)


def read_truth(path: str | Path) -> Objects:
    """A label file; raises as KITTI's `read_labels`."""
    return read_labels(path, types=TYPES)


def read_found(path: str | Path) -> Objects:
    """A result file; raises as KITTI's `read_results`."""
    return read_results(path, types=TYPES)


def write_objects(path: str | Path, objects: Objects) -> None:
    """Write a label or result file (16 columns, six decimals); it is whole or absent.

    Raises:
        ValueError: a number that is not finite.
    """
    table = objects.table()
    if not np.isfinite(table).all():
        row = int(np.flatnonzero(~np.isfinite(table).all(1))[0])
        raise ValueError(f"{path}: object {row} ({objects.names[row]}) has a number that is not finite")
    with atomic_write(path) as file:
        for name, row in zip(objects.names, table, strict=True):
            file.write(f"{name} {row[0]:g} {row[1]:g} {' '.join(f'{value:.6f}' for value in row[2:])}\n")


def boxes_of(objects: Objects, camera2lidar: np.ndarray) -> np.ndarray:
    """(N, 9) float64 of `Boxes3D` in the LiDAR frame; velocities, which the files do not have, are NaN."""
    height, width, length = objects.sizes.T
    bottom = objects.locations @ camera2lidar[:3, :3].T + camera2lidar[:3, 3]
    yaw = limit_period(torch.from_numpy(-objects.rotation_y - np.pi / 2)).numpy()
    unknown = np.full(len(objects), np.nan)
    center = bottom + np.column_stack([0 * height, 0 * height, height / 2])
    return np.column_stack([center, length, width, height, yaw, unknown, unknown])


def objects_of(
    boxes: Boxes3D, names: Sequence[str], scores: np.ndarray, calibration: VodCalibration, size: tuple[int, int]
) -> Objects:
    """Boxes in the LiDAR frame as objects of a file; inverse of `boxes_of`.

    Args:
        names, scores: of each box.
        size: width and height of the image, at which the projections that serve as 2-D boxes are cut.
    """
    tensor = boxes.tensor.double()
    to_camera = calibration.lidar2camera
    bottom = tensor[:, :3].numpy() - np.outer(tensor[:, 5].numpy() / 2, [0, 0, 1])
    locations = bottom @ to_camera[:3, :3].T + to_camera[:3, 3]
    rotation = limit_period(-tensor[:, 6] - torch.pi / 2)
    alpha = limit_period(rotation - torch.from_numpy(np.arctan2(locations[:, 0], locations[:, 2])))
    corners = boxes.to(torch.float64).corners().numpy() @ to_camera[:3, :3].T + to_camera[:3, 3]
    p2 = np.column_stack([calibration.intrinsics, np.zeros(3)])
    return Objects(
        names=np.array(names, dtype=np.str_),
        truncated=np.zeros(len(boxes)),
        occluded=np.zeros(len(boxes)),
        alpha=alpha.numpy(),
        boxes2d=np.clip(project_corners(corners, p2), 0, [*size, *size]),
        sizes=tensor[:, [5, 4, 3]].numpy(),
        locations=locations,
        rotation_y=rotation.numpy(),
        scores=scores,
    )


def evaluate_folder(detections: str | Path, labels: str | Path, frames: Sequence[str]) -> dict[str, float]:
    """Score the result files `{detections}/{frame}.txt` against the label files `{labels}/{frame}.txt`.

    Returns:
        See `evaluation.vod.evaluate`.

    Raises:
        FileNotFoundError: a folder or a file is missing; a frame without detections needs an empty file.
        ValueError: no frame, or a malformed line.
    """
    found, truth = frame_files(detections, frames), frame_files(labels, frames)
    return vod.evaluate([read_truth(file) for file in truth], [read_found(file) for file in found])
