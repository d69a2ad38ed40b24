"""Sparse convolution layers. Weights are laid out (kx, ky, kz, Cin, Cout), as in published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.ops.sparse_conv.convolution import sparse_convolution
from mmdet3d.ops.sparse_conv.tables import (
    NeighborTable,
    Triple,
    check_odd,
    output_shape,
    strided_table,
    submanifold_table,
)
from mmdet3d.ops.sparse_conv.tensor import SparseTensor

__all__ = ["SparseConv3d", "SparseSequential", "SubMConv3d"]


class _SparseConvolution(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], bias: bool) -> None:
        super().__init__()
        self.kernel_size = _triple("kernel_size", kernel_size)
        if min(in_channels, out_channels, *self.kernel_size) < 1:
            raise ValueError(
                f"channels and kernel sizes must be positive, got {in_channels}, {out_channels} and {self.kernel_size}"
            )
        self.weight = nn.Parameter(torch.empty(*self.kernel_size, in_channels, out_channels))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform, with the bound of the published training: fan-in counted as ky kz Cin Cout."""
        bound = 1 / math.sqrt(math.prod(self.weight.shape[1:]))
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def _check_channels(self, x: SparseTensor) -> None:
        if x.features.shape[1] != self.weight.shape[3]:
            raise ValueError(
                f"{type(self).__name__} takes {self.weight.shape[3]} channels, got features {tuple(x.features.shape)}"
            )

    def _convolve(self, x: SparseTensor, table: NeighborTable) -> Tensor:
        out = sparse_convolution(x.features, self.weight, table)
        return out if self.bias is None else out + self.bias.to(out.dtype)


class SubMConv3d(_SparseConvolution):
    """Submanifold convolution: the occupied sites stay as they are; stride 1, centred.

    Args:
        in_channels, out_channels: Cin, Cout.
        kernel_size: odd, one number or (kx, ky, kz).
        dilation: one number or three.
        bias: add a vector at every occupied site.

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        dilation: int | Sequence[int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.dilation = _triple("dilation", dilation)
        check_odd(self.kernel_size)

    def forward(self, x: SparseTensor) -> SparseTensor:
        self._check_channels(x)
        key = ("submanifold", self.kernel_size, self.dilation)
        table = x.table(key, lambda t: submanifold_table(t, self.kernel_size, self.dilation))
        return x.with_features(self._convolve(x, table))


class SparseConv3d(_SparseConvolution):
    """Convolution whose output sites are all that an occupied site reaches.

    Args:
        in_channels, out_channels: Cin, Cout.
        kernel_size, stride, padding, dilation: one number or three (x, y, z).
        bias: add a vector at every output site.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int] = 3,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, bias)
        self.stride = _triple("stride", stride)
        self.padding = _triple("padding", padding)
        self.dilation = _triple("dilation", dilation)

    def output_shape(self, shape: Sequence[int]) -> Triple:
        """X, Y, Z of the output for an input grid of `shape`."""
        return output_shape(shape, self.kernel_size, self.stride, self.padding, self.dilation)

    def forward(self, x: SparseTensor) -> SparseTensor:
        self._check_channels(x)
        arguments = (self.kernel_size, self.stride, self.padding, self.dilation)
        # Not shared through `x.table`: no network convolves the same sites twice with a stride.
        table = strided_table(x, *arguments)
        return SparseTensor(self._convolve(x, table), table.coordinates, table.shape, x.batch_size)


class SparseSequential(nn.Sequential):
    """Layers in a row; layers that are not sparse (normalisation, activation) act on the (N, C) feature matrix."""

    def forward(self, x: SparseTensor) -> SparseTensor:
        for layer in self:
            sparse = isinstance(layer, (_SparseConvolution, SparseSequential)) or getattr(layer, "is_sparse", False)
            x = layer(x) if sparse else x.with_features(layer(x.features))
        return x


def _triple(name: str, value: int | Sequence[int]) -> Triple:
    values = (value,) * 3 if isinstance(value, int) else tuple(value)
    if len(values) != 3:
        raise ValueError(f"{name} needs one or three numbers, got {list(values)}")
    return values
