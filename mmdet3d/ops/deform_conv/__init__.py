"""Deformable convolution, v1 (Dai et al., ICCV 2017) and v2 (Zhu et al., CVPR 2019): taps that read at offsets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_deterministic, check_floating, check_shapes, compute_dtype
from mmdet3d.ops.deform_conv import reference
from mmdet3d.ops.native import DTYPE_CODES, Kernels

__all__ = ["deform_conv2d"]

_kernels = Kernels("deform_conv")
# Most samples that are held at a time: bounds memory, and on the CPU keeps them in the cache for the matrix product.
_CHUNK = {"cpu": 1 << 22, "cuda": 1 << 26}


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Convolution whose taps are moved by offsets (v1) and scaled by a mask (v2); differentiable in all tensors.

    Tap k of output pixel (i, j) reads the input at y = i * stride - padding + row(k) * dilation + offset y, x alike, by
    bilinear interpolation where integers are pixel centres; zeros lie outside, and so do NaN and infinity. Layout and
    border rule are those of mmcv and torchvision. Where a tap reads at an integer, the gradient of its offset is the
    one towards larger coordinates, but zero at -1 as in mmcv (torchvision differs in this). Sums are kept in float32 at
    least. On CUDA the gradient of `input` is summed by atomic additions, so its last bits may differ between runs.

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * deform_groups * kh * kw, h', w') pixels; y, x of each tap in turn, taps row-major, one
            deformable group after the other. The channels of `input` are shared out to these groups in order.
        weight: (O, C / groups, kh, kw).
        bias: (O,) or None.
        mask: (B, deform_groups * kh * kw, h', w') or None for v1.
        stride: of the regular grid, vertical and horizontal or one for both; likewise padding and dilation.
        groups: of the convolution.
        deform_groups: of the offsets.

    Returns:
        (B, O, h', w'), dtype of `input`; h', w' as of an ordinary convolution.

    Raises:
        ValueError: shapes that do not fit together, values out of range, or a dtype that is not floating.
        RuntimeError: in the backward on CUDA, if `torch.use_deterministic_algorithms` is on.
    """
    grid = _pair("stride", stride, 1), _pair("padding", padding, 0), _pair("dilation", dilation, 1)
    _check_tensors(input, offset, weight, bias, mask, grid, groups, deform_groups)
    dtype = compute_dtype(*(t for t in (input, offset, weight, bias, mask) if t is not None))
    wide, moved, filters = (t.to(dtype) for t in (input, offset, weight))
    scale = None if mask is None else mask.to(dtype)
    if _kernels.available(input):
        numbers = [n for pair in grid for n in pair] + [groups, deform_groups]
        out = _convolve(wide, moved, filters, scale, numbers)
    else:
        with torch.autocast(input.device.type, enabled=False):
            out = reference.deform_conv2d(wide, moved, filters, scale, *grid, groups, deform_groups)
    return (out if bias is None else out + bias.to(dtype)[:, None, None]).to(input.dtype)


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = value if isinstance(value, tuple | list) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and v >= least for v in pair):
        raise ValueError(f"{name} must be an integer of at least {least} or two of them, got {value!r}")
    return pair[0], pair[1]


def _check_tensors(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    grid: tuple[tuple[int, int], ...],
    groups: int,
    deform_groups: int,
) -> None:
    sizes = check_shapes(input=(input, "B C H W"), weight=(weight, "O I kh kw"))
    c, o = sizes["C"], sizes["O"]
    if groups < 1 or deform_groups < 1 or c % groups or o % groups or c % deform_groups:
        raise ValueError(
            f"C = {c} channels must be divisible by groups = {groups} and deform_groups = {deform_groups}, and "
            f"O = {o} by groups"
        )
    check_shapes(input=(input, "B C H W"), weight=(weight, f"O {c // groups} kh kw"))
    if not (c and o and weight.numel()):
        raise ValueError(f"weight must not be empty, got shape {tuple(weight.shape)}")
    size = _out_size(input, weight, grid)
    if min(size) < 1:
        raise ValueError(
            f"input of {sizes['H']} x {sizes['W']} pixels is smaller than the kernel: the output would be {size}"
        )
    taps = deform_groups * sizes["kh"] * sizes["kw"]
    wanted = {"offset": (offset, f"B {2 * taps} {size[0]} {size[1]}")}
    floating = {"input": input, "offset": offset, "weight": weight}
    if mask is not None:
        wanted["mask"] = (mask, f"B {taps} {size[0]} {size[1]}")
        floating["mask"] = mask
    if bias is not None:
        wanted["bias"] = (bias, f"{o}")
        floating["bias"] = bias
    check_shapes(input=(input, "B _ _ _"), **wanted)
    check_floating(**floating)


