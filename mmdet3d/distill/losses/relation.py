"""Relation distillation: how cells of the bird's-eye view relate to each other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["AffinityLoss", "adapter", "affinity_distance", "resize"]


def adapter(channels: int) -> nn.Sequential:
    """3x3 convolution, ReLU, 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(channels, channels, 1)
    )


class _Adapter(nn.Module):
    """`adapter` under the published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_channel_layer = adapter(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_channel_layer(x)


@MODELS.register
class AffinityLoss(DistillLoss):
    """L1 distance of the affinity matrices of two feature maps, summed over scales (CRKD, relation distillation).

    At scale s both maps are resized to s x s cells; the affinity of two cells is the inner product of their features.

    Args:
        sizes: the scales s, in cells.
        channels: of both maps.
        adapt: give the student one learned adapter per scale.
    """

    def __init__(self, sizes: Sequence[int] = (32, 16, 8, 4), channels: int = 256, adapt: bool = True) -> None:
        super().__init__()
        self.sizes = tuple(sizes)
        self.adapt_modules = nn.ModuleList(_Adapter(channels) if adapt else nn.Identity() for _ in self.sizes)

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y)."""
        terms = []
        for size, adapt in zip(self.sizes, self.adapt_modules, strict=True):
            student = adapt(resize(student_value, (size, size)))
            terms.append(affinity_distance(student, resize(teacher_value, (size, size))))
        return sum(terms)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) resampled bilinearly to `size` cells."""
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


def affinity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the inner products of all pairs of cells, of maps (B, C, H, W)."""
    return F.l1_loss(_affinity(student), _affinity(teacher))


def _affinity(feature: Tensor) -> Tensor:
    cells = feature.flatten(2)
    return cells.transpose(1, 2) @ cells
