"""Features on the occupied sites of a batch of 3-D grids."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes

__all__ = ["SparseTensor"]

_INTEGERS = (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)


class SparseTensor:
    """Features of the occupied sites of `batch_size` grids of `shape` cells.

    Args:
        features: (N, C).
        coordinates: (N, 4) integers: sample, x, y, z; no site twice.
        shape: X, Y, Z.
        batch_size: B.

    Raises:
        ValueError: shapes that do not fit together or coordinates that are not integers; an empty grid.
    """

    def __init__(self, features: Tensor, coordinates: Tensor, shape: tuple[int, int, int], batch_size: int) -> None:
        check_shapes(features=(features, "N C"), coordinates=(coordinates, "N 4"))
        if coordinates.dtype not in _INTEGERS:
            raise ValueError(f"coordinates must be integers, got {coordinates.dtype}")
        if len(shape) != 3:
            raise ValueError(f"shape needs three extents (X, Y, Z), got {tuple(shape)}")
        if min(*shape, batch_size) < 1:
            raise ValueError(f"extents and batch_size must be positive, got {tuple(shape)} and {batch_size}")
        self.features = features
        self.coordinates = coordinates
        nx, ny, nz = shape
        self.shape = (nx, ny, nz)
        self.batch_size = batch_size
        self._tables: dict[Hashable, Any] = {}

    def with_features(self, features: Tensor) -> SparseTensor:
        """Other features on the same sites; neighbour tables are shared."""
        out = SparseTensor(features, self.coordinates, self.shape, self.batch_size)
        out._tables = self._tables
        return out

    def table(self, key: Hashable, build: Callable[[SparseTensor], Any]) -> Any:
        """What `build(self)` returns, computed once for all tensors on these sites."""
        if key not in self._tables:
            self._tables[key] = build(self)
        return self._tables[key]

    def dense(self) -> Tensor:
        """(B, C, X, Y, Z), zero at empty sites."""
        nx, ny, nz = self.shape
        sample, x, y, z = self.coordinates.long().unbind(1)
        volume = self.features.new_zeros(self.batch_size * nx * ny * nz, self.features.shape[1])
        volume = volume.index_put((((sample * nx + x) * ny + y) * nz + z,), self.features)
        return volume.view(self.batch_size, nx, ny, nz, -1).permute(0, 4, 1, 2, 3).contiguous()

    @classmethod
    def from_dense(cls, volume: Tensor) -> SparseTensor:
        """Sites of (B, C, X, Y, Z) where any channel is not zero."""
        coordinates = (volume != 0).any(1).nonzero()
        sample, x, y, z = coordinates.unbind(1)
        shape = (volume.shape[2], volume.shape[3], volume.shape[4])
        return cls(volume[sample, :, x, y, z], coordinates.to(torch.int32), shape, volume.shape[0])
