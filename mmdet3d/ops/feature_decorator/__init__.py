"""What a pillar network sees of a point besides its raw features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.feature_decorator import reference
from mmdet3d.ops.native import DTYPE_CODES, Kernels

__all__ = ["feature_decorator"]

_kernels = Kernels("feature_decorator")


def feature_decorator(
    features: Tensor,
    counts: Tensor,
    coordinates: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    normalize: bool = False,
    cluster: bool = False,
    center: bool = True,
    distance: bool = False,
) -> Tensor:
    """Append offsets to the points of pillars (PointPillars); padded slots become zero.

    Args:
        features: (M, S, F), columns 0..2 are x, y, z in metres; slot s of pillar m holds a point if s < counts[m].
        counts: (M,) points per pillar.
        coordinates: (M, 3) x, y, z index of the pillar.
        voxel_size: extent of a pillar along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        normalize: bring x, y, z into [0, 1] over the range (after the offsets are taken), as CRKD's radar network does.
        cluster: append x, y, z minus their mean over the pillar's points (3).
        center: append x, y minus the pillar's centre (2).
        distance: append the distance to the origin (1).

    Returns:
        (M, S, F + 3 cluster + 2 center + distance), appended in this order, at least float32.

    Raises:
        ValueError: shapes that do not fit together.
    """
    sizes = check_shapes(features=(features, "M S F"), counts=(counts, "M"), coordinates=(coordinates, "M 3"))
    if sizes["F"] < 3:
        raise ValueError(f"features must hold x, y, z in their first columns, got shape {tuple(features.shape)}")
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f"voxel_size needs 3 values and point_cloud_range 6, got {list(voxel_size)} and {list(point_cloud_range)}"
        )
    flags = [bool(f) for f in (normalize, cluster, center, distance)]
    if not _kernels.available(features):
        return reference.feature_decorator(features, counts, coordinates, voxel_size, point_cloud_range, *flags)
    box = [float(v) for v in (*voxel_size, *point_cloud_range)]
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    return _decorate(wide, counts.long(), coordinates.long(), box, flags)


@torch.library.custom_op("mmdet3d::feature_decorator", mutates_args=())
def _decorate(points: Tensor, counts: Tensor, cells: Tensor, box: list[float], flags: list[bool]) -> Tensor:
    out = points.new_empty(*points.shape[:2], _width(points, flags))
    _kernels.call(
        "decorate_forward",
        *_sizes(points, box, flags),
        points.contiguous(),
        counts.contiguous(),
        cells.contiguous(),
        out,
    )
    return out


@_decorate.register_fake
def _(points: Tensor, counts: Tensor, cells: Tensor, box: list[float], flags: list[bool]) -> Tensor:
    return points.new_empty(*points.shape[:2], _width(points, flags))


@torch.library.custom_op("mmdet3d::feature_decorator_backward", mutates_args=())
def _decorate_backward(grad_out: Tensor, points: Tensor, counts: Tensor, box: list[float], flags: list[bool]) -> Tensor:
    grad = torch.empty_like(points, memory_format=torch.contiguous_format)
    _kernels.call(
        "decorate_gradient",
        *_sizes(points, box, flags),
        points.contiguous(),
        counts.contiguous(),
        grad_out.contiguous(),
        grad,
    )
    return grad


@_decorate_backward.register_fake
def _(grad_out: Tensor, points: Tensor, counts: Tensor, box: list[float], flags: list[bool]) -> Tensor:
    return torch.empty_like(points, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    points, counts, _, ctx.box, ctx.flags = inputs
    ctx.save_for_backward(points, counts)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    points, counts = ctx.saved_tensors
    return _decorate_backward(grad, points, counts, ctx.box, ctx.flags), None, None, None, None


_decorate.register_autograd(_differentiate, setup_context=_save)


def _width(points: Tensor, flags: list[bool]) -> int:
    _, cluster, center, distance = flags
    return points.shape[2] + 3 * cluster + 2 * center + distance


def _sizes(points: Tensor, box: list[float], flags: list[bool]) -> list[Any]:
    """The scalar arguments that both kernels begin with."""
    return [DTYPE_CODES[points.dtype], *points.shape, _width(points, flags), *box, *flags]
