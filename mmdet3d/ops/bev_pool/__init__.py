"""Lift-splat pooling: camera pixels with a depth distribution to a bird's-eye-view raster.

Compiled kernels run where they can be had, else `fused.py`, the leanest that PyTorch alone can do; `reference.py`, the
twin, forms the lifted tensor and is the oracle (MMDET3D_OPS=reference).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmdet3d.ops.bev_pool.plan import PlanCache, PoolPlan, plan_coordinates, plan_pool

__all__ = ["PlanCache", "PoolPlan", "bev_pool", "bev_pool_lifted", "plan_coordinates", "plan_pool"]


def bev_pool(
    depth: Tensor,
    context: Tensor,
    geometry: Tensor,
    lower: Sequence[float],
    cell: Sequence[float],
    shape: Sequence[int],
    floor: bool = False,
) -> Tensor:
    """Sum `depth x context` of all frustum points that fall into a cell, without forming the lifted tensor.

    The operator of Lift-Splat-Shoot and BEVFusion; gradients flow to depth and context, none to the geometry. Half
    precision inputs are summed in float32. Sums have a fixed order. Where the same geometry comes again, make its plan
    once: `plan_pool(geometry, lower, cell, shape, floor).pool(depth, context)` is the same.

    Args:
        depth: (B*N, D, h, w) weight of each depth bin, any scale.
        context: (B*N, C, h, w) features of a pixel.
        geometry: (B, N, D, h, w, 3) x, y, z of the frustum points in metres. Points outside the grid and points
            that are not finite are dropped.
        lower: x, y, z of the grid's lower border, metres.
        cell: extent of a cell along x, y, z, metres.
        shape: number of cells X, Y, Z.
        floor: False truncates the cell coordinate toward zero, as published checkpoints expect: a point up to one cell
            below the lower border falls into cell 0. True drops such points.

    Returns:
        (B, Z*C, X, Y), contiguous, channel = z * C + c, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together or tensors that are not floating point.
    """
    return plan_pool(geometry, lower, cell, shape, floor).pool(depth, context)


def bev_pool_lifted(
    features: Tensor,
    geometry: Tensor,
    lower: Sequence[float],
    cell: Sequence[float],
    shape: Sequence[int],
    floor: bool = False,
) -> Tensor:
    """Sum the features of all points that fall into a cell: `bev_pool` for features that are lifted already.

    For points with integer cells and a sample index, `plan_coordinates(...).pool_lifted(features)` is the same.

    Args:
        features: (B, N, D, h, w, C), or any (B, ..., C).
        geometry: (B, N, D, h, w, 3), or (B, ..., 3): x, y, z of each point in metres.
        lower, cell, shape, floor: see `bev_pool`.

    Returns:
        (B, Z*C, X, Y), contiguous, channel = z * C + c, float32 (float64 for float64 inputs).

    Raises:
        ValueError: shapes that do not fit together or tensors that are not floating point.
    """
    if features.shape[:-1] != geometry.shape[:-1]:
        raise ValueError(
            f"features and geometry must agree but for the last axis, got {tuple(features.shape)} and "
            f"{tuple(geometry.shape)}"
        )
    return plan_pool(geometry, lower, cell, shape, floor).pool_lifted(features)
