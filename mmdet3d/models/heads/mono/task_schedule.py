"""Hierarchical task learning: a task starts to count when those that it builds on have settled (GUPNet, ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmdet3d.models.heads.mono.losses import TASKS

__all__ = ["TaskSchedule"]

# Per task the ones it builds on; other tasks always count in full.
_BUILDS_ON = {
    "depth": ("offset_2d", "size_2d", "size_3d"),
    "offset_3d": ("offset_2d", "size_2d"),
    "size_3d": ("offset_2d", "size_2d"),
    "heading": ("offset_2d", "size_2d"),
}


class TaskSchedule:
    """Weights of the tasks in an epoch, from the mean losses of the epochs before.

    A task has settled as far as its loss falls more slowly than it did at first. Tasks that build on others count
    nothing at first, and in full from epoch `epochs` on.

    Args:
        epochs: when all tasks count in full, whatever their losses.
        window: how many epochs the fall is measured over, at least 3.

    Attributes:
        weights: by name, of the tasks that build on others, in the present epoch.

    Raises:
        ValueError: a window that is too short, or no shorter than `epochs`.
    """

    def __init__(self, epochs: int = 140, window: int = 5) -> None:
        if not 3 <= window < epochs:
            raise ValueError(f"model.htl needs 3 <= window < epochs, got window {window} and epochs {epochs}")
        self.epochs, self.window = epochs, window
        self.weights = dict.fromkeys(_BUILDS_ON, 0.0)
        self._past: list[list[float]] = []
        self._first_fall: list[float] | None = None
        self._sums: Tensor | None = None
        self._count = 0

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Note the unweighted losses of a step."""
        values = torch.stack([terms[name].detach().double() for name in TASKS])
        self._sums = values if self._sums is None else self._sums.to(values.device) + values
        self._count += 1

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of the 0-based `epoch`; the steps noted since the last call were the epoch before it."""
        if len(self._past) == self.window:
            self.weights = self._weigh(epoch)
            self._past.pop(0)
        if self._count:
            self._past.append([value / self._count for value in self._totals()])
        self._sums, self._count = None, 0

    def state(self) -> dict[str, Any]:
        """Plain values from which `load_state` continues. In distributed training every rank must call."""
        return {
            "weights": dict(self.weights),
            "past": [list(values) for values in self._past],
            "first_fall": self._first_fall,
            "sums": self._totals() if self._count else None,
            "count": self._count,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])
        self._past = [list(values) for values in state["past"]]
        self._first_fall = state["first_fall"]
        self._sums = None if state["sums"] is None else torch.tensor(state["sums"], dtype=torch.float64)
        self._count = state["count"]

    def _totals(self) -> list[float]:
        """The sums, averaged over processes."""
        total = self._sums
        if dist.is_available() and dist.is_initialized():
            total = total.to("cuda" if "nccl" in dist.get_backend() else "cpu").clone()
            dist.all_reduce(total)
            total /= dist.get_world_size()
        return total.tolist()

    def _weigh(self, epoch: int) -> dict[str, float]:
        span = self.window - 2
        fall = [sum(self._past[i][k] - self._past[i + 2][k] for i in range(span)) / span for k in range(len(TASKS))]
        self._first_fall = self._first_fall or fall
        settled = {
            name: 1 - max(now / first, 0.0) if first else 1.0
            for name, now, first in zip(TASKS, fall, self._first_fall, strict=True)
        }
        progress = min((epoch - self.window) / (self.epochs - self.window), 1.0)
        return {
            name: progress ** (1 - math.prod(settled[other] for other in others)) for name, others in _BUILDS_ON.items()
        }
