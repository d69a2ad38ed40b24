"""Responses at objects: what is predicted of them in one image (MonoSKD, after MonoDistill)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.outline import Outline
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.detectors.mono import MonoDetector
from mmdet3d.models.heads.mono.losses import mean_of, residual_at
from mmdet3d.models.heads.mono.targets import HEADING_BINS, support_mask
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ObjectResponseLoss"]


@MODELS.register
class ObjectResponseLoss(DistillLoss):
    """L1 distances of 2-D boxes around objects and of what the objects' regions say; KL divergence of their headings.

    Both sides must be `MonoDetector`s with the same mean sizes. Where there is no object, all terms are 0.
    """

    def bind(self, teacher: Detector | Outline, student: Detector) -> None:
        sizes = set()
        for side, detector in (("teacher", teacher), ("student", student)):
            if not isinstance(detector, MonoDetector):
                raise ValueError(
                    f"ObjectResponseLoss compares MonoDetectors, the {side} is a {type(detector).__name__}"
                )
            sizes.add(detector.mean_size.detach().cpu().numpy().tobytes())
        if len(sizes) > 1:
            raise ValueError("ObjectResponseLoss needs the same classes and mean_sizes on both sides")

    @full_precision
    def forward(
        self, student_value: Sequence[Any], teacher_value: Sequence[Mapping[str, Tensor]], batch: Batch
    ) -> dict[str, Tensor]:
        """The taps `heads.dense`, `heads.roi` and `targets` of the student, the first two of the teacher.

        Returns:
            `offset_2d`, `size_2d`, means over the cells near objects; `offset_3d`, `size_3d`, `visual`, `attribute`,
            `depth` and `heading`, means over objects.
        """
        (maps, regions, targets), (soft_maps, soft_regions) = student_value, teacher_value
        chosen = targets[targets.regressed]
        size = maps["heatmap"].shape
        near = support_mask(chosen, (size[0], *size[2:]))
        terms = {}
        for name in ("offset_2d", "size_2d"):
            distance = (maps[name] - soft_maps[name]).abs().movedim(1, -1)
            terms[name] = mean_of(distance[near])
        for name in ("offset_3d", "size_3d", "visual", "attribute", "depth"):
            terms[name] = mean_of((regions[name] - soft_regions[name]).abs())
        terms["heading"] = _heading(regions["heading"], soft_regions["heading"], chosen.heading_bin)
        return terms


def _heading(student: Tensor, teacher: Tensor, sector: Tensor) -> Tensor:
    """KL divergence per sector, and L1 of the residuals in the true sector."""
    ours, theirs = (side[:, :HEADING_BINS].log_softmax(1) for side in (student, teacher))
    divergence = F.kl_div(ours, theirs, reduction="none", log_target=True)
    return mean_of(divergence) + mean_of((residual_at(student, sector) - residual_at(teacher, sector)).abs())
