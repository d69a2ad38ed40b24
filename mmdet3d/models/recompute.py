"""Activation checkpointing: what a part of a network puts out in between is computed again in the backward pass.

A part then keeps its inputs instead of all that its layers need for their gradients (Chen et al., "Training Deep Nets
with Sublinear Memory Cost", 2016).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks_of", "recompute_in_training", "recomputed"]

T = TypeVar("T")


def recompute_in_training(module: nn.Module, run: Callable[..., T]) -> Callable[..., T]:
    """`run`, but `recomputed` while `module` is in training mode."""

    def forward(*values: Any, **named: Any) -> T:
        again = module.training and torch.is_grad_enabled()
        return recomputed(module, partial(run, **named), *values) if again else run(*values, **named)

    return forward


def recomputed(module: nn.Module, run: Callable[..., T], *values: object) -> T:
    """`run(*values)`, of which backward keeps nothing but `values`.

    The second time draws the same random numbers, under the same autocast, and leaves the running statistics of batch
    norm alone, which have seen the batch.

    Args:
        module: whose layers `run` calls.
    """
    contexts = lambda: (contextlib.nullcontext(), _StatisticsKept(module))  # noqa: E731
    found: T = checkpoint(run, *values, use_reentrant=False, context_fn=contexts)
    return found


class _StatisticsKept:
    """Batch norms normalise as ever inside, but a momentum of 0 keeps what they have gathered, to the bit.

    Entered once for each time that a gradient is asked for.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> None:
        norms = [m for m in self._module.modules() if isinstance(m, _BatchNorm) and m.training]
        self._own = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
        for norm, _, batches in self._own:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if batches is None else batches.clone()

    def __exit__(self, *_: object) -> None:
        for norm, momentum, batches in self._own:
            norm.momentum, norm.num_batches_tracked = momentum, batches


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The residual, transformer or convolutional blocks of a network: the smallest entries of its lists of modules that
    hold two layers or more."""
    lists = (nn.Sequential, nn.ModuleList)
    entries = {m: None for parent in network.modules() if isinstance(parent, lists) for m in parent.children()}
    found = [entry for entry in entries if not isinstance(entry, nn.ModuleList) and _layers(entry) > 1]
    return [m for m in found if not any(inner in found for inner in m.modules() if inner is not m)]


def _layers(module: nn.Module) -> int:
    return sum(p.ndim > 1 for m in module.modules() for p in m.parameters(recurse=False))
