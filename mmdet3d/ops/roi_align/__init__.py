"""Features of boxes of any size, resampled to one size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops.checks import check_deterministic, check_shapes
from mmdet3d.ops.native import DTYPE_CODES, Kernels
from mmdet3d.ops.roi_align import reference

__all__ = ["REACH", "roi_align"]

_kernels = Kernels("roi_align")
# Farthest a box may lie from the map, in its pixels; beyond, the result is NaN, so that no box costs unbounded time.
REACH = 1e6


def roi_align(
    features: Tensor,
    boxes: Tensor,
    output_size: int | tuple[int, int],
    *,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Tensor:
    """RoIAlign (He et al. 2017): each box is divided into bins, each bin is the mean of bilinear samples.

    Pixel centres lie at whole coordinates (`aligned=False`, as the KITTI systems have it; boxes are then at least one
    pixel wide and high) or at half ones (`aligned=True`). A sample within a pixel outside of the map takes the border's
    value, one farther out is zero. Gradients go to the features, not to the boxes; on CUDA they are summed by atomic
    additions, so their last bits may differ between runs.

    Args:
        features: (N, C, H, W).
        boxes: (K, 5) index of the image, x1, y1, x2, y2.
        output_size: bins along y and x.
        spatial_scale: pixels of the map per unit of the boxes.
        sampling_ratio: samples of a bin along each axis; 0 for one per pixel, rounded up, so that none is skipped.
        aligned: see above.

    Returns:
        (K, C, *output_size), dtype of the features. NaN for boxes that are not finite or farther than `REACH` pixels
        away.

    Raises:
        ValueError: shapes or sizes that make no sense; on the CPU also an image index that names no image (on CUDA,
            where looking would cost a synchronisation, such boxes give NaN).
        RuntimeError: in the backward on CUDA, if `torch.use_deterministic_algorithms` is on.
    """
    sizes = check_shapes(features=(features, "N C H W"), boxes=(boxes, "K 5"))
    if not sizes["H"] or not sizes["W"]:
        raise ValueError(f"features must have pixels, got shape {tuple(features.shape)}")
    size = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"output_size must be one or two positive numbers, got {output_size}")
    if sampling_ratio < 0:
        raise ValueError(f"sampling_ratio must be 0 (adaptive) or positive, got {sampling_ratio}")
    for name, tensor in (("features", features), ("boxes", boxes)):
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    usable = _usable(boxes.detach().to(wide.dtype), features.shape[0], spatial_scale)
    # How many samples a bin has depends on values, so exported programs hold the op as a whole (ONNX has it, too).
    if torch.compiler.is_exporting() or _kernels.available(features):
        out = _align(wide, usable, list(size), float(spatial_scale), sampling_ratio, aligned)
    else:
        _check_images(usable, features.shape[0])
        out = reference.roi_align(wide, usable, size, spatial_scale, sampling_ratio, aligned)
    return out.to(features.dtype)


def _usable(boxes: Tensor, images: int, scale: float) -> Tensor:
    """Boxes with NaN in place of those that have no answer."""
    far = ~((boxes[:, 1:] * scale).abs() <= REACH).all(1)
    if boxes.is_cuda:
        far |= ~((boxes[:, 0] >= 0) & (boxes[:, 0] < images))
    return torch.where(
        far[:, None] & torch.tensor([False, True, True, True, True], device=boxes.device), torch.nan, boxes
    )


def _check_images(boxes: Tensor, images: int) -> None:
    if boxes.is_cuda or not len(boxes):
        return
    wrong = ~((boxes[:, 0] >= 0) & (boxes[:, 0] < images))
    if wrong.any():
        raise ValueError(f"boxes name image {boxes[wrong][0, 0].item():g}, but features hold {images} images")


@torch.library.custom_op("mmdet3d::roi_align", mutates_args=())
def _align(
    features: Tensor, boxes: Tensor, size: list[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    _check_images(boxes, features.shape[0])
    if not _kernels.available(features):
        return reference.roi_align(features, boxes, (size[0], size[1]), spatial_scale, sampling_ratio, aligned)
    out = features.new_empty(len(boxes), features.shape[1], *size)
    _kernels.call(
        "roi_align_forward",
        *_scalars(features.dtype, features.shape, boxes, size, spatial_scale, sampling_ratio, aligned),
        features.contiguous(),
        boxes.contiguous(),
        out,
    )
    return out


@_align.register_fake
def _(
    features: Tensor, boxes: Tensor, size: list[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    return features.new_empty(boxes.shape[0], features.shape[1], *size)


@torch.library.custom_op("mmdet3d::roi_align_backward", mutates_args=())
def _align_backward(
    grad_out: Tensor, boxes: Tensor, shape: list[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    check_deterministic("roi_align backward", grad_out)
    grad = grad_out.new_zeros(shape)
    _kernels.call(
        "roi_align_gradient",
        *_scalars(grad_out.dtype, shape, boxes, list(grad_out.shape[2:]), spatial_scale, sampling_ratio, aligned),
        grad_out.contiguous(),
        boxes.contiguous(),
        grad,
    )
    return grad


@_align_backward.register_fake
def _(
    grad_out: Tensor, boxes: Tensor, shape: list[int], spatial_scale: float, sampling_ratio: int, aligned: bool
) -> Tensor:
    return grad_out.new_empty(shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, boxes, _, *ctx.rest = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(boxes)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (boxes,) = ctx.saved_tensors
    return _align_backward(grad, boxes, ctx.shape, *ctx.rest), None, None, None, None, None


_align.register_autograd(_differentiate, setup_context=_save)


def _scalars(
    dtype: torch.dtype, shape: Any, boxes: Tensor, size: list[int], scale: float, ratio: int, aligned: bool
) -> list[Any]:
    """The scalar arguments that both kernels begin with."""
    return [DTYPE_CODES[dtype], len(boxes), *shape, *size, float(scale), ratio, aligned]
