"""Readable twins: the soft rank by pooling adjacent violators, and the correlation of MonoSKD's Spearman term."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["isotonic", "soft_rank", "spearman_closed_form"]


def soft_rank(values: Tensor, strength: float, entropic: bool) -> Tensor:
    """See `mmdet3d.ops.soft_rank.soft_rank`; values (R, n)."""
    ordered, order = (values / strength).sort(dim=1, descending=True)
    rows = []
    for row in ordered:
        blocks = isotonic(row.detach().double().tolist(), entropic)
        parts = [_block(row[a:b], row.shape[0] - a, entropic) for a, b in blocks]
        rows.append(torch.cat(parts) if parts else row)
    ranks = torch.stack(rows) if rows else ordered
    return torch.empty_like(ranks).scatter(1, order, ranks)


def _block(values: Tensor, top: int, entropic: bool) -> Tensor:
    """The ranks of a block whose own ranks would be top, top - 1, ...: they share those ranks' sum."""
    count = len(values)
    total = count * (2 * top - count + 1) / 2
    if entropic:
        return values.double().softmax(0).to(values.dtype) * total
    return (values.double() - values.double().mean() + total / count).to(values.dtype)


def isotonic(ordered: list[float], entropic: bool) -> list[tuple[int, int]]:
    """Blocks of the isotonic regression of descending values minus their ranks n, n-1, ..., 1, by pooling.

    Args:
        ordered: values, largest first.
        entropic: pool by the logarithm of sums of exponentials instead of by means.

    Returns:
        Bounds [begin, end) of the blocks; the pooled value falls strictly from block to block.
    """
    n = len(ordered)
    blocks: list[tuple[int, float]] = []  # begin, pooled values: their sum or the log of the sum of their exponentials

    def level(begin: int, pooled: float, end: int) -> float:
        count = end - begin
        ranks = count * (2 * (n - begin) - count + 1) / 2
        return pooled - math.log(ranks) if entropic else (pooled - ranks) / count

    for i, value in enumerate(ordered):
        begin, pooled = i, value
        while blocks and level(*blocks[-1], begin) <= level(begin, pooled, i + 1):
            begin, earlier = blocks.pop()
            if entropic:
                high, low = max(earlier, pooled), min(earlier, pooled)
                pooled = high + math.log1p(math.exp(low - high))
            else:
                pooled += earlier
        blocks.append((begin, pooled))
    return [(b, e) for (b, _), e in zip(blocks, [*(b for b, _ in blocks[1:]), n], strict=False)]


def spearman_closed_form(student: Tensor, teacher: Tensor) -> Tensor:
    """See `mmdet3d.ops.soft_rank.spearman_closed_form`."""
    student = student - student.mean()
    teacher = teacher - teacher.mean(dim=1, keepdim=True)
    norms = student.norm().clamp(min=1e-8) * teacher.norm().clamp(min=1e-8)
    return (student * teacher).sum() / norms
