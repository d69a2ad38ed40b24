"""Divergence of features in both directions, where the student's depth is still wrong (DualKL of MonoMMKD).

Published are the name, that a mechanism balances the divergences, that depth uncertainty weighs the features, and a
figure in which the discrepancy of depth distributions multiplies the features of both sides. Everything else is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.blocks import at_least, positive
from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.distill.losses.relation import adapter
from mmdet3d.models.heads.mono.depth_bins import IGNORED
from mmdet3d.models.heads.mono.losses import mean_of
from mmdet3d.models.heads.mono.targets import box_mask
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["DualKLLoss", "depth_uncertainty"]

_STRIDES = (32, 16, 8, 4)  # of the neck's maps
_CHOICES = {
    "softmax": ("spatial_per_channel", "channel_per_pixel"),
    "balance": ("ratio", "gap", "epoch", "fixed", "forward", "reverse"),
    "uncertainty": ("one_minus_p_target", "entropy", "none"),
    "weight_mode": ("logits", "map"),
}


class _Pair(NamedTuple):
    """Log-probabilities (B, G, n) of the two sides, G distributions over n outcomes."""

    student: Tensor
    teacher: Tensor


@MODELS.register
class DualKLLoss(DistillLoss):
    """Kullback-Leibler divergences of feature maps in both directions, mixed by a share that follows their sizes.

    Forward, teacher over student, makes the student cover what the teacher responds to; reverse keeps it from
    responding elsewhere. The student's maps pass one learned adapter each.

    Args:
        levels: strides of the neck's maps that are compared.
        channels: of these maps; of both sides.
        softmax: what a distribution is: a channel over all cells, or a cell over all channels.
        temperature: of the softmax; the loss is multiplied by its square.
        balance: share of the forward divergence, per sample and map. `ratio`: its share in the sum of both, so that
            the larger one counts more; `gap`: share of the absolute difference of the two distributions that lies where
            the teacher's likelier half is; `epoch`: from 1 to 1/2 in the course of training; `fixed`: 1/2; `forward`
            and `reverse` alone.
        uncertainty: what cells count: `one_minus_p_target`, the probability that the depth branch does not give to the
            true class; `entropy` of its distribution; `none`, all alike.
        weight_mode: `logits` multiplies the features of both sides, as in the paper's figure; `map` the divergence.
        standardise: bring each channel to mean 0 and variance 1 over the cells first.
        adapt: give the student the adapters.
        epochs: of the training, for `epoch`.

    Raises:
        ValueError: an unknown choice, level, or no `epochs` where they are needed.
    """

    progress: Tensor

    def __init__(
        self,
        levels: Sequence[int] = (16, 8, 4),
        channels: Sequence[int] = (256, 128, 64),
        softmax: str = "spatial_per_channel",
        temperature: float = 1.0,
        balance: str = "ratio",
        uncertainty: str = "one_minus_p_target",
        weight_mode: str = "logits",
        standardise: bool = False,
        adapt: bool = True,
        epochs: int | None = None,
    ) -> None:
        super().__init__()
        given = {"softmax": softmax, "balance": balance, "uncertainty": uncertainty, "weight_mode": weight_mode}
        for key, value in given.items():
            if value not in _CHOICES[key]:
                raise ValueError(f"DualKLLoss {key} must be one of {', '.join(_CHOICES[key])}, got {value!r}")
        if not levels or not set(levels) <= set(_STRIDES) or len(levels) != len(channels):
            raise ValueError(
                f"DualKLLoss levels must be strides out of {', '.join(map(str, _STRIDES))} with a number of channels "
                f"each, got levels {list(levels)} and channels {list(channels)}"
            )
        positive(temperature, "temperature")
        if epochs is not None:
            at_least(1, epochs, "epochs")
        if balance == "epoch" and not epochs:
            raise ValueError("DualKLLoss with balance: epoch needs `epochs`, the length of the training")
        self.levels, self.temperature, self.standardise, self.epochs = tuple(levels), temperature, standardise, epochs
        self.softmax, self.balance, self.uncertainty, self.weight_mode = softmax, balance, uncertainty, weight_mode
        self.adapters = nn.ModuleList(adapter(c) if adapt else nn.Identity() for c in channels)
        # Part of the state, so that a run that resumes within an epoch knows it.
        self.register_buffer("progress", torch.zeros(()))

    def start_epoch(self, epoch: int) -> None:
        if self.epochs:
            self.progress.fill_(min(epoch / max(self.epochs - 1, 1), 1.0))

    @full_precision
    def forward(self, student_value: list[Any], teacher_value: Sequence[Tensor], batch: Batch) -> dict[str, Tensor]:
        """The taps `neck`, `depth.logits`, `depth.bins` and `targets` of the student, `neck` of the teacher.

        Returns:
            `stride_4` ..., per level; `stats/forward_share`, the mean over samples and levels; `stats/uncertainty` and
            `stats/uncertainty_objects`, mean weights of cells of known depth, and of those in objects' boxes.

        Raises:
            ValueError: the maps of the two sides, or the adapters, do not fit each other.
        """
        neck, logits, bins, targets = student_value
        known = bins != IGNORED
        weight = depth_uncertainty(logits, bins, self.uncertainty)
        terms, shares = {}, []
        for (student, teacher), level in zip(self._maps(neck, teacher_value), self.levels, strict=True):
            size = student.shape[-2], student.shape[-1]
            weights, cells = (F.adaptive_avg_pool2d(m[:, None].to(student), size) for m in (weight, known))
            forward, reverse, share = self._compare(student, teacher.detach(), weights, cells > 0)
            mixed = share * forward + (1 - share) * reverse
            terms[f"stride_{level}"] = self.temperature**2 * mixed.mean()
            shares.append(share.mean())
        terms["stats/forward_share"] = torch.stack(shares).mean()
        terms["stats/uncertainty"] = mean_of(weight[known])
        terms["stats/uncertainty_objects"] = mean_of(weight[known & box_mask(targets, tuple(bins.shape))])
        return terms

    def _maps(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        shapes = [[tuple(m.shape) for m in maps] for maps in (students, teachers)]
        if shapes[0] != shapes[1] or len(students) != len(_STRIDES):
            raise ValueError(
                f"DualKLLoss needs the four maps of a neck, of the same shapes on both sides; the student's are "
                f"{shapes[0]}, the teacher's {shapes[1]}"
            )
        places = [_STRIDES.index(level) for level in self.levels]
        return [(adapt(students[place]), teachers[place]) for adapt, place in zip(self.adapters, places, strict=True)]

    def _compare(
        self, student: Tensor, teacher: Tensor, weight: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forward divergence, reverse divergence and share of the former, each (B,).

        Args:
            student, teacher: (B, C, h, w).
            weight: (B, 1, h, w).
            known: (B, 1, h, w) bool.
        """
        if self.standardise:
            student, teacher = (_standardised(m) for m in (student, teacher))
        if self.weight_mode == "logits":
            student, teacher, weight = weight * student, weight * teacher, torch.ones_like(weight)
        maps = [m.flatten(2) for m in (student, teacher, weight, known)]
        if self.softmax == "channel_per_pixel":
            maps = [m.transpose(1, 2) for m in maps]
        student, teacher, weight, known = maps
        pair = _Pair(*((m / self.temperature).log_softmax(2) for m in (student, teacher)))
        # Distributions over channels count where the depth is known.
        counted = known[:, :, 0] if self.softmax == "channel_per_pixel" else torch.ones_like(student[:, :, 0])
        forward = _mean(_divergence(pair.teacher, pair.student, weight), counted)
        reverse = _mean(_divergence(pair.student, pair.teacher, weight), counted)
        return forward, reverse, self._forward_share(forward.detach(), reverse.detach(), pair)

    def _forward_share(self, forward: Tensor, reverse: Tensor, pair: _Pair) -> Tensor:
        if self.balance == "ratio":
            return forward / (forward + reverse + 1e-8)
        if self.balance == "gap":
            return _head_share(pair)
        if self.balance == "epoch":
            return (0.75 + 0.25 * torch.cos(math.pi * self.progress)).expand_as(forward)
        return torch.full_like(forward, {"fixed": 0.5, "forward": 1.0, "reverse": 0.0}[self.balance])


