"""Feature distillation: imitate the teacher's bird's-eye view, everywhere or where objects are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.distill.losses.base import (
    DistillLoss,
    detection_head,
    full_precision,
    raster_of,
    require_same_shape,
    side_channels,
)
from mmdet3d.distill.masks import enlarge, footprint_mask
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.layers import conv_bn_relu
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Boxes3D

__all__ = ["FeatureLoss", "MaskedFeatureLoss", "masked_mse"]


@MODELS.register
class FeatureLoss(DistillLoss):
    """Mean squared distance of two feature maps (SimDistill: intra-modal, cross-modal, fused-feature distillation).

    Args:
        object_mask: multiply both maps by the `object_heat` of the student's detection head. The mean is
            still over all cells, so such a loss is small and wants a large weight.
        projection: (student's channels, teacher's channels) of a learned 3x3 convolution with BatchNorm and ReLU in
            front of the comparison; None compares the maps as they are. It is the loss's own: prediction does without.
    """

    def __init__(self, object_mask: bool = False, projection: Sequence[int] | None = None) -> None:
        super().__init__()
        self.object_mask = self.needs_labels = object_mask
        self.projection = (
            nn.Identity()
            if projection is None
            else nn.Sequential(*conv_bn_relu(*side_channels(projection), 3, padding=1))
        )

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        if self.object_mask:
            self._head = detection_head(student, "FeatureLoss with an object mask")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """(B, C, X, Y), after the projection both of the same shape.

        Raises:
            ValueError: maps of different shapes, or no ground truth for the mask.
        """
        student = self.projection(student_value)
        require_same_shape(self, student, teacher_value)
        if not self.object_mask:
            return F.mse_loss(student, teacher_value)
        boxes = batch.require("boxes", "FeatureLoss with an object mask")
        labels = batch.require("labels", "FeatureLoss with an object mask")
        heat = self._head.module.object_heat(boxes, labels)[:, None].to(student)
        return F.mse_loss(heat * student, heat * teacher_value)


@MODELS.register
class MaskedFeatureLoss(DistillLoss):
    """Half the squared feature distance, averaged over the cells of ground-truth boxes (CRKD, mask-scaling).

    Args:
        scale_boxes: let distant and moving objects cover more cells, see `enlarge`.
    """

    def __init__(self, scale_boxes: bool = True) -> None:
        super().__init__()
        self.scale_boxes = scale_boxes

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        self.grid = raster_of(student, "MaskedFeatureLoss")

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
    samples, x, y = mask.nonzero(as_tuple=True)
    ours, theirs = student[samples, :, x, y], teacher[samples, :, x, y]
    active = (theirs != 0).any(1)
    distance = 0.5 * (ours - theirs).square().mean(1)
    return (distance * active).sum() / active.sum().clamp(min=1)


def _enlarged(boxes: Boxes3D, lidar_aug: Tensor) -> Boxes3D:
    return enlarge(boxes.transform(torch.linalg.inv(lidar_aug))).transform(lidar_aug)
