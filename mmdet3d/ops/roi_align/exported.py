"""RoIAlign for programs that are compiled as a whole: products of matrices whose sizes no box decides."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["roi_align"]

_SHORTEST = 1e-12  # between samples, pixels: of boxes without extent all samples lie in one place


def roi_align(
    features: Tensor, boxes: Tensor, size: Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """See `mmdet3d.ops.roi_align.roi_align`; takes what the op of that module takes."""
    unusable = ~torch.isfinite(boxes).all(1)
    corners = torch.where(unusable[:, None], 0.0, boxes[:, 1:]) * spatial_scale - (0.5 if aligned else 0.0)
    x0, y0, x1, y1 = corners.unbind(1)
    rows = _weights(y0, y1, size[0], sampling_ratio, aligned, features.shape[2])
    columns = _weights(x0, x1, size[1], sampling_ratio, aligned, features.shape[3])
    out = features.new_zeros(len(boxes), features.shape[1], *size)
    for image, plane in enumerate(features.unbind()):
        own = (boxes[:, 0] == image).to(rows)
        out = out + torch.einsum("khy,cyx,kwx->kchw", rows * own[:, None, None], plane, columns)
    return torch.where(unusable[:, None, None, None], torch.nan, out)


def _weights(start: Tensor, end: Tensor, bins: int, sampling_ratio: int, aligned: bool, extent: int) -> Tensor:
    """(K, bins, extent): the weight of a pixel in the mean of a bin's linearly interpolated samples, along one axis.

    The samples of a bin are evenly spaced, so those between two pixels are known by their number and their mean.
    """
    length = (end - start if aligned else (end - start).clamp(min=1))[:, None, None]
    bin_size = length / bins
    samples = bin_size.ceil().clamp(min=0) if sampling_ratio == 0 else torch.full_like(bin_size, sampling_ratio)
    step = bin_size / samples.clamp(min=1)
    index = torch.arange(bins, device=start.device, dtype=start.dtype)[:, None]
    first = start[:, None, None] + index * bin_size + step / 2
    lowest = torch.minimum(first, first + (samples - 1) * step)  # a box may be turned inside out
    step = step.abs().clamp(min=_SHORTEST)

    edges = torch.arange(-1, extent + 1, device=start.device, dtype=start.dtype)  # pixels, and one beyond either border
    edges = torch.where(edges < 0, edges - 1e-6, edges)  # a sample on the outer edge is inside
    until = (((edges - lowest) / step).floor() + 1).clamp(min=0).minimum(samples)  # samples up to an edge
    before, after = until[..., :-1], until[..., 1:]
    number = after - before
    mean = lowest + step * (before + after - 1) / 2
    right = number * (mean - edges[:-1])  # the share of the pixel on their right
    # Within a pixel of the border the border's value holds.
    right = torch.cat([number[..., :1], right[..., 1:-1], torch.zeros_like(right[..., -1:])], dim=-1)
    return (right[..., :-1] + (number - right)[..., 1:]) / samples.clamp(min=1)
