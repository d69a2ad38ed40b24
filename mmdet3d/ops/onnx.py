"""Ops that exported programs hold as a whole, in terms of ONNX; masks of attention are added, as models here do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["translations"]

_FAR = 1e4  # cells outside of any map: where boxes that are not finite go


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By op of this project what `torch.onnx.export(custom_translation_table=...)` writes for it; needs onnxscript."""
    from onnxscript import opset18 as op

    def roi_align(features, boxes, size, spatial_scale: float, sampling_ratio: int, aligned: bool):
        height, width = size
        boxes = op.Where(op.IsNaN(boxes), op.Constant(value_float=-_FAR), boxes)
        image = op.Cast(op.Squeeze(op.Slice(boxes, [0], [1], [1]), [1]), to=7)
        return op.RoiAlign(
            features,
            op.Slice(boxes, [1], [5], [1]),
            image,
            output_height=height,
            output_width=width,
            sampling_ratio=sampling_ratio,
            spatial_scale=spatial_scale,
            coordinate_transformation_mode="half_pixel" if aligned else "output_half_pixel",
        )

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
        """With any number of leading dimensions (windows of images); the exporter's own takes two."""
        last = len(key.shape) - 1
        turned = op.Transpose(key, perm=[*range(last - 1), last, last - 1])
        logits = op.Mul(op.MatMul(query, turned), op.Constant(value_float=scale or key.shape[-1] ** -0.5))
        if attn_mask is not None:
            logits = op.Add(logits, attn_mask)
        return op.MatMul(op.Softmax(logits, axis=-1), value)

    return {
        torch.ops.mmdet3d.roi_align.default: roi_align,
        torch.ops.aten.scaled_dot_product_attention.default: attention,
    }
