"""The bird's-eye-view raster that heads, masks and distillation losses share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.blocks import numbers

__all__ = ["BEVGrid"]


@dataclass(frozen=True)
class BEVGrid:
    """A raster over the LiDAR x-y plane. BEV tensors are `(B, C, X, Y)`: dim 2 is LiDAR x, dim 3 is LiDAR y.

    Args:
        lower: x and y of the lower border, metres.
        cell: extent of a cell along x and y, metres.
        shape: number of cells along x and y.
    """

    lower: tuple[float, float]
    cell: tuple[float, float]
    shape: tuple[int, int]

    @classmethod
    def from_range(cls, point_cloud_range: list[float], cell: list[float]) -> BEVGrid:
        """The grid over `(x0, y0, z0, x1, y1, z1)` metres with cells of `cell` metres.

        Raises:
            ValueError: it covers nothing.
        """
        x0, y0, _, x1, y1, _ = numbers("x0 y0 z0 x1 y1 z1", point_cloud_range, "point_cloud_range")
        if not (x1 > x0 and y1 > y0 and min(cell[:2]) > 0):
            raise ValueError(
                f"a grid over point_cloud_range {list(point_cloud_range)} with cells of {cell} m has no cell"
            )
        shape = (round((x1 - x0) / cell[0]), round((y1 - y0) / cell[1]))
        return cls((float(x0), float(y0)), (float(cell[0]), float(cell[1])), shape)

    def to_cells(self, xy: Tensor) -> Tensor:
        """Metres `(..., 2)` to fractional cell coordinates `(..., 2)`; cell k covers `[k, k + 1)`."""
        lower = torch.tensor(self.lower, dtype=xy.dtype, device=xy.device)
        cell = torch.tensor(self.cell, dtype=xy.dtype, device=xy.device)
        return (xy - lower) / cell

    def matches(self, other: BEVGrid, tolerance: float = 1e-4) -> bool:
        """Same shape, and borders and cells equal to `tolerance` metres."""
        near = [abs(a - b) <= tolerance for a, b in zip(self.lower + self.cell, other.lower + other.cell, strict=True)]
        return self.shape == other.shape and all(near)

    def __str__(self) -> str:
        cells = f"{self.shape[0]}x{self.shape[1]} cells of {self.cell[0]:g}x{self.cell[1]:g} m"
        return f"{cells} from ({self.lower[0]:g}, {self.lower[1]:g})"
