"""Exact overlap of rotated rectangles, without sorting vertices.

In the frame of the second rectangle, which is then axis-aligned, the overlap is the integral over x in [-l/2, l/2] of
the first rectangle's upper minus lower border, both clamped to [-w/2, w/2]. The borders are the four edges, straight
lines, so every edge contributes a few trapezoids. Unlike collecting and sorting the vertices of the intersection, this
is continuous in the boxes, so equal boxes need no tolerance; what may be a rounding error counts as no overlap, so
touching boxes have exactly none.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.structures import rotate_z

__all__ = ["paired_overlap", "paired_rotated_iou", "rotated_iou", "rotated_iou_3d"]

_CHUNK = 1 << 18  # pairs clipped at once
_TINY_AREA = 1e-8


def rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """See `mmdet3d.ops.rotated_iou.rotated_iou`."""
    overlap = _overlaps(first, second)
    area_first, area_second = first[:, 2] * first[:, 3], second[:, 2] * second[:, 3]
    union = area_first[:, None] + area_second - overlap
    return overlap / union.clamp(min=_TINY_AREA)


def rotated_iou_3d(first: Tensor, second: Tensor) -> Tensor:
    """See `mmdet3d.ops.rotated_iou.rotated_iou_3d`."""
    ground = [0, 1, 3, 4, 6]
    top = torch.minimum((first[:, 2] + first[:, 5] / 2)[:, None], second[:, 2] + second[:, 5] / 2)
    bottom = torch.maximum((first[:, 2] - first[:, 5] / 2)[:, None], second[:, 2] - second[:, 5] / 2)
    overlap = _overlaps(first[:, ground], second[:, ground]) * (top - bottom).clamp(min=0)
    union = first[:, 3:6].prod(1)[:, None] + second[:, 3:6].prod(1) - overlap
    return overlap / union.clamp(min=_TINY_AREA)


def paired_rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """See `mmdet3d.ops.rotated_iou.paired_rotated_iou`."""
    overlap = paired_overlap(first, second)
    return overlap / (first[:, 2:4].prod(1) + second[:, 2:4].prod(1) - overlap).clamp(min=_TINY_AREA)


def paired_overlap(first: Tensor, second: Tensor) -> Tensor:
    """Common area of rectangle i of `first` and rectangle i of `second`, both (P, 5): (P,) square metres."""
    corners = _corners_in_frame(first, second)
    ends = corners.roll(-1, dims=1)
    half_length, half_width = (second[:, None, 2:4] / 2).unbind(-1)
    area = -_area_below(corners, ends, half_length, half_width).sum(1)
    limit = torch.minimum(first[:, 2] * first[:, 3], second[:, 2] * second[:, 3])
    reach = (first[:, 2:4].norm(dim=1) + second[:, 2:4].norm(dim=1)).detach() / 2
    rounding = torch.finfo(area.dtype).eps * reach.square()
    return torch.where(area > rounding, torch.minimum(area, limit), 0)


def _area_below(start: Tensor, end: Tensor, half_x: Tensor, half_y: Tensor) -> Tensor:
    """Integral of clamp(y, -half_y, half_y) over dx along the directed edges (P, 4, 2), for |x| <= half_x: (P, 4)."""
    x0, x1 = _between(start[..., 0], half_x), _between(end[..., 0], half_x)
    slope = _divide(end[..., 1] - start[..., 1], end[..., 0] - start[..., 0])
    y0 = start[..., 1] + slope * (x0 - start[..., 0])
    y1 = start[..., 1] + slope * (x1 - start[..., 0])
    # The clamped y is linear between the places where the edge crosses a border; a misplaced crossing of an edge almost
    # parallel to the border costs nothing, because y hardly differs from the border along it.
    cross_low, cross_high = _divide(-half_y - y0, y1 - y0), _divide(half_y - y0, y1 - y0)
    low, high = torch.minimum(cross_low, cross_high).clamp(0, 1), torch.maximum(cross_low, cross_high).clamp(0, 1)
    where = torch.stack([torch.zeros_like(low), low, high, torch.ones_like(low)], dim=-1)
    height = _between(y0[..., None] + where * (y1 - y0)[..., None], half_y[..., None])
    return (where.diff(dim=-1) * (height[..., 1:] + height[..., :-1]) / 2).sum(-1) * (x1 - x0)


def _corners_in_frame(boxes: Tensor, frame: Tensor) -> Tensor:
    """(P, 4, 2) corners of `boxes`, counter-clockwise, in the frame of the rectangles `frame`, both (P, 5)."""
    signs = boxes.new_tensor([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
    local = _rotate(signs * boxes[:, None, 2:4], (boxes[:, 4] - frame[:, 4])[:, None])
    return local + _rotate(boxes[:, :2] - frame[:, :2], -frame[:, 4])[:, None]


def _rotate(points: Tensor, angle: Tensor) -> Tensor:
    return rotate_z(torch.nn.functional.pad(points, (0, 1)), angle)[..., :2]


def _between(value: Tensor, half: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(value, -half), half)


def _divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Quotient, 0 where the denominator is."""
    zero = denominator == 0
    return torch.where(zero, 0, numerator / torch.where(zero, 1, denominator))


def _overlaps(first: Tensor, second: Tensor) -> Tensor:
    """(N, M) common areas; only pairs whose circumscribed circles meet are clipped."""
    overlap = first.new_zeros(first.shape[0], second.shape[0])
    radius_first, radius_second = first[:, 2:4].norm(dim=1) / 2, second[:, 2:4].norm(dim=1) / 2
    offset = first[:, None, :2].detach() - second[None, :, :2].detach()
    near = offset.square().sum(-1) <= (radius_first[:, None] + radius_second).detach().square()
    i, j = near.nonzero(as_tuple=True)
    if i.numel() == 0:
        return overlap
    pairs = zip(i.split(_CHUNK), j.split(_CHUNK), strict=True)
    return overlap.index_put((i, j), torch.cat([paired_overlap(first[a], second[b]) for a, b in pairs]))
