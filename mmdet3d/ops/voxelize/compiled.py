"""Voxelisation by compiled kernels: a hash table on the CPU, sorting on CUDA, the same voxels in the same order.

Shapes: P points, M voxels, S slots, F columns. Time and memory grow with points and voxels, never with the grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.native import DTYPE_CODES, Kernels, setting
from mmdet3d.ops.voxelize.reference import grid_shape

__all__ = ["available", "dynamic_voxelize", "scatter_max", "scatter_sum", "voxelize"]

_kernels = Kernels("voxelize")
available = _kernels.available


def voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float], max_points: int, max_voxels: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `mmdet3d.ops.voxelize.voxelize`."""
    points = points.detach()
    index, slot, coordinates, counts = _assign(points, *_grid(voxel_size, point_cloud_range))
    coordinates, counts = coordinates[:max_voxels], counts[:max_voxels]
    voxels = _fill(points, index, slot, counts, max_points)
    return voxels, coordinates, counts.clamp(max=max_points)


def dynamic_voxelize(
    points: Tensor, voxel_size: Sequence[float], point_cloud_range: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """See `mmdet3d.ops.voxelize.dynamic_voxelize`."""
    index, _, coordinates, _ = _assign(points.detach(), *_grid(voxel_size, point_cloud_range))
    return index, coordinates


def scatter_sum(features: Tensor, index: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Sums (size, F) and counts (size,); sums of half precision are kept in float32."""
    sums, counts = _scatter(_wide(features), index.long(), size, False)
    return sums.to(features.dtype), counts


def scatter_max(features: Tensor, index: Tensor, size: int) -> Tensor:
    """Maxima (size, F)."""
    return _scatter(_wide(features), index.long(), size, True)[0].to(features.dtype)


def _wide(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def _grid(voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> tuple[list[float], list[int]]:
    box = [float(v) for v in (*point_cloud_range[:3], *voxel_size)]
    return box, list(grid_shape(voxel_size, point_cloud_range))


def _sorts(tensor: Tensor) -> bool:
    """Whether the kernels that run are those of `cuda.cu`, which work on sorted rows."""
    return tensor.is_cuda or setting() == "emulated"


@torch.library.custom_op("mmdet3d::voxelize_assign", mutates_args=())
def _assign(points: Tensor, box: list[float], shape: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """index (P,) int64, slot (P,) int32 of every point in its voxel; coordinates (M, 3) and counts (M,) int32."""
    points = points.contiguous()
    index = points.new_empty(len(points), dtype=torch.int64)
    arguments = [DTYPE_CODES[points.dtype], *points.shape, *box, *shape, points, index]
    if _sorts(points):
        _kernels.call("voxel_keys", *arguments)
        return _number_by_sorting(index, shape)
    slot, counts = (points.new_empty(len(points), dtype=torch.int32) for _ in range(2))
    coordinates = points.new_empty(len(points), 3, dtype=torch.int32)
    total = points.new_empty(1, dtype=torch.int64)
    _kernels.call("assign_points", *arguments, slot, coordinates, counts, total)
    voxels = int(total)
    return index, slot, coordinates[:voxels].clone(), counts[:voxels].clone()


@_assign.register_fake
def _(points: Tensor, box: list[float], shape: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    voxels = torch.library.get_ctx().new_dynamic_size()
    index, slot = (points.new_empty(points.shape[0], dtype=t) for t in (torch.int64, torch.int32))
    coordinates = points.new_empty(voxels, 3, dtype=torch.int32)
    return index, slot, coordinates, points.new_empty(voxels, dtype=torch.int32)


def _number_by_sorting(keys: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Voxels from the linear cell index of every point, -1 outside; returns what `_assign` does."""
    ordered, order = keys.sort(stable=True)
    start = torch.searchsorted(ordered, keys)  # where the points of the same voxel begin in `ordered`
    position = torch.empty_like(order)
    position[order] = torch.arange(len(order), device=order.device)
    slot, inside = position - start, keys >= 0
    opens = (slot == 0) & inside
    voxel = opens.cumsum(0) - 1  # of points that open one: first come, first served
    index = torch.where(inside, voxel[order[start]], -1)
    openers = opens.nonzero().squeeze(1)
    opened = keys[openers]
    counts = torch.searchsorted(ordered, opened, right=True) - start[openers]
    _, ny, nz = shape
    coordinates = torch.stack([opened // (ny * nz), opened // nz % ny, opened % nz], dim=1)
    return index, slot.int(), coordinates.int(), counts.int()


@torch.library.custom_op("mmdet3d::voxelize_fill", mutates_args=())
def _fill(points: Tensor, index: Tensor, slot: Tensor, counts: Tensor, slots: int) -> Tensor:
    """Voxels (M, S, F) from the output of `_assign`, whose `counts` (M,) may be cut short."""
    points = points.contiguous()
    voxels = points.new_empty(len(counts), slots, points.shape[1])
    arguments = [DTYPE_CODES[points.dtype], *points.shape, len(counts), slots]
    _kernels.call("fill_voxels", *arguments, points, index, slot, counts.contiguous(), voxels)
    return voxels


@_fill.register_fake
def _(points: Tensor, index: Tensor, slot: Tensor, counts: Tensor, slots: int) -> Tensor:
    return points.new_empty(counts.shape[0], slots, points.shape[1])


@torch.library.custom_op("mmdet3d::scatter_rows", mutates_args=())
def _scatter(features: Tensor, index: Tensor, size: int, largest: bool) -> tuple[Tensor, Tensor]:
    """Sum, or maximum, of the rows of each group (size, F), and their number (size,); -1 belongs to no group."""
    features, index = features.contiguous(), index.contiguous()
    out = features.new_empty(size, features.shape[1])
    dtype, columns = DTYPE_CODES[features.dtype], features.shape[1]
    if _sorts(features):
        ordered, order = index.sort(stable=True)
        starts = torch.searchsorted(ordered, torch.arange(size + 1, device=index.device))
        _kernels.call("scatter_rows", dtype, columns, size, largest, features, order, starts, out)
        return out, starts.diff()
    counts = index.new_empty(size)
    _kernels.call("scatter_rows", dtype, len(features), columns, size, largest, features, index, out, counts)
    return out, counts


@_scatter.register_fake
def _(features: Tensor, index: Tensor, size: int, largest: bool) -> tuple[Tensor, Tensor]:
    return features.new_empty(size, features.shape[1]), index.new_empty(size)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    features, index, ctx.size, ctx.largest = inputs
    ctx.save_for_backward(index, *([features, output[0]] if ctx.largest else []))
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    index, *rest = ctx.saved_tensors
    if not ctx.largest:
        return _gather(grad, index), None, None, None
    features, largest = rest
    equal = (features == _gather(largest, index)).to(grad.dtype)
    ties, _ = _scatter(equal, index, ctx.size, False)  # rows that share a maximum share its gradient
    return equal * _gather(grad / ties.clamp(min=1), index), None, None, None


_scatter.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("mmdet3d::gather_rows", mutates_args=())
def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Row of `table` (size, F) for each index (P,): (P, F); zeros for -1. The gradient of sums."""
    table, index = table.contiguous(), index.contiguous()
    rows = table.new_empty(len(index), table.shape[1])
    _kernels.call("gather_rows", DTYPE_CODES[table.dtype], *rows.shape, len(table), table, index, rows)
    return rows


@_gather.register_fake
def _(table: Tensor, index: Tensor) -> Tensor:
    return table.new_empty(index.shape[0], table.shape[1])


def _save_index(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    table, index = inputs
    ctx.size = table.shape[0]
    ctx.save_for_backward(index)


def _add_up(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _scatter(grad, ctx.saved_tensors[0], ctx.size, False)[0], None


_gather.register_autograd(_add_up, setup_context=_save_index)
