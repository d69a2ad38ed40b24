"""Which input site meets which output site under which kernel offset."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.ops.sparse_conv import reference
from mmdet3d.ops.sparse_conv.kernels import kernels
from mmdet3d.ops.sparse_conv.tensor import SparseTensor

__all__ = ["NeighborTable", "check_odd", "output_shape", "strided_table", "submanifold_table"]

Triple = tuple[int, int, int]
_ROWS = 2**31  # tables hold int32 rows
_KEYS = 2**63  # sites are sorted by int64 keys


@dataclass(frozen=True)
class NeighborTable:
    """Pairs of sites that a convolution connects, as `submanifold_table` and `strided_table` make them.

    Args:
        neighbors: (K, M) int32, per kernel offset and output site the row of the input site, -1 for none; offsets in
            the order of the flattened kernel axes (kx, ky, kz).
        inverse: (K, N) int32, the same pairs by input site: the row of the output site, -1 for none.
        counts: (K,) int64 on the CPU, how many pairs an offset has.
        coordinates: (M, 4) output sites: sample, x, y, z.
        shape: X, Y, Z of the output grid.
    """

    neighbors: Tensor
    inverse: Tensor
    counts: Tensor
    coordinates: Tensor
    shape: Triple


def submanifold_table(tensor: SparseTensor, kernel_size: Triple, dilation: Triple) -> NeighborTable:
    """Output sites are the input sites; the kernel is centred (odd sizes).

    Raises:
        ValueError: a site outside the grid or twice, more sites than can be numbered, or an even kernel size.
    """
    check_odd(kernel_size)
    if min(*kernel_size, *dilation) < 1:
        raise ValueError(f"kernel size and dilation must be positive, got {kernel_size} and {dilation}")
    grid = [tensor.batch_size, *tensor.shape]
    neighbors, inverse, counts = _submanifold(tensor.coordinates, grid, list(kernel_size), list(dilation))
    return NeighborTable(neighbors, inverse, counts, tensor.coordinates, tensor.shape)


def strided_table(
    tensor: SparseTensor, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> NeighborTable:
    """Output sites are all that an input site reaches: input = output * stride - padding + offset * dilation.

    Raises:
        ValueError: a site outside the grid or twice, more sites than can be numbered, or a grid that is too small.
    """
    grid = [tensor.batch_size, *tensor.shape]
    geometry = [list(v) for v in (kernel_size, stride, padding, dilation)]
    shape = output_shape(tensor.shape, kernel_size, stride, padding, dilation)
    coordinates, neighbors, inverse, counts = _strided(tensor.coordinates, grid, list(shape), *geometry)
    return NeighborTable(neighbors, inverse, counts, coordinates, shape)


def output_shape(
    shape: Sequence[int], kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple = (1, 1, 1)
) -> Triple:
    """X, Y, Z after a strided convolution.

    Raises:
        ValueError: the kernel is larger than the padded grid; sizes that make no sense.
    """
    if min(*kernel_size, *stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError(
            f"kernel size, stride and dilation must be positive and padding not negative, got {kernel_size}, {stride}, "
            f"{dilation} and {padding}"
        )
    axes = zip(shape, kernel_size, stride, padding, dilation, strict=True)
    x, y, z = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    if min(x, y, z) < 1:
        raise ValueError(
            f"a sparse convolution of kernel {kernel_size}, stride {stride}, padding {padding} leaves nothing of a "
            f"grid of {tuple(shape)} sites"
        )
    return x, y, z


def check_odd(kernel_size: Sequence[int]) -> None:
    """Raise ValueError unless a kernel of this size has a centre."""
    if any(k % 2 == 0 for k in kernel_size):
        raise ValueError(f"a submanifold convolution needs odd kernel sizes, got {tuple(kernel_size)}")


@torch.library.custom_op("mmdet3d::submanifold_table", mutates_args=())
def _submanifold(
    coordinates: Tensor, grid: list[int], kernel_size: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    padded = [n + 2 * (k // 2) * d for n, k, d in zip(grid[1:], kernel_size, dilation, strict=True)]
    _check(coordinates, grid, [grid[0], *padded], 1)
    if kernels.on_cpu(coordinates):
        neighbors = coordinates.new_empty(math.prod(kernel_size), len(coordinates), dtype=torch.int32)
        unique = torch.empty(1, dtype=torch.int64)
        sizes = (len(coordinates), *grid[1:], *kernel_size, *dilation)
        kernels.call("submanifold_table", *sizes, coordinates.long().contiguous(), neighbors, unique)
        _check_unique(unique)
    else:
        neighbors = reference.submanifold_neighbors(coordinates, grid[1:], kernel_size, dilation)
    # The kernel is symmetric: if a meets b under an offset, b meets a under the opposite one.
    return neighbors, neighbors.flip(0), _counts(neighbors)


@_submanifold.register_fake
def _(
    coordinates: Tensor, grid: list[int], kernel_size: list[int], dilation: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    neighbors = coordinates.new_empty(math.prod(kernel_size), len(coordinates), dtype=torch.int32)
    return neighbors, torch.empty_like(neighbors), torch.empty(len(neighbors), dtype=torch.int64, device="cpu")


@torch.library.custom_op("mmdet3d::strided_table", mutates_args=())
def _strided(
    coordinates: Tensor,
    grid: list[int],
    shape: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Along an axis an input meets every (stride / gcd(stride, dilation))-th kernel index at most.
    axes = zip(kernel_size, stride, dilation, strict=True)
    fan_out = math.prod(-(-k * math.gcd(s, d) // s) for k, s, d in axes)
    _check(coordinates, grid, [grid[0], *shape], fan_out)
    geometry = (kernel_size, stride, padding, dilation)
    if not kernels.on_cpu(coordinates):
        sites, neighbors, inverse = reference.strided_neighbors(coordinates, shape, *geometry)
        return sites, neighbors, inverse, _counts(neighbors)
    offsets, inputs = math.prod(kernel_size), len(coordinates)
    keys = coordinates.new_empty(inputs * fan_out, dtype=torch.int64)
    inverse = coordinates.new_empty(offsets, inputs, dtype=torch.int32)
    found, unique = torch.empty(2, 1, dtype=torch.int64)
    sizes = (inputs, *shape, *(v for triple in geometry for v in triple))
    kernels.call("strided_sites", *sizes, coordinates.long().contiguous(), keys, inverse, found)
    outputs = int(found)
    neighbors = coordinates.new_empty(offsets, outputs, dtype=torch.int32)
    kernels.call("invert_table", offsets, inputs, outputs, inverse, neighbors, unique)
    _check_unique(unique)
    return reference.sites_of(keys[:outputs], shape), neighbors, inverse, _counts(neighbors)


@_strided.register_fake
def _(
    coordinates: Tensor,
    grid: list[int],
    shape: list[int],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    offsets, outputs = math.prod(kernel_size), torch.library.get_ctx().new_dynamic_size()
    sites = coordinates.new_empty(outputs, 4, dtype=torch.int32)
    neighbors = coordinates.new_empty(offsets, outputs, dtype=torch.int32)
    inverse = coordinates.new_empty(offsets, len(coordinates), dtype=torch.int32)
    return sites, neighbors, inverse, torch.empty(offsets, dtype=torch.int64, device="cpu")


def _counts(neighbors: Tensor) -> Tensor:
    return (neighbors >= 0).sum(1).cpu()


def _check(coordinates: Tensor, grid: Sequence[int], numbered: Sequence[int], fan_out: int) -> None:
    """Sites lie inside `grid` (B, X, Y, Z); those of `numbered` fit keys, those that are reached fit rows."""
    if math.prod(numbered) >= _KEYS:
        raise ValueError(f"a grid of {list(numbered)} (samples, x, y, z) has more sites than int64 can number")
    if len(coordinates) * fan_out >= _ROWS:
        raise ValueError(f"{len(coordinates)} sites are too many, their neighbours are numbered by int32")
    outside = ((coordinates < 0) | (coordinates.long() >= coordinates.new_tensor(grid, dtype=torch.int64))).any(1)
    if outside.any():
        site = coordinates[outside][0].tolist()
        raise ValueError(f"coordinates must lie inside (samples, X, Y, Z) = {tuple(grid)}, got {site}")


def _check_unique(unique: Tensor) -> None:
    if not unique:
        raise ValueError("a site occurs twice in coordinates")
