"""Names and layouts of the original Swin checkpoints, translated to OpenMMLab's."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor

__all__ = ["convert_original", "fit_position_bias"]

_RENAMED = (
    ("layers.", "stages."),
    ("attn.", "attn.w_msa."),
    ("mlp.fc1.", "ffn.layers.0.0."),
    ("mlp.fc2.", "ffn.layers.1."),
    ("patch_embed.proj.", "patch_embed.projection."),
)


def convert_original(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the original Swin code under OpenMMLab's names, without the classifier.

    Patch merging is reordered too: the original concatenates the four neighbours as blocks of C channels
    (top-left, bottom-left, top-right, bottom-right), OpenMMLab interleaves them channel by channel, row-major.
    """
    converted = {}
    for key, value in weights.items():
        if key.startswith("head"):
            continue
        if "downsample.reduction" in key or "downsample.norm" in key:
            value = _interleave(value)
        for old, new in _RENAMED:
            key = key.replace(old, new)
        converted[key] = value
    return converted


def fit_position_bias(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Position-bias tables brought to the sizes in `own` by bicubic interpolation; all else unchanged."""
    fitted = dict(weights)
    for key, table in weights.items():
        target = own.get(key)
        if not key.endswith("relative_position_bias_table") or target is None or target.shape == table.shape:
            continue
        if target.shape[1] == table.shape[1]:
            fitted[key] = _resize_table(table, math.isqrt(len(target)))
    return fitted


def _interleave(value: Tensor) -> Tensor:
    """(..., 4C) from neighbour-major to channel-major."""
    blocks = value.view(*value.shape[:-1], 4, value.shape[-1] // 4)
    return blocks[..., [0, 2, 1, 3], :].transpose(-1, -2).reshape(value.shape)


def _resize_table(table: Tensor, side: int) -> Tensor:
    """(S*S, heads) to (side*side, heads)."""
    old = math.isqrt(len(table))
    image = table.T.reshape(1, -1, old, old)
    return F.interpolate(image, (side, side), mode="bicubic", align_corners=False).flatten(2)[0].T
