"""One model on several ranks, its weights, gradients and optimiser state shared out (`fully_shard: true`, FSDP2).

It is one group: the ranks put all weights together before a forward pass and part with them after backward. The models
here have 17 to 131 million parameters, beside which activations are what fills a GPU (docs/scaling.md), so that
gathering them in parts would save little, and cost the rule that the parts of a model may call each other in any way.

Tensors that are shared out are `DTensor`s. Nobody but the optimiser and the average calculates with them: files hold
whole tensors (`whole`), and what is read from files is cut for this rank (`cut`).

Imported where it is asked for: what it imports takes seconds.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from mmdet3d.engine import distributed
from mmdet3d.engine.parallel import Copies

__all__ = ["Shares"]

Tree = TypeVar("Tree")


class Shares(Copies):
    """See `Copies`. The parameters of the module are others afterwards.

    Only the module's forward pass and what follows from it may be called, but for `gathered`.
    """

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        module.register_forward_hook(_await_backward)  # before FSDP's own, so that it finds what the ranks agreed on
        self.module = module
        self._group = fully_shard(module, mesh=init_device_mesh(device.type, (distributed.world_size(),)))
        self._group.set_force_sum_reduction_for_comms(device.type == "cpu")  # gloo knows no mean

    @contextlib.contextmanager
    def accumulating(self, waits: bool) -> Iterator[None]:
        self._group.set_requires_gradient_sync(not waits)
        yield

    @contextlib.contextmanager
    def gathered(self) -> Iterator[None]:
        """See `Copies`; inside, the model's `state_dict` must not be asked for, which would take the weights apart."""
        self._group.unshard()
        try:
            yield
        finally:
            self._group.reshard()

    def whole(self, values: Tree) -> Tree:
        found: Tree = tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), values)
        return found

    def cut(self, value: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)

    def cut_state(self, state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        found = {index: dict(values) for index, values in state["state"].items()}
        for index, values in found.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and index < len(parameters):  # that it fits is checked when it is loaded
                    values[name] = self.cut(value, parameters[index])
        return {**state, "state": found}


def _await_backward(module: nn.Module, _: Any, output: tuple[Tensor, Any]) -> None:
    """Have the ranks agree once all gradients of the total, the first output, are there."""
    engine = torch.autograd.Variable._execution_engine
    output[0].register_hook(lambda _: engine.queue_callback(lambda: _agree_on_gradients(module)))


def _agree_on_gradients(module: nn.Module) -> None:
    """Zeros for gradients that another rank has and this one has not: all must put the same tensors together.

    A parameter that no rank used keeps no gradient, so that the optimiser passes it by, as without sharing.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    used = distributed.each_on_any_rank([p.grad is not None for p in parameters])
    for parameter, elsewhere in zip(parameters, used, strict=True):
        if elsewhere and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
