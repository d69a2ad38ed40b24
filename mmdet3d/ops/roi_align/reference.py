"""Readable twin of RoIAlign: a box is cut out by two small matrices, one of rows and one of columns."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["roi_align"]


def roi_align(
    features: Tensor, boxes: Tensor, output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    """See `mmdet3d.ops.roi_align.roi_align`; `boxes` are finite and within bounds or NaN as a whole."""
    height, width = output_size
    parts = [features.new_zeros(0, features.shape[1], height, width) * features.sum()]  # has a gradient without boxes
    for box in boxes:
        if not torch.isfinite(box).all():
            parts.append(features.new_full((1, features.shape[1], height, width), torch.nan))
            continue
        x0, y0, x1, y1 = (box[1:] * scale - (0.5 if aligned else 0.0)).unbind()
        rows = _weights(y0, y1, height, sampling_ratio, aligned, features.shape[2])
        columns = _weights(x0, x1, width, sampling_ratio, aligned, features.shape[3])
        plane = features[int(box[0])]
        parts.append((rows @ plane @ columns.T)[None])
    return torch.cat(parts)


def _weights(start: Tensor, end: Tensor, bins: int, sampling_ratio: int, aligned: bool, extent: int) -> Tensor:
    """(bins, extent): row b averages the linearly interpolated samples of bin b along one axis."""
    size = end - start if aligned else (end - start).clamp(min=1)
    bin_size = size / bins
    samples = sampling_ratio or int(bin_size.ceil().clamp(min=0))
    inside_bin = (torch.arange(samples, device=start.device, dtype=start.dtype) + 0.5) * bin_size / max(samples, 1)
    index = torch.arange(bins, device=start.device)[:, None].expand(bins, samples)
    positions = start + index * bin_size + inside_bin
    valid = (positions >= -1) & (positions <= extent)
    positions = positions.clamp(0, max(extent - 1, 0))  # within a pixel of the border the border's value holds
    low = positions.floor().long()
    high = (low + 1).clamp(max=max(extent - 1, 0))
    fraction = positions - low
    weights = start.new_zeros(bins, extent)
    for place, share in ((low, 1 - fraction), (high, fraction)):
        weights.index_put_((index[valid], place[valid]), share[valid] / samples, accumulate=True)
    return weights
