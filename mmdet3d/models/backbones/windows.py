"""Cutting feature maps into attention windows.

Shapes: B images, h x w tokens of C channels, windows of M x M tokens, K windows an image.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["from_windows", "pad_to_multiple", "to_windows"]


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Zero-pad (B, C, H, W) right and bottom until `multiple` divides H and W."""
    height, width = x.shape[-2:]
    return F.pad(x, (0, -width % multiple, 0, -height % multiple))


def to_windows(x: Tensor, size: int) -> Tensor:
    """(B, h, w, C) to (B, K, M*M, C), windows and tokens row-major."""
    b, h, w, c = x.shape
    x = x.view(b, h // size, size, w // size, size, c).transpose(2, 3)
    return x.reshape(b, -1, size * size, c)


def from_windows(windows: Tensor, size: int, h: int, w: int) -> Tensor:
    """Inverse of `to_windows`."""
    b, _, _, c = windows.shape
    x = windows.view(b, h // size, w // size, size, size, c).transpose(2, 3)
    return x.reshape(b, h, w, c)
