"""Greedy suppression over a precomputed matrix of conflicts."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.ops.rotated_iou import rotated_iou

__all__ = ["circle_nms", "greedy_keep", "rotated_nms"]


def circle_nms(
    centers: Tensor, scores: Tensor, squared_radius: float, pre_max_size: int | None, post_max_size: int | None
) -> Tensor:
    """See `mmdet3d.ops.nms.circle_nms`."""
    order = torch.argsort(scores.detach(), descending=True, stable=True)[:pre_max_size]
    best = centers.detach()[order].to(torch.promote_types(centers.dtype, torch.float32))
    squared_distance = (best[:, None] - best).square().sum(-1)
    return order[greedy_keep(squared_distance <= squared_radius, post_max_size)]


def rotated_nms(
    boxes: Tensor, scores: Tensor, threshold: float, pre_max_size: int | None, post_max_size: int | None
) -> Tensor:
    """See `mmdet3d.ops.nms.rotated_nms`."""
    order = torch.argsort(scores.detach(), descending=True, stable=True)[:pre_max_size]
    best = boxes.detach()[order]
    return order[greedy_keep(rotated_iou(best, best) > threshold, post_max_size)]


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
