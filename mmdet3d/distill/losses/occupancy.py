"""Where depth distributions see matter in space (VCD, NeurIPS 2023: occupancy reconstruction)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdet3d.distill.losses.base import DistillLoss, Shared, detection_head, full_precision
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.detectors.bevfusion import BEVFusion
from mmdet3d.models.heads.gaussian import gaussian_radius
from mmdet3d.models.vtransforms.base import BaseTransform, count_cells
from mmdet3d.ops.bev_pool import PoolPlan, plan_pool
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D

__all__ = ["OccupancyLoss", "gaussian_volume", "occupancy"]


@MODELS.register
class OccupancyLoss(DistillLoss):
    """L1 distance, weighted by how near an object is, of the voxels that two camera encoders take for occupied (VCD).

    Args:
        xbound, ybound, zbound: lower border, upper border and voxel, metres of the augmented LiDAR frame.
    """

    uses_teacher = True
    bin_by_bin = False

    def __init__(
        self,
        xbound: Sequence[float] = (-51.2, 51.2, 0.4),
        ybound: Sequence[float] = (-51.2, 51.2, 0.4),
        zbound: Sequence[float] = (-5.0, 3.0, 1.0),
    ) -> None:
        super().__init__()
        bounds = {"xbound": xbound, "ybound": ybound, "zbound": zbound}
        self.cells = count_cells(bounds)
        self.lower, self.cell = [b[0] for b in bounds.values()], [b[2] for b in bounds.values()]

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        self._views = [Shared(_view_transform(student, "student")), Shared(_view_transform(teacher, "teacher"))]
        head = detection_head(student, "OccupancyLoss").module.train_cfg
        self._overlap, self._min_radius = head.gaussian_overlap, head.min_radius

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Depth distributions (B*N, D, h, w) of the two sides, each with bins of its own.

        Raises:
            ValueError: no ground truth.
        """
        size = self.lower, self.cell, self.cells
        points = [view.module.geometry(batch.calibration) for view in self._views]
        ours, theirs = (
            occupancy(depth, plan_pool(where, *size, floor=True))
            for where, depth in zip(points, (student_value, teacher_value), strict=True)
        )
        boxes = batch.require("boxes", "OccupancyLoss")
        mask = torch.stack([gaussian_volume(b, *size, self._overlap, self._min_radius) for b in boxes]) + 1e-7
        return (mask * (ours - theirs).abs()).sum() / mask.sum()


def occupancy(depth: Tensor, plan: PoolPlan) -> Tensor:
    """(B, Z, X, Y) in [0, 1/2): the depth probabilities (B*N, D, h, w) of a voxel's points, summed and squashed."""
    return plan.pool(depth, torch.ones_like(depth[:, :1])).sigmoid() - 0.5


def gaussian_volume(
    boxes: Boxes3D, lower: Sequence[float], cell: Sequence[float], cells: Sequence[int], overlap: float, min_radius: int
) -> Tensor:
    """(Z, X, Y): a Gaussian around the centre of every box whatever its class, merged by their maximum.

    Args:
        lower, cell, cells: of the voxels along x, y and z, metres.
        overlap, min_radius: see `heatmap_target`; of the radii along x and y, by length and width, and along z, by
            these and the height.
    """
    length, width, height = boxes.dims.unbind(1)
    upright = gaussian_radius(length, height, overlap).maximum(gaussian_radius(width, height, overlap))
    flat = gaussian_radius(length, width, overlap)
    voxel = boxes.tensor.new_tensor(cell)
    radii = (torch.stack([flat, flat, upright], 1) / voxel).floor().clamp(min=min_radius)
    places = ((boxes.centers - boxes.tensor.new_tensor(lower)) / voxel).floor()
    volume = boxes.tensor.new_zeros(cells[2], cells[0], cells[1])
    for place, radius in zip(places, radii, strict=True):
        away = [torch.arange(n).to(place) - p for n, p in zip(cells, place, strict=True)]
        falls = [
            torch.exp(-0.5 * (d * 6 / (2 * r + 1)).square()) * (d.abs() <= r) for d, r in zip(away, radius, strict=True)
        ]
        volume = volume.maximum(falls[2][:, None, None] * falls[0][:, None] * falls[1])
    return volume


def _view_transform(model: Detector | Outline, side: str) -> BaseTransform:
    if not isinstance(model, BEVFusion) or "camera" not in model.encoders:
        raise ValueError(
            f"OccupancyLoss reads where the {side}'s camera encoder lifts its pixels to, but the {side} "
            f"({type(model).__name__}) has none; switch this loss off (null)"
        )
    view = model.get_submodule("encoders.camera.vtransform")
    assert isinstance(view, BaseTransform)
    return view
