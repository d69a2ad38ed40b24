"""A distillation loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision, require_same_shape
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch


@MODELS.register
class HuberFeatureLoss(DistillLoss):
    """Mean over cells and channels of the Huber distance: a few cells that differ much count less than squared.

    Args:
        delta: distance from which on it grows linearly.
    """

    needs_labels = False

    def __init__(self, delta: float = 1.0) -> None:
        super().__init__()
        self.delta = delta

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y)."""
        require_same_shape(self, student_value, teacher_value)
        return F.huber_loss(student_value, teacher_value, delta=self.delta)
