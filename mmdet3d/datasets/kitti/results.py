"""Detections to KITTI result files, and metrics under flat names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from mmdet3d.datasets.kitti.objects import Objects
from mmdet3d.evaluation.kitti import DIFFICULTIES, LOOSE, METRICS, Metrics
from mmdet3d.interop.boxes import CAMERA_TO_LEVEL, boxes_to_kitti
from mmdet3d.structures import Boxes3D, Detections3D

__all__ = ["image_boxes", "metrics_by_name", "project_boxes", "to_objects"]

Camera = tuple[np.ndarray, tuple[int, int]]
_NEAR = 0.1  # metres


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
    """(N, 4) x1, y1, x2, y2 around the projected corners of boxes in the level camera frame, pixels.

    Corners behind the camera count as just in front of it, so that such a box reaches far out of the image.
    """
    corners = boxes.to(torch.float64).corners() @ CAMERA_TO_LEVEL[:3, :3]  # the inverse of a rotation, from the right
    u, v, depth = np.moveaxis(corners.numpy() @ p2[:, :3].T + p2[:, 3], -1, 0)
    depth = np.maximum(depth, _NEAR)
    u, v = u / depth, v / depth
    return np.column_stack([u.min(1), v.min(1), u.max(1), v.max(1)]) if len(boxes) else np.zeros((0, 4))


def image_boxes(boxes: Boxes3D, p2: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """`project_boxes`, cut at the borders of an image of `size` (width, height)."""
    return np.clip(project_boxes(boxes, p2), 0, [size[0], size[1]] * 2)


def metrics_by_name(strict: Metrics, loose: Metrics, classes: Sequence[str]) -> dict[str, float]:
    """`Car/3d/R40/moderate` and the like, at the benchmark's overlaps; `Car/3d@0.5/R40/moderate` at the looser ones."""
    flat: dict[str, float] = {}
    for name in classes:
        flat |= _flatten(name, {metric: strict[name][metric] for metric in METRICS})
        flat |= _flatten(name, {f"{metric}@{LOOSE[name][metric]:g}": loose[name][metric] for metric in ("bev", "3d")})
    return flat


def _flatten(name: str, metrics: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    return {
        f"{name}/{metric}/{kind}/{difficulty}": value
        for metric, kinds in metrics.items()
        for kind, values in kinds.items()
        for difficulty, value in zip(DIFFICULTIES, values, strict=True)
    }
