"""Non-maximum suppression on the ground plane, by distance of centres or IoU of rectangles.

One call serves several groups (classes, tasks, samples) that do not suppress each other. Every implementation compares
in float64, so that all keep the same. On CUDA a call takes N^2 / 8 bytes beside its arguments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.native import Kernels, setting
from mmdet3d.ops.nms import reference

__all__ = ["circle_nms", "rotated_nms"]

_kernels = Kernels("nms")
_RECTANGLE_NUMBERS = 8  # float64 numbers that the CUDA kernels keep of a rectangle (ops/csrc/rectangle.h)


def circle_nms(
    centers: Tensor,
    scores: Tensor,
    squared_radius: float,
    pre_max_size: int | None = None,
    post_max_size: int | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Suppress centres near a better one (CenterPoint).

    Args:
        centers: (N, 2) x, y, metres.
        scores: (N,).
        squared_radius: a centre is suppressed if its squared distance to a kept one is at most this, square metres. It
            is what published configs call `min_radius`: 4 means 2 m.
        pre_max_size: how many of the best scores of a group enter; None: all.
        post_max_size: how many of a group are kept at most; None: all.
        groups: (N,) integers; only centres of the same group suppress each other. None: all are one group.

    Returns:
        (K,) int64 indices of the kept centres, best score first; equal scores keep their order.

    Raises:
        ValueError: another shape, or a negative radius or size.
    """
    _check(scores, groups, pre_max_size, post_max_size, centers=(centers, "N 2"))
    if not squared_radius >= 0:
        raise ValueError(f"squared_radius must not be negative, got {squared_radius}")
    if not _kernels.available(centers):
        return reference.circle_nms(centers, scores, squared_radius, pre_max_size, post_max_size, groups)
    return _suppress(centers, scores, squared_radius, pre_max_size, post_max_size, groups)


def rotated_nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    pre_max_size: int | None = None,
    post_max_size: int | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Suppress rectangles whose IoU with a better one exceeds `threshold`.

    Args:
        boxes: (N, 5) x, y, length, width in metres, yaw in radians counter-clockwise from +x.
        scores: (N,).
        threshold: IoU in [0, 1]; equality survives.
        pre_max_size: how many of the best scores of a group enter; None: all.
        post_max_size: how many of a group are kept at most; None: all.
        groups: (N,) integers; only boxes of the same group suppress each other. None: all are one group.

    Returns:
        (K,) int64 indices of the kept boxes, best score first; equal scores keep their order.

    Raises:
        ValueError: another shape, a threshold outside [0, 1] or a negative size.
    """
    _check(scores, groups, pre_max_size, post_max_size, boxes=(boxes, "N 5"))
    if not 0 <= threshold <= 1:
        raise ValueError(f"the IoU threshold must lie in [0, 1], got {threshold}")
    if not _kernels.available(boxes):
        return reference.rotated_nms(boxes, scores, threshold, pre_max_size, post_max_size, groups)
    return _suppress(boxes, scores, threshold, pre_max_size, post_max_size, groups)


def _check(
    scores: Tensor,
    groups: Tensor | None,
    pre_max_size: int | None,
    post_max_size: int | None,
    **shapes: tuple[Tensor, str],
) -> None:
    check_shapes(**shapes, scores=(scores, "N"), **({} if groups is None else {"groups": (groups, "N")}))
    if groups is not None and (groups.is_floating_point() or groups.is_complex()):
        raise ValueError(f"groups must hold integers, got {groups.dtype}")
    for name, size in {"pre_max_size": pre_max_size, "post_max_size": post_max_size}.items():
        if size is not None and size < 0:
            raise ValueError(f"{name} must not be negative (None is no bound), got {size}")


def _suppress(
    shapes: Tensor, scores: Tensor, limit: float, pre: int | None, post: int | None, groups: Tensor | None
) -> Tensor:
    order = torch.argsort(scores.detach(), descending=True, stable=True)
    shapes, bound = shapes.detach(), -1 if post is None else post
    if groups is None:
        order = order[:pre]
        first = torch.zeros_like(order)
        last = torch.full_like(order, len(order))
        return order[_keep(shapes[order].double(), first, last, float(limit), bound)]
    ranked = groups[order]
    by_group = ranked.argsort(stable=True)
    members, ranked = order[by_group], ranked[by_group]
    first = torch.searchsorted(ranked, ranked)
    last = torch.searchsorted(ranked, ranked, right=True)
    if pre is not None:
        last = torch.minimum(last, first + pre)
    keep = torch.zeros_like(order, dtype=torch.bool)
    keep[by_group] = _keep(shapes[members].double(), first, last, float(limit), bound)
    return order[keep]


@torch.library.custom_op("mmdet3d::nms_keep", mutates_args=())
def _keep(shapes: Tensor, first: Tensor, last: Tensor, limit: float, bound: int) -> Tensor:
    """Which shapes survive.

    Args:
        shapes: (N, 2) centres or (N, 5) rectangles, float64, by group and, within, from the best score to the worst.
        first, last: (N,) the range of the group of each shape; shapes at or after `last` do not take part.
        limit: squared radius or IoU.
        bound: survivors of a group at most; -1: any number.

    Returns:
        (N,) bool.
    """
    count, columns = shapes.shape
    name = "keep_circles" if columns == 2 else "keep_rectangles"
    shapes, first, last = shapes.contiguous(), first.contiguous(), last.contiguous()
    keep = shapes.new_zeros(count, dtype=torch.bool)
    if not (shapes.is_cuda or setting() == "emulated"):
        _kernels.call(name, count, bound, limit, shapes, first, last, keep)
        return keep
    words = (count + 63) // 64
    scratch = [first.new_empty(count, words), first.new_empty(count)]
    if columns == 5:
        scratch.append(shapes.new_empty(count, _RECTANGLE_NUMBERS))
    _kernels.call(name, count, words, bound, limit, shapes, first, last, keep, *scratch)
    return keep


@_keep.register_fake
def _(shapes: Tensor, first: Tensor, last: Tensor, limit: float, bound: int) -> Tensor:
    return shapes.new_empty(shapes.shape[0], dtype=torch.bool)
