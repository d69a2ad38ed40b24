"""Where objects are on the bird's-eye view, and how far around them the student should listen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet3d.models.heads.targets import gather_objects, heatmap_target
from mmdet3d.structures import BEVGrid, Boxes3D, rotate_z

__all__ = ["enlarge", "footprint_mask", "footprints", "object_heat"]


def object_heat(
    boxes: Sequence[Boxes3D], labels: Sequence[Tensor], grid: BEVGrid, overlap: float = 0.1, min_radius: int = 2
) -> Tensor:
    """How much of an object is near a cell: heatmap targets summed over classes (SimDistill's object-aware mask).

    Objects of one class are merged by the maximum, so values exceed 1 only where classes overlap.

    Args:
        boxes, labels: of each sample, LiDAR frame.
        grid: the raster.
        overlap, min_radius: see `heatmap_target`.

    Returns:
        (B, X, Y) float32.
    """
    classes = max((int(label.max()) + 1 for label in labels if len(label)), default=1)
    objects = gather_objects(list(boxes), list(labels), max(classes, 1), grid)
    return heatmap_target(objects, len(boxes), max(classes, 1), grid, overlap, min_radius).sum(1)


def footprint_mask(boxes: Sequence[Boxes3D], grid: BEVGrid) -> Tensor:
    """Cells covered by boxes seen from above.

    A cell belongs to a box when its centre lies in the rotated rectangle, or when it holds the centre of the box, so
    that no box on the grid vanishes.

    Args:
        boxes: one `Boxes3D` per sample, LiDAR frame.
        grid: the raster.

    Returns:
        (B, X, Y) bool.
    """
    return torch.stack([footprints(b, grid).any(0) for b in boxes])


def footprints(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """(N, X, Y) bool: `footprint_mask` of every single box."""
    x, y = (
        torch.arange(n, device=boxes.device) * cell + lower + cell / 2
        for n, cell, lower in zip(grid.shape, grid.cell, grid.lower, strict=True)
    )
    dx = x[None, :, None] - boxes.tensor[:, 0, None, None]
    dy = y[None, None, :] - boxes.tensor[:, 1, None, None]
    cos, sin = boxes.yaw.cos()[:, None, None], boxes.yaw.sin()[:, None, None]
    length, width, _ = boxes.dims.unbind(1)
    inside = ((cos * dx + sin * dy).abs() <= length[:, None, None] / 2) & (
        (cos * dy - sin * dx).abs() <= width[:, None, None] / 2
    )
    cells = grid.to_cells(boxes.centers[:, :2]).floor().long()
    on_grid = ((cells >= 0) & (cells < torch.tensor(grid.shape, device=cells.device))).all(1).nonzero()[:, 0]
    inside[on_grid, cells[on_grid, 0], cells[on_grid, 1]] = True
    return inside


def enlarge(boxes: Boxes3D) -> Boxes3D:
    """Boxes whose length and width grow with their distance and speed (CRKD, mask-scaling).

    Each axis grows by 1/4 of its size beyond 20 m and by 1/2 from 30 m on, and by as much again where the velocity
    along that axis exceeds 0.3 m/s or reaches 0.8 m/s; at least 0.5 m, at most 4 m. An unknown (NaN) velocity adds
    nothing.

    Args:
        boxes: in the LiDAR frame before augmentation, so that distances and speeds are those of the scene.
    """
    distance = boxes.centers[:, :2].norm(dim=1, keepdim=True)
    along_axes = rotate_z(torch.nn.functional.pad(boxes.velocity, (0, 1)), -boxes.yaw)[:, :2].abs()
    factor = _step(distance, 20.0, 30.0) + _step(along_axes, 0.3, 0.8)
    size = boxes.dims[:, :2]
    grown = boxes.tensor.clone()
    grown[:, 3:5] = size + (factor * size).clamp(0.5, 4.0)
    return Boxes3D(grown)


def _step(value: Tensor, low: float, high: float) -> Tensor:
    """0 up to `low`, 1/4 between, 1/2 from `high` on."""
    return 0.25 * (value > low) + 0.25 * (value >= high)
