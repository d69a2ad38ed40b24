"""Readable twin of multi-scale deformable attention. B batch, S pixels of all levels, M heads, C channels of a head,
Q queries, L levels, P points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["multi_scale_deformable_attention"]


def multi_scale_deformable_attention(
    value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """See `mmdet3d.ops.deform_attn.multi_scale_deformable_attention`; dtypes are equal and at least float32 here."""
    b, _, m, c = value.shape
    _, q, _, _, p, _ = locations.shape
    # -1 and 2 are as far outside as anything, and finite.
    grids = 2 * locations.nan_to_num(nan=-1.0).clamp(-1, 2) - 1
    out = value.new_zeros(b * m, c, q)
    levels = value.split([h * w for h, w in shapes], dim=1)
    for level, ((h, w), pixels) in enumerate(zip(shapes, levels, strict=True)):
        image = pixels.permute(0, 2, 3, 1).reshape(b * m, c, h, w)
        grid = grids[:, :, :, level].transpose(1, 2).reshape(b * m, q, p, 2)
        sampled = F.grid_sample(
            image, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )  # (BM, C, Q, P)
        weight = weights[:, :, :, level].transpose(1, 2).reshape(b * m, 1, q, p)
        out = out + (sampled * weight).sum(-1)
    return torch.reshape(out.view(b, m, c, q).permute(0, 3, 1, 2), (b, q, m * c))
