"""Overlaps of detections and annotated objects in KITTI frames, for all frames at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmdet3d.evaluation.kitti_objects import DONT_CARE, Objects
from mmdet3d.ops.rotated_iou import rotated_iou

__all__ = ["Pairs", "pair_up"]

_FRAMES_AT_ONCE = 16
_APART = 1000.0  # metres between frames whose boxes are compared in one call


@dataclass
class Pairs:
    """Every detection beside every annotated object of its frame, ordered by object, then detection.

    Args:
        labels: annotated objects of all frames, DontCare regions left out.
        frames: (G,) frame of each object, ascending.
        results: detections of all frames.
        label, result: (P,) index of either side.
        overlaps: (P,) IoU by metric: `bbox`, `bev`, `3d`.
        unlabelled: (D,) largest share of a detection's 2-D box that lies in one DontCare region.
    """

    labels: Objects
    frames: np.ndarray
    results: Objects
    label: np.ndarray
    result: np.ndarray
    overlaps: dict[str, np.ndarray]
    unlabelled: np.ndarray


def pair_up(labels: Sequence[Objects], results: Sequence[Objects]) -> Pairs:
    """Overlaps of the detections `results[i]` and the objects `labels[i]` of every frame i."""
    known = [frame[frame.names != DONT_CARE] for frame in labels]
    regions = [frame[frame.names == DONT_CARE] for frame in labels]
    objects, detections = Objects.cat(known), Objects.cat(results)
    frames = _frame_numbers(known)
    label, result = _indices(known, results)
    bev = _bev_overlap(known, results, label, result)
    return Pairs(
        labels=objects,
        frames=frames,
        results=detections,
        label=label,
        result=result,
        overlaps={
            "bbox": _iou_2d(objects.boxes2d[label], detections.boxes2d[result]),
            "bev": bev,
            "3d": _iou_3d(objects[label], detections[result], bev),
        },
        unlabelled=_share_unlabelled(regions, results, detections),
    )


def _frame_numbers(frames: Sequence[Objects]) -> np.ndarray:
    return np.repeat(np.arange(len(frames)), [len(f) for f in frames])


def _indices(first: Sequence[Objects], second: Sequence[Objects]) -> tuple[np.ndarray, np.ndarray]:
    """Indices (P,), (P,) of all pairs within frames, in the concatenated frames."""
    counts = np.array([len(f) for f in second])
    starts = np.cumsum(counts) - counts
    frame = _frame_numbers(first)
    left = np.repeat(np.arange(len(frame)), counts[frame])
    block = np.cumsum(counts[frame]) - counts[frame]
    right = np.arange(len(left)) - block[left] + starts[frame][left]
    return left, right


# -- image plane ----------------------------------------------------------------------------------------------------


def _common_area_2d(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    sides = np.minimum(first[:, 2:], second[:, 2:]) - np.maximum(first[:, :2], second[:, :2])
    return np.where((sides > 0).all(1), sides.prod(1), 0.0)


def _area_2d(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _iou_2d(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    common = _common_area_2d(first, second)
    return _share(common, _area_2d(first) + _area_2d(second) - common)


def _share_unlabelled(regions: Sequence[Objects], results: Sequence[Objects], detections: Objects) -> np.ndarray:
    region, result = _indices(regions, results)
    boxes = detections.boxes2d[result]
    share = _share(_common_area_2d(Objects.cat(regions).boxes2d[region], boxes), _area_2d(boxes))
    largest = np.zeros(len(detections))
    np.maximum.at(largest, result, share)
    return largest


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, 0 where nothing is shared."""
    return np.divide(part, whole, out=np.zeros_like(part), where=part > 0)


# -- ground plane and space -----------------------------------------------------------------------------------------


def _bev_overlap(
    labels: Sequence[Objects], results: Sequence[Objects], label: np.ndarray, result: np.ndarray
) -> np.ndarray:
    """(P,) IoU on the ground plane, of a few frames in one call: their boxes are moved apart, so they do not meet."""
    n_labels = np.cumsum([0, *(len(f) for f in labels)])
    n_results = np.cumsum([0, *(len(f) for f in results)])
    overlap, done = [], 0
    for first in range(0, len(labels), _FRAMES_AT_ONCE):
        end = min(first + _FRAMES_AT_ONCE, len(labels))
        matrix = rotated_iou(_rectangles(labels[first:end]), _rectangles(results[first:end])).numpy()
        stop = np.searchsorted(label, n_labels[end])
        rows, columns = label[done:stop] - n_labels[first], result[done:stop] - n_results[first]
        overlap.append(matrix[rows, columns])
        done = stop
    return np.concatenate(overlap)


def _rectangles(frames: Sequence[Objects]) -> torch.Tensor:
    """(N, 5) x, z, length, width, yaw counter-clockwise in the x-z plane (rotation_y turns z to x).

    Objects without a box in space, of which files say that their sizes are -1, get an empty rectangle.
    """
    objects = Objects.cat(frames)
    x = objects.locations[:, 0] + _APART * _frame_numbers(frames)
    length, width = objects.sizes[:, 2].clip(min=0), objects.sizes[:, 1].clip(min=0)
    return torch.from_numpy(np.column_stack([x, objects.locations[:, 2], length, width, -objects.rotation_y]))


def _iou_3d(first: Objects, second: Objects, bev: np.ndarray) -> np.ndarray:
    """(P,) IoU in space of row-wise pairs whose IoU on the ground is `bev`; y points down and is that of the bottom."""
    sizes, others = first.sizes.clip(min=0), second.sizes.clip(min=0)
    ground = bev * (sizes[:, 1:].prod(1) + others[:, 1:].prod(1)) / (1 + bev)
    bottom = np.minimum(first.locations[:, 1], second.locations[:, 1])
    top = np.maximum(first.locations[:, 1] - sizes[:, 0], second.locations[:, 1] - others[:, 0])
    common = ground * (bottom - top).clip(min=0)
    return _share(common, sizes.prod(1) + others.prod(1) - common)
