"""The sum over kernel offsets of products with gathered features, and its gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.native import DTYPE_CODES
from mmdet3d.ops.sparse_conv import reference
from mmdet3d.ops.sparse_conv.kernels import kernels
from mmdet3d.ops.sparse_conv.tables import NeighborTable

__all__ = ["sparse_convolution"]

_GROUP_BYTES = 1 << 28  # of gathered rows on CUDA


def sparse_convolution(features: Tensor, weight: Tensor, table: NeighborTable) -> Tensor:
    """`out[o] = sum over offsets k of features[neighbors[k, o]] @ weight[k]` (cross-correlation).

    Under autocast the operands are rounded to its dtype; sums are always kept in float32 or wider. With the compiled
    kernels for the CPU, values and gradients do not depend on the number of threads, to the last bit.

    Args:
        features: (N, Cin) floating point.
        weight: (kx, ky, kz, Cin, Cout), of the same dtype.
        table: of N input and M output sites, for this kernel size.

    Returns:
        (M, Cout) in the dtype of the operands.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_shapes(features=(features, "N Cin"), weight=(weight, "kx ky kz Cin Cout"))
    if torch.is_autocast_enabled(features.device.type):
        dtype = torch.get_autocast_dtype(features.device.type)
        features, weight = features.to(dtype), weight.to(dtype)
    if features.dtype != weight.dtype or features.dtype not in DTYPE_CODES:
        raise ValueError(
            f"features and weight must have one floating-point dtype, got {features.dtype} and {weight.dtype}"
        )
    if len({features.device, weight.device, table.neighbors.device}) > 1:
        raise ValueError(
            f"features, weight and table must be on one device, got {features.device}, {weight.device} and "
            f"{table.neighbors.device}"
        )
    kernel = weight.flatten(0, 2)
    offsets, inputs = table.inverse.shape
    if (len(kernel), len(features)) != (offsets, inputs):
        raise ValueError(
            f"the table is of {offsets} kernel offsets and {inputs} input sites, got weight {tuple(weight.shape)} and "
            f"features {tuple(features.shape)}"
        )
    if not kernels.available(features):
        return reference.sparse_convolution(features, kernel, table.neighbors, table.inverse)
    return _convolve(features, kernel, table.neighbors, table.inverse, table.counts)


@torch.library.custom_op("mmdet3d::sparse_convolution", mutates_args=())
def _convolve(features: Tensor, weight: Tensor, neighbors: Tensor, inverse: Tensor, counts: Tensor) -> Tensor:
    out = features.new_empty(neighbors.shape[1], weight.shape[2], dtype=_wide(features))
    if kernels.on_cpu(features):
        operands = (features.to(out.dtype).contiguous(), weight.to(out.dtype).contiguous(), neighbors.contiguous())
        kernels.call("sparse_convolve", *_sizes(out, weight, neighbors), *operands, out)
        return out.to(features.dtype)
    out.zero_()
    pairs = _Pairs(neighbors, counts)
    for first, last in pairs.groups(weight):
        begin, end = pairs.bounds[first], pairs.bounds[last]
        rows = features.index_select(0, pairs.inputs[begin:end])
        products = rows.new_empty(len(rows), weight.shape[2])
        for k, part in pairs.parts(first, last):
            torch.mm(rows[part], weight[k], out=products[part])
        sizes = (DTYPE_CODES[products.dtype], *products.shape[1:], first, last, neighbors.shape[1], begin)
        kernels.call("sum_products", *sizes, products, neighbors.contiguous(), pairs.slots, out)
    return out.to(features.dtype)


@_convolve.register_fake
def _(features: Tensor, weight: Tensor, neighbors: Tensor, inverse: Tensor, counts: Tensor) -> Tensor:
    return features.new_empty(neighbors.shape[1], weight.shape[2])


@torch.library.custom_op("mmdet3d::sparse_convolution_weight", mutates_args=())
def _weight_gradient(features: Tensor, grad: Tensor, neighbors: Tensor, counts: Tensor) -> Tensor:
    shape = (len(neighbors), features.shape[1], grad.shape[1])
    if kernels.on_cpu(features):
        out = features.new_empty(shape, dtype=_wide(features))
        operands = (features.to(out.dtype).contiguous(), grad.to(out.dtype).contiguous(), neighbors.contiguous())
        kernels.call("sparse_weight_gradient", *_sizes(out, out, neighbors), *operands, out)
        return out.to(features.dtype)
    out = features.new_zeros(shape)
    pairs = _Pairs(neighbors, counts)
    for first, last in pairs.groups(out):
        begin, end = pairs.bounds[first], pairs.bounds[last]
        rows = features.index_select(0, pairs.inputs[begin:end])
        grads = grad.index_select(0, pairs.outputs[begin:end])
        for k, part in pairs.parts(first, last):
            torch.mm(rows[part].T, grads[part], out=out[k])
    return out


@_weight_gradient.register_fake
def _(features: Tensor, grad: Tensor, neighbors: Tensor, counts: Tensor) -> Tensor:
    return features.new_empty(len(neighbors), features.shape[1], grad.shape[1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, neighbors, inverse, counts = ctx.saved_tensors
    wants_features, wants_weight, *_ = ctx.needs_input_grad
    grad_features = _convolve(grad, weight.transpose(1, 2), inverse, neighbors, counts) if wants_features else None
    grad_weight = _weight_gradient(features, grad, neighbors, counts) if wants_weight else None
    return grad_features, grad_weight, None, None, None


_convolve.register_autograd(_differentiate, setup_context=_save)


class _Pairs:
    """The pairs of a table as lists, by offset and then by output site; several offsets are gathered at a time.

    Attributes:
        slots: (K, M) int64 place in the lists, where there is a pair.
        inputs, outputs: (P,) int32 rows.
        bounds: where the pairs of an offset begin and end.
    """

    def __init__(self, neighbors: Tensor, counts: Tensor) -> None:
        self.bounds = [0, *counts.cumsum(0).tolist()]
        self.slots = (neighbors >= 0).flatten().cumsum(0).sub_(1)
        self.inputs, self.outputs = neighbors.new_empty(2, self.bounds[-1])
        kernels.call("list_pairs", *neighbors.shape, neighbors.contiguous(), self.slots, self.inputs, self.outputs)

    def groups(self, weight: Tensor) -> Iterator[tuple[int, int]]:
        """Ranges of offsets whose rows fit `_GROUP_BYTES`, or single offsets."""
        limit = _GROUP_BYTES // (max(weight.shape[1:]) * weight.element_size())
        first, offsets = 0, len(self.bounds) - 1
        for last in range(1, offsets + 1):
            if last == offsets or self.bounds[last + 1] - self.bounds[first] > limit:
                yield first, last
                first = last

    def parts(self, first: int, last: int) -> Iterator[tuple[int, slice]]:
        """Offsets that have pairs, and where in the group these are."""
        for k in range(first, last):
            begin, end = self.bounds[k] - self.bounds[first], self.bounds[k + 1] - self.bounds[first]
            if end > begin:
                yield k, slice(begin, end)


def _wide(features: Tensor) -> torch.dtype:
    return torch.promote_types(features.dtype, torch.float32)


def _sizes(out: Tensor, weight: Tensor, neighbors: Tensor) -> tuple[int, ...]:
    """The scalar arguments of the CPU kernels: dtype, K, M, Cin, Cout."""
    return DTYPE_CODES[out.dtype], *neighbors.shape, *weight.shape[1:]
