"""Readable twin of pillar decoration."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["feature_decorator"]


def feature_decorator(
    features: Tensor,
    counts: Tensor,
    coordinates: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    normalize: bool,
    cluster: bool,
    center: bool,
    distance: bool,
) -> Tensor:
    """See `mmdet3d.ops.feature_decorator.feature_decorator`."""
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    filled = (torch.arange(features.shape[1], device=features.device) < counts[:, None])[..., None]  # (M, S, 1)
    xyz = features[..., :3]
    size, lower, upper = (features.new_tensor(v) for v in (voxel_size, point_cloud_range[:3], point_cloud_range[3:]))
    columns = [(xyz - lower) / (upper - lower) if normalize else xyz, features[..., 3:]]
    if cluster:
        mean = torch.where(filled, xyz, 0).sum(1, keepdim=True) / counts.clamp(min=1)[:, None, None]
        columns.append(xyz - mean)
    if center:
        centers = coordinates[:, None, :2] * size[:2] + (size / 2 + lower)[:2]
        columns.append(xyz[..., :2] - centers)
    if distance:
        columns.append(xyz.norm(dim=-1, keepdim=True))
    # Selection instead of a product, so that NaN in padding does not survive.
    return torch.where(filled, torch.cat(columns, dim=-1), 0)
