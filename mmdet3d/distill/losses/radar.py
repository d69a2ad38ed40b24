"""Cross-stage radar distillation: early radar activations follow the teacher's final response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.center_heads import center_output
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["RadarActivationLoss", "mean_response"]


@MODELS.register
class RadarActivationLoss(DistillLoss):
    """L1 distance of the radar encoder's activation map to the teacher's mean class response (CRKD, cross-stage)."""

    needs_labels = False

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        center_output(teacher, "teacher", "RadarActivationLoss")

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Sequence[Mapping[str, Tensor]], batch: Batch) -> Tensor:
        """Activation (B, 1, X, Y); the teacher's head output, a list over tasks of dicts of logits."""
        return F.l1_loss(student_value, mean_response(teacher_value))


def mean_response(tasks: Sequence[Mapping[str, Tensor]], margin: float = 1e-4) -> Tensor:
    """(B, 1, X, Y) in [margin, 1 - margin]: logits averaged over the classes of a task, probabilities over tasks."""
    means = [task["heatmap"].mean(1, keepdim=True).sigmoid().clamp(margin, 1 - margin) for task in tasks]
    return torch.stack(means).mean(0)
