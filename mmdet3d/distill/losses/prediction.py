"""Prediction distillation: the teacher's heatmaps everywhere, its boxes at the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from mmdet3d.blocks import not_negative, number
from mmdet3d.distill.losses.base import full_precision
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.losses.response import quality_focal_loss
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["PredictionLoss", "box_distance"]


@MODELS.register
class PredictionLoss(CenterHeadLoss):
    """Quality focal loss on heatmaps and smooth L1 on the boxes of ground-truth cells (SimDistill, MMD-P).

    Args:
        positive: the teacher's probability from which a cell counts in the normaliser of the heatmap term.
        box_beta: where the smooth L1 turns from square to linear.
    """

    def __init__(self, positive: float = 0.1, box_beta: float = 1 / 9) -> None:
        super().__init__()
        self.positive = number(positive, "positive")
        self.box_beta = not_negative(box_beta, "box_beta")

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y), `heatmap` in logits.

        Returns:
            `heatmap/task{t}` and `bbox/task{t}`; the latter is a mean over the task's objects, 0 if there are none.
        """
        objects = self._objects(batch)
        weights = student_value[0]["heatmap"].new_tensor(self._student_head.module.code_weights)
        terms = {}
        for t, (classes, student, teacher) in enumerate(
            zip(self._classes(), student_value, teacher_value, strict=True)
        ):
            p, q = clamped_sigmoid(student["heatmap"]), clamped_sigmoid(teacher["heatmap"])
            terms[f"heatmap/task{t}"] = quality_focal_loss(p, q, positive=self.positive)
            mine = objects.of(classes)
            ours, theirs = (CenterHead.codes_at(side, mine) for side in (student, teacher))
            distance = box_distance(ours, theirs, weights, self.box_beta)
            terms[f"bbox/task{t}"] = distance / max(len(mine), 1)
        return terms


def box_distance(student: Tensor, teacher: Tensor, weights: Tensor, beta: float = 1 / 9) -> Tensor:
    """Sum of smooth L1 distances of weighted regression codes (N, 10)."""
    return F.smooth_l1_loss(weights * student, weights * teacher, beta=beta, reduction="sum")
