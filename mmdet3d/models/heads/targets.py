"""Ground truth on the raster: which cell an object falls into, and the heatmap of centres."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.models.heads.box_coder import encode_boxes
from mmdet3d.models.heads.gaussian import draw_gaussians, gaussian_radius
from mmdet3d.structures import BEVGrid, Boxes3D

__all__ = ["CenterTargets", "center_targets", "heatmap_target", "object_heat"]


@dataclass
class CenterTargets:
    """Objects of a batch that lie on the raster and have an extent.

    Args:
        samples: (N,) int64, place in the batch.
        labels: (N,) int64.
        cells: (N, 2) int64.
        codes: (N, 10) regression codes, see `encode_boxes`.
        extents: (N, 2) length and width in cells along x and y.
    """

    samples: Tensor
    labels: Tensor
    cells: Tensor
    codes: Tensor
    extents: Tensor

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Tensor) -> CenterTargets:
        return CenterTargets(
            self.samples[index], self.labels[index], self.cells[index], self.codes[index], self.extents[index]
        )

    def of(self, classes: slice) -> CenterTargets:
        """Those whose label is in `classes`."""
        return self[(self.labels >= classes.start) & (self.labels < classes.stop)]


def center_targets(
    boxes: list[Boxes3D], labels: list[Tensor], classes: int, grid: BEVGrid, log_dims: bool = True
) -> CenterTargets:
    """Objects of all samples, in order; boxes outside the raster, without extent or with a negative label drop out.

    Raises:
        ValueError: a label that `classes` classes do not have.
    """
    every = Boxes3D.cat(boxes).to(torch.float32)
    label = torch.cat(labels)
    if (label >= classes).any():
        raise ValueError(f"ground truth has label {int(label.max())}, but the head knows {classes} classes")
    counts = torch.tensor([len(b) for b in boxes], device=every.device)
    samples = torch.repeat_interleave(torch.arange(len(boxes), device=every.device), counts)
    cells = grid.to_cells(every.centers[:, :2]).floor()
    extents = every.dims[:, :2] / every.tensor.new_tensor(grid.cell)
    on_grid = ((cells >= 0) & (cells < cells.new_tensor(grid.shape))).all(1)
    valid = on_grid & (every.dims > 0).all(1) & (label >= 0)
    codes = encode_boxes(every[valid], grid, log_dims)
    return CenterTargets(samples[valid], label[valid], cells[valid].long(), codes, extents[valid])


def heatmap_target(
    objects: CenterTargets, batch_size: int, classes: int, grid: BEVGrid, overlap: float, min_radius: int
) -> Tensor:
    """(B, classes, X, Y): 1 at the cell of every object, falling off with its size.

    Args:
        overlap: see `gaussian_radius`.
        min_radius: least radius in cells.
    """
    radii = gaussian_radius(objects.extents[:, 0], objects.extents[:, 1], overlap).long().clamp(min=min_radius)
    maps = objects.samples * classes + objects.labels
    heat = draw_gaussians((batch_size * classes, *grid.shape), maps, objects.cells, radii)
    return heat.view(batch_size, classes, *grid.shape)


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
    objects = center_targets(list(boxes), list(labels), max(classes, 1), grid)
    return heatmap_target(objects, len(boxes), max(classes, 1), grid, overlap, min_radius).sum(1)
