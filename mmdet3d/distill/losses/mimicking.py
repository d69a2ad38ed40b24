"""The student learns to see depth, which is what its teacher looks at (mimicking loss of MonoMMKD).

The loss exists in the paper's framework figure by name and place only. Cross-entropy, its focal form and the weight of
objects follow CaDDN's depth supervision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdet3d.blocks import not_negative, number
from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.models.heads.mono.depth_bins import IGNORED
from mmdet3d.models.heads.mono.losses import mean_of
from mmdet3d.models.heads.mono.targets import box_mask
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["MimickingLoss"]


@MODELS.register
class MimickingLoss(DistillLoss):
    """Cross-entropy of predicted depth classes, over cells of known depth. It reads nothing of the teacher.

    Args:
        loss: `focal`, alpha (1 - p)^gamma times the cross-entropy of the true class's probability p, or `ce`, without
            that factor.
        alpha, gamma: of `focal`.
        object_weight: of cells in the 2-D boxes of objects; other cells count 1.

    Raises:
        ValueError: an unknown `loss`, or a `gamma` between 0 and 1, whose gradient is infinite.
    """

    def __init__(
        self, loss: str = "focal", alpha: float = 0.25, gamma: float = 2.0, object_weight: float = 13.0
    ) -> None:
        super().__init__()
        if loss not in ("focal", "ce"):
            raise ValueError(f"MimickingLoss loss must be focal or ce, got {loss!r}")
        if gamma < 0 or 0 < gamma < 1:
            raise ValueError(f"MimickingLoss gamma must be 0 or at least 1, got {gamma}")
        self.loss, self.alpha, self.gamma = loss, not_negative(alpha, "alpha"), number(gamma, "gamma")
        self.object_weight = not_negative(object_weight, "object_weight")

    @full_precision
    def forward(self, student_value: list[Any], teacher_value: Any, batch: Batch) -> dict[str, Tensor]:
        """The taps `depth.logits` (B, classes, H, W), `depth.bins` (B, H, W) and `targets` of the student.

        Returns:
            `depth`; `stats/accuracy` and `stats/accuracy_objects`, the shares of cells whose likeliest class is true.
        """
        logits, bins, targets = student_value
        known, objects = bins != IGNORED, box_mask(targets, tuple(bins.shape))
        log_probability = logits.log_softmax(1).gather(1, bins.clamp(min=0)[:, None])[:, 0]
        error = -log_probability
        if self.loss == "focal":
            error = self.alpha * (1 - log_probability.exp()) ** self.gamma * error
        weight = torch.where(objects, self.object_weight, 1.0)
        hit = (logits.detach().argmax(1) == bins).float()
        return {
            "depth": torch.where(known, weight * error, 0).sum() / known.sum().clamp(min=1),
            "stats/accuracy": mean_of(hit[known]),
            "stats/accuracy_objects": mean_of(hit[known & objects]),
        }
