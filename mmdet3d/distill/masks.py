"""Where objects are on the bird's-eye view, and how far around them the student should listen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet3d.models.heads.targets import object_heat
from mmdet3d.structures import BEVGrid, Boxes3D, rotate_z

__all__ = ["enlarge", "footprint_mask", "footprints", "gaussian_mask"]


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
    mask = torch.zeros(len(boxes), *grid.shape, dtype=torch.bool, device=boxes[0].device)
    sample = torch.arange(len(boxes)).repeat_interleave(torch.tensor([len(b) for b in boxes])).to(mask.device)
    covering, cells = _covered_cells(Boxes3D.cat(boxes), grid)
    mask[sample[covering], cells[:, 0], cells[:, 1]] = True
    return mask


def footprints(boxes: Boxes3D, grid: BEVGrid) -> Tensor:
    """(N, X, Y) bool: `footprint_mask` of every single box."""
    mask = torch.zeros(len(boxes), *grid.shape, dtype=torch.bool, device=boxes.device)
    covering, cells = _covered_cells(boxes, grid)
    mask[covering, cells[:, 0], cells[:, 1]] = True
    return mask


def _covered_cells(boxes: Boxes3D, grid: BEVGrid) -> tuple[Tensor, Tensor]:
    """Pairs of a box (K,) and a cell (K, 2) that belongs to it, see `footprint_mask`; looked for around each box."""
    if len(boxes) == 0:
        none = torch.zeros(0, 2, dtype=torch.int64, device=boxes.device)
        return none[:, 0], none
    centers = boxes.centers[:, :2]
    reach = boxes.dims[:, :2].norm(dim=1).max() / 2 / min(grid.cell) + 1
    side = torch.arange(-int(reach) - 1, int(reach) + 2, device=boxes.device)
    window = torch.cartesian_prod(side, side)
    cells = grid.to_cells(centers).floor().long()[:, None] + window
    cell, lower = (centers.new_tensor(values) for values in (grid.cell, grid.lower))
    dx, dy = (cells * cell + lower + cell / 2 - centers[:, None]).unbind(-1)
    cos, sin = boxes.yaw.cos()[:, None], boxes.yaw.sin()[:, None]
    length, width, _ = boxes.dims[..., None].unbind(1)
    inside = ((cos * dx + sin * dy).abs() <= length / 2) & ((cos * dy - sin * dx).abs() <= width / 2)
    inside |= (window == 0).all(1)
    inside &= ((cells >= 0) & (cells < torch.tensor(grid.shape, device=cells.device))).all(-1)
    covering = inside.nonzero(as_tuple=True)
    return covering[0], cells[covering]


def gaussian_mask(boxes: Sequence[Boxes3D], grid: BEVGrid, overlap: float, min_radius: int) -> Tensor:
    """(B, X, Y): how near a cell is to the centre of an object of any class, 1 there; see `heatmap_target`."""
    labels = [torch.zeros(len(b), dtype=torch.int64, device=b.device) for b in boxes]
    return object_heat(boxes, labels, grid, overlap, min_radius)


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
