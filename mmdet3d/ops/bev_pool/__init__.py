"""Lift-splat pooling: camera pixels with a depth distribution to a bird's-eye-view raster."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmdet3d.ops.bev_pool.fused import lift_splat
from mmdet3d.ops.bev_pool.reference import cell_indices
from mmdet3d.ops.checks import check_shapes

__all__ = ["bev_pool"]


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
    precision inputs are summed in float32.

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
    sizes = check_shapes(depth=(depth, "P D h w"), context=(context, "P C h w"), geometry=(geometry, "B N D h w 3"))
    if sizes["P"] != sizes["B"] * sizes["N"]:
        raise ValueError(
            f"depth has {sizes['P']} images, geometry {sizes['B']} x {sizes['N']} = {sizes['B'] * sizes['N']}"
        )
    for name, tensor in {"depth": depth, "context": context, "geometry": geometry}.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    for name, values in {"lower": lower, "cell": cell, "shape": shape}.items():
        if len(values) != 3:
            raise ValueError(f"{name} needs three values (x, y, z), got {list(values)}")
    cells = cell_indices(geometry, lower, cell, shape, floor)
    return lift_splat(depth, context, cells, sizes["B"], shape)
