"""From a raw KITTI image to the network's input: mirror, crop, similarity, colour. Source: MonoSKD, section A5.

Pixels are continuous: pixel k covers [k, k + 1), so its centre is k + 0.5. What is drawn at random comes from the
generator that is passed in, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.datasets.kitti.files import KittiCalibration

__all__ = ["Augmentation", "View", "flip_calibration", "jitter_colours", "warp_depth", "warp_image"]

_GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of R, G, B
# Principal components of ImageNet colours (Krizhevsky et al. 2012), rows R, G, B.
_EIGENVALUES = np.array([0.2141788, 0.01817699, 0.00341571])
_EIGENVECTORS = np.array(
    [
        [-0.56089297, 0.71832671, 0.41158938],
        [-0.5832747, 0.00994535, -0.81221408],
        [-0.58752847, -0.69563484, 0.41340352],
    ]
)


@dataclass(frozen=True)
class View:
    """Which part of an image, mirrored or not, becomes the network's input.

    Args:
        flip: mirror the image left to right first.
        scale: crop size over image size; above 1 the crop is larger than the image.
        center: centre of the crop, pixels of the (mirrored) image.
    """

    flip: bool
    scale: float
    center: tuple[float, float]

    @classmethod
    def whole(cls, size: tuple[int, int]) -> View:
        """All of an image of `size` (width, height), as it is."""
        return cls(False, 1.0, (size[0] / 2, size[1] / 2))

    def matrix(self, size: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
        """(4, 4) float64, pixels of the (mirrored) image to those of the network, the translation in column 3.

        The zoom is the same for both axes and makes the crop as wide as the target; the crop's centre comes to the
        target's.

        Args:
            size: width and height of the image.
            target: height and width of the network's input.
        """
        height, width = target
        zoom = width / (size[0] * self.scale)
        matrix = np.diag([zoom, zoom, 1.0, 1.0])
        matrix[:2, 3] = width / 2 - zoom * self.center[0], height / 2 - zoom * self.center[1]
        return matrix


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training sample of KITTI.

    Args:
        random_flip, random_crop: probabilities.
        scale: standard deviation of the crop's relative size, which stays within 1 +- scale.
        shift: standard deviation of the crop's shift over the image size, which stays within +- 2 shift.
        color_jitter: brightness, contrast and saturation are multiplied by 1 +- at most this.
        lighting: standard deviation of the shift along the principal components of ImageNet colours.

    Raises:
        ValueError: a value outside its range.
    """

    random_flip: float = 0.5
    random_crop: float = 0.5
    scale: float = 0.4
    shift: float = 0.1
    color_jitter: float = 0.4
    lighting: float = 0.1

    def __post_init__(self) -> None:
        limits = {
            "random_flip": 1.0,
            "random_crop": 1.0,
            "scale": 0.99,
            "shift": 0.5,
            "color_jitter": 1.0,
            "lighting": 1.0,
        }
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigKeyError(name, f" must lie in [0, {most:g}], got {getattr(self, name)}")

    def draw(self, size: tuple[int, int], rng: np.random.RandomState) -> View:
        """A view of an image of `size` (width, height). Always draws as many numbers."""
        flip, crop = rng.rand() < self.random_flip, rng.rand() < self.random_crop
        zoom, right, down = rng.randn(3)
        if not crop:
            return replace(View.whole(size), flip=bool(flip))
        scale = float(np.clip(1 + self.scale * zoom, 1 - self.scale, 1 + self.scale))
        shift = np.clip(self.shift * np.array([right, down]), -2 * self.shift, 2 * self.shift)
        x, y = (np.array(size) * (0.5 + shift)).tolist()
        return View(bool(flip), scale, (x, y))

    def colour(self, image: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
        """Other colours for an image (H, W, 3) in [0, 1]; see `jitter_colours`."""
        order = rng.permutation(3)
        factors = 1 + rng.uniform(-self.color_jitter, self.color_jitter, 3)
        return jitter_colours(image, order, factors, rng.normal(0, self.lighting, 3))


def jitter_colours(image: np.ndarray, order: np.ndarray, factors: np.ndarray, lighting: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) float32 RGB with other brightness, contrast and saturation; the range is not clipped.

    Args:
        order: in which 0 brightness, 1 contrast, 2 saturation follow each other.
        factors: of brightness; of the distance to the mean grey (contrast), and to the grey picture (saturation).
            Both greys are those of the unchanged image.
        lighting: (3,) weights of the colour shifts along the principal components.
    """
    grey = (image @ _GREY)[..., None]
    towards = (np.float32(0), grey.mean(), grey)
    for kind in order:
        factor = np.float32(factors[kind])
        image = image * factor + towards[kind] * (1 - factor)
    return image + (_EIGENVECTORS @ (_EIGENVALUES * lighting)).astype(np.float32)


def flip_calibration(calibration: KittiCalibration, width: int) -> KittiCalibration:
    """The calibration of the mirror image of an image `width` pixels wide.

    Its camera frame is mirrored too (x changes its sign), so that depth and height of a point stay what they are.
    """
    p2 = calibration.p2.copy()
    p2[0, 2] = width - p2[0, 2]
    p2[0, 3] = -p2[0, 3]
    rectification = calibration.rectification
    if rectification is not None:
        rectification = np.diag([-1.0, 1.0, 1.0, 1.0]) @ rectification
    return replace(calibration, p2=p2, rectification=rectification, p0=None, p1=None, p3=None, imu2velo=None)


def warp_image(image: Image.Image, matrix: np.ndarray, target: tuple[int, int]) -> Image.Image:
    """An image through `View.matrix`, bilinear, black outside; strong reductions average first.

    Args:
        target: height and width.
    """
    # Sampling every n-th pixel would alias.
    factor = max(1, int(1 / matrix[0, 0] + 1e-6))
    if factor > 1:
        image = image.reduce(factor)
    return image.transform(
        target[::-1], Image.Transform.AFFINE, _coefficients(matrix, factor), Image.Resampling.BILINEAR
    )


def warp_depth(depth: np.ndarray, matrix: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    """A depth map (H, W) through `View.matrix`: metres, 0 where nothing is known or outside the map.

    Bilinear among the pixels that know their depth; unknown ones do not pull the others towards 0.
    """
    known = depth > 0
    warped = _warp_plane(depth, matrix, target)
    if known.all():
        return warped
    share = _warp_plane(known.astype(np.float32), matrix, target)
    return np.where(share >= 0.5, warped / np.maximum(share, 0.5), 0).astype(np.float32)


def _warp_plane(plane: np.ndarray, matrix: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
    coefficients = _coefficients(matrix)
    return np.array(image.transform(target[::-1], Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR))


def _coefficients(matrix: np.ndarray, reduction: int = 1) -> tuple[float, ...]:
    """Target pixel to source pixel, as PIL takes it."""
    inverse = np.linalg.inv(matrix)[:2][:, [0, 1, 3]] / reduction
    return tuple(inverse.ravel().tolist())
