"""Layers that learn where to read: deformable convolutions and deformable attention, named as published checkpoints."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.ops.deform_attn import multi_scale_deformable_attention
from mmdet3d.ops.deform_conv import deform_conv2d

__all__ = ["DeformConv", "ModulatedDeformConv", "MultiScaleDeformableAttention"]


class _DeformConv(nn.Module):
    """A weight, and an ordinary convolution that says, at first with zeros, `per_tap` numbers of each tap."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        padding: int,
        dilation: int,
        groups: int,
        deform_groups: int,
        per_tap: int,
    ) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deform_groups = groups, deform_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        offsets = per_tap * deform_groups * kernel_size**2
        self.conv_offset = nn.Conv2d(in_channels, offsets, kernel_size, stride, padding, dilation)
        nn.init.zeros_(self.conv_offset.weight)
        assert self.conv_offset.bias is not None
        nn.init.zeros_(self.conv_offset.bias)

    def _convolve(self, x: Tensor, offset: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
        grid = self.stride, self.padding, self.dilation
        return deform_conv2d(x, offset, self.weight, bias, mask, *grid, self.groups, self.deform_groups)


class DeformConv(_DeformConv):
    """Deformable convolution without bias that predicts its own offsets (Dai et al., ICCV 2017; mmcv's "DCN").

    Maps (B, in_channels, H, W) to (B, out_channels, h', w') as `nn.Conv2d` of the same arguments does, and equals it
    until `conv_offset` has learned. Kaiming-uniform.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups: as of `nn.Conv2d`, square.
        deform_groups: groups of channels with offsets of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, per_tap=2
        )
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self._convolve(x, self.conv_offset(x), bias=None, mask=None)


class ModulatedDeformConv(_DeformConv):
    """Deformable convolution that also scales its taps (Zhu et al., CVPR 2019; mmcv's "DCNv2").

    Maps (B, in_channels, H, W) to (B, out_channels, h', w'). `conv_offset` predicts the offsets of all taps, then the
    logits of their scales, so an untrained layer has half the taps of a convolution. Uniform within 1 / sqrt(fan in).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of `nn.Conv2d`, square.
        deform_groups: groups of channels with offsets and scales of their own.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, deform_groups, per_tap=3
        )
        bound = 1 / math.sqrt(in_channels * kernel_size**2)
        nn.init.uniform_(self.weight, -bound, bound)
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        numbers = self.conv_offset(x)
        taps = numbers.shape[1] // 3
        offset, logits = numbers.split([2 * taps, taps], dim=1)
        return self._convolve(x, offset, self.bias, logits.sigmoid())


class MultiScaleDeformableAttention(nn.Module):
    """Attention of queries to a few learned places of feature maps (Zhu et al., "Deformable DETR", ICLR 2021).

    Args:
        channels: C, a multiple of `heads`.
        levels: L feature maps.
        heads: M, each with its own C / M channels.
        points: places per head and level. At first they lie 1 to `points` pixels from the reference point, in one of M
            directions, and count alike.

    Raises:
        ValueError: channels that cannot be divided so.
    """

    def __init__(self, channels: int, levels: int = 4, heads: int = 8, points: int = 4) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(
                f"MultiScaleDeformableAttention cannot divide {channels} channels among {heads} heads of equal width"
            )
        self.levels, self.heads, self.points = levels, heads, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        self._initialise()

    def _initialise(self) -> None:
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1, self.points + 1)[:, None]
        offsets = (directions[:, None, None] * steps).expand(-1, self.levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for zero in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(zero)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: Tensor, reference: Tensor, value: Tensor, shapes: Sequence[tuple[int, int]]) -> Tensor:
        """What the queries gather.

        Args:
            query: (B, Q, C).
            reference: (B, Q, L, 2) x and y of the query in each level, from 0 to 1 over its width and height.
            value: (B, S, C) pixels of all levels, row-major, one level after the other.
            shapes: height and width of each level.

        Returns:
            (B, Q, C).
        """
        extents = reference.new_tensor([(w, h) for h, w in shapes])[:, None]  # (L, 1, 2)
        offsets = self.sampling_offsets(query).unflatten(-1, (self.heads, self.levels, self.points, 2))
        locations = reference[:, :, None, :, None] + offsets / extents
        weights = self.attention_weights(query).unflatten(-1, (self.heads, self.levels * self.points)).softmax(-1)
        weights = weights.unflatten(-1, (self.levels, self.points))
        heads = self.value_proj(value).unflatten(-1, (self.heads, -1))
        return self.output_proj(multi_scale_deformable_attention(heads, shapes, locations, weights))
