"""Depth as a class: ways to cut a range of depths into bins, and maps of bins to learn from.

Of road plane discretisation (RPD, MonoMMKD) no formula was published; ours follows from the name. A point of a flat
road at depth z shows in image row v_horizon + f h / z, with the focal length f in pixels and the camera's height h, so
that equal steps on the road, as the image shows it, are equal steps of 1 / z.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mmdet3d.models.heads.mono.targets import pool_depth

__all__ = ["IGNORED", "DepthBins", "bin_map"]

IGNORED = -1  # bin of a cell whose depth is unknown
_KNOWN_SHARE = 0.5  # of a cell's pixels

_Map = Callable[["DepthBins", Tensor], Tensor]


@dataclass(frozen=True)
class DepthBins:
    """`count` bins between two depths, the nearest first, and one more class for whatever lies beyond.

    Args:
        mode: `RPD` cuts into equal steps of 1 / (z + offset), without offset of image rows on the road; `UD` of depth;
            `SID` of log(1 + z); `LID` into steps that grow linearly (CaDDN).
        near, far: the range, metres. What is nearer than `near` belongs to the first bin.
        count: of bins.
        offset: of RPD, metres; more makes far bins finer, until for large values they are uniform.
        apparent: bins of the depth that an object seems to have in the cropped image, depth times the crop's scale.
            Then a bin is a band of rows of the network's image, whatever the crop.

    Raises:
        ValueError: an unknown mode, an empty range, no bins, or an `offset` that the mode does not read or cannot use.
    """

    mode: Literal["RPD", "UD", "SID", "LID"] = "RPD"
    near: float = 5.0
    far: float = 80.0
    count: int = 96
    offset: float = 0.0
    apparent: bool = True

    def __post_init__(self) -> None:
        if self.mode not in _MODES:
            raise ValueError(f"depth bins: mode must be one of {', '.join(_MODES)}, got {self.mode!r}")
        if not 0 <= self.near < self.far:
            raise ValueError(f"depth bins need 0 <= near < far, got near {self.near} and far {self.far}")
        if not (isinstance(self.count, int) and self.count > 0):
            raise ValueError(f"depth bins: count must be a positive whole number, got {self.count!r}")
        if self.mode != "RPD" and self.offset:
            raise ValueError(f"depth bins: offset {self.offset} has no effect with mode {self.mode}; set it to 0")
        if self.offset < 0 or (self.mode == "RPD" and self.near + self.offset <= 0):
            raise ValueError(
                f"depth bins: RPD needs offset >= 0 and near + offset > 0, got near {self.near}, offset {self.offset}"
            )

    @property
    def classes(self) -> int:
        """The bins and the class beyond them."""
        return self.count + 1

    def position(self, depth: Tensor) -> Tensor:
        """Depths of any shape, metres, to where they lie: k at the near edge of bin k."""
        return self.count * _MODES[self.mode][0](self, depth)

    def depth(self, position: Tensor) -> Tensor:
        """Inverse of `position` on the range."""
        return _MODES[self.mode][1](self, position / self.count)

    def edges(self) -> Tensor:
        """(count + 1,) metres, float64."""
        return self.depth(torch.arange(self.count + 1, dtype=torch.float64))

    def centers(self) -> Tensor:
        """(count,) metres, float64: the middle of each bin as `position` counts."""
        return self.depth(torch.arange(self.count, dtype=torch.float64) + 0.5)

    def index(self, depth: Tensor) -> Tensor:
        """Depths of any shape, metres, to int64 bins; `count` beyond the range, `IGNORED` where not finite or <= 0."""
        known = depth.isfinite() & (depth > 0)
        inside = torch.where(known, depth, self.near).clamp(self.near, self.far)
        index = self.position(inside).floor().long().clamp(0, self.count - 1)
        return torch.where(known, torch.where(depth > self.far, self.count, index), IGNORED)


def bin_map(depths: Tensor, crop_scale: Tensor, map_size: tuple[int, int], bins: DepthBins) -> Tensor:
    """The bin of each cell's mean depth.

    Args:
        depths: (B, H, W) metres in network pixels, 0 where unknown.
        crop_scale: (B,) size of the crop over the size of the image.
        map_size: height and width of the result, cells.

    Returns:
        (B, h, w) int64; `IGNORED` where less than half of a cell's pixels are known.
    """
    total, share = pool_depth(depths.float(), map_size).unbind(1)
    depth = torch.where(share >= _KNOWN_SHARE, total / share.clamp(min=_KNOWN_SHARE), 0)
    return bins.index(depth * crop_scale.to(depth)[:, None, None] if bins.apparent else depth)


# -- per mode, from depth to the share of the range that lies before it, and back --------------------------------------


def _uniform(bins: DepthBins, depth: Tensor) -> Tensor:
    return (depth - bins.near) / (bins.far - bins.near)


def _uniform_depth(bins: DepthBins, share: Tensor) -> Tensor:
    return bins.near + (bins.far - bins.near) * share


def _logarithmic(bins: DepthBins, depth: Tensor) -> Tensor:
    near, far = torch.tensor([bins.near, bins.far], dtype=torch.float64).log1p().tolist()
    return (depth.log1p() - near) / (far - near)


def _logarithmic_depth(bins: DepthBins, share: Tensor) -> Tensor:
    near, far = torch.tensor([bins.near, bins.far], dtype=torch.float64).log1p().tolist()
    return torch.expm1(near + (far - near) * share)


def _linear(bins: DepthBins, depth: Tensor) -> Tensor:
    n = bins.count
    return ((1 + 4 * n * (n + 1) * _uniform(bins, depth)).sqrt() - 1) / (2 * n)


def _linear_depth(bins: DepthBins, share: Tensor) -> Tensor:
    return _uniform_depth(bins, share * (share * bins.count + 1) / (bins.count + 1))


def _road(bins: DepthBins, depth: Tensor) -> Tensor:
    # The difference of 1 / (z + offset) to its value at `near`, over that at `far`, without their cancellation.
    return _uniform(bins, depth) * (bins.far + bins.offset) / (depth + bins.offset)


def _road_depth(bins: DepthBins, share: Tensor) -> Tensor:
    step, end = share * (bins.far - bins.near), bins.far + bins.offset
    return (bins.near * end + bins.offset * step) / (end - step)


_MODES: dict[str, tuple[_Map, _Map]] = {
    "RPD": (_road, _road_depth),
    "UD": (_uniform, _uniform_depth),
    "SID": (_logarithmic, _logarithmic_depth),
    "LID": (_linear, _linear_depth),
}
