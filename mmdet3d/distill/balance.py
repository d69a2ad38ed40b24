"""Weights of distillation losses in units of detection's gradient."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from mmdet3d.blocks import number

__all__ = ["Balance", "BalanceSettings", "Measurement"]

GATES = ("none", "cosine")
_TINY = 1e-30
_SCALES = (2.0**16, 2.0**8, 1.0)  # of a loss, the first that does not overflow: in half precision gradients vanish


@dataclass(frozen=True)
class BalanceSettings:
    """The block `model.balance`.

    Args:
        target: length of a loss's gradient over that of detection's, for a loss of weight 1.
        every: steps between two measurements; each costs one backward pass per loss down to its tap.
        gate: `cosine` switches a loss off while its gradient points, on average, away from detection's.
        at: tap where gradients are compared, for losses that read no single map.
        memory: of the running averages, per measurement.
        maximum: of a factor; without it a loss that has been learnt would be blown up to noise.

    Raises:
        ValueError: a number out of its range, or another gate.
    """

    target: float = 0.3
    every: int = 20
    gate: str = "none"
    at: str = "decoder"
    memory: float = 0.9
    maximum: float = 100.0

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise ValueError(f"model.balance.gate must be one of {', '.join(GATES)}, got {self.gate!r}")
        for name in ("target", "every", "memory", "maximum"):
            number(getattr(self, name), f"model.balance.{name}")
        if self.target <= 0 or self.every < 1 or self.every % 1 or not 0 <= self.memory < 1 or self.maximum <= 0:
            raise ValueError(
                "model.balance needs a target and a maximum above 0, a whole number every of at least 1 and a memory "
                f"in [0, 1), got {self.target}, {self.maximum}, {self.every} and {self.memory}"
            )


@dataclass
class _Pull:
    """Running averages of one loss at its tap: lengths of both gradients, and the cosine between them.

    `largest` is the largest ratio of their lengths, with the factor, since the last report.
    """

    detection: float = math.nan
    loss: float = math.nan
    cosine: float = math.nan
    largest: float | None = None


@dataclass
class Balance:
    """Keeps each loss's gradient at `target` times detection's, both measured at the tap that the loss reads.

    A loss is measured in the first step in which it counts and has a gradient; before, `factor` is 1. All processes use
    the same factors.
    """

    settings: BalanceSettings
    steps: int = 0
    pulls: dict[str, _Pull] = field(default_factory=dict)

    def measurement(self, detection: Iterable[Tensor], names: Iterable[str]) -> Measurement | None:
        """One of a step of training, given the student's own losses; None if none is due.

        Args:
            names: of the losses that count in this step; those that were never measured do not wait until one is due.
        """
        self.steps += 1
        due = (self.steps - 1) % self.settings.every == 0
        wanted = {name for name in names if due or name not in self.pulls}
        return Measurement(self, torch.stack([t.float().mean() for t in detection]).sum(), wanted) if wanted else None

    def add(self, name: str, own: float, other: float, inner: float) -> None:
        """Take the squared lengths of detection's and a loss's gradient, and their inner product, into the averages.

        A step in which one of them is 0 (no object, no pseudo label) tells nothing about the unit of a loss.
        """
        if not (own and other):
            return
        pull = self.pulls.setdefault(name, _Pull())
        pull.detection = self._mean(pull.detection, math.sqrt(own))
        pull.loss = self._mean(pull.loss, math.sqrt(other))
        pull.cosine = self._mean(pull.cosine, inner / (math.sqrt(own) * math.sqrt(other)))
        pull.largest = max(pull.largest or 0.0, self.factor(name) * math.sqrt(other / own))

    def factor(self, name: str) -> float:
        """What the loss is multiplied with."""
        pull = self.pulls.get(name)
        if pull is None:
            return 1.0
        if self.settings.gate == "cosine" and pull.cosine < 0:
            return 0.0
        return min(self.settings.target * pull.detection / max(pull.loss, _TINY), self.settings.maximum)

    def stats(self) -> dict[str, float]:
        """For the log: `factor/NAME` and `cosine/NAME`."""
        found = {}
        for name, pull in self.pulls.items():
            found[f"factor/{name}"] = self.factor(name)
            if not math.isnan(pull.cosine):
                found[f"cosine/{name}"] = pull.cosine
        return found

    def faults(self) -> dict[str, str]:
        """By loss, what is wrong with it since the last call."""
        found = {}
        for name, pull in self.pulls.items():
            if pull.largest is not None and pull.largest < 1e-3 and self.factor(name):
                found[name] = "its gradient never exceeded a thousandth of detection's: it teaches nothing"
            pull.largest = None
        return found

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "pulls": {name: vars(pull).copy() for name, pull in self.pulls.items()}}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]
        self.pulls = {name: _Pull(**pull) for name, pull in state["pulls"].items()}

    def _mean(self, before: float, now: float) -> float:
        return now if math.isnan(before) else self.settings.memory * before + (1 - self.settings.memory) * now


class Results(Protocol):
    """What a measurement is given to, see `Balance.add`."""

    def add(self, name: str, own: float, other: float, inner: float) -> None: ...


class Measurement:
    """The gradients of one step.

    Args:
        balance: gets the results.
        detection: the sum of the student's own losses.
        wanted: names of the losses to be measured.
        shared: over all processes, each of which must take the same.
    """

    def __init__(self, balance: Results, detection: Tensor, wanted: Collection[str], shared: bool = True) -> None:
        self._balance, self._detection, self.wanted, self._shared = balance, detection, wanted, shared
        self._own: dict[str, Tensor] = {}

    def take(self, name: str, loss: Tensor, tap: str, value: Tensor) -> None:
        """Compare the gradients of a loss, unweighted, and of detection at the value of a tap.

        Raises:
            ValueError: one of them does not depend on the tap.
        """
        if tap not in self._own:
            self._own[tap] = self._gradient(self._detection, value, "detection", name, tap)
        ours, theirs = self._own[tap], self._gradient(loss, value, "the loss", name, tap)
        products = torch.stack([(ours * ours).sum(), (theirs * theirs).sum(), (ours * theirs).sum()]).double()
        if self._shared and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(products)
        own, other, inner = products.tolist()
        if math.isfinite(own + other):  # otherwise the trainer names what is not finite
            self._balance.add(name, own, other, inner)

    @staticmethod
    def _gradient(loss: Tensor, value: Tensor, what: str, name: str, tap: str) -> Tensor:
        for scale in _SCALES:
            (found,) = torch.autograd.grad(loss * scale, value, retain_graph=True, allow_unused=True)
            if found is None:
                raise ValueError(
                    f"model.losses.{name}: {what} does not depend on {tap}, where gradients are compared; name another "
                    "tap in model.balance.at"
                )
            if found.isfinite().all():
                break
        return found.float() / scale
