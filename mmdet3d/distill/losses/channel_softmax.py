"""Which channel speaks in a cell, where it matters to detection (RadarDistill, CVPR 2024: proposal-based features)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.blocks import not_negative, number
from mmdet3d.distill.losses.base import full_precision, require_same_shape
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ChannelSoftmaxLoss", "channel_softmax_distance"]


@MODELS.register
class ChannelSoftmaxLoss(CenterHeadLoss):
    """L1 distance of the softmax over the channels of each cell, at objects and where the student invents some.

    The softmax runs over channels within a cell, not over cells within a channel: the magnitude of a cell is forgotten.

    Args:
        objects: weight of all cells near objects together.
        inventions: weight of all cells together in which the student sees an object where there is none.
        threshold: of the ground truth's and the student's heatmaps, highest class: above it there is an object.
    """

    def __init__(self, objects: float = 5.0, inventions: float = 1.0, threshold: float = 0.1) -> None:
        super().__init__()
        self.objects, self.inventions = not_negative(objects, "objects"), not_negative(inventions, "inventions")
        self.threshold = number(threshold, "threshold")

    @full_precision
    def forward(
        self, student_value: tuple[Tensor, Sequence[Mapping[str, Tensor]]], teacher_value: Tensor, batch: Batch
    ) -> Tensor:
        """The student's map (B, C, X, Y), on its raster or a level of it, and its head output; the teacher's map.

        Raises:
            ValueError: maps of different shapes, or no ground truth.
        """
        student, head = student_value
        require_same_shape(self, student, teacher_value)
        truth = self._heat(batch).amax(1)
        seen = clamped_sigmoid(torch.cat([task["heatmap"] for task in head], dim=1).detach()).amax(1)
        truth, seen = (F.adaptive_max_pool2d(heat, student.shape[2:]) for heat in (truth, seen))
        near = truth > self.threshold
        invented = ~near & (seen > self.threshold)
        self.observe("no cell is near an object in any step of an epoch", ~near.any())
        weight = self.objects * _share(near) + self.inventions * _share(invented)
        return channel_softmax_distance(student, teacher_value, weight)


def channel_softmax_distance(student: Tensor, teacher: Tensor, weight: Tensor) -> Tensor:
    """Sum over channels and cells of `weight` (B, X, Y) times |softmax(teacher) - softmax(student)|, (B, C, X, Y)."""
    distance = (teacher.softmax(1) - student.softmax(1)).abs().sum(1)
    return (weight * distance).sum()


def _share(mask: Tensor) -> Tensor:
    """One over the number of cells of the mask, in its cells; 0 elsewhere."""
    return mask / mask.sum().clamp(min=1)
