"""Bird's-eye-view maps brought from one raster to another, and from a frame to its augmented view."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.structures import BEVGrid

__all__ = ["covers", "crop", "resample", "source_cells", "strided", "with_stride"]

_NEAR = 1e-4  # of a cell, or metres


def strided(grid: BEVGrid, size: tuple[int, int]) -> tuple[BEVGrid, float] | None:
    """The raster of a map of `size` cells over the area of `grid`, and its stride; None if no stride gives that size.

    The stride is a whole number, or one over a whole number, and the same along both axes.
    """
    stride = grid.shape[0] / size[0]
    stride = float(round(stride)) if stride >= 1 else 1 / round(1 / stride)
    if size != _shape(grid, stride):
        return None
    return with_stride(grid, stride), stride


def with_stride(grid: BEVGrid, stride: float) -> BEVGrid:
    """The raster over the same area with cells `stride` times as large."""
    return BEVGrid(grid.lower, (grid.cell[0] * stride, grid.cell[1] * stride), _shape(grid, stride))


def _shape(grid: BEVGrid, stride: float) -> tuple[int, int]:
    """As convolutions round: the last cell may reach beyond the area."""
    x, y = (-int(-n // stride) if stride >= 1 else round(n / stride) for n in grid.shape)
    return x, y


def covers(source: BEVGrid, target: BEVGrid) -> bool:
    """Whether `source` reaches as far as `target` does, up to half a cell."""
    for axis in range(2):
        slack = max(source.cell[axis], target.cell[axis]) / 2 + _NEAR
        ends = [grid.lower[axis] + grid.shape[axis] * grid.cell[axis] for grid in (source, target)]
        if source.lower[axis] > target.lower[axis] + slack or ends[0] < ends[1] - slack:
            return False
    return True


def crop(source: BEVGrid, target: BEVGrid) -> tuple[slice, slice] | None:
    """The cells of `source` that are those of `target`, if these are some of its cells."""
    slices = []
    for axis in range(2):
        start = (target.lower[axis] - source.lower[axis]) / source.cell[axis]
        first, count = round(start), target.shape[axis]
        same = abs(source.cell[axis] - target.cell[axis]) * count <= _NEAR and abs(start - first) <= _NEAR
        if not same or first < 0 or first + count > source.shape[axis]:
            return None
        slices.append(slice(first, first + count))
    return slices[0], slices[1]


def resample(maps: Tensor, source: BEVGrid, target: BEVGrid, motion: Tensor | None = None) -> Tensor:
    """Maps over one raster as maps over another: the same cells where they coincide, else bilinear between centres.

    Of cells that are several times as small as the target's, means are taken first. 0 where `source` does not reach.

    Args:
        maps: (B, C, X, Y) over `source`.
        motion: (B, 4, 4) from the frame of `source` to that of `target`; None: the same frame.

    Returns:
        (B, C, X', Y') over `target`.
    """
    cells = crop(source, target) if motion is None else None
    if cells is not None:
        return maps[:, :, cells[0], cells[1]]
    factor = tuple(max(1, int(b / a + 0.1)) for a, b in zip(source.cell, target.cell, strict=True))
    if factor != (1, 1):
        maps = F.avg_pool2d(maps, factor, ceil_mode=True, count_include_pad=False)
        cell = (source.cell[0] * factor[0], source.cell[1] * factor[1])
        source = BEVGrid(source.lower, cell, (maps.shape[2], maps.shape[3]))
    place = source_cells(source, target, motion, maps.device).expand(len(maps), -1, -1, -1)
    size = place.new_tensor(source.shape)
    seen = ((place >= 0) & (place < size)).all(-1)
    # `grid_sample` counts from -1 to 1 between outer borders of cells, and names the last dimension first.
    found = F.grid_sample(
        maps.float(), (2 * place / size - 1).flip(-1).float(), padding_mode="border", align_corners=False
    )
    return torch.where(seen[:, None], found, 0).to(maps.dtype)


def source_cells(
    source: BEVGrid, target: BEVGrid, motion: Tensor | None = None, device: torch.device | None = None
) -> Tensor:
    """(B, X', Y', 2) float64: where the centres of the target's cells lie in cells of `source`; B is 1 without motion.

    Args:
        motion: see `resample`.
    """
    axes = [
        torch.arange(n, dtype=torch.float64, device=device).add(0.5).mul(cell).add(lower)
        for n, cell, lower in zip(target.shape, target.cell, target.lower, strict=True)
    ]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)[None]
    if motion is not None:
        # On the ground: augmentation turns about z, mirrors, scales and shifts.
        motion = motion.to(device=device, dtype=torch.float64)
        turn, shift = motion[:, None, None, :2, :2], motion[:, None, None, :2, 3]
        points = torch.linalg.solve(turn, (points - shift)[..., None])[..., 0]
    return source.to_cells(points)
