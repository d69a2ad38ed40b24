"""Agreement of the BEV rasters of encoders, decoder and head, checked when a model is built."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mmdet3d.structures import BEVGrid

__all__ = ["check_grids"]


def check_grids(sensors: Mapping[str, BEVGrid], decoder: Mapping[str, nn.Module], head: BEVGrid) -> None:
    """Raise unless all sensors share a raster that the decoder turns into the head's.

    Args:
        sensors: raster of each encoder's BEV.
        decoder: `backbone` and `neck`. The number of cells is compared where the backbone tells the strides of its
            outputs (`strides`) and the neck what it makes of them (`output_stride`), the borders always.

    Raises:
        ValueError: two rasters disagree; names both.
    """
    (first, grid), *others = sensors.items()
    for name, other in others:
        if not grid.matches(other):
            raise ValueError(f"encoders.{first} gives a BEV of {grid}, but encoders.{name} one of {other}")
    backbone, neck = decoder["backbone"], decoder["neck"]
    if hasattr(backbone, "strides") and hasattr(neck, "output_stride"):
        expected = _strided(grid, neck.output_stride(backbone.strides))
        if not expected.matches(head):
            raise ValueError(
                f"encoders.{first} gives a BEV of {grid}, which the decoder turns into {expected}, "
                f"but heads.object expects {head}"
            )
    elif not _same_extent(grid, head):
        raise ValueError(f"encoders.{first} gives a BEV of {grid}, but heads.object covers another area: {head}")


def _strided(grid: BEVGrid, stride: float) -> BEVGrid:
    shape = tuple(round(n / stride) for n in grid.shape)
    return BEVGrid(grid.lower, (grid.cell[0] * stride, grid.cell[1] * stride), shape)


def _same_extent(first: BEVGrid, second: BEVGrid, tolerance: float = 1e-3) -> bool:
    sizes = [[cell * n for cell, n in zip(grid.cell, grid.shape, strict=True)] for grid in (first, second)]
    pairs = zip([*first.lower, *sizes[0]], [*second.lower, *sizes[1]], strict=True)
    return all(abs(a - b) <= tolerance for a, b in pairs)
