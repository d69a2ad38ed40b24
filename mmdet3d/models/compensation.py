"""Geometry compensation: a map whose geometry is uncertain gathers features from where they belong (SimDistill)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.models.deformable import MultiScaleDeformableAttention
from mmdet3d.registry import MODELS

__all__ = ["GeometryCompensation"]


@MODELS.register
class GeometryCompensation(nn.Module):
    """Deformable self-attention over one map, added to the map (SimDistill, AAAI 2024; GCM).

    Every cell asks with its feature plus a learned embedding of its place, and samples `points` places per head around
    its own. Runs in float32, also under autocast: half precision places a sample with an error of a tenth of a cell.

    Args:
        channels: C, even and a multiple of `heads`.
        size: of the map, (H, W) cells; any two axes, image rows and columns or BEV x and y.
        heads: attention heads.
        points: samples per head. At first they reach `points` cells far, one direction per head.
        legacy_reference_points: sample around the upper left corner of a cell instead of its centre, as the published
            program does (it truncates the half cell); for weights that were trained with it.

    Raises:
        ValueError: channels that cannot be divided so.
    """

    def __init__(
        self,
        channels: int,
        size: Sequence[int],
        heads: int = 8,
        points: int = 20,
        legacy_reference_points: bool = False,
    ) -> None:
        super().__init__()
        if channels % 2 or channels % heads:
            raise ValueError(
                f"GeometryCompensation needs an even number of channels, a multiple of {heads} heads, got {channels}"
            )
        self.size = (int(size[0]), int(size[1]))
        self.row_embed = nn.Embedding(self.size[0], channels // 2)
        self.column_embed = nn.Embedding(self.size[1], channels // 2)
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.column_embed.weight)
        self.attention = MultiScaleDeformableAttention(channels, levels=1, heads=heads, points=points)
        self.reference: Tensor
        offset = 0.0 if legacy_reference_points else 0.5
        self.register_buffer("reference", _reference_points(*self.size, offset), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape, float32.

        Raises:
            ValueError: a map of another size.
        """
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(
                f"GeometryCompensation was built for maps of {self.size}, but is given {tuple(x.shape[-2:])}"
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x if x.dtype == torch.float64 else x.float()
            cells = x.flatten(2).transpose(1, 2)
            reference = self.reference.to(cells).expand(len(x), -1, -1, -1)
            gathered = self.attention(cells + self.position(), reference, cells, [self.size])
            return x + gathered.transpose(1, 2).unflatten(2, self.size)

    def position(self) -> Tensor:
        """(H * W, C): the first half of a cell's embedding is that of its column, the second that of its row."""
        height, width = self.size
        column = self.column_embed.weight.expand(height, -1, -1)
        row = self.row_embed.weight[:, None].expand(-1, width, -1)
        return torch.cat([column, row], dim=-1).flatten(0, 1)


def _reference_points(height: int, width: int, offset: float) -> Tensor:
    """(1, H * W, 1, 2): x and y of every cell, `offset` cells from its upper left corner, as fractions of the map."""
    y, x = torch.meshgrid(
        (torch.arange(height) + offset) / height, (torch.arange(width) + offset) / width, indexing="ij"
    )
    return torch.stack([x, y], dim=-1).view(1, height * width, 1, 2)
