"""The compiled kernels as PyTorch operators. Points are numbered (image, bin, row, column), int32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops import native
from mmdet3d.ops.native import DTYPE_CODES, Kernels

__all__ = ["available", "cells_of", "fits", "group", "lift_splat", "splat"]

_kernels = Kernels("bev_pool")
available = _kernels.available


def fits(points: int, num_cells: int) -> bool:
    """Whether the kernels can number so many points and cells."""
    return max(points, num_cells + 1) < 2**31


@torch.library.custom_op("mmdet3d::bev_pool_cells", mutates_args=())
def cells_of(geometry: Tensor, box: list[float], shape: list[int], floor: bool) -> Tensor:
    """(B, ..., 3) metres to flat cells (B, ...) int32, -1 outside; `box` is lower x, y, z and cell size x, y, z."""
    cells = geometry.new_empty(geometry.shape[:-1], dtype=torch.int32)
    samples = geometry.shape[0]
    points = cells.numel() // max(samples, 1)
    code = DTYPE_CODES[geometry.dtype]
    _kernels.call("locate_points", code, samples, points, *box, *shape, floor, geometry.contiguous(), cells)
    return cells


@cells_of.register_fake
def _(geometry: Tensor, box: list[float], shape: list[int], floor: bool) -> Tensor:
    return geometry.new_empty(geometry.shape[:-1], dtype=torch.int32)


@torch.library.custom_op("mmdet3d::bev_pool_group", mutates_args=())
def group(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Points in the order of their cells, dropped ones first, and where the points of each cell start.

    Args:
        cells: (...) int32, -1 for points to drop.
        num_cells: of the whole batch.

    Returns:
        order (K,) and starts (num_cells + 1,), int32: cell c has points `order[starts[c] : starts[c + 1]]`, ascending.
    """
    cells = cells.flatten()
    if _on_device(cells):
        ordered, order = torch.sort(cells, stable=True)
        bounds = torch.arange(num_cells + 1, dtype=torch.int32, device=cells.device)
        return order.int(), torch.searchsorted(ordered, bounds, out_int32=True)
    order, starts = cells.new_empty(cells.shape), cells.new_empty(num_cells + 1)
    _kernels.call("group_points", cells.numel(), num_cells, cells, order, starts)
    return order, starts


