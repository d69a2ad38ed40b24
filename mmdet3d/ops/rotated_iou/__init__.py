"""Intersection over union of boxes that are rotated about the vertical axis.

Compiled kernels clip in float64 whatever the inputs are. Where a gradient is asked for, the PyTorch twin runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.native import DTYPE_CODES, Kernels, setting
from mmdet3d.ops.rotated_iou import reference

__all__ = ["paired_rotated_iou", "rotated_iou", "rotated_iou_3d"]

_kernels = Kernels("rotated_iou")
_BOX_NUMBERS = 11  # float64 numbers that the CUDA kernels keep of a box (csrc/iou.h)


def rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of rotated rectangles on the ground plane.

    Args:
        first: (N, 5) x, y, length, width in metres, yaw in radians counter-clockwise from +x.
        second: (M, 5).

    Returns:
        (N, M) in [0, 1], at least float32; 0 where both rectangles are empty. Differentiable almost everywhere.

    Raises:
        ValueError: another shape.
    """
    check_shapes(first=(first, "N 5"), second=(second, "M 5"))
    first, second = _alike(first, second)
    if not _takes_kernels(first, second):
        return reference.rotated_iou(first, second)
    return _iou(first, second, False)


def rotated_iou_3d(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes in space.

    Args:
        first: (N, 7) x, y, z of the gravity centre, length, width, height in metres, yaw in radians counter-clockwise.
        second: (M, 7).

    Returns:
        (N, M) in [0, 1], at least float32. Differentiable almost everywhere.

    Raises:
        ValueError: another shape (of `Boxes3D` pass `tensor[:, :7]`).
    """
    check_shapes(first=(first, "N 7"), second=(second, "M 7"))
    first, second = _alike(first, second)
    if not _takes_kernels(first, second):
        return reference.rotated_iou_3d(first, second)
    return _iou(first, second, False)


def paired_rotated_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU on the ground plane of rectangle i of `first` and rectangle i of `second`.

    Many frames, whose boxes meet only within a frame, are compared in one call this way.

    Args:
        first: (P, 5) x, y, length, width in metres, yaw in radians counter-clockwise from +x.
        second: (P, 5).

    Returns:
        (P,) in [0, 1], at least float32. Differentiable almost everywhere.

    Raises:
        ValueError: another shape.
    """
    check_shapes(first=(first, "P 5"), second=(second, "P 5"))
    first, second = _alike(first, second)
    if not _takes_kernels(first, second):
        return reference.paired_rotated_iou(first, second)
    return _iou(first, second, True)


def _takes_kernels(first: Tensor, second: Tensor) -> bool:
    differentiated = torch.is_grad_enabled() and (first.requires_grad or second.requires_grad)
    return not differentiated and _kernels.available(first)


def _alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, at least float32: half precision does not resolve a car at 50 m."""
    dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
    return first.to(dtype), second.to(dtype)


@torch.library.custom_op("mmdet3d::rotated_iou", mutates_args=())
def _iou(first: Tensor, second: Tensor, paired: bool) -> Tensor:
    first, second = first.contiguous(), second.contiguous()
    (n, columns), m = first.shape, len(second)
    dtype, space = DTYPE_CODES[first.dtype], columns == 7
    if paired:
        out = first.new_empty(n)
        _kernels.call("iou_rows", dtype, n, space, first, second, out)
        return out
    out = first.new_empty(n, m)
    if first.is_cuda or setting() == "emulated":
        scratch = first.new_empty(n + m, _BOX_NUMBERS, dtype=torch.float64)
        _kernels.call("iou_pairs", dtype, n, m, space, first, second, out, scratch)
    else:
        _kernels.call("iou_pairs", dtype, n, m, space, first, second, out)
    return out


@_iou.register_fake
def _(first: Tensor, second: Tensor, paired: bool) -> Tensor:
    return first.new_empty(first.shape[:1] if paired else (first.shape[0], second.shape[0]))
