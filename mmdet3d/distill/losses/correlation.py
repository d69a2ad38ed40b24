"""Correlation and relations of feature pyramids (MonoSKD, ECAI 2023)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.blocks import at_least, not_negative
from mmdet3d.distill.losses.base import DistillLoss, full_precision, sum_of
from mmdet3d.distill.losses.relation import adapter, affinity_distance, resize
from mmdet3d.ops.soft_rank import soft_rank
from mmdet3d.ops.soft_rank.spearman import spearman_closed_form
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["CorrelationLoss", "rank_correlation"]

_STRENGTH = 1e-3  # of soft ranks, in standard deviations


@MODELS.register
class CorrelationLoss(DistillLoss):
    """One minus the correlation, and the distance of the affinities, of two lists of maps; summed over the maps.

    The student's maps pass one learned adapter each, which both terms share. Then each pair of maps is resized to the
    size of the smallest map.

    Args:
        channels: of each map; of both sides.
        correlation: factor of that term; 0 switches it off.
        affinity: factor of that term; 0 switches it off.
        ranks: `teacher_shift`, what the published term computes: the correlation over the whole batch with the
            teacher's values less their mean in the sample. `both`: Spearman's correlation, hard ranks of the teacher
            and soft ones of the student, per sample; it sorts every value.
        adapt: give the student the adapters.

    Raises:
        ValueError: an unknown `ranks`, or both terms are off.
    """

    def __init__(
        self,
        channels: Sequence[int] = (512, 256, 128, 64),
        correlation: float = 1.0,
        affinity: float = 1.0,
        ranks: str = "teacher_shift",
        adapt: bool = True,
    ) -> None:
        super().__init__()
        if ranks not in ("teacher_shift", "both"):
            raise ValueError(f"CorrelationLoss ranks must be teacher_shift or both, got {ranks!r}")
        if not correlation and not affinity:
            raise ValueError("CorrelationLoss has neither correlation nor affinity; switch the loss off with null")
        self.correlation = not_negative(correlation, "correlation")
        self.affinity, self.ranks = not_negative(affinity, "affinity"), ranks
        [at_least(1, c, "channels") for c in channels]
        self.adapters = nn.ModuleList(adapter(c) if adapt else nn.Identity() for c in channels)

    @full_precision
    def forward(
        self, student_value: Sequence[Tensor], teacher_value: Sequence[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Both lists of (B, C_i, h_i, w_i).

        Returns:
            `correlation` and `affinity`, those that are on.

        Raises:
            ValueError: the numbers of maps, or their shapes, differ.
        """
        pairs = self._pairs(student_value, teacher_value)
        terms: dict[str, Tensor] = {}
        if self.correlation:
            correlate = rank_correlation if self.ranks == "both" else spearman_closed_form
            found = [1 - correlate(s.flatten(1), t.flatten(1)) for s, t in pairs]
            terms["correlation"] = self.correlation * sum_of(found)
        if self.affinity:
            terms["affinity"] = self.affinity * sum_of([affinity_distance(s, t) for s, t in pairs])
        return terms

    def _pairs(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        shapes = [[tuple(m.shape) for m in maps] for maps in (students, teachers)]
        if shapes[0] != shapes[1] or len(students) != len(self.adapters):
            raise ValueError(
                f"CorrelationLoss with {len(self.adapters)} channels needs as many maps of the same shapes on both "
                f"sides; the student's are {shapes[0]}, the teacher's {shapes[1]}"
            )
        height, width = min((m.shape[-2:] for m in students), key=lambda shape: shape[0] * shape[1])
        size = height, width
        adapted = [adapt(m) for adapt, m in zip(self.adapters, students, strict=True)]
        return [(resize(s, size), resize(t, size)) for s, t in zip(adapted, teachers, strict=True)]


def rank_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    """Spearman's correlation of the rows of (B, n), averaged; the student's ranks are soft."""
    scale = student.detach().std(dim=1, keepdim=True).clamp(min=1e-8)
    ours = soft_rank(student / scale, _STRENGTH)
    theirs = teacher.argsort(dim=1).argsort(dim=1).to(ours)
    ours, theirs = (ranks - ranks.mean(dim=1, keepdim=True) for ranks in (ours, theirs))
    return torch.cosine_similarity(ours, theirs, dim=1, eps=1e-8).mean()
