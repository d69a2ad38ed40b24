"""Agreement of sizes that several parts work on, checked when a model is built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from mmdet3d.structures import BEVGrid

__all__ = ["check_grids", "check_image_size"]


def check_grids(sensors: Mapping[str, BEVGrid], decoder: Mapping[str, nn.Module], heads: Mapping[str, BEVGrid]) -> None:
    """Raise unless all sensors share a raster that the decoder turns into that of all heads.

    Args:
        sensors: raster of each encoder's BEV.
        decoder: `backbone` and `neck`. The number of cells is compared where the backbone tells the strides of its
            outputs (`strides`) and the neck what it makes of them (`output_stride`), the borders always.
        heads: raster of each head, by its name.

    Raises:
        ValueError: two rasters disagree; names both.
    """
    (first, grid), *others = sensors.items()
    for name, other in others:
        if not grid.matches(other):
            raise ValueError(f"encoders.{first} gives a BEV of {grid}, but encoders.{name} one of {other}")
    (task, head), *other_heads = heads.items()
    for name, other in other_heads:
        if not head.matches(other):
            raise ValueError(f"heads.{task} expects a BEV of {head}, but heads.{name} one of {other}")
    backbone, neck = decoder["backbone"], decoder["neck"]
    if hasattr(backbone, "strides") and hasattr(neck, "output_stride"):
        expected = _strided(grid, neck.output_stride(backbone.strides))
        if not expected.matches(head):
            raise ValueError(
                f"encoders.{first} gives a BEV of {grid}, which the decoder turns into {expected}, "
                f"but heads.{task} expects {head}"
            )
    elif not _same_extent(grid, head):
        raise ValueError(f"encoders.{first} gives a BEV of {grid}, but heads.{task} covers another area: {head}")


def check_image_size(neck: nn.Module, vtransform: Mapping[str, Any], where: str) -> None:
    """Raise unless every level of the image features can be brought to the size that the view transform takes.

    Args:
        neck: of the images; `upsample_strides`, if it has them, tell how much coarser its levels are than its output.
        vtransform: the block with `image_size` and `feature_size`; nothing is compared unless both are two numbers.
        where: what to call the camera's block in a message, such as `encoders.camera`.

    Raises:
        ValueError: the image size is no multiple of what the neck needs; names a size that is.
    """
    image, features = vtransform.get("image_size"), vtransform.get("feature_size")
    if not all(isinstance(n, int) and n > 0 for size in (image, features) for n in _pair(size)):
        return
    factors = getattr(neck, "upsample_strides", (1,))
    strides = [max(1, round(side / feature)) for side, feature in zip(image, features, strict=True)]
    for stride, side, wanted in zip(strides, image, features, strict=True):
        # A strided convolution rounds up, a resampling without padding rounds down.
        if all(math.floor(math.ceil(side / (stride * factor)) * factor) == wanted for factor in factors):
            continue
        multiple = round(stride * max(1, *factors))
        near = [max(1, round(n / multiple)) * multiple for n in image]
        raise ValueError(
            f"image_size {list(image)} of model.{where}.vtransform does not go through the backbone and "
            f"{type(neck).__name__} to feature_size {list(features)}: both sides must be multiples of {multiple}, such "
            f"as image_size {near}"
        )


def _pair(size: Any) -> list[Any]:
    return list(size) if isinstance(size, (list, tuple)) and len(size) == 2 else [None]


def _strided(grid: BEVGrid, stride: float) -> BEVGrid:
    shape = tuple(round(n / stride) for n in grid.shape)
    return BEVGrid(grid.lower, (grid.cell[0] * stride, grid.cell[1] * stride), shape)


def _same_extent(first: BEVGrid, second: BEVGrid, tolerance: float = 1e-3) -> bool:
    sizes = [[cell * n for cell, n in zip(grid.cell, grid.shape, strict=True)] for grid in (first, second)]
    pairs = zip([*first.lower, *sizes[0]], [*second.lower, *sizes[1]], strict=True)
    return all(abs(a - b) <= tolerance for a, b in pairs)
