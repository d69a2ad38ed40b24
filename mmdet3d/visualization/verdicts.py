"""Detections against the ground truth of one frame: what was found, what was not there, what was missed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from mmdet3d.structures import Boxes3D, Detections3D
from mmdet3d.visualization.layers import Layer

__all__ = ["REACH", "judge", "verdict_counts", "verdict_layers"]

_SAME_PLACE = 1.0  # metres
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


def _doubled(detections: Detections3D, hit: Tensor) -> Tensor:
    """(N,) bool: false detections within a metre of a hit, or of a likelier one, of another class."""
    centers = detections.boxes.centers[:, :2].double()
    near = torch.cdist(centers, centers) < _SAME_PLACE
    other = detections.labels[:, None] != detections.labels
    better = hit | (detections.scores > detections.scores[:, None])
    return ~hit & (near & other & better).any(dim=1)


def verdict_layers(boxes: Boxes3D, labels: Tensor, detections: Detections3D, with_scores: bool = False) -> list[Layer]:
    """The layers "ground truth", "missed", "false" and "hit", later ones on top; arguments as in `judge`.

    Of several classes guessed for one place, the hit is drawn, or else the likeliest; the others are counted.
    """
    hit, taken = judge(boxes, labels, detections)
    doubled = _doubled(detections, hit)
    false = Layer.from_detections("false", detections[~hit & ~doubled], "dashed", with_scores)
    return [
        Layer("ground truth", boxes, labels, "filled"),
        Layer("missed", boxes, labels, "dotted")[~taken],
        replace(false, hidden=int(doubled.sum())),
        Layer.from_detections("hit", detections[hit], "solid", with_scores),
    ]


def verdict_counts(layers: Sequence[Layer]) -> str:
    """How many there are of `verdict_layers`, whether drawn or not: "14 hit, 16 false (5 not drawn), 27 missed"."""
    return ", ".join(
        f"{len(layer.boxes) + layer.hidden} {layer.title}{f' ({layer.hidden} not drawn)' if layer.hidden else ''}"
        for layer in reversed(layers[1:])
    )
