"""A training that diverges stops on every rank before what is not finite replaces a good checkpoint.

A single bad batch is no divergence: its step is left out, as the loss scaler of fp16 does, and training goes on, unless
`optimizer_config.not_finite` is `stop`. The training ends when that lasts for a whole log interval, or when the weights
themselves are not finite. The log names the terms and the samples, and the first such batches are kept as files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mmdet3d.engine import distributed
from mmdet3d.engine.kept_batch import keep_batch
from mmdet3d.engine.logging import Window, get_logger
from mmdet3d.shell import command
from mmdet3d.structures import Batch

__all__ = ["Divergence"]

_KEPT = 3  # batches of a run that are kept


class Divergence:
    """What of a training may be applied, and whether it may go on.

    Args:
        run_dir: where the checkpoints are to continue from.
        patience: so many steps in a row without finite gradients end the training; None leaves them to a loss scaler,
            which needs some to find its scale.
        stop: the first step without finite gradients ends it.
    """

    def __init__(self, run_dir: Path, patience: int | None, stop: bool = False) -> None:
        self._remedy = f"lower optimizer.lr or set --precision fp32, and continue from the last checkpoint in {run_dir}"
        self._folder, self._patience, self._stop = run_dir / "not_finite", patience, stop
        self._skipped = 0
        self._seen: list[tuple[Batch, Mapping[str, Tensor]]] = []  # since the last step

    def saw(self, batch: Batch, values: Mapping[str, Tensor]) -> None:
        """The next step has gradients of this batch, whose losses have these values."""
        self._seen.append((batch, values))

    def may_step(self, grad_norm: Tensor, where: str) -> bool:
        """Whether the gradients are finite, on all ranks.

        Args:
            grad_norm: length of the gradients, the same on every rank.
            where: the position, for the log.

        Raises:
            ValueError: they are not, and the first such step is to end the training.
        """
        seen, self._seen = self._seen, []
        if grad_norm.isfinite():
            self._skipped = 0
            return True
        self._skipped += 1
        suspects = [(batch, bad) for batch, values in seen if (bad := _not_finite(values))]
        # A loss scaler that looks for its scale makes gradients infinite whose losses are finite.
        if (self._patience is not None or suspects) and self._skipped == 1:
            cause = self._describe(*(suspects[0] if suspects else (seen[-1][0], [])))
            if self._stop:
                distributed.raise_everywhere(ValueError(f"{where}: {cause}; {self._remedy}"))
            get_logger().warning("skipped the step of %s: %s", where, cause)
        return False

    def _describe(self, batch: Batch, bad: Sequence[str]) -> str:
        """What is not finite on which samples, with the file that they are kept in."""
        verb = "is" if len(bad) == 1 else "are"
        what = f"{', '.join(bad)} {verb} not finite" if bad else "the gradients of finite losses are not finite"
        what += f" on {', '.join(batch.tokens)}"
        kept = len(list(self._folder.glob("*.pt"))) if self._folder.is_dir() else 0
        if kept >= _KEPT:
            return what
        path = self._folder / f"{kept + 1}_rank{distributed.rank()}.pt"
        try:
            keep_batch(batch, path)
        except ValueError as error:
            return f"{what} ({error})"
        return f"{what} (kept; look into it with {command('audit')} CONFIG --batch {path})"

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


def _not_finite(values: Mapping[str, Tensor]) -> list[str]:
    """Names of the losses that are not."""
    losses = {name: value for name, value in values.items() if name.startswith("loss/")}
    if not losses:
        return []
    good = torch.stack([value.isfinite() for value in losses.values()]).tolist()
    return [name for name, fine in zip(losses, good, strict=True) if not fine]
