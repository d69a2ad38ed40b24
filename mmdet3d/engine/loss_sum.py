"""What is differentiated: one number of the terms that a model's `loss` returns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmdet3d.models.detectors.base import Trainable
from mmdet3d.structures import Batch

__all__ = ["LossSum"]


class LossSum(nn.Module):
    """The forward pass of training: the sum of the `loss/...` terms, and all terms detached for the log.

    Summing inside lets DistributedDataParallel see only what backward starts from.
    """

    def __init__(self, model: Trainable) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        terms = self.model.loss(batch)
        losses = [v for k, v in terms.items() if k.startswith("loss/")]
        name = type(self.model).__name__
        if not losses:
            raise ValueError(f"{name}.loss returned no term named 'loss/...' (got: {', '.join(terms) or 'nothing'})")
        total = torch.stack([v.float().mean() for v in losses]).sum()
        if not total.requires_grad:
            raise ValueError(
                f"the loss of {name} depends on no trainable parameter for the batch {', '.join(batch.tokens)}; "
                "its losses must stay connected to the graph where there is no ground truth"
            )
        return total, {k: v.detach().float().mean() for k, v in terms.items()} | {"loss": total.detach()}
