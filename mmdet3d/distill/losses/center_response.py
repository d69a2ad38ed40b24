"""Response distillation in the form of CenterPoint's own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmdet3d.blocks import number
from mmdet3d.distill.losses.base import full_precision
from mmdet3d.distill.losses.center_heads import CenterHeadLoss
from mmdet3d.distill.losses.response import quality_focal
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.targets import CenterTargets
from mmdet3d.models.losses import clamped_sigmoid
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["CenterResponseLoss"]


@MODELS.register
class CenterResponseLoss(CenterHeadLoss):
    """The student head's loss with the teacher's answers as targets (LabelDistill, response distillation).

    Both terms are normalised as the head's own: by the objects of the task.

    Args:
        target: of the heatmaps. `teacher`: the teacher's probability in every cell, by the quality focal loss; it pulls
            scores up where the teacher sees an object and down elsewhere. `product`: the teacher's probability times
            the ground truth's heatmap, by the head's focal loss, as published; as no such target is 1, it only pushes
            scores down.
        min_score: an object teaches a box where the teacher gives its class at least this probability.
    """

    def __init__(self, target: str = "teacher", min_score: float = 0.0) -> None:
        super().__init__()
        if target not in ("teacher", "product"):
            raise ValueError(f"CenterResponseLoss: target must be teacher or product, got {target!r}")
        self.target = target
        self.min_score = number(min_score, "min_score")

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        super().bind(teacher, student)
        head = self._student_head.module
        self._focal, self._box_weight = head.loss_cls, head.loss_bbox.loss_weight

    @full_precision
    def forward(
        self,
        student_value: Sequence[Mapping[str, Tensor]],
        teacher_value: Sequence[Mapping[str, Tensor]],
        batch: Batch,
    ) -> dict[str, Tensor]:
        """Both are head outputs: a list over tasks of dicts of (B, C, X, Y), `heatmap` in logits.

        Returns:
            `heatmap/task{t}` and `bbox/task{t}`.
        """
        objects = self._objects(batch)
        heat = self._student_head.module.heat(objects, len(batch))
        terms = {}
        for t, (classes, student, teacher) in enumerate(
            zip(self._classes(), student_value, teacher_value, strict=True)
        ):
            p, q = clamped_sigmoid(student["heatmap"]), clamped_sigmoid(teacher["heatmap"])
            terms[f"heatmap/task{t}"] = self._heatmap_loss(p, q, heat[:, classes].to(p))
            mine = objects.of(classes)
            seen = q[mine.samples, mine.labels - classes.start, mine.cells[:, 0], mine.cells[:, 1]] >= self.min_score
            terms[f"bbox/task{t}"] = self._box_loss(student, teacher, mine[seen])
        return terms

    def _heatmap_loss(self, p: Tensor, q: Tensor, heat: Tensor) -> Tensor:
        peaks = (heat == 1).sum().clamp(min=1)
        if self.target == "product":
            focal: Tensor = self._focal(p, q * heat, avg_factor=peaks)
            return focal
        return quality_focal(p, q).sum() / peaks

    def _box_loss(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], objects: CenterTargets) -> Tensor:
        mine, theirs = (CenterHead.codes_at(side, objects) for side in (student, teacher))
        distance = (mine - theirs).abs() @ torch.as_tensor(self._student_head.module.code_weights).to(mine)
        weighted: Tensor = self._box_weight * distance.sum() / (len(objects) + 1e-4)
        return weighted
