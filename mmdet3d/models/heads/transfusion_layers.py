"""The transformer decoder layer and the prediction branches of TransFusion. Tensors are (B, C, P) unless said."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["PredictionBranches", "TransformerDecoderLayer"]


class _PositionEmbedding(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.position_embedding_head = nn.Sequential(
            nn.Conv1d(2, channels, 1), nn.BatchNorm1d(channels), nn.ReLU(inplace=True), nn.Conv1d(channels, channels, 1)
        )

    def forward(self, positions: Tensor) -> Tensor:
        """(B, P, 2) cells to (B, P, C)."""
        with torch.autocast(positions.device.type, enabled=False):  # bfloat16 tells no two cells beyond 128 apart
            return self.position_embedding_head(positions.transpose(1, 2)).transpose(1, 2)


class TransformerDecoderLayer(nn.Module):
    """Self-attention among queries, cross-attention into the BEV, feed-forward; normalised after each (DETR).

    Keys and values carry the position embedding too.

    Args:
        channels: of queries and BEV.
        heads: of the attentions.
        hidden: channels of the feed-forward layer.
        dropout: probability, after every part and on attention weights.
    """

    def __init__(self, channels: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.multihead_attn = nn.MultiheadAttention(channels, heads, dropout, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(channels, hidden), nn.Linear(hidden, channels)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_posembed, self.cross_posembed = _PositionEmbedding(channels), _PositionEmbedding(channels)
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, bev: Tensor, query_position: Tensor, bev_position: Tensor) -> Tensor:
        """Refined queries (B, C, P).

        Args:
            query: (B, C, P).
            bev: (B, C, X * Y).
            query_position: (B, P, 2) cells.
            bev_position: (1, X * Y, 2) cells.
        """
        x = query.transpose(1, 2)
        place = self.self_posembed(query_position)
        memory = bev.transpose(1, 2) + self.cross_posembed(bev_position)
        own = x + place
        x = self.norm1(x + self.dropout(self.self_attn(own, own, own, need_weights=False)[0]))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + place, memory, memory, need_weights=False)[0]))
        x = self.norm3(x + self.dropout(self.linear2(self.dropout(F.relu(self.linear1(x))))))
        return x.transpose(1, 2)


class _ConvModule1d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm1d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class PredictionBranches(nn.Module):
    """Per quantity a small stack of pointwise convolutions: (B, C, P) to a dict of (B, c, P).

    Args:
        channels: of the queries.
        branches: per name (output channels, number of convolutions).
        init_bias: first bias of `heatmap`: the logit of an object's prior probability.
        hidden: channels between convolutions.
    """

    def __init__(
        self, channels: int, branches: Mapping[str, tuple[int, int]], init_bias: float, hidden: int = 64
    ) -> None:
        super().__init__()
        for name, (out_channels, convolutions) in branches.items():
            sizes = [channels] + [hidden] * (convolutions - 1)
            layers = [_ConvModule1d(a, b) for a, b in pairwise(sizes)]
            final = nn.Conv1d(sizes[-1], out_channels, 1)
            if name == "heatmap":
                assert final.bias is not None
                nn.init.constant_(final.bias, init_bias)
            self.add_module(name, nn.Sequential(*layers, final))

    def forward(self, query: Tensor) -> dict[str, Tensor]:
        return {name: branch(query) for name, branch in self.named_children()}


def xavier_init(module: nn.Module) -> None:
    """Xavier-uniform for every weight of two or more dimensions."""
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


def local_maxima(probability: Tensor, kernel: int, exempt: tuple[int, ...]) -> Tensor:
    """`probability` (B, K, X, Y) where it is the maximum of its `kernel` x `kernel` cells, else 0.

    Cells whose window leaves the map are 0, except in the classes `exempt`, which are returned unchanged.
    """
    border = kernel // 2
    highest = F.pad(F.max_pool2d(probability, kernel, stride=1), [border] * 4, value=2.0)
    keep = probability == highest
    keep[:, list(exempt)] = True
    return torch.where(keep, probability, 0)
