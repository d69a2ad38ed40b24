"""Exponential moving average of a model's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["EMA"]


class EMA:
    """`average = d * average + (1 - d) * weights` after every optimiser step, over all of `state_dict()`.

    Buffers are averaged like parameters; integer ones are copied. What a model keeps out of its state dict (a frozen
    teacher) is not averaged.

    Args:
        model: the average starts at its weights.
        decay: d.
        ramp: d grows as `decay * (1 - exp(-step / ramp))`; None keeps it constant from the first step.
    """

    def __init__(self, model: nn.Module, decay: float, ramp: float | None = None) -> None:
        self._model = model
        self._decay = decay
        self._ramp = ramp
        self.steps = 0
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self) -> None:
        self.steps += 1
        decay = self._decay if self._ramp is None else self._decay * (1 - math.exp(-self.steps / self._ramp))
        for key, value in self._model.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Continue from a saved average."""
        self.steps = steps
        for key, value in self.state.items():
            value.copy_(state[key])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model carries the average inside the context and its own weights again afterwards."""
        own = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        _copy(self._model, self.state)
        try:
            yield
        finally:
            _copy(self._model, own)


@torch.no_grad()
def _copy(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    for key, value in model.state_dict().items():
        value.copy_(state[key])
