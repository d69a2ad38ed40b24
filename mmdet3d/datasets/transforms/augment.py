"""Augmentations. What they do to the geometry is composed into `Calibration.image_aug` and `Calibration.lidar_aug`."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmdet3d.blocks import numbers
from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample, by_sensor

__all__ = ["GlobalRotScaleTrans", "ImageAug3D", "PointShuffle", "RandomFlip3D", "transform_lidar_frame"]

logger = logging.getLogger(__name__)

# Of the network's image; published augmentation leaves up to a seventh black.
_LEAST_FILLED = 0.67


def transform_lidar_frame(sample: Sample, matrix: Tensor) -> Sample:
    """Moves the points of all sensors, with what they measure of motion, and boxes by `matrix` (4, 4), composed into
    `lidar_aug`.

    `matrix` is a similarity: rotation, mirror, uniform scale, translation. The sample is changed in place.

    Raises:
        ValueError: the sample has a raster of the map, which cannot be moved.
    """
    if sample.masks is not None:
        raise ValueError(
            "LoadBEVSegmentation draws the map in the LiDAR frame as augmentation has left it; put it after "
            "GlobalRotScaleTrans and RandomFlip3D in the pipeline"
        )
    matrix = matrix.float()
    for sensor, points in by_sensor(sample.clouds):
        sample.put(sensor.field, sensor.moved(points, matrix))
    if sample.boxes is not None:
        sample.boxes = sample.boxes.transform(matrix)
    sample.set_augmentation(lidar_aug=matrix @ sample.calibration.lidar_aug)
    return sample


@TRANSFORMS.register
class GlobalRotScaleTrans(Transform):
    """Moves the whole LiDAR frame: p' = scale * (R p + t), R clockwise by the drawn angle seen from above.

    Args:
        resize_lim: limits of the uniform scale.
        rot_lim: limits of the uniform angle, radians.
        trans_lim: standard deviation of the normal translation along each axis, metres.
        is_train: false leaves the sample as it is.
    """

    def __init__(
        self, resize_lim: Sequence[float], rot_lim: Sequence[float], trans_lim: float, is_train: bool = True
    ) -> None:
        self.resize_lim = numbers("least most", resize_lim, "resize_lim")
        self.rot_lim = numbers("least most", rot_lim, "rot_lim")
        self.trans_lim = trans_lim
        self.is_train = is_train

    def __call__(self, sample: Sample, context: Context) -> Sample:
        if not self.is_train:
            return sample
        scale = context.rng.uniform(self.resize_lim[0], self.resize_lim[1])
        angle = context.rng.uniform(self.rot_lim[0], self.rot_lim[1])
        translation = context.rng.normal(0, self.trans_lim, size=3)
        matrix = np.eye(4)
        matrix[:2, :2] = [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        matrix[:3, 3] = translation
        matrix[:3] *= scale
        return transform_lidar_frame(sample, torch.from_numpy(matrix))


@TRANSFORMS.register
class RandomFlip3D(Transform):
    """Mirrors the LiDAR frame: y with probability 1/2, x with probability 1/2."""

    def __call__(self, sample: Sample, context: Context) -> Sample:
        flip_y = context.rng.choice([0, 1])
        flip_x = context.rng.choice([0, 1])
        if not flip_x and not flip_y:
            return sample
        signs = [-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0, 1.0]
        return transform_lidar_frame(sample, torch.diag(torch.tensor(signs)))


@TRANSFORMS.register
class PointShuffle(Transform):
    """LiDAR points in random order, so that the cap on points per voxel keeps a random subset."""

    def __call__(self, sample: Sample, context: Context) -> Sample:
        points = need(sample, "points", self, "LoadPointsFromFile")
        order = torch.from_numpy(context.rng.permutation(len(points)))
        sample.points = points.contiguous().index_select(0, order)  # faster than points[order]
        return sample


@TRANSFORMS.register
class ImageAug3D(Transform):
    """Resizes, crops, flips and rotates the images of each camera on its own, composed into `image_aug`.

    The images of a camera at all times (key frame and history) are treated alike.

    Args:
        final_dim: height and width of the network's input, pixels.
        resize_lim: limits of the resize factor; outside training their mean.
        bot_pct_lim: limits of the share cut off at the bottom of the resized image; outside training their mean.
        rot_lim: limits of the counter-clockwise rotation about the crop's centre, degrees.
        rand_flip: mirror left-right with probability 1/2 while training.
        is_train: false takes the mean resize and the horizontally centred crop, without flip and rotation.
    """

    def __init__(
        self,
        final_dim: Sequence[int],
        resize_lim: Sequence[float],
        bot_pct_lim: Sequence[float] = (0.0, 0.0),
        rot_lim: Sequence[float] = (0.0, 0.0),
        rand_flip: bool = False,
        is_train: bool = True,
    ) -> None:
        self.final_dim = tuple(numbers("height width", final_dim, "final_dim"))
        self.resize_lim = numbers("least most", resize_lim, "resize_lim")
        self.bot_pct_lim = numbers("least most", bot_pct_lim, "bot_pct_lim")
        self.rot_lim = numbers("least most", rot_lim, "rot_lim")
        self.rand_flip = rand_flip
        self.is_train = is_train
        self._looked_at: set[tuple[int, int]] = set()

    def __call__(self, sample: Sample, context: Context) -> Sample:
        images = need(sample, "images", self, "LoadMultiViewImageFromFiles")
        for image, camera in zip(images, context.record.cameras, strict=False):
            self._warn_of_black(image.size, camera)
        draws = [self._draw(image.size, context.rng) for image in images]
        matrices = [self._matrix(scale, corner, flip, angle) for scale, _, corner, flip, angle in draws]
        before = sample.calibration.image_aug
        # Composed in float64: both act on pixels, the translation in column 3.
        after = torch.from_numpy(np.stack(matrices)) @ before.double() if images else before
        for frame in sample.frames:
            images = need(frame, "images", self, "LoadMultiViewImageFromFiles")
            frame.images = [self._apply(image, *draw[1:]) for image, draw in zip(images, draws, strict=True)]
        sample.set_augmentation(image_aug=after.float())
        return sample

    def _warn_of_black(self, raw_size: tuple[int, int], camera: str) -> None:
        """Say once for each size of images that they leave much of the network's input empty."""
        if raw_size in self._looked_at:
            return
        self._looked_at.add(raw_size)
        scale = float(np.mean(self.resize_lim))
        sides = zip(raw_size, self.final_dim[::-1], strict=True)
        filled = float(np.prod([min(1.0, scale * raw / final) for raw, final in sides]))
        worker = torch.utils.data.get_worker_info()
        if filled < _LEAST_FILLED and (worker is None or worker.id == 0):
            logger.warning(
                "the images of %s, %d x %d pixels, fill %.0f %% of the network's image of %d x %d at a resize factor "
                "of %.3g, the rest stays black; give ImageAug3D a resize_lim (augment2d.resize) that suits them, or "
                "bring the images of all cameras to one size",
                camera, *raw_size, 100 * filled, self.final_dim[1], self.final_dim[0], scale,
            )  # fmt: skip

    def _draw(
        self, raw_size: tuple[int, int], rng: np.random.RandomState
    ) -> tuple[float, tuple[int, int], tuple[int, int], bool, float]:
        """Resize factor, resized (width, height), crop corner (x, y), flip, angle in degrees."""
        height, width = self.final_dim
        scale = self._between(self.resize_lim, rng)
        size = (int(raw_size[0] * scale), int(raw_size[1] * scale))
        bottom = self._between(self.bot_pct_lim, rng)
        slack = max(0, size[0] - width)
        x = int(rng.uniform(0, slack)) if self.is_train else slack // 2
        corner = (x, int((1 - bottom) * size[1]) - height)
        flip = bool(self.is_train and self.rand_flip and rng.choice([0, 1]))
        angle = rng.uniform(self.rot_lim[0], self.rot_lim[1]) if self.is_train else 0.0
        return scale, size, corner, flip, angle

    def _between(self, limits: Sequence[float], rng: np.random.RandomState) -> float:
        """Uniform while training, else the middle."""
        return rng.uniform(limits[0], limits[1]) if self.is_train else float(np.mean(limits))

    def _apply(
        self, image: Image.Image, size: tuple[int, int], corner: tuple[int, int], flip: bool, angle: float
    ) -> Image.Image:
        height, width = self.final_dim
        x, y = corner
        image = image.resize(size).crop((x, y, x + width, y + height))
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image.rotate(angle) if angle else image

    def _matrix(self, scale: float, corner: tuple[int, int], flip: bool, angle: float) -> np.ndarray:
        """(4, 4) float64: raw pixel to network pixel."""
        height, width = self.final_dim
        matrix = np.diag([scale, scale, 1.0, 1.0])
        matrix[:2, 3] = [-corner[0], -corner[1]]
        if flip:
            mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
            mirror[0, 3] = width
            matrix = mirror @ matrix
        c, s = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
        turn = np.eye(4)
        turn[:2, :2] = [[c, s], [-s, c]]
        center = np.array([width, height]) / 2
        turn[:2, 3] = center - turn[:2, :2] @ center
        return turn @ matrix
