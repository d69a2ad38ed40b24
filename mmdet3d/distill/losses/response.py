"""Response distillation: the teacher's heat maps and boxes as soft targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.blocks import not_negative
from mmdet3d.distill.losses.base import full_precision
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import REGRESSION
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ResponseLoss", "quality_focal", "quality_focal_loss", "soft_box_loss"]


@MODELS.register
class ResponseLoss(CenterHeadLoss):
    """Quality focal loss on heat maps and smooth L1 on box parameters, per task (CRKD, response distillation).

    Args:
        task_weights: one factor per task of the head; tasks of movable classes weigh more.
        beta: focusing power of the quality focal loss.
        parameters: which box parameters are taught, by the names of the head's branches; none: heat maps alone. What a
            teacher knows no better than its student, velocities from a single sweep say, it need not teach.
    """

    needs_labels = False
    by_class = True

    def __init__(
        self,
        task_weights: Sequence[float] = (2, 2, 2, 1, 2, 1),
        beta: float = 2.0,
        parameters: Sequence[str] = tuple(REGRESSION),
    ) -> None:
        super().__init__()
        unknown = [name for name in parameters if name not in REGRESSION]
        if unknown:
            raise ValueError(f"ResponseLoss: parameters {unknown} are not among {', '.join(REGRESSION)}")
        self.task_weights = tuple(not_negative(weight, "task_weights") for weight in task_weights)
        self.beta = not_negative(beta, "beta")
        self.quantities = tuple(parameters)

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
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
        p, q = self._gate(p), self._gate(q)
        focal = quality_focal(p, q, self.beta).split(classes, 1)
        terms = {}
        for i, (student, teacher, loss, seen, weight) in enumerate(
            zip(student_value, teacher_value, focal, q.split(classes, 1), self.task_weights, strict=True)
        ):
            terms[f"heatmap/task{i}"] = weight * loss.sum() / _count(seen)
            if not self.quantities:
                continue
            ours, theirs = (torch.cat([side[name] for name in self.quantities], 1) for side in (student, teacher))
            terms[f"bbox/task{i}"] = weight * soft_box_loss(ours, theirs, seen.sum(1))
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
        student: (B, P, X, Y) box parameters.
        teacher: (B, P, X, Y).
        response: (B, X, Y) probability summed over the classes of the task.
    """
    # An unsure teacher still teaches where it is surest. Upstream lowers the threshold in a loop until a cell exceeds
    # it; each turn would wait for the GPU, so the number of steps is computed instead.
    short_of = (0.1 - response.max()).clamp(min=0)
    steps = torch.where(response.max() > 0.1, torch.zeros_like(short_of), (short_of / 0.01).floor() + 1)
    sample, x, y = (response > 0.1 - 0.01 * steps).nonzero(as_tuple=True)
    ours, theirs = student[sample, :, x, y], teacher[sample, :, x, y]
    distance = F.smooth_l1_loss(ours, theirs, reduction="none").sum(1)
    # Upstream takes 4 times the mean over cells and the ten parameters of 10 times the weighted distance: the tens
    # cancel, because `distance` is a sum over the parameters.
    return 4 * (distance * response[sample, x, y]).sum() / max(len(sample), 1)
