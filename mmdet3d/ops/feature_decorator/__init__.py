"""What a pillar network sees of a point besides its raw features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mmdet3d.ops.checks import check_shapes
from mmdet3d.ops.feature_decorator import reference

__all__ = ["feature_decorator"]


def feature_decorator(
    features: Tensor,
    counts: Tensor,
    coordinates: Tensor,
    voxel_size: Sequence[float],
    point_cloud_range: Sequence[float],
    *,
    normalize: bool = False,
    cluster: bool = False,
    center: bool = True,
    distance: bool = False,
) -> Tensor:
    """Append offsets to the points of pillars (PointPillars); padded slots become zero.

    Args:
        features: (M, S, F), columns 0..2 are x, y, z in metres; slot s of pillar m holds a point if s < counts[m].
        counts: (M,) points per pillar.
        coordinates: (M, 3) x, y, z index of the pillar.
        voxel_size: extent of a pillar along x, y, z, metres.
        point_cloud_range: x0, y0, z0, x1, y1, z1, metres.
        normalize: bring x, y, z into [0, 1] over the range (after the offsets are taken), as CRKD's radar network does.
        cluster: append x, y, z minus their mean over the pillar's points (3).
        center: append x, y minus the pillar's centre (2).
        distance: append the distance to the origin (1).

    Returns:
        (M, S, F + 3 cluster + 2 center + distance), appended in this order, at least float32.

    Raises:
        ValueError: shapes that do not fit together.
    """
    sizes = check_shapes(features=(features, "M S F"), counts=(counts, "M"), coordinates=(coordinates, "M 3"))
    if sizes["F"] < 3:
        raise ValueError(f"features must hold x, y, z in their first columns, got shape {tuple(features.shape)}")
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise ValueError(
            f"voxel_size needs 3 values and point_cloud_range 6, got {list(voxel_size)} and {list(point_cloud_range)}"
        )
    return reference.feature_decorator(
        features, counts, coordinates, voxel_size, point_cloud_range, normalize, cluster, center, distance
    )
