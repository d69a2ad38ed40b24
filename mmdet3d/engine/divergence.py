"""A training that diverges stops on every rank before what is not finite replaces a good checkpoint.

A single bad batch is no divergence: its step is left out, as the loss scaler of fp16 does, and training goes on. The
training ends when that lasts for a whole log interval, or when the weights themselves are not finite.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmdet3d.engine import distributed
from mmdet3d.engine.logging import Window, get_logger

__all__ = ["Divergence"]


class Divergence:
    """What of a training may be applied, and whether it may go on.

    Args:
        run_dir: where the checkpoints are to continue from.
        patience: so many steps in a row without finite gradients end the training; None leaves them to a loss scaler,
            which needs some to find its scale.
    """

    def __init__(self, run_dir: Path, patience: int | None) -> None:
        self._remedy = f"lower optimizer.lr or set --precision fp32, and continue from the last checkpoint in {run_dir}"
        self._patience = patience
        self._skipped = 0

    def may_step(self, grad_norm: Tensor, where: str) -> bool:
        """Whether the gradients are finite; `where` is the position for the log."""
        if grad_norm.isfinite():
            self._skipped = 0
            return True
        self._skipped += 1
        if self._patience is not None and self._skipped == 1:
            get_logger().warning("skipped the step of %s: its gradients are not finite", where)
        return False

    def check_progress(self, window: Window, where: str) -> None:
        """Raise if no loss of `window`, or none of the latest gradients, was finite. Every rank must call."""
        error = None
        if window.never_finite("loss"):
            error = ValueError(f"the loss was not finite in {where}; {self._remedy}")
        elif self._patience is not None and self._skipped >= self._patience:
            error = ValueError(f"the gradients were not finite in {where}; {self._remedy}")
        distributed.raise_everywhere(error)

    def check_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Raise if a floating-point tensor is not finite. Every rank must call."""
        floating = {k: v for k, v in weights.items() if v.is_floating_point()}
        error = None
        # One transfer from the device for all tensors.
        if floating and not torch.stack([v.isfinite().all() for v in floating.values()]).all():
            bad = [k for k, v in floating.items() if not v.isfinite().all()]
            share = f"{len(bad)} of {len(floating)} tensors, the first is {bad[0]}"
            error = ValueError(f"the weights are not finite ({share}); {self._remedy}")
        distributed.raise_everywhere(error)
