"""Swin Transformer (Liu et al., ICCV 2021) with OpenMMLab's parameter names.

Shapes: B images, h x w tokens of C channels, windows of M x M tokens, K windows an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmdet3d.models.backbones.pretrained import Pretrained, backbone_weights, load_fitting
from mmdet3d.models.backbones.swin_weights import convert_original, fit_position_bias
from mmdet3d.models.backbones.windows import from_windows, pad_to_multiple, to_windows
from mmdet3d.models.layers import DropPath, freeze
from mmdet3d.registry import MODELS

__all__ = ["SwinTransformer"]

_MASKED = -100.0


def _shift_mask(h: int, w: int, size: int, shift: int, device: torch.device) -> Tensor:
    """(K, M*M, M*M): -100 between tokens of a shifted window that are not neighbours in the image."""

    def bands(length: int) -> Tensor:
        position = torch.arange(length, device=device)
        return (position >= length - size).long() + (position >= length - shift)

    regions = 3 * bands(h)[:, None] + bands(w)[None]
    regions = to_windows(regions[None, :, :, None], size)[0, :, :, 0]
    return (regions[:, :, None] != regions[:, None]).float() * _MASKED


class _WindowAttention(nn.Module):
    """Self-attention inside windows with a learned bias for each relative position."""

    relative_position_index: Tensor

    def __init__(
        self, channels: int, heads: int, size: int, qkv_bias: bool, scale: float | None, attn_drop: float, drop: float
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = scale
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * size - 1) ** 2, heads))
        position = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        offset = position[:, :, None] - position[:, None] + size - 1
        self.register_buffer("relative_position_index", offset[0] * (2 * size - 1) + offset[1])
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(drop)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, K, M*M, C) to the same shape; `mask` (K, M*M, M*M) is added to the attention logits."""
        b, k, t, c = x.shape
        q, key, v = self.qkv(x).view(b, k, t, 3, self.heads, c // self.heads).permute(3, 0, 1, 4, 2, 5)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]
        if mask is not None:
            bias = bias + mask[:, None]
        x = F.scaled_dot_product_attention(
            q, key, v, bias.to(q.dtype), dropout_p=self.attn_drop if self.training else 0.0, scale=self.scale
        )
        return self.proj_drop(self.proj(x.transpose(2, 3).reshape(b, k, t, c)))


class _ShiftedWindowAttention(nn.Module):
    """Window attention on a map, which is padded to whole windows and rolled by `shift`."""

    def __init__(self, channels: int, heads: int, size: int, shift: int, drop_path: float, **attention: Any) -> None:
        super().__init__()
        self.size = size
        self.shift = shift
        self.w_msa = _WindowAttention(channels, heads, size, **attention)
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to the same shape."""
        h, w = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -w % self.size, 0, -h % self.size))
        padded_h, padded_w = x.shape[1:3]
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = _shift_mask(padded_h, padded_w, self.size, self.shift, x.device)
        x = from_windows(self.w_msa(to_windows(x, self.size), mask), self.size, padded_h, padded_w)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return self.drop(x[:, :h, :w])


class _FeedForward(nn.Module):
    def __init__(self, channels: int, hidden: int, drop: float, drop_path: float) -> None:
        super().__init__()
        expand = nn.Sequential(nn.Linear(channels, hidden), nn.GELU(), nn.Dropout(drop))
        self.layers = nn.Sequential(expand, nn.Linear(hidden, channels), nn.Dropout(drop))
        self.drop = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.layers(x))


class _Block(nn.Module):
    def __init__(
        self, channels: int, heads: int, hidden: int, drop: float, drop_path: float, with_cp: bool, **attention: Any
    ) -> None:
        super().__init__()
        self.with_cp = with_cp
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _ShiftedWindowAttention(channels, heads, drop=drop, drop_path=drop_path, **attention)
        self.norm2 = nn.LayerNorm(channels)
        self.ffn = _FeedForward(channels, hidden, drop, drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to the same shape."""
        if self.with_cp and x.requires_grad:
            return checkpoint(self._run, x, use_reentrant=False)
        return self._run(x)

    def _run(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class _PatchMerging(nn.Module):
    """Halve the resolution, double the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) to (B, ceil(h / 2), ceil(w / 2), 2C); odd sizes are zero-padded."""
        # pixel_unshuffle orders channels as c * 4 + row * 2 + column, the order of OpenMMLab's checkpoints
        x = F.pixel_unshuffle(pad_to_multiple(x.permute(0, 3, 1, 2), 2), 2)
        return self.reduction(self.norm(x.permute(0, 2, 3, 1)))


class _Stage(nn.Module):
    def __init__(self, blocks: Sequence[_Block], downsample: _PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, C) to the input of the next stage and the output of this one."""
        for block in self.blocks:
            x = block(x)
        return (x if self.downsample is None else self.downsample(x)), x


class _PatchEmbed(nn.Module):
    def __init__(self, in_channels: int, channels: int, patch_size: int, norm: bool) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, h, w, C), h = ceil(H / patch_size)."""
        return self.norm(self.projection(pad_to_multiple(images, self.patch_size)).permute(0, 2, 3, 1))


@MODELS.register
class SwinTransformer(nn.Module):
    """Hierarchical vision transformer with shifted windows; the defaults are Swin-T.

    Args:
        in_channels: image channels.
        embed_dims: channels of the first stage; stage i has `embed_dims * 2**i`.
        patch_size: side of a token of the first stage, pixels.
        window_size: side of an attention window, tokens.
        mlp_ratio: hidden width of the feed-forward layers over their channels.
        depths, num_heads: blocks and attention heads of each stage.
        qkv_bias: bias in the query/key/value projection.
        qk_scale: scale of the attention logits; None is `head_dim ** -0.5`.
        drop_rate, attn_drop_rate: dropout after projections, on attention.
        drop_path_rate: stochastic depth of the last block; rises linearly from 0.
        patch_norm: layer norm after patch embedding.
        out_indices: which stages are returned, each through its own layer norm; stage i has stride 4 * 2**i.
        frozen_stages: -1 trains all; 0 freezes the patch embedding; k freezes it and the first k stages.
        with_cp: recompute blocks in the backward pass to save memory.
        convert_weights: translate the names of the original Swin checkpoints when loading one.
        init_cfg: see `init_weights`.

    Raises:
        ValueError: depths and heads of different lengths, heads that do not divide the channels, bad indices.
    """

    def __init__(
        self,
        in_channels: int = 3,
        embed_dims: int = 96,
        patch_size: int = 4,
        window_size: int = 7,
        mlp_ratio: float = 4,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
        patch_norm: bool = True,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        with_cp: bool = False,
        convert_weights: bool = False,
        init_cfg: Pretrained | None = None,
    ) -> None:
        super().__init__()
        _check(embed_dims, depths, num_heads, out_indices, frozen_stages)
        self._checkpoint = init_cfg.checkpoint if init_cfg else None
        self.convert_weights = convert_weights
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.patch_embed = _PatchEmbed(in_channels, embed_dims, patch_size, patch_norm)
        self.drop_after_pos = nn.Dropout(drop_rate)
        drop_paths = [drop_path_rate * k / max(1, sum(depths) - 1) for k in range(sum(depths))]
        self.stages = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            channels = embed_dims * 2**i
            blocks = [
                _Block(
                    channels,
                    heads,
                    hidden=int(mlp_ratio * channels),
                    drop=drop_rate,
                    drop_path=drop_paths.pop(0),
                    with_cp=with_cp,
                    size=window_size,
                    shift=window_size // 2 if j % 2 else 0,
                    qkv_bias=qkv_bias,
                    scale=qk_scale,
                    attn_drop=attn_drop_rate,
                )
                for j in range(depth)
            ]
            self.stages.append(_Stage(blocks, _PatchMerging(channels) if i < len(depths) - 1 else None))
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(embed_dims * 2**i))
        self.apply(_initialise)
        self._freeze()

    def init_weights(self) -> None:
        """Load `init_cfg.checkpoint`; without `init_cfg` do nothing.

        Position-bias tables of another window size are resized. The output norms stay at 1 and 0, as a classification
        checkpoint has none.

        Raises:
            ValueError: the file is missing, a URL, or of another architecture.
        """
        if self._checkpoint is None:
            return
        weights = backbone_weights(self._checkpoint, "SwinTransformer")
        original = any(k.startswith("layers.") for k in weights)
        if original and not self.convert_weights:
            raise ValueError(f"{self._checkpoint} has the names of the original Swin code; set convert_weights: true")
        if original:
            weights = convert_original(weights)
        load_fitting(self, fit_position_bias(weights, self.state_dict()), self._checkpoint)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised RGB of any size to a list of (B, C_i, h_i, w_i), one per entry of `out_indices`."""
        x = self.drop_after_pos(self.patch_embed(images))
        outputs = []
        for i, stage in enumerate(self.stages):
            x, output = stage(x)
            if i in self.out_indices:
                outputs.append(getattr(self, f"norm{i}")(output).permute(0, 3, 1, 2).contiguous())
        return outputs

    def train(self, mode: bool = True) -> SwinTransformer:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            freeze(self.patch_embed)
            self.drop_after_pos.eval()
        for i in range(self.frozen_stages):
            freeze(self.stages[i])
            if i in self.out_indices:
                freeze(getattr(self, f"norm{i}"))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, _WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)


def _check(
    embed_dims: int, depths: Sequence[int], num_heads: Sequence[int], out_indices: Sequence[int], frozen_stages: int
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(
            f"SwinTransformer needs one entry of num_heads per stage: {len(depths)} depths, {len(num_heads)} heads"
        )
    for i, heads in enumerate(num_heads):
        if embed_dims * 2**i % heads:
            raise ValueError(f"SwinTransformer stage {i}: {heads} heads do not divide {embed_dims * 2**i} channels")
    if not out_indices or not all(0 <= i < len(depths) for i in out_indices):
        raise ValueError(f"SwinTransformer out_indices {list(out_indices)} must lie in 0..{len(depths) - 1}")
    if not -1 <= frozen_stages <= len(depths):
        raise ValueError(f"SwinTransformer frozen_stages must lie in -1..{len(depths)}, got {frozen_stages}")