@torch.no_grad()
def depth_uncertainty(logits: Tensor, bins: Tensor, kind: str = "one_minus_p_target") -> Tensor:
    """How wrong or unsure predicted depth is, without gradient; 0 where the depth is unknown.

    Args:
        logits: (B, classes, H, W).
        bins: (B, H, W) true classes, or `IGNORED`.
        kind: see `DualKLLoss`; with `none` all cells are 1.

    Returns:
        (B, H, W) in [0, 1]. `one_minus_p_target` is half the L1 distance of the distribution from the one-hot truth.
    """
    if kind == "none":
        return torch.ones_like(bins, dtype=logits.dtype)
    log_probability = logits.log_softmax(1)
    if kind == "entropy":
        value = -(log_probability.exp() * log_probability).sum(1) / math.log(logits.shape[1])
    else:
        value = -torch.expm1(log_probability.gather(1, bins.clamp(min=0)[:, None])[:, 0])
    return torch.where(bins != IGNORED, value, 0)


def _divergence(target: Tensor, found: Tensor, weight: Tensor) -> Tensor:
    """Divergence (B, G) of log-probabilities (B, G, n), outcomes weighted.

    The terms p log(p / q) - p + q are never negative, so that weights keep the sum so; without weights - p + q add up
    to nothing.
    """
    p, q = target.exp(), found.exp()
    return (weight * (p * (target - found) - p + q)).sum(2)


@torch.no_grad()
def _head_share(pair: _Pair) -> Tensor:
    """(B,) share of |p - q| that falls on the fewest outcomes which hold half of the teacher's mass."""
    mass, order = pair.teacher.exp().sort(dim=2, descending=True)
    gap = (mass - pair.student.exp().gather(2, order)).abs()
    head = mass.cumsum(2) - mass < 0.5
    return (gap * head).sum((1, 2)) / gap.sum((1, 2)).clamp(min=1e-8)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """(B, G) to the means (B,) over `counted`; 0 where nothing counts."""
    return (values * counted).sum(1) / counted.sum(1).clamp(min=1)


def _standardised(maps: Tensor) -> Tensor:
    """Channels of (B, C, h, w) with mean 0 and variance 1 over the cells; constant channels become 0."""
    centred = maps - maps.mean((2, 3), keepdim=True)
    return centred / (centred.square().mean((2, 3), keepdim=True) + 1e-6).sqrt()
