"""Detections to the objects of KITTI result files, and such files scored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mmdet3d.datasets.kitti.labels import frame_files, read_labels, read_results
from mmdet3d.evaluation.kitti import CLASSES, LOOSE, STRICT, Metrics, evaluate, faults_of_truth
from mmdet3d.evaluation.kitti_objects import Objects
from mmdet3d.io.files import atomic_write
from mmdet3d.structures import Boxes3D, Detections3D
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_to_kitti

__all__ = ["evaluate_folder", "image_boxes", "project_boxes", "project_corners", "to_objects", "write_metrics"]

logger = logging.getLogger(__name__)

Camera = tuple[np.ndarray, tuple[int, int]]
_NEAR = 0.1  # metres
# Corner numbers at the ends of the edges: bottom face, top face, uprights.
_EDGES = np.array([[0, 1], [1, 2], [2, 3], [3, 0], [4, 5], [5, 6], [6, 7], [7, 4], [0, 4], [1, 5], [2, 6], [3, 7]])


def to_objects(found: Detections3D, classes: Sequence[str], camera: Callable[[], Camera]) -> Objects:
    """Detections in the level camera frame as objects of a result file.

    Args:
        classes: label -> class name.
        camera: gives P2 (3, 4) and the image's size (width, height); asked only where the detections lack 2-D boxes or
            observation angles, which then follow from the 3-D boxes.
    """
    table = boxes_to_kitti(found.boxes.to(torch.float64)).numpy()
    boxes2d = image_boxes(found.boxes, *camera()) if found.boxes2d is None else found.boxes2d.double().numpy()
    if found.alphas is None:
        p2, _ = camera()
        alpha = table[:, 6] - np.arctan2(boxes2d[:, [0, 2]].mean(1) - p2[0, 2], p2[0, 0])
        alpha = (alpha + np.pi) % (2 * np.pi) - np.pi
    else:
        alpha = found.alphas.double().numpy()
    unknown = np.full(len(found), -1.0)
    return Objects(
        names=np.array([classes[k] for k in found.labels.tolist()], dtype=np.str_),
        truncated=unknown,
        occluded=unknown,
        alpha=alpha,
        boxes2d=boxes2d,
        sizes=table[:, :3],
        locations=table[:, 3:6],
        rotation_y=table[:, 6],
        scores=found.scores.double().numpy(),
    )


def project_boxes(boxes: Boxes3D, p2: np.ndarray) -> np.ndarray:
    """`project_corners` of boxes in the level camera frame."""
    corners = boxes.to(torch.float64).corners() @ CAMERA_TO_LEVEL[:3, :3]  # the inverse of a rotation, from the right
    return project_corners(corners.numpy(), p2)


def project_corners(corners: np.ndarray, p2: np.ndarray) -> np.ndarray:
    """(N, 4) x1, y1, x2, y2 around the projection of boxes, pixels; not cut at the image.

    What lies nearer than 0.1 m, or behind the camera, is cut off first; zeros where nothing is left.

    Args:
        corners: (N, 8, 3) in the order of `Boxes3D.corners`, camera frame (x right, y down, z forward).
        p2: (3, 4) projection.
    """
    ends = corners[:, _EDGES]
    first, last = ends[:, :, 0], ends[:, :, 1]
    points = np.concatenate([_towards(first, last), _towards(last, first)], axis=1)
    u, v, depth = np.moveaxis(points @ p2[:, :3].T + p2[:, 3], -1, 0)
    hidden = points[..., 2] < 0.999 * _NEAR
    lower = [np.where(hidden, np.inf, w / depth).min(1, initial=np.inf) for w in (u, v)]
    upper = [np.where(hidden, -np.inf, w / depth).max(1, initial=-np.inf) for w in (u, v)]
    bounds = np.column_stack([*lower, *upper])
    bounds[hidden.all(1)] = 0
    return bounds


def _towards(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """`start` (..., 3), or where the edge to `end` enters the visible half space if `start` is not in it."""
    step = end[..., 2] - start[..., 2]
    share = np.clip(np.divide(_NEAR - start[..., 2], step, out=np.zeros_like(step), where=step > 0), 0, 1)
    return start + share[..., None] * (end - start)


def image_boxes(boxes: Boxes3D, p2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`project_boxes`, cut at the borders of an image of `size` (width, height)."""
    return np.clip(project_boxes(boxes, p2), 0, [size[0], size[1]] * 2)


# -- scoring ----------------------------------------------------------------------------------------------------------


def evaluate_folder(
    detections: str | Path,
    labels: str | Path,
    ids: Sequence[str],
    class_map: Mapping[str, str] | None = None,
    looked_at: Sequence[str] = CLASSES,
) -> tuple[Metrics, Metrics]:
    """Score the result files `{detections}/{id}.txt` against the label files `{labels}/{id}.txt`; see `evaluate`.

    Args:
        ids: frames to score; every one needs both files, a frame without detections an empty one.
        class_map: what classes of the label files that KITTI does not have count as.
        looked_at: classes of which it is said that there is nothing to find, see `faults_of_truth`.

    Returns:
        Metrics at the overlaps `STRICT` and at `LOOSE`.

    Raises:
        FileNotFoundError: a folder or a file is missing.
        ValueError: no frame, or a malformed line.
    """
    result_files, label_files = frame_files(detections, ids), frame_files(labels, ids)
    truth, found = [read_labels(f, class_map) for f in label_files], [read_results(f) for f in result_files]
    for fault in faults_of_truth(truth, looked_at):
        logger.warning("%s: %s", labels, fault)
    return evaluate(truth, found, STRICT), evaluate(truth, found, LOOSE)


def write_metrics(metrics: Metrics, path: str | Path) -> None:
    """Write metrics as `evaluate` returns them as JSON."""
    with atomic_write(path) as file:
        json.dump(metrics, file, indent=1)
