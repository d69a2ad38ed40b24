"""Detections against the ground truth of one frame: what was found, what was not there, what was missed."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.structures import Boxes3D, Detections3D
from mmdet3d.visualization.layers import Layer

__all__ = ["REACH", "judge", "verdict_layers"]

REACH = 2.0  # metres between centres on the ground, one of the four distances that nuScenes matches with


def judge(boxes: Boxes3D, labels: Tensor, detections: Detections3D, reach: float = REACH) -> tuple[Tensor, Tensor]:
    """Which detections hit, and which objects are hit, by the rule of nuScenes.

    The detections choose in order of their scores, each the nearest object of its class that is still free and whose
    centre lies less than `reach` metres away on the ground.

    Args:
        boxes, labels: ground truth, M objects.
        detections: N, in the same frame, on the CPU.

    Returns:
        (N,) and (M,) bool.
    """
    distance = torch.cdist(detections.boxes.centers[:, :2].double(), boxes.centers[:, :2].double())
    distance[detections.labels[:, None] != labels] = torch.inf
    hit = torch.zeros(len(detections), dtype=torch.bool)
    taken = torch.zeros(len(boxes), dtype=torch.bool)
    for i in detections.scores.argsort(descending=True, stable=True).tolist():
        free = distance[i].masked_fill(taken, torch.inf)
        if len(free) and free.min() < reach:
            hit[i] = taken[free.argmin()] = True
    return hit, taken


def verdict_layers(boxes: Boxes3D, labels: Tensor, detections: Detections3D, with_scores: bool = False) -> list[Layer]:
    """The layers "ground truth", "missed", "false" and "hit", later ones on top; arguments as in `judge`."""
    hit, taken = judge(boxes, labels, detections)
    return [
        Layer("ground truth", boxes, labels, "filled"),
        Layer("missed", boxes, labels, "dotted")[~taken],
        Layer.from_detections("false", detections[~hit], "dashed", with_scores),
        Layer.from_detections("hit", detections[hit], "solid", with_scores),
    ]
