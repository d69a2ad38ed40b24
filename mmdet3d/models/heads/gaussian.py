"""Heatmap targets: a Gaussian at every object centre."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["draw_gaussians", "gaussian_radius"]


def gaussian_radius(length: Tensor, width: Tensor, overlap: float) -> Tensor:
    """How far a corner may move so that a box still overlaps its object by `overlap` (CornerNet).

    The quadratic equations are solved as in CornerNet's code, which divides by 2 where the formula says 2a; every
    published checkpoint was trained with these radii.

    Args:
        length, width: (N,) in cells.
        overlap: the least intersection over union.

    Returns:
        (N,) radii in cells, not rounded.
    """
    total, area = length + width, length * width
    both_inside = (total + (total**2 - 4 * area * (1 - overlap) / (1 + overlap)).sqrt()) / 2
    inside = (2 * total + (4 * total**2 - 16 * (1 - overlap) * area).sqrt()) / 2
    outside = (-2 * overlap * total + (4 * overlap**2 * total**2 + 16 * overlap * (1 - overlap) * area).sqrt()) / 2
    return torch.minimum(torch.minimum(both_inside, inside), outside)


def draw_gaussians(shape: tuple[int, int, int], maps: Tensor, cells: Tensor, radii: Tensor) -> Tensor:
    """Maps with a Gaussian of peak 1 around each cell, overlapping ones merged by their maximum.

    A Gaussian covers the square of `radius` cells around its centre; its standard deviation is a sixth of that square.

    Args:
        shape: (M, X, Y) of the result.
        maps: (N,) int64, which map an object is drawn on.
        cells: (N, 2) int64 cell along X and Y, inside the map.
        radii: (N,) int64.

    Returns:
        (M, X, Y) float32.
    """
    _, size_x, size_y = shape
    heat = torch.zeros(shape, device=cells.device)
    if len(cells) == 0:
        return heat
    reach = int(radii.max())
    offset = torch.arange(-reach, reach + 1, device=cells.device)
    dx, dy = torch.meshgrid(offset, offset, indexing="ij")
    sigma = ((2 * radii + 1) / 6)[:, None, None]
    value = torch.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    x, y = cells[:, 0, None, None] + dx, cells[:, 1, None, None] + dy
    inside = (dx.abs().maximum(dy.abs()) <= radii[:, None, None]) & (x >= 0) & (x < size_x) & (y >= 0) & (y < size_y)
    index = (maps[:, None, None] * size_x + x) * size_y + y
    heat.view(-1).scatter_reduce_(0, index[inside], value[inside], "amax")
    return heat
