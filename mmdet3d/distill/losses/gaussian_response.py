"""Responses near objects, whatever their class (UniDistill, CVPR 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmdet3d.blocks import positive
from mmdet3d.distill.losses.base import full_precision
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.masks import gaussian_mask
from mmdet3d.models.heads.centerhead import REGRESSION
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["GaussianResponseLoss", "weighted_mean"]

_OVERLAP = 0.7  # of the boxes that a Gaussian covers; the head's own targets take another


@MODELS.register
class GaussianResponseLoss(CenterHeadLoss):
    """L1 distances of the highest response and of all box parameters, weighted by how near an object is (UniDistill).

    Args:
        temperature: of the teacher's logits alone, as published; the student's are taken as they are.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        super().__init__()
        self.temperature = positive(temperature, "temperature")

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y), `heatmap` in logits.

        Returns:
            `heatmap` and `bbox`.

        Raises:
            ValueError: no ground truth.
        """
        near = gaussian_mask(batch.require("boxes", "GaussianResponseLoss"), self._grid, _OVERLAP, 0)
        sides = student_value, teacher_value
        ours, theirs = (torch.cat([task["heatmap"] for task in side], 1) for side in sides)
        seen, told = clamped_sigmoid(ours).amax(1), (theirs / self.temperature).sigmoid().amax(1)
        codes = [torch.cat([task[name] for task in side for name in REGRESSION], 1) for side in sides]
        return {
            "heatmap": weighted_mean((seen - told).abs(), near),
            "bbox": weighted_mean((codes[0] - codes[1]).abs().mean(1), near),
        }


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of values (B, X, Y) weighted by (B, X, Y); 0 where all weights are 0."""
    return (values * weight).sum() / (weight.sum() + 1e-4)