@group.register_fake
def _(cells: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    return cells.new_empty(cells.numel()), cells.new_empty(num_cells + 1)


def lift_splat(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: Sequence[int]
) -> Tensor:
    """(P, D, h, w) x (P, C, h, w) to (B, Z*C, X, Y), float32 or float64."""
    dtype = _stored(torch.promote_types(depth.dtype, context.dtype), depth)
    return _lift_splat(depth.to(dtype), context.to(dtype), cells, order, starts, batch_size, list(shape))


def splat(
    features: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: Sequence[int]
) -> Tensor:
    """(K, C) to (B, Z*C, X, Y), float32 or float64."""
    return _splat(features.to(_stored(features.dtype, features)), cells, order, starts, batch_size, list(shape))


@torch.library.custom_op("mmdet3d::bev_pool", mutates_args=())
def _lift_splat(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: list[int]
) -> Tensor:
    out = _raster(context, context.shape[1], batch_size, shape)
    bins, pixels = depth.shape[1], depth.shape[2] * depth.shape[3]
    _pool(bins, pixels, order, starts, depth.contiguous(), _channels_last(context), out, batch_size, shape)
    return out


@_lift_splat.register_fake
def _(
    depth: Tensor, context: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: list[int]
) -> Tensor:
    return _raster(context, context.shape[1], batch_size, shape)


@torch.library.custom_op("mmdet3d::bev_pool_backward", mutates_args=())
def _lift_splat_backward(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, batch_size: int, shape: list[int]
) -> tuple[Tensor, Tensor]:
    grad_depth, grad_context = _lift_splat_gradients(grad, depth, context)
    images, channels, height, width = context.shape
    sizes = (DTYPE_CODES[depth.dtype], images, depth.shape[1], height, width, channels)
    rows, grad_out = _channels_last(context), _grad_rows(grad, batch_size, shape)
    _kernels.call("pool_gradient", *sizes, cells, depth.contiguous(), rows, grad_out, grad_depth, grad_context)
    return grad_depth.to(depth.dtype), grad_context.permute(0, 3, 1, 2).to(context.dtype)


@_lift_splat_backward.register_fake
def _(
    grad: Tensor, depth: Tensor, context: Tensor, cells: Tensor, batch_size: int, shape: list[int]
) -> tuple[Tensor, Tensor]:
    grad_depth, grad_context = _lift_splat_gradients(grad, depth, context)
    return grad_depth.to(depth.dtype), grad_context.permute(0, 3, 1, 2).to(context.dtype)


@torch.library.custom_op("mmdet3d::bev_pool_lifted", mutates_args=())
def _splat(features: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: list[int]) -> Tensor:
    out = _raster(features, features.shape[1], batch_size, shape)
    _pool(1, features.shape[0], order, starts, None, features.contiguous(), out, batch_size, shape)
    return out


@_splat.register_fake
def _(features: Tensor, cells: Tensor, order: Tensor, starts: Tensor, batch_size: int, shape: list[int]) -> Tensor:
    return _raster(features, features.shape[1], batch_size, shape)


@torch.library.custom_op("mmdet3d::bev_pool_lifted_backward", mutates_args=())
def _splat_backward(grad: Tensor, cells: Tensor, channels: int, batch_size: int, shape: list[int]) -> Tensor:
    grad_features = grad.new_empty(cells.numel(), channels)
    code = DTYPE_CODES[grad.dtype]
    grad_out = _grad_rows(grad, batch_size, shape)
    _kernels.call("gather_gradient", code, cells.numel(), channels, cells, grad_out, grad_features)
    return grad_features


@_splat_backward.register_fake
def _(grad: Tensor, cells: Tensor, channels: int, batch_size: int, shape: list[int]) -> Tensor:
    return grad.new_empty(cells.numel(), channels)


def _save_lift_splat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    depth, context, cells, _, _, ctx.batch_size, ctx.shape = inputs
    ctx.save_for_backward(depth, context, cells)


def _differentiate_lift_splat(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_lift_splat_backward(grad, *ctx.saved_tensors, ctx.batch_size, ctx.shape), None, None, None, None, None


def _save_splat(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, cells, _, _, ctx.batch_size, ctx.shape = inputs
    ctx.channels, ctx.dtype = features.shape[1], features.dtype
    ctx.save_for_backward(cells)


def _differentiate_splat(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (cells,) = ctx.saved_tensors
    grad_features = _splat_backward(grad, cells, ctx.channels, ctx.batch_size, ctx.shape)
    return grad_features.to(ctx.dtype), None, None, None, None, None


_lift_splat.register_autograd(_differentiate_lift_splat, setup_context=_save_lift_splat)
_splat.register_autograd(_differentiate_splat, setup_context=_save_splat)


def _on_device(tensor: Tensor) -> bool:
    """Whether the CUDA source serves this tensor: it leaves sorting to PyTorch and reads half precision."""
    return tensor.is_cuda or native.setting() == "emulated"


def _stored(dtype: torch.dtype, tensor: Tensor) -> torch.dtype:
    """What the kernels read."""
    return dtype if _on_device(tensor) else _wide(dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _raster(like: Tensor, channels: int, batch_size: int, shape: Sequence[int]) -> Tensor:
    nx, ny, nz = shape
    return like.new_empty(batch_size, nz * channels, nx, ny, dtype=_wide(like.dtype))


def _lift_splat_gradients(grad: Tensor, depth: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Memory for the gradients (P, D, h, w) and, channels last, (P, h, w, C)."""
    images, channels, height, width = context.shape
    return grad.new_empty(depth.shape), grad.new_empty(images, height, width, channels)


def _pool(
    bins: int,
    pixels: int,
    order: Tensor,
    starts: Tensor,
    weights: Tensor | None,
    rows: Tensor,
    out: Tensor,
    batch_size: int,
    shape: Sequence[int],
) -> None:
    nx, ny, nz = shape
    sizes = (DTYPE_CODES[rows.dtype], bins, pixels, batch_size * nz, nx * ny, rows.shape[-1])
    _kernels.call("pool_forward", *sizes, order, starts, weights, rows, out)


def _grad_rows(grad: Tensor, batch_size: int, shape: Sequence[int]) -> Tensor:
    """(B, Z*C, X, Y) to (B*Z, X, Y, C)."""
    nx, ny, nz = shape
    return _channels_last(grad.reshape(batch_size * nz, grad.shape[1] // nz, nx, ny))


def _channels_last(maps: Tensor) -> Tensor:
    """(P, C, h, w) to contiguous (P, h, w, C)."""
    rows = maps.permute(0, 2, 3, 1)
    if rows.is_contiguous() or _on_device(maps):
        return rows.contiguous()
    planes, channels, height, width = maps.shape
    out = maps.new_empty(rows.shape)
    code = DTYPE_CODES[maps.dtype]
    _kernels.call("channels_last", code, planes, channels, height * width, maps.contiguous(), out)
    return out
