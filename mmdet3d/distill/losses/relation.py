"""Relation distillation: how cells of the bird's-eye view relate to each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from mmdet3d.blocks import at_least
from mmdet3d.distill.losses.base import DistillLoss, full_precision, sum_of
from mmdet3d.models.layers import PointwiseConv2d
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["AffinityLoss", "adapter", "affinity_distance", "resize"]

_ROWS = 128  # of the affinities at a time on the CPU, so that they stay in its cache


def adapter(channels: int) -> nn.Sequential:
    """3x3 convolution, ReLU, 1x1 convolution."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU(inplace=True), PointwiseConv2d(channels, channels)
    )


class _Adapter(nn.Module):
    """`adapter` under the published name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_channel_layer = adapter(channels)

    def forward(self, x: Tensor) -> Tensor:
        adapted: Tensor = self.conv_channel_layer(x)
        return adapted


@MODELS.register
class AffinityLoss(DistillLoss):
    """L1 distance of the affinity matrices of two feature maps, summed over scales (CRKD, relation distillation).

    At scale s both maps are resized to s x s cells; the affinity of two cells is the inner product of their features.

    Args:
        sizes: the scales s, in cells.
        channels: of both maps.
        adapt: give the student one learned adapter per scale.
    """

    needs_labels = False

    def __init__(self, sizes: Sequence[int] = (32, 16, 8, 4), channels: int = 256, adapt: bool = True) -> None:
        super().__init__()
        self.sizes = tuple(at_least(1, size, "sizes") for size in sizes)
        at_least(1, channels, "channels")
        self.adapt_modules = nn.ModuleList(_Adapter(channels) if adapt else nn.Identity() for _ in self.sizes)

    @full_precision
    def forward(self, student_value: Tensor, teacher_value: Tensor, batch: Batch) -> Tensor:
        """Both (B, C, X, Y)."""
        terms = []
        for size, adapt in zip(self.sizes, self.adapt_modules, strict=True):
            student = adapt(resize(student_value, (size, size)))
            terms.append(affinity_distance(student, resize(teacher_value, (size, size))))
        return sum_of(terms)


def resize(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) resampled bilinearly to `size` cells."""
    return F.interpolate(feature, size, mode="bilinear", align_corners=False)


def affinity_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean absolute difference of the inner products of all pairs of cells, of maps (B, C, H, W).

    The teacher's gets no gradient.
    """
    distance: Tensor = _AffinityDistance.apply(student.flatten(2), teacher.flatten(2))
    return distance


class _AffinityDistance(torch.autograd.Function):
    """The distance and, in the same pass, its gradient: a matrix of all pairs is big, and each value is needed once.

    With D = S'S - T'T of the cells S and T (C, n), the distance is the mean of |D| and its gradient 2 S sign(D) / n^2.
    D is symmetric, so of each block of rows only what is right of its diagonal is computed.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        samples, _, cells = student.shape
        left, right = torch.cat([student, teacher], 1).transpose(1, 2), torch.cat([student, -teacher], 1)
        total, gradient = student.new_zeros(()), torch.zeros_like(student)
        rows = cells if student.is_cuda else _ROWS
        for start in range(0, cells, rows):
            stop = min(start + rows, cells)
            difference = left[:, start:stop] @ right[..., start:]
            square, beside = difference.split([stop - start, cells - stop], dim=2)
            total += square.abs().sum() + 2 * beside.abs().sum()
            difference.sign_()
            gradient[..., start:stop] += student[..., start:] @ difference.transpose(1, 2)
            gradient[..., stop:] += student[..., start:stop] @ beside
        pairs = samples * cells * cells
        ctx.save_for_backward(gradient.mul_(2 / pairs))
        return total / pairs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return grad * gradient, None
