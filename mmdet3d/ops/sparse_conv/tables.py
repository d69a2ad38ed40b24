"""Which input site meets which output site under which kernel offset.

Sites are int64 keys of a padded grid, so that one addition moves a site by a kernel offset and never wraps into the
next row or sample; the neighbour of a site is then found by binary search among the sorted keys.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.ops.sparse_conv.tensor import SparseTensor

__all__ = ["NeighborTable", "output_shape", "strided_table", "submanifold_table"]

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class NeighborTable:
    """Pairs of sites that a convolution connects.

    Args:
        pairs: per kernel offset, in the order of the flattened kernel axes (kx, ky, kz), the rows of the input sites
            and of the output sites; both (P_k,) int64.
        coordinates: (M, 4) int32 output sites: sample, x, y, z.
        shape: X, Y, Z of the output grid.
    """

    pairs: list[tuple[Tensor, Tensor]]
    coordinates: Tensor
    shape: Triple


def submanifold_table(tensor: SparseTensor, kernel_size: Triple, dilation: Triple) -> NeighborTable:
    """Output sites are the input sites; the kernel is centred (odd sizes)."""
    reach = [(k // 2) * d for k, d in zip(kernel_size, dilation, strict=True)]
    padded = [s + 2 * r for s, r in zip(tensor.shape, reach, strict=True)]
    _, ny, nz = padded
    coordinates = tensor.coordinates.long() + tensor.coordinates.new_tensor([0, *reach]).long()
    keys = _keys(coordinates, padded)
    sorted_keys, rows = keys.sort()
    offsets = [
        ((x * ny) + y) * nz + z
        for x, y, z in itertools.product(
            *(range(-r, r + 1, d) for r, d in zip(reach, dilation, strict=True)),
        )
    ]
    half = len(offsets) // 2
    identity = torch.arange(len(keys), device=keys.device)
    pairs: list[tuple[Tensor, Tensor]] = []
    for offset in offsets[:half]:
        place = torch.searchsorted(sorted_keys, sorted_keys + offset).clamp(max=max(len(keys) - 1, 0))
        found = (sorted_keys[place] == sorted_keys + offset).nonzero().squeeze(1)
        pairs.append((rows[place[found]], rows[found]))
    # The kernel is symmetric: if a meets b under an offset, b meets a under the opposite one.
    mirrored = [(out, inp) for inp, out in reversed(pairs)]
    return NeighborTable([*pairs, (identity, identity), *mirrored], tensor.coordinates, tensor.shape)


def strided_table(
    tensor: SparseTensor, kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> NeighborTable:
    """Output sites are all that an input site reaches: input = output * stride - padding + offset * dilation."""
    shape = output_shape(tensor.shape, kernel_size, stride, padding, dilation)
    sample, *axes = tensor.coordinates.long().unbind(1)
    reached = [
        _reached(a, *arguments)
        for a, *arguments in zip(axes, kernel_size, stride, padding, dilation, shape, strict=True)
    ]
    inputs, keys = [], []
    for (x, in_x), (y, in_y), (z, in_z) in itertools.product(*reached):
        row = (in_x & in_y & in_z).nonzero().squeeze(1)
        inputs.append(row)
        keys.append(_keys(torch.stack([sample[row], x[row], y[row], z[row]], dim=1), shape))
    sites, outputs = torch.unique(torch.cat(keys), return_inverse=True)
    pairs = list(zip(inputs, outputs.split([len(r) for r in inputs]), strict=True))
    return NeighborTable(pairs, _coordinates(sites, shape), shape)


def output_shape(
    shape: Sequence[int], kernel_size: Triple, stride: Triple, padding: Triple, dilation: Triple = (1, 1, 1)
) -> Triple:
    """X, Y, Z after a strided convolution.

    Raises:
        ValueError: the kernel is larger than the padded grid.
    """
    axes = zip(shape, kernel_size, stride, padding, dilation, strict=True)
    x, y, z = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes)
    if min(x, y, z) < 1:
        raise ValueError(
            f"a sparse convolution of kernel {kernel_size}, stride {stride}, padding {padding} leaves nothing of a "
            f"grid of {tuple(shape)} sites"
        )
    return x, y, z


def _reached(
    axis: Tensor, kernel: int, stride: int, padding: int, dilation: int, extent: int
) -> list[tuple[Tensor, Tensor]]:
    """Per kernel index along one axis: output coordinate (N,) and whether there is one (N,)."""
    result = []
    for k in range(kernel):
        shifted = axis + padding - k * dilation
        out = torch.div(shifted, stride, rounding_mode="floor")
        result.append((out, (shifted % stride == 0) & (out >= 0) & (out < extent)))
    return result


def _keys(coordinates: Tensor, grid: Sequence[int]) -> Tensor:
    """(N,) int64 from (N, 4) sample, x, y, z; order of keys = lexicographic order of sites."""
    sample, x, y, z = coordinates.unbind(1)
    nx, ny, nz = grid
    return ((sample * nx + x) * ny + y) * nz + z


def _coordinates(keys: Tensor, grid: Sequence[int]) -> Tensor:
    nx, ny, nz = grid
    return torch.stack([keys // (nx * ny * nz), keys // (ny * nz) % nx, keys // nz % ny, keys % nz], dim=1).int()
