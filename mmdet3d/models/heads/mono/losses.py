"""Losses of the maps and regions (CornerNet's focal loss; DID-M3D). Where nothing is selected, a term is 0."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdet3d.models.heads.mono.regions import at_cells
from mmdet3d.models.heads.mono.targets import HEADING_BINS, MonoTargets
from mmdet3d.models.losses import GaussianFocalLoss, clamped_sigmoid

__all__ = ["TASKS", "detection_losses", "laplacian", "mean_of", "residual_at"]

TASKS = ("offset_2d", "size_2d", "depth", "offset_3d", "size_3d", "heading", "heatmap")
_SQRT2 = 1.4142
_focal = GaussianFocalLoss(alpha=2.0, gamma=4.0)


def detection_losses(
    dense: Mapping[str, Tensor],
    regions: Mapping[str, Tensor],
    heat: Tensor,
    targets: MonoTargets,
    visible: Tensor,
    belongs: Tensor,
) -> dict[str, Tensor]:
    """Scalar terms by name of `TASKS`.

    Args:
        dense: maps (B, n, H, W) by name; `heatmap` in logits.
        regions: see `regions.predict_regions`, one region per target.
        heat: (B, K, H, W) of `targets.heat_maps`.
        targets: the N regressed objects.
        visible, belongs: (N, 7, 7) of `targets.visible_depth`.
    """
    probability = clamped_sigmoid(dense["heatmap"].float())
    target_depth = targets.depth[:, None, None].expand_as(visible)
    depth = laplacian(regions["visual"], visible, regions["visual_uncertainty"], belongs)
    depth += laplacian(regions["attribute"], target_depth - visible, regions["attribute_uncertainty"], belongs)
    depth += laplacian(regions["depth"], target_depth, regions["depth_uncertainty"], torch.ones_like(belongs))
    terms = {
        "heatmap": _focal(probability, heat, avg_factor=(heat == 1).sum().clamp(min=1)),
        "depth": depth,
        "heading": _heading(regions["heading"], targets),
    }
    for name in ("offset_2d", "size_2d"):
        found = at_cells(dense[name], targets.image, targets.cells).float()
        terms[name] = mean_of((found - getattr(targets, name)).abs())
    for name in ("offset_3d", "size_3d"):
        terms[name] = mean_of((regions[name] - getattr(targets, name)).abs())
    return {name: terms[name] for name in TASKS}


def laplacian(found: Tensor, target: Tensor, log_variance: Tensor, mask: Tensor) -> Tensor:
    """Mean over `mask` of the negative log-likelihood of a Laplace distribution, without its constant."""
    error = _SQRT2 * torch.exp(-log_variance / 2) * (found - target).abs() + log_variance / 2
    return torch.where(mask, error, 0).sum() / mask.sum().clamp(min=1)


def mean_of(values: Tensor) -> Tensor:
    """The mean; 0 of no values."""
    return values.sum() / max(values.numel(), 1)


def residual_at(heading: Tensor, index: Tensor) -> Tensor:
    """(N,) residuals that `heading` (N, 24) gives for sectors (N,)."""
    return heading[:, HEADING_BINS:].gather(1, index[:, None])[:, 0]


def _heading(heading: Tensor, targets: MonoTargets) -> Tensor:
    entropy = F.cross_entropy(heading[:, :HEADING_BINS], targets.heading_bin, reduction="none")
    residual = residual_at(heading, targets.heading_bin)
    return mean_of(entropy) + mean_of((residual - targets.heading_residual).abs())
