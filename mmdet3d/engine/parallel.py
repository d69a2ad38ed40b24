"""One model on several ranks, as the training loop sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from mmdet3d.engine import distributed

__all__ = ["Copies"]

Tree = TypeVar("Tree")


class Copies:
    """The whole model on every rank, gradients averaged (DistributedDataParallel). One process needs nothing.

    `sharing.Shares` is the same for a model that is shared out; what is trivial here is not there.

    Attributes:
        module: called for the forward pass.
    """

    def __init__(self, module: nn.Module, device: torch.device, find_unused_parameters: bool) -> None:
        self.module = module
        if distributed.world_size() > 1:
            devices = [device] if device.type == "cuda" else None
            self.module = DistributedDataParallel(
                module, device_ids=devices, find_unused_parameters=find_unused_parameters
            )

    def accumulating(self, waits: bool) -> contextlib.AbstractContextManager[None]:
        """For forward and backward of a step, whose gradients stay with this rank if more are to be added to them."""
        if waits and isinstance(self.module, DistributedDataParallel):
            alone: contextlib.AbstractContextManager[None] = self.module.no_sync()
            return alone
        return contextlib.nullcontext()

    def gathered(self) -> contextlib.AbstractContextManager[None]:
        """Inside, any method of the model may be called, on as many batches as each rank likes."""
        return contextlib.nullcontext()

    def whole(self, values: Tree) -> Tree:
        """A nest of dicts and lists with whole tensors. Every rank must call."""
        return values

    def cut(self, value: Tensor, like: Tensor) -> Tensor:
        """The part of a whole tensor that this rank has of `like`."""
        return value

    def cut_state(self, state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        """A `state_dict` of an optimiser, its whole moments cut as its parameters are."""
        return dict(state)
