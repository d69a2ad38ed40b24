"""Points to voxels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.voxelize import compiled, reference
from mmdet3d.ops.voxelize.reference import grid_shape

__all__ = ["dynamic_voxelize", "grid_shape", "scatter_max", "scatter_mean", "scatter_sum", "voxelize"]

_MOST = 2**31 - 1  # coordinates and counts are int32


def voxelize(
    points: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    max_points: int,
    max_voxels: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hard voxelisation (VoxelNet): first come, first served in the order of the points.

    A voxel is opened by the first point in it as long as there are fewer than `max_voxels`; it stores its first
    `max_points` points. A point on a lower border belongs to the voxel above it. Points outside the range and points
    that are not finite are dropped. No gradient.

    Args:
        points: (P, F), columns 0..2 are x, y, z in metres.
        voxel_size: extent along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        max_points: slots per voxel.
        max_voxels: bound on M.

    Returns:
        voxels (M, max_points, F), unused slots zero; coordinates (M, 3) int32 as x, y, z; counts (M,) int32. Voxels are
        in the order in which they were opened.

    Raises:
        ValueError: another shape, integer points, bounds that are not positive, or a grid that covers nothing or has
            more than 2^63 voxels.
    """
    _check(points, voxel_size, point_cloud_range)
    for name, value in {"max_points": max_points, "max_voxels": max_voxels}.items():
        if value < 1:
            raise ValueError(f"{name} must be positive, got {value} (dynamic_voxelize has no such bounds)")
    implementation = compiled if compiled.available(points) else reference
    return implementation.voxelize(points, voxel_size, point_cloud_range, max_points, max_voxels)


def dynamic_voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Voxel of every point, without bounds on points or voxels (dynamic voxelisation, MVF).

    Args:
        points: (P, F), columns 0..2 are x, y, z in metres.
        voxel_size: extent along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.

    Returns:
        index (P,) int64, the voxel of each point, -1 for a point outside the range or not finite; coordinates (M, 3)
        int32 as x, y, z. Voxels are in the order of their first point.

    Raises:
        ValueError: another shape, integer points, or a grid that covers nothing or has more than 2^63 voxels.
    """
    _check(points, voxel_size, point_cloud_range)
    implementation = compiled if compiled.available(points) else reference
    return implementation.dynamic_voxelize(points, voxel_size, point_cloud_range)


def scatter_sum(features: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum of the rows of each group; the same on every run and for any number of threads.

    Args:
        features: (P, F).
        index: (P,) integer group of each row, -1 for rows to leave out.
        size: number of groups.

    Returns:
        (size, F); zero for a group without rows.

    Raises:
        ValueError: another shape, an index that is not an integer, or a group that is not below `size`.
    """
    _check_groups(features, index, size)
    if _takes_kernels(features):
        return compiled.scatter_sum(features, index, size)[0]
    return reference.scatter_sum(features, index, size)


def scatter_mean(features: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of the rows of each group; arguments, empty groups and errors as in `scatter_sum`."""
    _check_groups(features, index, size)
    if not _takes_kernels(features):
        return reference.scatter_mean(features, index, size)
    sums, counts = compiled.scatter_sum(features, index, size)
    return sums / counts.clamp(min=1)[:, None].to(sums)


def scatter_max(features: Tensor, index: Tensor, size: int) -> Tensor:
    """Maximum of each column over the rows of each group; the rest as in `scatter_sum`.

    Rows that share a maximum share its gradient.
    """
    _check_groups(features, index, size)
    implementation = compiled if _takes_kernels(features) else reference
    return implementation.scatter_max(features, index, size)


def _takes_kernels(features: Tensor) -> bool:
    return features.is_floating_point() and compiled.available(features)


def _check_groups(features: Tensor, index: Tensor, size: int) -> None:
    check_shapes(features=(features, "P F"), index=(index, "P"))
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise ValueError(f"index must hold integers, got {index.dtype}")
    # A compiled graph does not look at values; there the kernels leave out what belongs to no group.
    if not torch.compiler.is_compiling() and len(index) and (largest := int(index.max())) >= size:
        raise ValueError(f"index must lie below size = {size}, got {largest}")


def _check(points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
    sizes = check_shapes(points=(points, "P F"))
    if sizes["F"] < 3 or not points.is_floating_point():
        raise ValueError(
            f"points must be floating point with x, y, z in front, got {points.dtype} of shape {tuple(points.shape)}"
        )
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f"voxel_size needs 3 values and point_cloud_range 6, got {list(voxel_size)} and {list(point_cloud_range)}"
        )
    if not all(math.isfinite(v) for v in (*voxel_size, *point_cloud_range)) or min(voxel_size) <= 0:
        raise ValueError(
            "voxel_size must be positive and point_cloud_range finite, got "
            f"{list(voxel_size)} and {list(point_cloud_range)}"
        )
    shape = grid_shape(voxel_size, point_cloud_range)
    if min(shape) < 1 or max(shape) > _MOST or math.prod(shape) >= 1 << 63 or len(points) > _MOST:
        raise ValueError(
            "voxels are counted in 32 bits along an axis and 63 in all, points in 31, got a grid of "
            f"{shape} voxels and {len(points)} points"
        )
