"""Hierarchical task learning: a task starts to count when those that it builds on have settled (GUPNet, ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mmdet3d.models.heads.mono.losses import TASKS

__all__ = ["TaskSchedule", "TaskScheduleBlock"]

# Per task the ones it builds on; other tasks always count in full.
_BUILDS_ON = {
    "depth": ("offset_2d", "size_2d", "size_3d"),
    "offset_3d": ("offset_2d", "size_2d"),
    "size_3d": ("offset_2d", "size_2d"),
    "heading": ("offset_2d", "size_2d"),
}


@dataclass(frozen=True)
class TaskScheduleBlock:
    """See `TaskSchedule`.

    Args:
        epochs: when all tasks count in full, whatever their losses.
        window: how many epochs the fall of a loss is measured over, at least 3.
    """

    epochs: int = 140
    window: int = 5


class TaskSchedule:
    """Weights of the tasks in an epoch, from the mean losses of the epochs before.

    A task has settled as far as its loss falls more slowly than it did at first; one that did not fall at first had
    settled before. Tasks that build on others count nothing at first, and in full from epoch `epochs` on.

    Args:
        epochs: when all tasks count in full, whatever their losses.
        window: how many epochs the fall is measured over, at least 3.

    Attributes:
        weights: by name, of the tasks that build on others, in the present epoch.

    Raises:
        ValueError: a window that is too short, or no shorter than `epochs`.
    """

    def __init__(self, epochs: int = TaskScheduleBlock.epochs, window: int = TaskScheduleBlock.window) -> None:
        if not 3 <= window < epochs:
            raise ValueError(f"model.htl needs 3 <= window < epochs, got window {window} and epochs {epochs}")
        self.epochs, self.window = epochs, window
        self.weights = dict.fromkeys(_BUILDS_ON, 0.0)
        self._past: list[list[float]] = []
        self._first_fall: list[float] | None = None
        self._sums: Tensor | None = None  # of the tasks' losses, and last the number of steps

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Note the unweighted losses of a step; one with a loss that is not finite does not count."""
        values = torch.stack([terms[name].detach().double() for name in TASKS])
        values = torch.cat([values, values.new_ones(1)])
        values = torch.where(values.isfinite().all(), values, 0.0)
        self._sums = values if self._sums is None else self._sums.to(values.device) + values

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of the 0-based `epoch`; the steps noted since the last call were the epoch before it."""
        if len(self._past) == self.window:
            self.weights = self._weigh(epoch)
            self._past.pop(0)
        elif epoch >= self.epochs:
            self.weights = dict.fromkeys(_BUILDS_ON, 1.0)
        if self._sums is not None:
            *sums, count = self._totals()
            if count:
                self._past.append([value / count for value in sums])
        self._sums = None

    def state(self) -> dict[str, Any]:
        """Plain values from which `load_state` continues. In distributed training every rank must call."""
        return {
            "weights": dict(self.weights),
            "past": [list(values) for values in self._past],
            "first_fall": self._first_fall,
            "sums": None if self._sums is None else self._totals(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.weights = dict(state["weights"])
        self._past = [list(values) for values in state["past"]]
        self._first_fall = state["first_fall"]
        sums = state["sums"]
        if sums is not None and "count" in state:  # version 0.1.0 before 2026-11-21 kept it beside them
            sums = [*sums, state["count"]]
        self._sums = None if sums is None else torch.tensor(sums, dtype=torch.float64)

    def _totals(self) -> list[float]:
        """The sums, averaged over processes."""
        assert self._sums is not None, "no step was counted yet"
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
            name: 1 - min(max(now / first, 0.0), 1.0) if first > 0 else 1.0
            for name, now, first in zip(TASKS, fall, self._first_fall, strict=True)
        }
        progress = min((epoch - self.window) / (self.epochs - self.window), 1.0)
        return {
            name: progress ** (1 - math.prod(settled[other] for other in others)) for name, others in _BUILDS_ON.items()
        }
