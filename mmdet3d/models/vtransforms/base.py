"""What all view transforms share: the camera frustum, its geometry, and pooling into cells.

A suffix of a name says its shape: B samples, N cameras, P = B*N images, D depth bins, h x w feature pixels, K = D*h*w
points of a frustum, X x Y x Z cells, C channels, of whatever the name is (those of a BEV are C*Z).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.blocks import ConfigKeyError, numbers
from mmdet3d.models.layers import PointwiseConv2d, conv_bn_relu
from mmdet3d.models.vtransforms.depth_map import DrawnPoints
from mmdet3d.models.vtransforms.depth_supervision import depth_loss
from mmdet3d.ops.bev_pool import PlanCache, PoolPlan, plan_pool
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Calibration, inverse_3x3

__all__ = ["BaseTransform", "count_cells"]

_MOST_CELLS = 1 << 27  # of float32, half a gigabyte


class BaseTransform(nn.Module, ABC):
    """Lift, Splat, Shoot (Philion and Fidler, ECCV 2020): weigh pixel features with a depth distribution, sum in cells.

    A subclass implements `lift`. Everything up to the pooled map runs in float32, also under autocast.

    Args:
        in_channels: of the image features.
        out_channels: of the pooled features, per slice of z.
        image_size: network image, (height, width) pixels.
        feature_size: image features, (h, w).
        xbound, ybound, zbound: lower border, upper border, cell, in metres of the augmented LiDAR frame.
        dbound: nearest depth, farthest depth (excluded), bin, in metres along the optical axis.
        downsample: 1, or 2 for convolutions that halve the pooled map.
        depth_loss_factor: weight of the supervision of depth by measurements, see `depth_loss`; 0 for none.
        pool_floor: drop points just below the lower borders. Published checkpoints were trained with them: their cells
            are truncated toward zero, so points up to one cell below a border count for the first cell.
        compensation: arguments of a `GeometryCompensation` of the image features; None: they are lifted as they are.

    Attributes:
        grid: the raster of the result.

    Raises:
        ValueError: bounds that do not hold a whole number of cells, another downsample, or supervised depth at features
            that are no whole number of pixels apart.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        image_size: Sequence[int],
        feature_size: Sequence[int],
        xbound: Sequence[float],
        ybound: Sequence[float],
        zbound: Sequence[float],
        dbound: Sequence[float],
        downsample: int = 1,
        depth_loss_factor: float = 0.0,
        pool_floor: bool = False,
        compensation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        bounds = {"xbound": xbound, "ybound": ybound, "zbound": zbound}
        self.cells = count_cells(bounds)
        self.in_channels = in_channels
        self.out_channels = out_channels
        height, width = numbers("height width", image_size, "image_size")
        h, w = numbers("height width", feature_size, "feature_size")
        near, far, step = numbers("nearest farthest bin", dbound, "dbound")
        self.image_size = (height, width)
        self.feature_size = (h, w)
        self.dbound = (float(near), float(far), float(step))
        self.depth_loss_factor = depth_loss_factor
        self._check_supervision()
        self.pool_floor = pool_floor
        self.lower = tuple(float(b[0]) for b in bounds.values())
        self.cell = tuple(float(b[2]) for b in bounds.values())
        self.grid = _grid(self.lower, self.cell, self.cells, downsample)
        self._plans = PlanCache()
        dx, lower = torch.tensor(self.cell), torch.tensor(self.lower)
        self.register_buffer("dx", dx, persistent=False)
        self.register_buffer("bx", lower + dx / 2, persistent=False)
        self.register_buffer("nx", torch.tensor(self.cells), persistent=False)
        self.frustum: Tensor
        self.register_buffer("frustum", _frustum(self.image_size, self.feature_size, self.dbound), persistent=False)
        self.compensation = None
        if compensation is not None:
            arguments = {"type": "GeometryCompensation", **compensation}
            self.compensation = MODELS.build(arguments, "compensation", channels=in_channels, size=self.feature_size)
        self._build_lift()
        self.downsample = self._build_downsample()

    def _build_lift(self) -> None:
        """Build the layers of `lift`; they come before `downsample` in published state dicts."""

    @property
    def depth_bins(self) -> int:
        """D"""
        return self.frustum.shape[0]

    @property
    def bev_channels(self) -> int:
        """Of the result: those of all slices of z."""
        return self.out_channels * self.cells[2]

    @property
    def stride(self) -> int:
        """Pixels per feature.

        Raises:
            ValueError: no whole number, or not the same along both axes.
        """
        (height, width), (h, w) = self.image_size, self.feature_size
        stride = height // h
        if (h * stride, w * stride) != (height, width):
            raise ValueError(
                f"{type(self).__name__} needs image_size {[height, width]} to be a multiple of feature_size {[h, w]}"
            )
        return stride

    @property
    def supervises_depth(self) -> bool:
        """Whether `depth_loss` is part of the training."""
        return self.depth_loss_factor > 0

    # Tensors of the batch that the geometry is computed of.
    geometry_reads = tuple(f"calibration.{n}" for n in ("image_aug", "intrinsics", "camera2lidar", "lidar_aug"))

    @property
    def lift_reads(self) -> tuple[str, ...]:
        """Tensors of the batch that `lift` reads beside what `draw` gives."""
        return ()

    @property
    def drawing(self) -> DrawnPoints | None:
        """How points are drawn into the images for `lift`; None where it needs none."""
        return None

    def draw(self, batch: Batch) -> Tensor | None:
        """What `drawing` makes of a batch.

        Raises:
            ValueError: the batch has no such points.
        """
        if self.drawing is None:
            return None
        batch.require(self.drawing.field, type(self).__name__)
        return self.drawing(batch)

    def forward(
        self,
        features: Tensor,
        batch: Batch,
        source: Calibration | None = None,
        plan: PoolPlan | None = None,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Image features to bird's-eye view.

        Args:
            features: (B, N, C, h, w).
            batch: calibration, and the sensor data that the depth estimation of the subclass reads.
            source: where the images were taken, if not at `batch.calibration`; it decides the geometry alone, a depth
                estimation that looks at the calibration looks at the batch's.
            plan: of `source`, if it is known already.
            drawn: what `draw` makes of the batch, if it is known already.

        Returns:
            BEV (B, out_channels * Z, X', Y') on `grid` and the depth distribution (B*N, D, h, w) in float32.

        Raises:
            ValueError: features of another size than the transform was built for.
        """
        source = batch.calibration if source is None else source
        self._check(features, source)
        with torch.autocast(features.device.type, enabled=False):
            features_PChw = features.flatten(0, 1).float()
            if self.compensation is not None:
                features_PChw = self.compensation(features_PChw)
            drawn = self.draw(batch) if drawn is None else drawn
            depth_PDhw, context_PChw = self.lift(features_PChw, batch, drawn)
            bev_BCXY = self.splat(depth_PDhw, context_PChw, self.plan(source) if plan is None else plan)
        return self.downsample(bev_BCXY), depth_PDhw

    def depth_loss(self, depth: Tensor, batch: Batch) -> Tensor:
        """How far the depth distribution is from the measured depths, see `depth_supervision.depth_loss`.

        Args:
            depth: (B*N, D, h, w) as returned by the forward pass.
            batch: with `depths` (B, N, H, W), metres.

        Returns:
            Scalar, `depth_loss_factor` included.

        Raises:
            ValueError: no depths in the batch, or of another size than the images.
        """
        name = type(self).__name__
        measured = batch.require("depths", f"the depth loss of {name}").flatten(0, 1)
        if tuple(measured.shape[-2:]) != self.image_size:
            raise ValueError(
                f"{name} was built with image_size {list(self.image_size)} and is given depths of size "
                f"{list(measured.shape[-2:])}; both must be the network's image size"
            )
        return self.depth_loss_factor * depth_loss(depth, measured, self.stride, self.dbound)

    @abstractmethod
    def lift(self, features: Tensor, batch: Batch, drawn: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B*N, C, h, w) to depth distribution (B*N, D, h, w) and context (B*N, out_channels, h, w).

        Args:
            drawn: what `draw` makes of the batch.
        """

    def splat(self, depth: Tensor, context: Tensor, geometry: Tensor | PoolPlan) -> Tensor:
        """Pool the weighted features into (B, out_channels * Z, X, Y), given the frustum points or a plan for them."""
        return self._planned(geometry).pool(depth, context)

    def plan(self, calibration: Calibration) -> PoolPlan:
        """Which frustum points fall into which cell. In evaluation, plans of calibrations that come again are kept."""
        if self.training:
            return self._planned(self.geometry(calibration))
        corners = self.frustum[[0, -1]][:, [0, -1]][:, :, [0, -1]]  # all else in the frustum lies evenly between them
        matrices = (calibration.image_aug, calibration.intrinsics, calibration.camera2lidar, calibration.lidar_aug)
        return self._plans.get((corners, *matrices), lambda: self._planned(self.geometry(calibration)))

    def _planned(self, geometry: Tensor | PoolPlan) -> PoolPlan:
        if isinstance(geometry, PoolPlan):
            return geometry
        return plan_pool(geometry, self.lower, self.cell, self.cells, floor=self.pool_floor)

    @torch.no_grad()
    def geometry(self, calibration: Calibration) -> Tensor:
        """(B, N, D, h, w, 3): where the frustum points lie, metres in the augmented LiDAR frame, float64.

        The image augmentation is undone, then the projection, then the LiDAR augmentation is applied. Rounded to
        float32 some ten points of a million lie in another cell on another machine, which moves outputs by 1e-4.
        """
        with torch.autocast(self.frustum.device.type, enabled=False):
            camera = calibration.to(torch.float64)
            pixels_BNK3 = self.frustum.double().flatten(0, 2) - camera.image_aug[..., None, :3, 3]
            u, v, d = _rotate(inverse_3x3(camera.image_aug[..., :3, :3]), pixels_BNK3).unbind(-1)
            to_lidar = camera.camera2lidar[..., :3, :3] @ inverse_3x3(camera.intrinsics[..., :3, :3])
            points_BNK3 = _rotate(to_lidar, torch.stack([u * d, v * d, d], dim=-1))
            points_BNK3 = points_BNK3 + camera.camera2lidar[..., None, :3, 3]
            lidar_aug = camera.lidar_aug[:, None]
            points_BNK3 = _rotate(lidar_aug[..., :3, :3], points_BNK3) + lidar_aug[..., None, :3, 3]
            return points_BNK3.unflatten(2, self.frustum.shape[:3])

    def _conv_depthnet(self, in_channels: int) -> nn.Sequential:
        """Two 3x3 convolutions, and a 1x1 to D + out_channels."""
        channels = self.in_channels
        return nn.Sequential(
            *conv_bn_relu(in_channels, channels, 3, padding=1, bias=True),
            *conv_bn_relu(channels, channels, 3, padding=1, bias=True),
            PointwiseConv2d(channels, self.depth_bins + self.out_channels),
        )

    def _split(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(P, D + C, h, w) to depth distribution and context."""
        return logits[:, : self.depth_bins].softmax(dim=1), logits[:, self.depth_bins :]

    def _check(self, features: Tensor, calibration: Calibration) -> None:
        name = type(self).__name__
        if features.ndim != 5 or tuple(features.shape[-2:]) != self.feature_size:
            raise ValueError(
                f"{name} was built with feature_size {list(self.feature_size)} and is given features of size "
                f"{list(features.shape[-2:])}; make feature_size the image size divided by the stride of the neck"
            )
        if features.shape[2] != self.in_channels:
            raise ValueError(
                f"{name} was built with in_channels {self.in_channels} and is given {features.shape[2]} channels"
            )
        if features.shape[:2] != calibration.camera2lidar.shape[:2]:
            raise ValueError(
                f"{name} is given features of (samples, cameras) {tuple(features.shape[:2])}, "
                f"but calibration of {tuple(calibration.camera2lidar.shape[:2])}"
            )

    def _check_supervision(self) -> None:
        if self.depth_loss_factor < 0:
            raise ValueError(
                f"depth_loss_factor of {type(self).__name__} must not be negative, got {self.depth_loss_factor}"
            )
        if self.supervises_depth:
            _ = self.stride  # raises unless features are whole pixels apart

    def _build_downsample(self) -> nn.Module:
        """The layers between pooled map and result."""
        if self.grid.shape == self.cells[:2]:
            return nn.Identity()
        channels = self.bev_channels
        strides = (1, 2, 1)
        return nn.Sequential(*(m for s in strides for m in conv_bn_relu(channels, channels, 3, stride=s, padding=1)))


def _rotate(matrix: Tensor, points: Tensor) -> Tensor:
    """(..., 3, 3) applied to (..., P, 3)."""
    return points @ matrix.transpose(-1, -2)


def count_cells(bounds: Mapping[str, Sequence[float]], each: int = 1) -> tuple[int, ...]:
    """Whole numbers of cells in (lower, upper, cell) of every axis.

    Args:
        bounds: by key of the config.
        each: values that are kept per cell.

    Raises:
        ConfigKeyError: no such bounds, or more cells than `_MOST_CELLS`.
    """
    counts = {}
    for name, bound in bounds.items():
        known = len(bound) == 3 and all(b is not None and math.isfinite(b) for b in bound) and bound[2] > 0
        count = round((bound[1] - bound[0]) / bound[2]) if known else 0
        if count < 1 or abs(bound[0] + count * bound[2] - bound[1]) > 1e-3 * bound[2]:
            problem = " must be [lower, upper, cell] with a whole number of cells"
            raise ConfigKeyError(name, f"{problem}, got {list(bound)}")
        counts[name] = count
    if math.prod(counts.values()) * each > _MOST_CELLS:
        name = max(counts, key=lambda axis: counts[axis])
        raise ConfigKeyError(
            name,
            f" {list(bounds[name])} makes {counts[name]} cells along one axis, {math.prod(counts.values()) * each} in "
            f"all; at most {_MOST_CELLS} are allowed, so enlarge the last number, the cell",
        )
    return tuple(counts.values())


def _grid(lower: Sequence[float], cell: Sequence[float], cells: Sequence[int], downsample: int) -> BEVGrid:
    if downsample not in (1, 2):
        raise ValueError(f"downsample of a view transform must be 1 or 2, got {downsample}")
    if any(n % downsample for n in cells[:2]):
        raise ValueError(f"downsample {downsample} needs even numbers of cells, xbound and ybound give {cells[:2]}")
    return BEVGrid(
        (lower[0], lower[1]),
        (cell[0] * downsample, cell[1] * downsample),
        (cells[0] // downsample, cells[1] // downsample),
    )


def _frustum(image_size: Sequence[int], feature_size: Sequence[int], dbound: Sequence[float]) -> Tensor:
    """(D, h, w, 3): u, v in network pixels and depth in metres.

    Pixels are spread from the first to the last pixel of the image (corners, not the centres of feature cells).
    """
    near, _, step = dbound
    d = near + step * torch.arange(count_cells({"dbound": dbound}, feature_size[0] * feature_size[1])[0])
    v = torch.linspace(0, image_size[0] - 1, feature_size[0])
    u = torch.linspace(0, image_size[1] - 1, feature_size[1])
    d, v, u = torch.meshgrid(d, v, u, indexing="ij")
    return torch.stack([u, v, d], dim=-1)
