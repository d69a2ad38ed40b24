"""Features inside 2-D boxes, and relations of the scene, from backbone to backbone (MonoDistill, ICLR 2022)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import at_least, not_negative
from mmdet3d.distill.losses.base import DistillLoss, full_precision, sum_of
from mmdet3d.distill.losses.relation import adapter, affinity_distance, resize
from mmdet3d.models.heads.mono.targets import MonoTargets
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["ForegroundLoss", "foreground_distance", "foreground_mask"]

_MID = 512
_TARGET_STRIDE = 4  # of `MonoTargets.boxes`


class _Fusion(nn.Module):
    """Mixes a map with what the next deeper level passed on (review of knowledge, CVPR 2021); published names."""

    def __init__(self, channels: int, deepest: bool) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(channels, _MID, 1, bias=False), nn.BatchNorm2d(_MID))
        self.conv2 = nn.Sequential(nn.Conv2d(_MID, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.att_conv = None if deepest else nn.Sequential(nn.Conv2d(2 * _MID, 2, 1), nn.Sigmoid())
        for conv in (*self.conv1, *self.conv2):
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, x: Tensor, deeper: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, C, H, W) and (B, 512, h, w) to the fused map and what is passed on, (B, 512, H, W)."""
        x = self.conv1(x)
        if deeper is not None and self.att_conv is not None:
            deeper = F.interpolate(deeper, x.shape[-2:], mode="nearest")
            gates = self.att_conv(torch.cat([x, deeper], dim=1))
            x = x * gates[:, :1] + deeper * gates[:, 1:]
        return self.conv2(x), x


@MODELS.register
class ForegroundLoss(DistillLoss):
    """Half the squared distance inside 2-D boxes, and the distance of the affinities, of strides 8, 16 and 32.

    The student's maps are fused from deep to shallow, then pass one learned adapter each, which both terms share.

    Args:
        channels: of the backbone's maps of strides 8, 16 and 32.
        foreground: factor of that term; 0 switches it off.
        affinity: factor of that term; 0 switches it off.

    Raises:
        ValueError: both terms are off.
    """

    def __init__(
        self, channels: Sequence[int] = (128, 256, 512), foreground: float = 10.0, affinity: float = 1.0
    ) -> None:
        super().__init__()
        if not foreground and not affinity:
            raise ValueError("ForegroundLoss has neither foreground nor affinity; switch the loss off with null")
        self.foreground, self.affinity = not_negative(foreground, "foreground"), not_negative(affinity, "affinity")
        deep_first = [at_least(1, c, "channels") for c in channels][::-1]
        self.fusions = nn.ModuleList(_Fusion(c, deepest=i == 0) for i, c in enumerate(deep_first))
        self.adapters = nn.ModuleList(adapter(c) for c in deep_first)

    @full_precision
    def forward(
        self, student_value: tuple[Sequence[Tensor], MonoTargets], teacher_value: Sequence[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """The taps `backbone` and `targets` of the student, `backbone` of the teacher.

        Returns:
            `foreground` and `affinity`, those that are on.

        Raises:
            ValueError: shapes of the two sides differ.
        """
        maps, targets = student_value
        students = [adapt(m) for adapt, m in zip(self.adapters, self._fused(maps[-3:]), strict=True)]
        teachers = list(teacher_value)[:-4:-1]
        shapes = [[tuple(m.shape) for m in side] for side in (students, teachers)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"ForegroundLoss compares maps of equal shapes; the student's are {shapes[0]}, the teacher's "
                f"{shapes[1]}"
            )
        terms: dict[str, Tensor] = {}
        if self.foreground:
            found = [
                foreground_distance(s, t, foreground_mask(targets, stride, (len(s), *s.shape[-2:])))
                for s, t, stride in zip(students, teachers, (32, 16, 8), strict=True)
            ]
            terms["foreground"] = self.foreground * sum_of(found)
        if self.affinity:
            size = tuple(students[0].shape[-2:])
            found = [
                affinity_distance(resize(s, size), resize(t, size)) for s, t in zip(students, teachers, strict=True)
            ]
            terms["affinity"] = self.affinity * sum_of(found)
        return terms

    def _fused(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Deepest first."""
        fused, passed = [], None
        for fuse, x in zip(self.fusions, reversed(list(maps)), strict=True):
            out, passed = fuse(x, passed)
            fused.append(out)
        return fused


def foreground_mask(targets: MonoTargets, stride: int, shape: tuple[int, int, int]) -> Tensor:
    """(B, H, W) bool: cells of a map of `stride` between the corners of the objects' 2-D boxes, rounded down."""
    rows, columns = (torch.arange(n, device=targets.boxes.device) for n in shape[1:])
    corners = (targets.boxes * (_TARGET_STRIDE / stride)).clamp(min=0).floor()
    x1, y1, x2, y2 = (c[:, None] for c in corners.unbind(1))
    inside_rows, inside_columns = (rows >= y1) & (rows < y2), (columns >= x1) & (columns < x2)
    inside = (inside_rows[:, :, None] & inside_columns[:, None, :]).int()
    return inside.new_zeros(shape).index_add_(0, targets.image, inside) > 0


def foreground_distance(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Half the squared difference of maps (B, C, H, W), averaged over channels and the cells of `mask` (B, H, W)."""
    distance = (student - teacher).square().mean(1) / 2
    return torch.where(mask, distance, 0).sum() / mask.sum().clamp(min=1)
