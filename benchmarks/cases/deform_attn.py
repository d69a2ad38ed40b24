"""Deformable attention as SimDistill's geometry compensation has it: on the BEV map, and on six camera images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, optional, twin
from mmdet3d.ops.deform_attn import multi_scale_deformable_attention

# Name, batch, height, width, heads, channels of a head, points.
SIZES = (("BEV", 1, 180, 180, 8, 10, 20), ("images", 6, 32, 88, 8, 32, 10))


def cases(device: torch.device, sizes: tuple[tuple[str, int, int, int, int, int, int], ...] = SIZES) -> list[Case]:
    return [case for name, *size in sizes for case in _pair(name, *size, device=device)]


def _pair(
    name: str, batch: int, height: int, width: int, heads: int, channels: int, points: int, device: torch.device
) -> list[Case]:
    pixels = height * width
    value = torch.randn(batch, pixels, heads, channels, device=device)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    places = torch.stack([x, y], -1).view(1, pixels, 1, 1, 1, 2)
    spread = torch.randn(batch, pixels, heads, 1, points, 2) * points / 2  # pixels, half the reach at the start
    # Off pixel centres, where the gradient of a location jumps and rounding decides which side is taken.
    spread = spread.floor() + 0.05 + 0.9 * spread.remainder(1)
    locations = ((places + spread) / torch.tensor([width, height])).to(device)
    weights = torch.rand(batch, pixels, heads, 1, points, device=device).flatten(3).softmax(-1)[:, :, :, None]
    needy = [t.clone().requires_grad_() for t in (value, locations, weights)]
    forward: dict[str, Implementation] = {}
    both: dict[str, Implementation] = {}
    for kind, function in _implementations((height, width), device).items():
        forward[kind] = _bound(function, value, locations, weights)
        both[kind] = forward_backward(function, *needy)
    shape = f"{batch}x{heads * channels}x{height}x{width}, {heads} heads, {points} points"
    inputs, output = value.nbytes + locations.nbytes + weights.nbytes, value.nbytes
    return [
        Case(f"deform_attn forward, {name}", shape, forward | {"twin": twin(forward["ours"])}, bytes=inputs + output),
        Case(
            f"deform_attn forward + backward, {name}",
            shape,
            both | {"twin": twin(both["ours"])},
            bytes=3 * inputs + 2 * output,
        ),
    ]


def _bound(function: Callable[..., Tensor], *inputs: Tensor) -> Implementation:
    return lambda: function(*inputs)


def _implementations(size: tuple[int, int], device: torch.device) -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {
        "ours": lambda v, p, w: multi_scale_deformable_attention(v, [size], p, w)
    }
    if mmcv := optional("mmcv.ops.multi_scale_deform_attn"):
        shapes, starts = torch.tensor([size], device=device), torch.zeros(1, dtype=torch.int64, device=device)
        if device.type == "cuda":
            apply = mmcv.MultiScaleDeformableAttnFunction.apply
            functions["mmcv"] = lambda v, p, w: apply(v, shapes, starts, p, w, 64)
        else:
            functions["mmcv (PyTorch)"] = lambda v, p, w: mmcv.multi_scale_deformable_attn_pytorch(v, shapes, p, w)
    return functions
