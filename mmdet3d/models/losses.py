"""Losses of heads. All compute in the precision of their inputs; heads hand them float32."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.registry import MODELS

__all__ = ["FocalLoss", "GaussianFocalLoss", "L1Loss", "clamped_sigmoid", "sigmoid_focal"]


def clamped_sigmoid(logits: Tensor, margin: float = 1e-4) -> Tensor:
    """Probabilities kept `margin` away from 0 and 1, so that their logarithms stay finite."""
    return logits.sigmoid().clamp(margin, 1 - margin)


def sigmoid_focal(logits: Tensor, target: Tensor, gamma: float = 2.0) -> Tensor:
    """Cross entropy of every element times (1 - probability of its target) to the power of gamma (Lin et al. 2017).

    Positives and negatives weigh alike.

    Args:
        logits, target: of one shape; targets are 0 or 1.
    """
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    p = logits.sigmoid()
    return entropy * (p + target - 2 * p * target) ** gamma


@MODELS.register
class GaussianFocalLoss(nn.Module):
    """Focal loss on heatmaps whose negatives near a peak count less (CornerNet, CenterNet).

    Args:
        alpha: exponent of the modulating factor.
        gamma: exponent of the discount of negatives near a peak.
        loss_weight: factor of the result.
    """

    def __init__(self, alpha: float = 2.0, gamma: float = 4.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.alpha, self.gamma, self.loss_weight = alpha, gamma, loss_weight

    def forward(self, pred: Tensor, target: Tensor, *, avg_factor: Tensor | float) -> Tensor:
        """Sum over all elements divided by `avg_factor`.

        Args:
            pred: probabilities, any shape.
            target: same shape, 1 at object centres and below 1 elsewhere.
        """
        eps = 1e-12
        positive = -(pred + eps).log() * (1 - pred) ** self.alpha * (target == 1)
        negative = -(1 - pred + eps).log() * pred**self.alpha * (1 - target) ** self.gamma
        return self.loss_weight * (positive + negative).sum() / avg_factor


@MODELS.register
class FocalLoss(nn.Module):
    """Sigmoid focal loss (RetinaNet).

    Args:
        gamma: exponent of the modulating factor.
        alpha: weight of positives; negatives get 1 - alpha.
        loss_weight: factor of the result.
    """

    def __init__(self, gamma: float = 2.0, alpha: float = 0.25, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.gamma, self.alpha, self.loss_weight = gamma, alpha, loss_weight

    def forward(self, pred: Tensor, target: Tensor, *, avg_factor: Tensor | float) -> Tensor:
        """Sum over all elements divided by `avg_factor`.

        Args:
            pred: (N, K) logits.
            target: (N,) int64 class, K for background.
        """
        positive = F.one_hot(target, pred.shape[1] + 1)[:, :-1].to(pred)
        probability = pred.sigmoid()
        error = torch.where(positive > 0, 1 - probability, probability)
        alpha = torch.where(positive > 0, self.alpha, 1 - self.alpha)
        entropy = F.binary_cross_entropy_with_logits(pred, positive, reduction="none")
        return self.loss_weight * (alpha * error**self.gamma * entropy).sum() / avg_factor


@MODELS.register
class L1Loss(nn.Module):
    """Weighted absolute error.

    Args:
        loss_weight: factor of the result.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor, *, avg_factor: Tensor | float) -> Tensor:
        """Sum over all elements divided by `avg_factor`; `pred`, `target` and `weight` have one shape.

        A NaN target (an unknown velocity) counts nothing.
        """
        known = ~target.isnan()
        error = (pred - torch.where(known, target, 0.0)).abs()
        return self.loss_weight * (error * weight * known).sum() / avg_factor
