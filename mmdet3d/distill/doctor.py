"""What goes wrong with a distillation while it trains, said once, with the remedy; nothing of the training changes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mmdet3d.distill.balance import Measurement

__all__ = ["Doctor", "class_scores", "worse_classes"]

_TOO_SHORT, _TOO_LONG = 1e-3, 3.0  # a loss's gradient over detection's
_CLASS = re.compile(r"object/(.+)_ap_dist_[\d.]+")


@dataclass
class Doctor:
    """Compares each loss's gradient, as weighted, with detection's, at the tap that the loss reads.

    Args:
        every: steps between two looks. One costs a short backward pass per loss, about as much as a step in all, so
            that 200 keep it below a percent.
    """

    every: int = 200
    steps: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    said: set[tuple[str, str]] = field(default_factory=set)

    def measurement(self, detection: Iterable[Tensor], weights: Mapping[str, float]) -> Measurement | None:
        """One of a step of training, given the student's own losses; None if none is due.

        Args:
            weights: of the losses that count in this step.
        """
        self.steps += 1
        if (self.steps - 1) % self.every:
            return None
        self.weights = weights
        # Of this process alone: one that cannot look must not keep the others waiting.
        return Measurement(self, torch.stack([t.float().mean() for t in detection]).sum(), set(weights), shared=False)

    def add(self, name: str, own: float, other: float, inner: float) -> None:
        """See `Balance.add`; a step without a gradient of detection tells nothing."""
        if own:
            self.ratios.setdefault(name, []).append(abs(self.weights[name]) * math.sqrt(other / own))

    def faults(self) -> dict[str, str]:
        """By loss, what held in every look since the last call and was not said before."""
        found = {}
        for name, ratios in self.ratios.items():
            least, most = min(ratios), max(ratios)
            kind = "none" if most == 0 else "short" if most < _TOO_SHORT else "long" if least > _TOO_LONG else None
            if kind is None or (name, kind) in self.said:
                continue
            self.said.add((name, kind))
            if kind == "none":
                found[name] = (
                    "its gradient is zero wherever it was looked at, so it teaches nothing: its mask or region is "
                    "empty; check that boxes lie on its raster, its thresholds, and that the teacher answers there"
                )
            elif kind == "short":
                found[name] = (
                    f"its gradient is {most:.0e} of detection's, so it teaches nothing: multiply its weight by about "
                    f"{0.3 / most:.0e}, or set model.balance: {{}}"
                )
            else:
                found[name] = (
                    f"its gradient is {least:.3g} times detection's, so it takes the training over: multiply its "
                    f"weight by about {0.3 / least:.1g}, or set model.balance: {{}}"
                )
        self.ratios.clear()
        return found


def class_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Average precision per class, the mean over distances of matching; empty where metrics have none."""
    found: dict[str, list[float]] = {}
    for key, value in metrics.items():
        if named := _CLASS.fullmatch(key):
            found.setdefault(named[1], []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def worse_classes(teacher: Mapping[str, float], student: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The classes that a teacher knows worse than the student, with the average precision of both."""
    theirs, ours = class_scores(teacher), class_scores(student)
    return {name: (theirs[name], ours[name]) for name in ours if name in theirs and theirs[name] < ours[name]}
