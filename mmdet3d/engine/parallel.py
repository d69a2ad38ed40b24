"""One model on several ranks: whole on each of them, or with its weights, gradients and optimiser state shared out.

Shared out (`fully_shard: true`, FSDP2) it is one group: the ranks put all weights together before a forward pass and
part with them after backward. The models here have some 50 million parameters, beside which activations are what fills
a GPU (docs/scaling.md), so that gathering them in parts would save little, and cost the rule that the parts of a model
may call each other in any way.

Tensors that are shared out are `DTensor`s. Nobody but the optimiser and the average calculates with them: files hold
whole tensors (`whole`), and what is read from files is cut for this rank (`cut_like`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from mmdet3d.engine import distributed

__all__ = ["accumulating", "cut_like", "cut_optimizer_state", "gathered", "replicate", "share_out", "whole"]

Tree = TypeVar("Tree")


def replicate(module: nn.Module, device: torch.device, find_unused_parameters: bool) -> nn.Module:
    """A copy on every rank, whose gradients are means over the ranks. One process needs nothing."""
    if distributed.world_size() == 1:
        return module
    devices = [device] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, find_unused_parameters=find_unused_parameters)


def share_out(module: nn.Module, device: torch.device) -> nn.Module:
    """The same module, of which every rank keeps its part between steps. One process keeps all.

    Only its forward pass and what follows from it may be called, but for `gathered`. Its parameters are others now.
    """
    if distributed.world_size() == 1:
        return module
    module.register_forward_hook(_await_backward)  # before FSDP's own, so that it finds what the ranks agreed on
    fully_shard(module, mesh=init_device_mesh(device.type, (distributed.world_size(),)))
    assert isinstance(module, FSDPModule)
    module.set_force_sum_reduction_for_comms(device.type == "cpu")  # gloo knows no mean
    return module


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


@contextlib.contextmanager
def accumulating(module: nn.Module, waits: bool) -> Iterator[None]:
    """Forward and backward of a step, whose gradients stay with this rank if more are to be added to them."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not waits)
    alone = waits and isinstance(module, DistributedDataParallel)
    with module.no_sync() if alone else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Inside, every rank has all weights, and may call any method of the model on as many batches as it likes.

    Its `state_dict` must not be asked for, which would take them apart.
    """
    shared = isinstance(module, FSDPModule)
    if shared:
        module.unshard()
    try:
        yield
    finally:
        if shared:
            module.reshard()


def whole(values: Tree) -> Tree:
    """The same nest of dicts and lists with whole tensors for those that are shared out. Every rank must call."""
    found: Tree = tree_map_only(DTensor, lambda tensor: tensor.full_tensor(), values)
    return found


def cut_like(value: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this rank has of `like`; all of it if `like` is not shared out."""
    if not isinstance(like, DTensor) or value.shape != like.shape:
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def cut_optimizer_state(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A `state_dict` of whole tensors, its moments cut as the optimiser's parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    found = {}
    for index, values in state["state"].items():
        found[index] = dict(values)
        for name, value in values.items():
            if isinstance(value, Tensor) and index < len(parameters):  # that it fits is checked when it is loaded
                found[index][name] = cut_like(value, parameters[index])
    return {**state, "state": found}