def _out_size(input: Tensor, weight: Tensor, grid: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """Height and width of the output, as of an ordinary convolution."""
    height, width = (
        (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for n, kernel, stride, padding, dilation in zip(input.shape[2:], weight.shape[2:], *grid, strict=True)
    )
    return height, width


@torch.library.custom_op("mmdet3d::deform_conv", mutates_args=())
def _convolve(images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, numbers: list[int]) -> Tensor:
    """`numbers`: stride, padding, dilation (two each), groups, deformable groups."""
    tensors, filters = _laid_out(images, offset, mask), _filters(weight, numbers)
    b, _, height, width = offset.shape
    out = images.new_empty(b * height * width, weight.shape[0])
    with torch.autocast(images.device.type, enabled=False):
        for sizes in _chunks(images, offset, weight, numbers):
            _grouped(out, sizes).copy_(_products(_columns(sizes, tensors, filters), filters))
    return out.view(b, height, width, weight.shape[0]).permute(0, 3, 1, 2).contiguous()


@_convolve.register_fake
def _(images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, numbers: list[int]) -> Tensor:
    return images.new_empty(offset.shape[0], weight.shape[0], *offset.shape[2:])


@torch.library.custom_op("mmdet3d::deform_conv_backward", mutates_args=())
def _convolve_backward(
    grad_out: Tensor, images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, numbers: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_deterministic("deform_conv backward", images)
    tensors, filters = _laid_out(images, offset, mask), _filters(weight, numbers)
    grad_rows = grad_out.permute(0, 2, 3, 1).reshape(-1, weight.shape[0])
    grad_images, grad_offset, grad_filters = (
        torch.zeros_like(tensors[0]),
        torch.empty_like(tensors[1]),
        torch.zeros_like(filters),
    )
    grad_mask = None if tensors[2] is None else torch.empty_like(tensors[2])
    with torch.autocast(images.device.type, enabled=False):
        for sizes in _chunks(images, offset, weight, numbers):
            grad = _grouped(grad_rows, sizes)
            columns = _columns(sizes, tensors, filters)
            grad_filters += _outer_products(columns, grad)
            grad_columns = _products(grad, filters.mT, out=columns)
            grads = grad_images, grad_offset, grad_mask
            _kernels.call("convolution_gradient", *sizes, *tensors, grad_columns, *grads)
    grad_weight = grad_filters.view(numbers[6], *weight.shape[2:], weight.shape[1], -1).permute(0, 4, 3, 1, 2)
    grad_weight = grad_weight.reshape(weight.shape).contiguous()
    grad_images = grad_images.permute(0, 3, 1, 2).contiguous()
    return grad_images, grad_offset, grad_weight, offset.new_empty(0) if grad_mask is None else grad_mask


@_convolve_backward.register_fake
def _(
    grad_out: Tensor, images: Tensor, offset: Tensor, weight: Tensor, mask: Tensor | None, numbers: list[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, offset, weight = (t.new_empty(t.shape) for t in (images, offset, weight))
    return images, offset, weight, offset.new_empty(0) if mask is None else mask.new_empty(mask.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.numbers = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # once: under activation checkpointing they can be had a single time
    *grads, grad_mask = _convolve_backward(grad, *saved, ctx.numbers)
    return *grads, None if saved[3] is None else grad_mask, None


_convolve.register_autograd(_differentiate, setup_context=_save)


def _laid_out(images: Tensor, offset: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """As the kernels read them: channels last."""
    images = images.permute(0, 2, 3, 1).contiguous()
    return images, offset.contiguous(), None if mask is None else mask.contiguous()


def _filters(weight: Tensor, numbers: Sequence[int]) -> Tensor:
    """(G, K * C / G, O / G) from the weight (O, C / G, kh, kw)."""
    o, i, height, width = weight.shape
    groups = numbers[6]
    return weight.reshape(groups, o // groups, i, height * width).permute(0, 3, 2, 1).reshape(groups, -1, o // groups)


def _chunks(images: Tensor, offset: Tensor, weight: Tensor, numbers: Sequence[int]) -> Iterator[list[int]]:
    """The scalar arguments of the kernels, chunk by chunk; the last two are its first output pixel and their number."""
    sizes = [DTYPE_CODES[images.dtype], *images.shape[1:], *weight.shape[2:], *offset.shape[2:], *numbers]
    pixels = offset.shape[0] * offset.shape[2] * offset.shape[3]
    most = max(1, _CHUNK[images.device.type] // (images.shape[1] * weight.shape[2:].numel()))
    for first in range(0, pixels, most):
        yield [*sizes, first, min(most, pixels - first)]


def _grouped(rows: Tensor, sizes: Sequence[int]) -> Tensor:
    """View (G, rows of the chunk, O / G) of all rows (B * h' * w', O)."""
    groups, first, count = sizes[-4], *sizes[-2:]
    return rows[first : first + count].view(count, groups, -1).transpose(0, 1)


def _columns(sizes: Sequence[int], tensors: tuple[Tensor, Tensor, Tensor | None], filters: Tensor) -> Tensor:
    """(G, rows, K * C / G) samples that the taps of a chunk read."""
    columns = filters.new_empty(filters.shape[0], sizes[-1], filters.shape[1])
    _kernels.call("convolution_columns", *sizes, *tensors, columns)
    return columns


def _products(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """(G, rows, outputs) from `left` (G, rows, inputs) and `right` (G, inputs, outputs)."""
    if not _kernels.on_cpu(left):
        return torch.bmm(left, right, out=out)
    out = left.new_empty(*left.shape[:2], right.shape[2]) if out is None else out
    sizes = DTYPE_CODES[left.dtype], *left.shape, right.shape[2]
    _kernels.call("grouped_products", *sizes, left.contiguous(), right.contiguous(), out)
    return out


def _outer_products(left: Tensor, right: Tensor) -> Tensor:
    """(G, inputs, outputs), summed over the rows of `left` (G, rows, inputs) and `right` (G, rows, outputs)."""
    if not _kernels.on_cpu(left):
        return left.mT @ right
    out = left.new_empty(left.shape[0], left.shape[2], right.shape[2])
    sizes = DTYPE_CODES[left.dtype], *left.shape, right.shape[2]
    _kernels.call("grouped_outer_products", *sizes, left.contiguous(), right.contiguous(), out)
    return out
