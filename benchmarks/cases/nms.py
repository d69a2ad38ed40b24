"""Suppression at the sizes of CenterHead: 1,000 candidates of a task, ten classes or tasks in one call."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, optional, twin
from mmdet3d.ops.nms import circle_nms, rotated_nms

THRESHOLD = 0.2
SQUARED_RADIUS = 4.0


def cases(device: torch.device, count: int = 1000, groups: int = 10) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    boxes, scores = _candidates(count, generator, device)
    group = torch.randint(0, groups, (count,), generator=generator).to(device)

    def rotated() -> Tensor:
        return rotated_nms(boxes, scores, THRESHOLD)

    def first_kept() -> Tensor:
        return rotated_nms(boxes, scores, THRESHOLD, post_max_size=83)

    def grouped() -> Tensor:
        return rotated_nms(boxes, scores, THRESHOLD, groups=group)

    def one_by_one() -> Tensor:
        members = [(group == g).nonzero().squeeze(1) for g in range(groups)]
        kept = torch.cat([m[rotated_nms(boxes[m], scores[m], THRESHOLD)] for m in members])
        return kept[scores[kept].argsort(descending=True, stable=True)]

    def circles() -> Tensor:
        return circle_nms(boxes[:, :2], scores, SQUARED_RADIUS)

    return [
        Case(
            "rotated_nms",
            f"{count} boxes",
            {"ours": rotated, "twin": twin(rotated)} | _peer(boxes, scores),
        ),
        Case("rotated_nms, 83 kept", f"{count} boxes", {"ours": first_kept, "twin": twin(first_kept)}),
        Case(
            "rotated_nms in groups",
            f"{count} boxes, {groups} groups",
            {"ours": grouped, "twin": twin(grouped), "group by group": one_by_one},
        ),
        Case("circle_nms", f"{count} centres", {"ours": circles, "twin": twin(circles)}),
    ]


def _candidates(count: int, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    """Boxes (N, 5) as a dense head finds them, several around each object within 54 m, and distinct scores (N,)."""
    objects = torch.rand(count // 8 + 1, 5, generator=generator) * torch.tensor([108.0, 108.0, 2.0, 0.5, 2 * math.pi])
    objects += torch.tensor([-54.0, -54.0, 3.5, 1.7, -math.pi])
    boxes = objects[torch.randint(0, len(objects), (count,), generator=generator)]
    boxes = boxes + torch.randn(count, 5, generator=generator) * torch.tensor([0.6, 0.6, 0.2, 0.1, 0.1])
    scores = (torch.randperm(count, generator=generator) + 1.0) / count
    return boxes.to(device), scores.to(device)


def _peer(boxes: Tensor, scores: Tensor) -> dict[str, Implementation]:
    ops = optional("mmcv.ops")
    if ops is None:
        return {}
    return {"mmcv": lambda: ops.nms_rotated(boxes, scores, THRESHOLD)[1]}
