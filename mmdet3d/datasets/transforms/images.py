"""Camera images: loading, normalisation, GridMask."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mmdet3d.datasets.records import Context, FrameRecord, Transform
from mmdet3d.datasets.transforms.loading import need, read_bytes
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Sample

__all__ = [
    "GridMask",
    "ImageNormalize",
    "LoadMultiViewImageFromFiles",
    "image_size",
    "read_image",
    "read_images",
    "read_views",
]


def read_image(path: Path) -> Image.Image:
    """A fully decoded RGB image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or no image.
    """
    content = read_bytes(path, "image")
    try:
        return Image.open(io.BytesIO(content)).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError(
            f"image file {path} cannot be decoded (it begins like no known format); fetch it again"
        ) from None
    except (OSError, SyntaxError) as error:  # Pillow raises SyntaxError for some broken PNG chunks
        raise ValueError(f"image file {path} cannot be decoded ({error}); fetch it again") from None


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, out of its head alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except FileNotFoundError:
        raise FileNotFoundError(f"image {path} is missing; complete the data set") from None
    except UnidentifiedImageError:
        raise ValueError(f"image file {path} is of no known format; fetch it again") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image file {path} cannot be decoded ({error}); fetch it again") from None


def read_images(files: Sequence[Path]) -> list[Image.Image]:
    """See `read_image`."""
    return [read_image(file) for file in files]


def read_views(record: FrameRecord, context: Context) -> list[Image.Image]:
    """The images of a frame's cameras, in their order.

    Raises:
        FileNotFoundError: no such file.
        ValueError: truncated or no image, or the calibration cannot belong to an image of that size.
    """
    cameras = list(record.cameras.values())
    images = context.read(read_images, [context.root / camera.path for camera in cameras])
    for image, camera in zip(images, cameras, strict=True):
        camera.check_size(image.size)
    return images


@TRANSFORMS.register
class LoadMultiViewImageFromFiles(Transform):
    """The images of all cameras, in the order of the calibration, as PIL images until `ImageNormalize`.

    Raises:
        ValueError: the calibration of a camera cannot belong to an image of that size.
    """

    def __call__(self, sample: Sample, context: Context) -> Sample:
        images = read_views(context.record, context)
        sample.images = images
        sample.meta["image_sizes"] = [image.size for image in images]
        return sample


@TRANSFORMS.register
class ImageNormalize(Transform):
    """PIL images, those of the history too, to one tensor (N, 3, H, W): colours in [0, 1], minus `mean`, over `std`.

    Args:
        mean, std: of the three channels in the order in which the network gets them.
        channel_order: `rgb`, or `bgr` for networks that were trained so (LabelDistill's published ones, with the mean
            and standard deviation of RGB).

    Raises:
        ValueError: another channel order.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], channel_order: str = "rgb") -> None:
        if channel_order not in ("rgb", "bgr"):
            raise ValueError(f"ImageNormalize channel_order must be rgb or bgr, got {channel_order!r}")
        self.channels = [0, 1, 2] if channel_order == "rgb" else [2, 1, 0]
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def __call__(self, sample: Sample, context: Context) -> Sample:
        for frame in sample.frames:
            images = need(frame, "images", self, "LoadMultiViewImageFromFiles")
            if not images:  # a rig without cameras, for models that need none
                frame.images = torch.zeros(0, 3, 1, 1)
                continue
            sizes = {image.size for image in images}
            if len(sizes) > 1:
                raise ValueError(f"the images of sample {frame.token} differ in size {sorted(sizes)}; add ImageAug3D")
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
            pixels = pixels.permute(0, 3, 1, 2)[:, self.channels].float()
            frame.images = pixels.div_(255).sub_(self.mean).div_(self.std)
        return sample


@TRANSFORMS.register
class GridMask(Transform):
    """Blanks a regular grid of squares, the same in all images (GridMask Data Augmentation, Chen et al. 2020).

    Args:
        use_h, use_w: draw the horizontal, the vertical bands of the grid.
        max_epoch: epoch at which `prob` is reached unless `fixed_prob`.
        rotate: the grid is rotated by a random whole number of degrees below this.
        offset: fill blanked pixels with uniform noise in [-1, 1) instead of 0.
        ratio: width of a band over the period of the grid.
        mode: 1 blanks the squares between the bands, 0 the bands.
        prob: probability that a sample is masked.
        fixed_prob: false lets the probability grow linearly with the epoch.
    """

    def __init__(
        self,
        use_h: bool = True,
        use_w: bool = True,
        max_epoch: int = 1,
        rotate: int = 1,
        offset: bool = False,
        ratio: float = 0.5,
        mode: int = 1,
        prob: float = 1.0,
        fixed_prob: bool = True,
    ) -> None:
        self.use_h, self.use_w = use_h, use_w
        self.max_epoch = max_epoch
        self.rotate = rotate
        self.offset = offset
        self.ratio = ratio
        self.mode = mode
        self.prob = prob
        self.fixed_prob = fixed_prob
        self.epoch_setting = None if fixed_prob or not prob else "fixed_prob: true"

    def __call__(self, sample: Sample, context: Context) -> Sample:
        images = need(sample, "images", self, "ImageNormalize")
        if not isinstance(images, Tensor):
            raise ValueError("GridMask works on normalised images; put ImageNormalize before it in the pipeline")
        probability = self.prob if self.fixed_prob else self.prob * context.epoch / self.max_epoch
        if context.rng.rand() >= probability or not len(images):
            return sample
        height, width = images.shape[-2:]
        mask = torch.from_numpy(self._mask(height, width, context.rng))
        filling = torch.zeros_like(mask)
        if self.offset:
            filling = torch.from_numpy(2 * context.rng.rand(height, width) - 1).float() * (1 - mask)
        for frame in sample.frames:
            frame.images = need(frame, "images", self, "ImageNormalize") * mask + filling
        return sample

    def _mask(self, height: int, width: int, rng: np.random.RandomState) -> np.ndarray:
        """(H, W) float32, 0 where blanked. Drawn on a larger canvas so that rotation leaves no empty corner."""
        period = rng.randint(2, min(height, width))
        band = min(max(int(period * self.ratio + 0.5), 1), period - 1)
        canvas = np.ones((int(1.5 * height), int(1.5 * width)), dtype=np.uint8)
        starts = rng.randint(period, size=2)
        if self.use_h:
            canvas[(np.arange(canvas.shape[0]) - starts[0]) % period < band] = 0
        if self.use_w:
            canvas[:, (np.arange(canvas.shape[1]) - starts[1]) % period < band] = 0
        rotated = np.asarray(Image.fromarray(canvas).rotate(rng.randint(self.rotate)))
        top, left = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
        mask = rotated[top : top + height, left : left + width].astype(np.float32)
        return 1 - mask if self.mode == 1 else mask
