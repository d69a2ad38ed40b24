"""Response distillation: the teacher's heat maps and boxes as soft targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import full_precision
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ResponseLoss", "quality_focal", "quality_focal_loss", "soft_box_loss"]

_REGRESSION = ("reg", "height", "dim", "rot", "vel")


@MODELS.register
class ResponseLoss(CenterHeadLoss):
    """Quality focal loss on heat maps and smooth L1 on box parameters, per task (CRKD, response distillation).

    Args:
        task_weights: one factor per task of the head; tasks of movable classes weigh more.
        beta: focusing power of the quality focal loss.
    """

    def __init__(self, task_weights: Sequence[float] = (2, 2, 2, 1, 2, 1), beta: float = 2.0) -> None:
        super().__init__()
        self.task_weights = tuple(task_weights)
        self.beta = beta

    def bind(self, teacher: Detector, student: Detector) -> None:
        super().bind(teacher, student)
        if len(self._tasks) != len(self.task_weights):
            raise ValueError(
                f"ResponseLoss: task_weights has {len(self.task_weights)} entries for the {len(self._tasks)} tasks of "
                "the heads"
            )

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y), `heatmap` in logits."""
        classes = [task["heatmap"].shape[1] for task in teacher_value]
        p, q = (clamped_sigmoid(torch.cat([t["heatmap"] for t in side], 1)) for side in (student_value, teacher_value))
        focal = quality_focal(p, q, self.beta).split(classes, 1)
        heat = [f.sum() / _count(r) for f, r in zip(focal, q.split(classes, 1), strict=True)]
        response = torch.stack([r.sum(1) for r in q.split(classes, 1)])
        boxes = soft_box_loss(_boxes(student_value), _boxes(teacher_value), response)
        terms = {}
        for i, weight in enumerate(self.task_weights):
            terms[f"heatmap/task{i}"] = weight * heat[i]
            terms[f"bbox/task{i}"] = weight * boxes[i]
        return terms


def quality_focal_loss(p: Tensor, q: Tensor, beta: float = 2.0, positive: float = 0.3) -> Tensor:
    """Sum of BCE(p, q) |p - q|^beta over the number of cells with q > `positive` (at least 1), p and q probabilities.

    Source: Generalized Focal Loss, with the teacher's probability as quality.
    """
    return quality_focal(p, q, beta).sum() / _count(q, positive)


def _count(q: Tensor, positive: float = 0.3) -> Tensor:
    return (q > positive).sum().clamp(min=1)


def quality_focal(p: Tensor, q: Tensor, beta: float = 2.0) -> Tensor:
    """BCE(p, q) |p - q|^beta of every element."""
    return F.binary_cross_entropy(p, q, reduction="none") * (p - q).abs().pow(beta)


def soft_box_loss(student: Tensor, teacher: Tensor, response: Tensor) -> Tensor:
    """4 times the mean, over cells with a teacher response, of response times smooth L1 summed over box parameters.

    A cell counts where `response` (B, X, Y) exceeds 0.1, or else the highest of 0.09, 0.08, ... that some cell exceeds.

    Args:
        student: (..., B, P, X, Y) box parameters, of one task or of several.
        teacher: (..., B, P, X, Y).
        response: (..., B, X, Y) probability summed over the classes of the task.

    Returns:
        (...)
    """
    everywhere = (-3, -2, -1)
    peak = response.amax(everywhere, keepdim=True)
    steps = torch.where(peak > 0.1, 0, ((0.1 - peak).clamp(min=0) / 0.01).floor() + 1)
    active = response > 0.1 - 0.01 * steps
    distance = F.smooth_l1_loss(student, teacher, reduction="none").sum(-3)
    return 4 * (distance * response * active).sum(everywhere) / active.sum(everywhere).clamp(min=1)


def _boxes(tasks: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """(T, B, P, X, Y)"""
    return torch.stack([torch.cat([task[name] for name in _REGRESSION], 1) for task in tasks])
