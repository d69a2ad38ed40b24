"""The two cells of ViTAEv2, with the published parameter names.

A reduction cell lowers the resolution: convolutions of several dilations (PRM, pyramid reduction) make tokens for an
attention, beside plain convolutions (PCM, parallel convolutions). A normal cell is a transformer block with a PCM.

Shapes: B images, h x w tokens of C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet3d.models.backbones.windows import from_windows, pad_to_multiple, to_windows
from mmdet3d.models.layers import DropPath

__all__ = ["NORM_EPS", "NormalCell", "ReductionCell"]

NORM_EPS = 1e-6


class ReductionCell(nn.Module):
    """(B, C_in, H, W) to tokens (B, ceil(H / ratio), ceil(W / ratio), channels).

    Args:
        in_channels: of the map.
        embed: channels of each dilated convolution.
        channels: of the tokens.
        ratio: by which the resolution falls, 2, 4 or 8; sizes it does not divide are zero-padded.
        kernel: of the dilated convolutions.
        dilations: one convolution each.
        window: side of the attention windows; None attends globally and adds the values to the result.
        heads: of the attention.
        groups: of the parallel convolutions.
        qkv_bias: bias of the query/key/value projection of window attention; global attention has none here.
        drop, attn_drop: dropout after projections, on attention.
    """

    def __init__(
        self,
        in_channels: int,
        embed: int,
        channels: int,
        ratio: int,
        kernel: int,
        dilations: Sequence[int],
        window: int | None,
        heads: int,
        groups: int,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
    ) -> None:
        super().__init__()
        self.ratio = ratio
        halvings = int(math.log2(ratio))
        strides = (2,) * halvings + (1,) * (3 - halvings)
        self.PCM = _parallel_convolutions((in_channels, embed, embed, channels), strides, groups)
        self.PRM = _PyramidReduction(in_channels, embed, ratio, kernel, dilations)
        self.attn = _ReductionAttention(
            embed * len(dilations), channels, window, heads, qkv_bias and window is not None, drop, attn_drop
        )

    def forward(self, x: Tensor) -> Tensor:
        x = pad_to_multiple(x, self.ratio)
        return self.attn(self.PRM(x), _to_tokens(self.PCM(x)))


class NormalCell(nn.Module):
    """(B, h, w, C) to the same shape: y = x + attention(LN(x)) + PCM(x), then y + MLP(LN(y)).

    Args:
        channels: C.
        window: side of the attention windows; None attends globally.
        heads: of the attention.
        groups: of the parallel convolutions.
        mlp_ratio: width of the MLP and of the first parallel convolution over `channels`.
        qkv_bias: bias of the query/key/value projection.
        drop, attn_drop: dropout after projections, on attention.
        drop_path: stochastic depth of each of the three branches.
        recompute: compute attention and MLP again in the backward pass to save memory. The convolutions are not, so
            that their batch norm sees each batch once.
    """

    def __init__(
        self,
        channels: int,
        window: int | None,
        heads: int,
        groups: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        drop_path: float,
        recompute: bool,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * channels)
        self.recompute = recompute
        self.norm1 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.attn = _Attention(channels, channels, window, heads, qkv_bias, drop, attn_drop)
        self.norm2 = nn.LayerNorm(channels, eps=NORM_EPS)
        self.mlp = _MLP(channels, hidden, drop)
        self.PCM = _parallel_convolutions((channels, hidden, channels, channels), (1, 1, 1), groups)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        convolved = _to_tokens(self.PCM(x.permute(0, 3, 1, 2)))
        x = x + self._run(self._attend, x) + self.drop_path(convolved)
        return x + self._run(self._feed, x)

    def _attend(self, x: Tensor) -> Tensor:
        return self.drop_path(self.attn(self.norm1(x)))

    def _feed(self, x: Tensor) -> Tensor:
        return self.drop_path(self.mlp(self.norm2(x)))

    def _run(self, branch: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.recompute and x.requires_grad:
            return checkpoint(branch, x, use_reentrant=False)
        return branch(x)


class _PyramidReduction(nn.Module):
    """Strided convolutions of several dilations side by side, each followed by GELU."""

    def __init__(self, in_channels: int, embed: int, ratio: int, kernel: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        for dilation in dilations:
            padding = math.ceil(((kernel - 1) * dilation + 1 - ratio) / 2)
            conv = nn.Conv2d(in_channels, embed, kernel, ratio, padding, dilation)
            self.convs.append(nn.Sequential(conv, nn.GELU()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), sizes divisible by the ratio, to (B, H / ratio, W / ratio, dilations * embed)."""
        return _to_tokens(torch.cat([conv(x) for conv in self.convs], dim=1))


class _ReductionAttention(nn.Module):
    """Attention that changes the number of channels, so without a skip; then the convolved tokens, then an MLP."""

    def __init__(
        self, in_channels: int, channels: int, window: int | None, heads: int, qkv_bias: bool, drop: float, attn: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(in_channels)
        self.attn = _Attention(in_channels, channels, window, heads, qkv_bias, drop, attn, add_values=window is None)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _MLP(channels, channels, drop)

    def forward(self, x: Tensor, convolved: Tensor) -> Tensor:
        """(B, h, w, C_in) and (B, h, w, C) to (B, h, w, C)."""
        x = self.attn(self.norm1(x)) + convolved
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Self-attention over a map or inside its windows, without position bias.

    Maps that windows do not tile are zero-padded on all sides, one more at the bottom and right where it is odd. With
    `add_values` the values, unweighted, are added to the result.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        window: int | None,
        heads: int,
        qkv_bias: bool,
        drop: float,
        attn_drop: float,
        add_values: bool = False,
    ) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.attn_drop = attn_drop
        self.add_values = add_values
        self.qkv = nn.Linear(in_channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C_in) to (B, h, w, C)."""
        b, h, w, _ = x.shape
        if self.window is None:
            return self._attend(x.flatten(1, 2)[:, None]).view(b, h, w, -1)
        below, right = -h % self.window, -w % self.window
        top, left = below // 2, right // 2
        x = F.pad(x, (0, 0, left, right - left, top, below - top))
        padded_h, padded_w = x.shape[1:3]
        x = from_windows(self._attend(to_windows(x, self.window)), self.window, padded_h, padded_w)
        return x[:, top : top + h, left : left + w]

    def _attend(self, x: Tensor) -> Tensor:
        """(B, K, T, C_in) to (B, K, T, C), each of the K groups on its own."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 1, 4, 2, 5)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        y = self.proj_drop(self.proj(y.transpose(2, 3).flatten(3)))
        return y + v.transpose(2, 3).flatten(3) if self.add_values else y


class _MLP(nn.Module):
    def __init__(self, channels: int, hidden: int, drop: float) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc2(self.drop(F.gelu(self.fc1(x)))))


def _parallel_convolutions(channels: Sequence[int], strides: Sequence[int], groups: int) -> nn.Sequential:
    """PCM: three grouped 3x3 convolutions, batch norm and SiLU between them. `channels` are the four widths."""
    convs = [
        nn.Conv2d(a, b, 3, stride, padding=1, groups=groups)
        for a, b, stride in zip(channels[:-1], channels[1:], strides, strict=True)
    ]
    norms = [nn.BatchNorm2d(c) for c in channels[1:3]]
    return nn.Sequential(convs[0], norms[0], nn.SiLU(), convs[1], norms[1], nn.SiLU(), convs[2])


def _to_tokens(x: Tensor) -> Tensor:
    """(B, C, h, w) to (B, h, w, C)."""
    return x.permute(0, 2, 3, 1)
