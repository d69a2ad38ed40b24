"""Mask-scaled feature distillation: imitate the teacher's features where objects are."""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.masks import enlarge, footprint_mask
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D

__all__ = ["MaskedFeatureLoss", "masked_mse"]


@MODELS.register
class MaskedFeatureLoss(DistillLoss):
    """Half the squared feature distance, averaged over the cells of ground-truth boxes (CRKD, mask-scaling).

    Args:
        scale_boxes: let distant and moving objects cover more cells, see `enlarge`.
    """

    def __init__(self, scale_boxes: bool = True) -> None:
        super().__init__()
        self.scale_boxes = scale_boxes

    def bind(self, teacher: Detector, student: Detector) -> None:
        self.grid = student.grid

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y) on the grid of the student; `batch.boxes` says where."""
        boxes = batch.require("boxes", "MaskedFeatureLoss")
        if self.scale_boxes:
            boxes = [_enlarged(b, aug) for b, aug in zip(boxes, batch.calibration.lidar_aug, strict=True)]
        return masked_mse(student_value, teacher_value, footprint_mask(boxes, self.grid))


def masked_mse(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean over active cells of half the mean squared distance of (B, C, X, Y) features; 0 if no cell is active.

    A cell is active where `mask` (B, X, Y) is set and the teacher has any response.
    """
    active = mask & (teacher != 0).any(1)
    distance = 0.5 * (student - teacher).square().mean(1)
    return (distance * active).sum() / active.sum().clamp(min=1)


def _enlarged(boxes: Boxes3D, lidar_aug: Tensor) -> Boxes3D:
    return enlarge(boxes.transform(torch.linalg.inv(lidar_aug))).transform(lidar_aug)
