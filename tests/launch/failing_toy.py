"""The engine tests' toy, one rank of which fails, hangs, or uses less of the model than the other."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from engine_toy import EngineToyModel
from torch import Tensor

from mmdet3d.engine import distributed
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch


@MODELS.register
class FailingToy(EngineToyModel):
    """Rank 1 does `how` in its fourth training step; with a file `once` only if that is not there, and then makes it.

    In every second step it has no ground truth, and leaves a part of the model out.
    """

    def __init__(self, how: str = "nothing", once: str | None = None) -> None:
        super().__init__()
        self.how, self.once = how, once
        self.more = torch.nn.Linear(9, 1)
        self.steps = 0

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        first = distributed.rank() == 0
        if self.steps == 4 and not first and (self.once is None or not Path(self.once).exists()):
            if self.once is not None:
                Path(self.once).touch()
            getattr(self, self.how)()
        if not first and self.steps % 2:
            return {"loss/center": 0 * self._boxes(batch).sum()}
        return super().loss(batch) | {"loss/more": self.more(self._boxes(batch)).square().mean()}

    def nothing(self) -> None:
        pass

    def fails(self) -> None:
        raise RuntimeError("broken on purpose")

    def is_killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def hangs(self) -> None:
        signal.pause()
