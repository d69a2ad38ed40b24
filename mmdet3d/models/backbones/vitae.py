"""ViTAEv2 (Zhang et al., IJCV 2023): a transformer of four stages with convolutions beside each attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from mmdet3d.models.backbones.pretrained import Pretrained, backbone_weights, load_fitting
from mmdet3d.models.backbones.vitae_cells import NORM_EPS, NormalCell, ReductionCell
from mmdet3d.models.layers import freeze
from mmdet3d.registry import MODELS

__all__ = ["ViTAEv2"]

_TYPES = ("window", "transformer")


class _Stage(nn.Module):
    def __init__(self, reduction: ReductionCell, cells: Sequence[NormalCell]) -> None:
        super().__init__()
        self.RC = reduction
        self.NC = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C, h, w)."""
        x = self.RC(x)
        for cell in self.NC:
            x = cell(x)
        return x.permute(0, 3, 1, 2)


@MODELS.register
class ViTAEv2(nn.Module):
    """Reduction and normal cells in stages; the defaults are ViTAEv2-S. Each list holds one entry per stage.

    Args:
        in_channels: image channels.
        stages: their number.
        RC_tokens_type, NC_tokens_type: attention of the reduction, the normal cells: `window` (without position bias
            or shift) or `transformer` (global).
        embed_dims: channels of each dilated convolution of a reduction cell.
        token_dims: channels of the stage.
        downsample_ratios: by which a stage lowers the resolution: 2, 4 or 8.
        kernels: of the dilated convolutions.
        dilations: of the dilated convolutions.
        NC_depth: number of normal cells.
        NC_heads, RC_heads: attention heads.
        NC_group, RC_group: groups of the parallel convolutions.
        window_size: side of an attention window, tokens.
        mlp_ratio: hidden width of the normal cells over their channels.
        qkv_bias: bias in the query/key/value projection.
        drop_rate, attn_drop_rate: dropout after projections, on attention.
        drop_path_rate: stochastic depth of the last normal cell; rises linearly from 0.
        published_drop_path: give stage i the rates from position `NC_depth[i - 1]` on instead of continuing, as the
            published training did.
        out_indices: which stages are returned, each through its own layer norm.
        frozen_stages: k freezes the first k stages; -1 and 0 freeze none.
        use_checkpoint: recompute attention and MLP in the backward pass to save memory.
        init_cfg: see `init_weights`.

    Raises:
        ValueError: lists of another length than `stages`, an unknown token type, heads or groups that do not divide
            the channels, bad ratios or indices.
    """

    def __init__(
        self,
        in_channels: int = 3,
        stages: int = 4,
        RC_tokens_type: Sequence[str] = ("window", "window", "transformer", "transformer"),
        NC_tokens_type: Sequence[str] = ("window", "window", "transformer", "transformer"),
        embed_dims: Sequence[int] = (64, 64, 128, 256),
        token_dims: Sequence[int] = (64, 128, 256, 512),
        downsample_ratios: Sequence[int] = (4, 2, 2, 2),
        kernels: Sequence[int] = (7, 3, 3, 3),
        dilations: Sequence[Sequence[int]] = ((1, 2, 3, 4), (1, 2, 3), (1, 2), (1, 2)),
        NC_depth: Sequence[int] = (2, 2, 8, 2),
        NC_heads: Sequence[int] = (1, 2, 4, 8),
        RC_heads: Sequence[int] = (1, 1, 2, 4),
        NC_group: Sequence[int] = (1, 32, 64, 128),
        RC_group: Sequence[int] = (1, 16, 32, 64),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.2,
        published_drop_path: bool = False,
        out_indices: Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        use_checkpoint: bool = False,
        init_cfg: Pretrained | None = None,
    ) -> None:
        super().__init__()
        per_stage = {
            "RC_tokens_type": RC_tokens_type, "NC_tokens_type": NC_tokens_type, "embed_dims": embed_dims,
            "token_dims": token_dims, "downsample_ratios": downsample_ratios, "kernels": kernels,
            "dilations": dilations, "NC_depth": NC_depth, "NC_heads": NC_heads, "RC_heads": RC_heads,
            "NC_group": NC_group, "RC_group": RC_group,
        }  # fmt: skip
        _check(stages, per_stage, in_channels, out_indices, frozen_stages)
        self._checkpoint = init_cfg.checkpoint if init_cfg else None
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        drop = {"qkv_bias": qkv_bias, "drop": drop_rate, "attn_drop": attn_drop_rate}
        drop_paths = _drop_paths(drop_path_rate, NC_depth, published_drop_path)
        self.layers = nn.ModuleList()
        for i in range(stages):
            reduction = ReductionCell(
                token_dims[i - 1] if i else in_channels,
                embed_dims[i],
                token_dims[i],
                downsample_ratios[i],
                kernels[i],
                dilations[i],
                window=window_size if RC_tokens_type[i] == "window" else None,
                heads=RC_heads[i],
                groups=RC_group[i],
                **drop,
            )
            cells = [
                NormalCell(
                    token_dims[i],
                    window=window_size if NC_tokens_type[i] == "window" else None,
                    heads=NC_heads[i],
                    groups=NC_group[i],
                    mlp_ratio=mlp_ratio,
                    drop_path=rate,
                    recompute=use_checkpoint,
                    **drop,
                )
                for rate in drop_paths[i]
            ]
            self.layers.append(_Stage(reduction, cells))
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.LayerNorm(token_dims[i], eps=NORM_EPS))
        self.apply(_initialise)
        self._freeze()

    def init_weights(self) -> None:
        """Load `init_cfg.checkpoint`, its averaged weights (`state_dict_ema`) if it has them; else do nothing.

        Output norms stay at 1 and 0 where the checkpoint has none, as a classification checkpoint.

        Raises:
            ValueError: the file is missing, a URL, or of another architecture.
        """
        if self._checkpoint is not None:
            load_fitting(self, backbone_weights(self._checkpoint, "ViTAEv2"), self._checkpoint)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised RGB of any size to a list of (B, C_i, h_i, w_i), one per entry of `out_indices`."""
        x = images
        outputs = []
        for i, stage in enumerate(self.layers):
            x = stage(x)
            if i in self.out_indices:
                norm = getattr(self, f"norm{i}")
                outputs.append(norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous())
        return outputs

    def train(self, mode: bool = True) -> ViTAEv2:
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        for i in range(self.frozen_stages):
            freeze(self.layers[i])
            if i in self.out_indices:
                freeze(getattr(self, f"norm{i}"))


def _drop_paths(rate: float, depths: Sequence[int], published: bool) -> list[list[float]]:
    """Stochastic depth of the cells of each stage."""
    total = sum(depths)
    rates = [rate * k / max(1, total - 1) for k in range(total)]
    starts = [(depths[i - 1] if published else sum(depths[:i])) if i else 0 for i in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check(
    stages: int,
    per_stage: Mapping[str, Sequence[Any]],
    in_channels: int,
    out_indices: Sequence[int],
    frozen_stages: int,
) -> None:
    for name, values in per_stage.items():
        if len(values) != stages:
            raise ValueError(f"ViTAEv2 needs one entry of {name} per stage: {stages} stages, {len(values)} entries")
    for name in ("RC_tokens_type", "NC_tokens_type"):
        for kind in per_stage[name]:
            if kind not in _TYPES:
                raise ValueError(f"ViTAEv2 {name} must be of {', '.join(_TYPES)}, got {kind!r}")
    for ratio in per_stage["downsample_ratios"]:
        if ratio not in (2, 4, 8):
            raise ValueError(f"ViTAEv2 downsample_ratios must be 2, 4 or 8, got {ratio}")
    before = (in_channels, *per_stage["token_dims"])
    for i in range(stages):
        token, embed = per_stage["token_dims"][i], per_stage["embed_dims"][i]
        _check_divides(i, "RC_heads", per_stage["RC_heads"][i], (token,))
        _check_divides(i, "NC_heads", per_stage["NC_heads"][i], (token,))
        _check_divides(i, "RC_group", per_stage["RC_group"][i], (before[i], embed, token))
        _check_divides(i, "NC_group", per_stage["NC_group"][i], (token,))
    if not out_indices or not all(0 <= i < stages for i in out_indices):
        raise ValueError(f"ViTAEv2 out_indices {list(out_indices)} must lie in 0..{stages - 1}")
    if not -1 <= frozen_stages <= stages:
        raise ValueError(f"ViTAEv2 frozen_stages must lie in -1..{stages}, got {frozen_stages}")


def _check_divides(stage: int, name: str, value: int, channels: Sequence[int]) -> None:
    for count in channels:
        if count % value:
            raise ValueError(f"ViTAEv2 stage {stage}: {name} {value} does not divide {count} channels")
