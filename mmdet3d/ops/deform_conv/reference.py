"""Readable twin of deformable convolution. B batch, C channels, G groups, D deformable groups, K taps of the kernel."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["deform_conv2d"]


def deform_conv2d(
    images: Tensor,
    offset: Tensor,
    weight: Tensor,
    mask: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """See `mmdet3d.ops.deform_conv.deform_conv2d`; dtypes are equal and at least float32 here."""
    b, c, h, w = images.shape
    kernel, size = weight.shape[2:], offset.shape[2:]
    k = kernel.numel()
    y, x = offset.reshape(b, deform_groups, k, 2, *size).unbind(3)  # (B, D, K, h', w')
    y = y + _regular(kernel[0], size[0], stride[0], padding[0], dilation[0], y)[:, None, :, None].expand(
        -1, kernel[1], -1, -1
    ).reshape(k, -1, 1)
    x = x + _regular(kernel[1], size[1], stride[1], padding[1], dilation[1], x)[None, :, None].expand(
        kernel[0], -1, -1, -1
    ).reshape(k, 1, -1)
    samples = _bilinear(images.reshape(b, deform_groups, c // deform_groups, h * w), y, x, h, w)
    if mask is not None:
        samples = samples * mask.reshape(b, deform_groups, 1, k, *size)
    columns = samples.reshape(b, groups, c // groups * k, size.numel())
    filters = weight.reshape(groups, weight.shape[0] // groups, c // groups * k)
    return torch.einsum("gok,bgkl->bgol", filters, columns).reshape(b, weight.shape[0], *size)


def _regular(kernel: int, size: int, stride: int, padding: int, dilation: int, like: Tensor) -> Tensor:
    """(kernel, size) coordinates that an ordinary convolution reads along one axis."""
    taps, places = (torch.arange(n, device=like.device, dtype=like.dtype) for n in (kernel, size))
    return taps[:, None] * dilation + places * stride - padding


def _bilinear(pixels: Tensor, y: Tensor, x: Tensor, h: int, w: int) -> Tensor:
    """Samples (B, D, C, K, h', w') of pixels (B, D, C, h * w) at y, x (B, D, K, h', w'); zeros outside the image."""
    inside = (y > -1) & (y < h) & (x > -1) & (x < w)
    y, x = y.where(inside, 0), x.where(inside, 0)
    down, right = y - y.floor(), x - x.floor()
    samples = pixels.new_zeros(*pixels.shape[:3], *y.shape[2:])
    for lower, vertical in enumerate((1 - down, down)):
        for later, horizontal in enumerate((1 - right, right)):
            row, column = y.floor().long() + lower, x.floor().long() + later
            present = inside & (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = row.clamp(0, h - 1) * w + column.clamp(0, w - 1)
            index = index.flatten(2)[:, :, None].expand(-1, -1, pixels.shape[2], -1)
            corner = pixels.gather(3, index).view_as(samples)
            samples = samples + corner.where(present[:, :, None], 0) * (vertical * horizontal)[:, :, None]
    return samples
