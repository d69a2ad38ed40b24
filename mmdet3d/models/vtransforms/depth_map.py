"""Points drawn into the images of all cameras."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmdet3d.registry import STEPS
from mmdet3d.structures import Batch, Calibration, project

__all__ = ["DepthMap", "DrawnPoints"]

_HEIGHTS = tuple(0.25 * k for k in range(1, 9))
_MIN_DEPTH = 1e-5


@dataclass(frozen=True)
class DepthMap:
    """Draws points as images that a network can read. Where several fall on a pixel, one counts.

    Args:
        image_size: (H, W) pixels.
        dbound: None draws one channel, the depth in metres (0 where no point falls). Bounds (nearest, farthest, bin)
            draw one channel per depth bin instead, 1 where a point lies in it; depths outside the bounds count for the
            first or last bin.
        point_channels: F > 0 appends the F values of the point as further channels.
        height_expand: draw each point at heights 0.25, 0.5, ... 2 m instead of its own (radar measures no height).
        pixel_depth: which point of a pixel counts: the `nearest`, or the `last` of the sample, as in the depth maps
            that published checkpoints were trained with.

    Raises:
        ValueError: an unknown `pixel_depth`.
    """

    image_size: tuple[int, int]
    dbound: tuple[float, float, float] | None = None
    point_channels: int = 0
    height_expand: bool = False
    pixel_depth: str = "nearest"

    def __post_init__(self) -> None:
        if self.pixel_depth not in ("nearest", "last"):
            raise ValueError(f"pixel_depth of a view transform must be nearest or last, got {self.pixel_depth!r}")

    @property
    def bins(self) -> int:
        """Channels that hold depth."""
        return 1 if self.dbound is None else round((self.dbound[1] - self.dbound[0]) / self.dbound[2])

    @property
    def channels(self) -> int:
        return self.bins + self.point_channels

    @torch.no_grad()
    def __call__(self, points: Sequence[Tensor], calibration: Calibration) -> Tensor:
        """Draw a batch.

        Args:
            points: B of (P, >=3), metres in the augmented LiDAR frame; left as they are.
            calibration: of the batch.

        Returns:
            (B*N, channels, H, W) float32.

        Raises:
            ValueError: points with another number of values than `point_channels`.
        """
        with torch.autocast(points[0].device.type, enabled=False):  # bfloat16 would put points into other pixels
            return torch.cat([self._draw(p.float(), calibration[i].to(torch.float32)) for i, p in enumerate(points)])

    def _draw(self, points: Tensor, calibration: Calibration) -> Tensor:
        if self.point_channels and points.shape[1] != self.point_channels:
            raise ValueError(
                f"the depth map was built for points of {self.point_channels} values and is given {points.shape[1]}; "
                "set point_channels of the view transform"
            )
        if self.height_expand:
            points = _expanded(points)
        height, width = self.image_size
        cameras = calibration.image_aug.shape[0]
        canvas = points.new_zeros(cameras, height * width, self.channels)
        camera, point, pixel, depth = self._seen(points, calibration)
        if self.dbound is None and not self.point_channels and self.pixel_depth == "nearest":
            nearest = torch.full_like(canvas.view(-1), torch.inf)
            nearest.scatter_reduce_(0, camera * height * width + pixel, depth, "amin")
            return nearest.where(nearest.isfinite(), 0).view(cameras, 1, height, width)
        if self.dbound is not None:
            canvas[camera, pixel, self._bin(depth)] = 1
        rank = depth if self.pixel_depth == "nearest" else -point
        chosen = _lowest(camera * height * width + pixel, rank)
        camera, pixel, point, depth = camera[chosen], pixel[chosen], point[chosen], depth[chosen]
        if self.dbound is None:
            canvas[camera, pixel, 0] = depth
        if self.point_channels:
            canvas[camera, pixel, self.bins :] = points[point]
        return canvas.view(cameras, height, width, -1).permute(0, 3, 1, 2).contiguous()

    def _seen(self, points: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Camera, point, flat pixel index and depth of every point in an image, each (K,), camera by camera."""
        undo = torch.linalg.inv(calibration.lidar_aug[:3, :3])
        raw = (points[:, :3] - calibration.lidar_aug[:3, 3]) @ undo.T
        height, width = self.image_size
        found = []
        for k, (camera, image) in enumerate(zip(calibration.lidar2image, calibration.image_aug, strict=True)):
            point = self._near(raw, camera, image)
            uv, depth = project(raw[point], camera, _MIN_DEPTH)
            u, v = (uv @ image[:2, :2].T + image[:2, 3]).unbind(-1)
            inside = (depth > _MIN_DEPTH) & (u >= 0) & (u < width) & (v >= 0) & (v < height)
            pixel = v.where(inside, 0).long() * width + u.where(inside, 0).long()
            found.append(tuple(x[inside] for x in (torch.full_like(point, k), point, pixel, depth)))
        camera, point, pixel, depth = (torch.cat(parts) for parts in zip(*found, strict=True))
        return camera, point, pixel, depth

    def _near(self, points: Tensor, camera: Tensor, image: Tensor) -> Tensor:
        """Indices of the points in an image and of some around it, by one product; most of a scan is in none.

        A point is in the image where 0 <= u < width. Both are multiplied by the depth here, which spares the division;
        what is left over on each side, one pixel and one metre-pixel, is far more than products round off.
        """
        uv = image[:2, :2] @ camera[:2] + image[:2, 3:] * camera[2]
        rows = torch.cat([uv, camera[2:3]])
        u, v, depth = torch.addmm(rows[:, 3:], rows[:, :3], points.T)
        height, width = self.image_size
        u_left = torch.minimum(u + depth, (width + 1) * depth - u)
        v_left = torch.minimum(v + depth, (height + 1) * depth - v)
        return torch.minimum(u_left, v_left).gt(-1).nonzero()[:, 0]

    def _bin(self, depth: Tensor) -> Tensor:
        assert self.dbound is not None
        return ((depth - self.dbound[0]) / self.dbound[2]).floor().clamp(0, self.bins - 1).long()


@STEPS.register
@dataclass(frozen=True)
class DrawnPoints:
    """Points of one sensor drawn into the images, for a view transform that measures depth.

    Args:
        field: of the batch, such as `points` or `radar`.
        depth_map: how they are drawn.
    """

    field: str
    depth_map: DepthMap

    def __call__(self, batch: Batch) -> Tensor:
        """(B*N, channels, H, W), see `DepthMap`."""
        return self.depth_map(batch.require(self.field, "the view transform"), batch.calibration)


def _expanded(points: Tensor) -> Tensor:
    """(P, F) to (8 P, F): each point at the standard heights."""
    tall = points.repeat_interleave(len(_HEIGHTS), dim=0)
    tall[:, 2] = points.new_tensor(_HEIGHTS).repeat(len(points))
    return tall


def _lowest(pixel: Tensor, rank: Tensor) -> Tensor:
    """Indices of one entry per pixel, the one of lowest rank (ties: the first). Deterministic on every device."""
    by_rank = rank.argsort(stable=True)
    order = by_rank[pixel[by_rank].argsort(stable=True)]
    ordered = pixel[order]
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]
