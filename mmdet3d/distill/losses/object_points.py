"""Nine points of every object: what is felt there, and how they relate to each other (UniDistill, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision, level_grid, raster_of, require_same_shape
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Boxes3D, rotate_z

__all__ = ["ObjectPointsLoss", "features_at", "nine_points", "relation_distance"]

_EPS = 1e-4


@MODELS.register
class ObjectPointsLoss(DistillLoss):
    """L1 distance of two maps at corners, edge middles and centre of every box seen from above (UniDistill).

    A box counts the same whatever its size, and nothing is compared elsewhere. Points outside of the map are zeros.

    Args:
        compare: `features`, the maps themselves, for a map in front of the decoder; `relations`, the cosines between
            the nine points of a box, for a map in front of the head.

    Raises:
        ValueError: another comparison.
    """

    def __init__(self, compare: str = "features") -> None:
        super().__init__()
        if compare not in ("features", "relations"):
            raise ValueError(f"ObjectPointsLoss: compare must be features or relations, got {compare!r}")
        self.relations = compare == "relations"

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        self._grid = raster_of(student, "ObjectPointsLoss")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y), on the student's raster or a level of it.

        Raises:
            ValueError: maps of different shapes, or no ground truth.
        """
        require_same_shape(self, student_value, teacher_value)
        boxes = batch.require("boxes", "ObjectPointsLoss")
        grid = level_grid(self._grid, student_value, "ObjectPointsLoss")
        points = [nine_points(b) for b in boxes]
        ours, theirs = (features_at(maps, points, grid) for maps in (student_value, teacher_value))
        self.observe("no sample has an object in any step of an epoch", torch.tensor(len(ours) == 0))
        distance = relation_distance(ours, theirs) if self.relations else (ours - theirs).abs().mean((1, 2))
        return distance.sum() / (len(ours) + _EPS)


def nine_points(boxes: Boxes3D) -> Tensor:
    """(N, 9, 2) metres on the ground: a grid of three by three points from corner to corner of every box."""
    steps = torch.tensor([-0.5, 0.0, 0.5]).to(boxes.tensor)
    places = F.pad(torch.cartesian_prod(steps, steps) * boxes.dims[:, None, :2], (0, 1))
    return (rotate_z(places, boxes.yaw[:, None]) + boxes.centers[:, None])[..., :2]


def features_at(maps: Tensor, points: Sequence[Tensor], grid: BEVGrid) -> Tensor:
    """Maps (B, C, X, Y) on `grid` at points of each sample, bilinear between the centres of cells, 0 outside.

    Args:
        points: per sample (N_i, P, 2), metres.

    Returns:
        (N, P, C), all samples' points in order.
    """
    size = maps.new_tensor(grid.shape)
    found = []
    for sample, place in zip(maps, points, strict=True):
        where = (2 * grid.to_cells(place).to(maps) / size - 1).flip(-1)  # `grid_sample` names the last dimension first
        found.append(F.grid_sample(sample[None], where[None], align_corners=False)[0])
    return torch.cat(found, dim=1).movedim(0, -1)


def relation_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """(N,): mean absolute difference of the cosines between the P points of each object, features (N, P, C)."""
    ours, theirs = (side / (side.norm(dim=-1, keepdim=True) + _EPS) for side in (student, teacher))
    distance: Tensor = ours @ ours.transpose(1, 2) - theirs @ theirs.transpose(1, 2)
    return distance.abs().mean((1, 2))
