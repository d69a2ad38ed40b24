"""What a training step calculates, moves and holds, counted operation by operation; no clock is read.

The count is that of PyTorch's unfused operations. Those on large floating-point tensors are not carried out: their
results are zeros of the right shape in memory that nobody touches, so that a step of a published size takes seconds and
little memory. That changes a count only where such values decide what is done (how many cells hold a peak).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

import mmdet3d.ops.deform_conv
import mmdet3d.ops.sparse_conv  # noqa: F401, whose operators are counted, too

__all__ = ["KeptBytes", "Ledger"]

_aten, _ours = torch.ops.aten, torch.ops.mmdet3d


def _sparse(features: Tensor, weight: Tensor, neighbors: Tensor, inverse: Tensor, counts: Tensor, out_val: Any) -> int:
    return 2 * int(counts.sum()) * weight.shape[-2] * weight.shape[-1]


def _sparse_weight(features: Tensor, grad: Tensor, neighbors: Tensor, counts: Tensor, out_val: Any) -> int:
    return 2 * int(counts.sum()) * features.shape[1] * grad.shape[1]


def _deformed(images: Tensor, offset: Tensor, weight: Tensor, *_: Any, out_val: Tensor) -> int:
    return 2 * out_val.numel() * weight[0].numel()


FORMULAS: Mapping[Any, Callable[..., int]] = {
    **flop_registry,
    _ours.sparse_convolution: _sparse,
    _ours.sparse_convolution_weight: _sparse_weight,
    _ours.deform_conv: _deformed,
}
_LARGE = 100_000  # elements from which on an operation is not carried out


class Ledger(TorchDispatchMode):
    """Counts while it is entered.

    Attributes:
        operations: of each that calculated or moved anything, multiplications and additions (of convolutions and matrix
            products), and bytes read and written, each operand once.
        held: bytes of the tensors made in here that are still alive.
        most_held: the most of them at once, without what an operation needs for itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[int, int]] = []
        self.held = self.most_held = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func.overloadpacket
        out = _outlined(func, args, kwargs)
        out = func(*args, **kwargs) if out is None else out
        read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        lies = {tensor.untyped_storage().data_ptr() for tensor in read}
        new = [tensor for tensor in made if tensor.untyped_storage().data_ptr() not in lies]
        if new or func._schema.is_mutable:  # else a view, which moves nothing
            flops = FORMULAS[packet](*args, **kwargs, out_val=out) if packet in FORMULAS else 0
            self.operations.append((flops, sum(map(_bytes, read)) + sum(map(_bytes, made))))
        for tensor in new:
            self._hold(tensor.untyped_storage())
        return out

    @property
    def flops(self) -> int:
        return sum(flops for flops, _ in self.operations)

    @property
    def moved(self) -> int:
        return sum(moved for _, moved in self.operations)

    def seconds(self, rate: float, bandwidth: float, launch: float = 0.0, batch: int = 1) -> float:
        """Of all operations one after the other, each as long as what it takes most of.

        Args:
            rate: multiplications and additions per second.
            bandwidth: bytes per second.
            launch: least seconds of an operation.
            batch: samples for each that was counted.
        """
        return sum(max(flops * batch / rate, moved * batch / bandwidth, launch) for flops, moved in self.operations)

    def _hold(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self.held += size
        self.most_held = max(self.most_held, self.held)
        weakref.finalize(storage, self._release, size)

    def _release(self, size: int) -> None:
        self.held -= size


def _outlined(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Zeros of the shapes and layouts that an operation on large tensors would give; None if it must be carried out."""
    read = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if not any(tensor.is_floating_point() and tensor.numel() >= _LARGE for tensor in read):
        return None
    if func._schema.is_mutable:
        changed = func._schema.arguments[0].alias_info is not None and len(func._schema.returns) == 1
        return args[0] if changed and isinstance(args[0], Tensor) and args[0].is_floating_point() else None
    if any(said.alias_info is not None for said in func._schema.returns):
        return None  # a view
    try:
        made = func(*tree_map_only(Tensor, _outline, args), **tree_map_only(Tensor, _outline, kwargs))
    except (NotImplementedError, RuntimeError):
        return None  # its shape depends on values
    outputs = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
    if not outputs or not all(tensor.is_floating_point() for tensor in outputs):
        return None
    return tree_map_only(Tensor, _untouched_zeros, made)


def _outline(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _untouched_zeros(outline: Tensor) -> Tensor:
    """Of NumPy, which asks the system for zeros instead of writing them."""
    size = outline.untyped_storage().nbytes()
    if size == 0:
        return torch.empty_strided(outline.shape, outline.stride(), dtype=outline.dtype)
    flat = torch.from_numpy(np.zeros(size, np.uint8)).view(outline.dtype)
    return flat.as_strided(outline.shape, outline.stride())


def _bytes(tensor: Tensor) -> int:
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


class KeptBytes(torch.autograd.graph.saved_tensors_hooks):
    """Bytes that operations inside keep for backward, each storage once, but for those of `known` tensors.

    Attributes:
        total: bytes.
    """

    def __init__(self, known: list[Tensor]) -> None:
        self._seen = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.total = 0
        super().__init__(self._note, lambda tensor: tensor)

    def __enter__(self) -> KeptBytes:
        super().__enter__()
        return self

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self.total += storage.nbytes()
        return tensor
