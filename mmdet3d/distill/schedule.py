"""When a distillation loss counts, as a function of the progress of training."""

from __future__ import annotations

from dataclasses import dataclass

from mmdet3d.blocks import number

__all__ = ["LossSchedule"]


@dataclass(frozen=True)
class LossSchedule:
    """The factor of a loss: 0 before `begin` and after `end`, rising over `warm_up`, falling to `floor` over `decay`.

    All lengths are fractions of the training, so that a schedule means the same for any number of epochs.

    Args:
        begin, end: where the loss counts.
        warm_up: length of the linear rise from 0 after `begin`.
        decay: length of the linear fall to `floor` before `end`.
        floor: factor at `end`.

    Raises:
        ValueError: an unknown key, or lengths that do not fit into the training.
    """

    begin: float = 0.0
    end: float = 1.0
    warm_up: float = 0.0
    decay: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name in ("begin", "end", "warm_up", "decay", "floor"):
            number(getattr(self, name), name)
        if not 0 <= self.begin < self.end <= 1 or self.warm_up < 0 or self.decay < 0:
            raise ValueError(f"a schedule needs 0 <= begin < end <= 1 and no negative length, got {self}")
        if self.warm_up + self.decay > self.end - self.begin + 1e-9:
            raise ValueError(
                f"warm_up {self.warm_up} and decay {self.decay} are longer than what lies between begin {self.begin} "
                f"and end {self.end}"
            )

    def factor(self, progress: float) -> float:
        """Of the loss at `progress`, the share of the training's steps that are done, in [0, 1)."""
        if not self.begin <= progress < self.end:
            return 0.0
        since, left = progress - self.begin, self.end - progress
        if since < self.warm_up:
            return since / self.warm_up
        return self.floor + (1 - self.floor) * left / self.decay if left < self.decay else 1.0
