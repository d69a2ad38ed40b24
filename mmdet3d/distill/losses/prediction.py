"""Prediction distillation: the teacher's heatmaps everywhere, its boxes at the objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.response import quality_focal_loss
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.targets import gather_objects
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["PredictionLoss", "box_distance"]


@MODELS.register
class PredictionLoss(DistillLoss):
    """Quality focal loss on heatmaps and smooth L1 on the boxes of ground-truth cells (SimDistill, MMD-P).

    Both heads must be `CenterHead`s with the same tasks.

    Args:
        positive: the teacher's probability from which a cell counts in the normaliser of the heatmap term.
        box_beta: where the smooth L1 turns from square to linear.
    """

    def __init__(self, positive: float = 0.1, box_beta: float = 1 / 9) -> None:
        super().__init__()
        self.positive = positive
        self.box_beta = box_beta

    def bind(self, teacher: Detector, student: Detector) -> None:
        heads = {"teacher": teacher.heads["object"], "student": student.heads["object"]}
        for side, head in heads.items():
            if not isinstance(head, CenterHead):
                raise ValueError(
                    f"PredictionLoss compares the maps of two CenterHeads, but the {side} has a {type(head).__name__}; "
                    f"switch this loss off (null), or take a {side} with a CenterHead"
                )
        tasks = {side: [list(task) for task in head.tasks] for side, head in heads.items()}
        if tasks["teacher"] != tasks["student"]:
            raise ValueError(
                f"PredictionLoss needs the same tasks on both sides: the student's are {tasks['student']}, "
                f"the teacher's {tasks['teacher']}"
            )
        self._tasks = tasks["student"]
        self._code_weights = heads["student"].train_cfg["code_weights"]
        self._grid = student.grid

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
        boxes, labels = (batch.require(name, "PredictionLoss") for name in ("boxes", "labels"))
        objects = gather_objects(boxes, labels, sum(map(len, self._tasks)), self._grid)
        terms = {}
        first = 0
        for t, (task, student, teacher) in enumerate(zip(self._tasks, student_value, teacher_value, strict=True)):
            p, q = clamped_sigmoid(student["heatmap"]), clamped_sigmoid(teacher["heatmap"])
            terms[f"heatmap/task{t}"] = quality_focal_loss(p, q, positive=self.positive)
            mine = objects[(objects.labels >= first) & (objects.labels < first + len(task))]
            codes = (CenterHead.codes_at(side, mine) for side in (student, teacher))
            distance = box_distance(*codes, weights=p.new_tensor(self._code_weights), beta=self.box_beta)
            terms[f"bbox/task{t}"] = distance / max(len(mine), 1)
            first += len(task)
        return terms


def box_distance(student: Tensor, teacher: Tensor, weights: Tensor, beta: float = 1 / 9) -> Tensor:
    """Sum of smooth L1 distances of weighted regression codes (N, 10)."""
    return F.smooth_l1_loss(weights * student, weights * teacher, beta=beta, reduction="sum")
