"""Greedy suppression over a matrix of conflicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmdet3d.ops.rotated_iou import reference as rotated_iou

__all__ = ["circle_nms", "greedy_keep", "rotated_nms"]


def circle_nms(
    centers: Tensor,
    scores: Tensor,
    squared_radius: float,
    pre_max_size: int | None,
    post_max_size: int | None,
    groups: Tensor | None,
) -> Tensor:
    """See `mmdet3d.ops.nms.circle_nms`."""
    centers = centers.detach().double()

    def conflicts(index: Tensor) -> Tensor:
        best = centers[index]
        return (best[:, None] - best).square().sum(-1) <= squared_radius

    return _per_group(conflicts, scores, pre_max_size, post_max_size, groups)


def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    pre_max_size: int | None,
    post_max_size: int | None,
    groups: Tensor | None,
) -> Tensor:
    """See `mmdet3d.ops.nms.rotated_nms`."""
    boxes = boxes.detach().double()

    def conflicts(index: Tensor) -> Tensor:
        return rotated_iou.rotated_iou(boxes[index], boxes[index]) > threshold

    return _per_group(conflicts, scores, pre_max_size, post_max_size, groups)


def _per_group(
    conflicts: Callable[[Tensor], Tensor], scores: Tensor, pre: int | None, post: int | None, groups: Tensor | None
) -> Tensor:
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    ranked = torch.zeros_like(order) if groups is None else groups[order]
    keep = torch.zeros_like(order, dtype=torch.bool)
    for group in ranked.unique():
        members = (ranked == group).nonzero().squeeze(1)[:pre]
        keep[members[greedy_keep(conflicts(order[members]), post)]] = True
    return order[keep]


def greedy_keep(conflict: Tensor, limit: int | None) -> Tensor:
    """Walk the rows of `conflict` (N, N) bool from first to last; a row survives if it conflicts with none kept before.

    Returns:
        (K,) int64, ascending, K <= `limit`.
    """
    matrix = conflict.cpu().numpy()
    suppressed = matrix[:0].any(0)
    kept: list[int] = []
    for row in range(len(matrix)):
        if limit is not None and len(kept) >= limit:
            break
        if not suppressed[row]:
            kept.append(row)
            suppressed |= matrix[row]
    return torch.tensor(kept, dtype=torch.int64, device=conflict.device)
