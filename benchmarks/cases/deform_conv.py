"""Deformable convolution: v1 as in LabelDistill's depth net, v2 as in SimDistill's BEV block and its ResNet-50."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, optional, twin
from mmdet3d.ops.deform_conv import deform_conv2d

# Name, batch, channels in and out, height, width, groups, whether taps are scaled.
SIZES = (
    ("v1, depth net", 6, 512, 16, 44, 4, False),
    ("v2, BEV block", 1, 80, 180, 180, 1, True),
    ("v2, ResNet-50 stage 3", 6, 256, 16, 44, 1, True),
)


def cases(device: torch.device, sizes: tuple[tuple[str, int, int, int, int, int, bool], ...] = SIZES) -> list[Case]:
    return [case for name, *size in sizes for case in _pair(name, *size, device=device)]


def _pair(
    name: str, batch: int, channels: int, height: int, width: int, groups: int, scaled: bool, device: torch.device
) -> list[Case]:
    image = torch.randn(batch, channels, height, width, device=device)
    offset = torch.randn(batch, 18, height, width, device=device)
    weight = torch.randn(channels, channels // groups, 3, 3, device=device) / (9 * channels // groups) ** 0.5
    mask = torch.rand(batch, 9, height, width, device=device) if scaled else None
    tensors = [t for t in (image, offset, weight, mask) if t is not None]
    needy = [t.clone().requires_grad_() for t in tensors]
    forward: dict[str, Implementation] = {}
    both: dict[str, Implementation] = {}
    for kind, function in _implementations(groups).items():
        forward[kind] = _bound(function, *tensors)
        both[kind] = forward_backward(function, *needy)
    shape = f"{batch}x{channels}x{height}x{width}, 3x3, {groups} groups"
    flops = 2 * 9 * channels // groups * channels * batch * height * width
    inputs, output = sum(t.nbytes for t in tensors), image.nbytes
    return [
        Case(f"deform_conv {name} forward", shape, forward | {"twin": twin(forward["ours"])}, inputs + output, flops),
        Case(
            f"deform_conv {name} forward + backward",
            shape,
            both | {"twin": twin(both["ours"])},
            3 * inputs + 2 * output,
            3 * flops,
        ),
    ]


def _bound(function: Callable[..., Tensor], *inputs: Tensor) -> Implementation:
    return lambda: function(*inputs)


def _implementations(groups: int) -> dict[str, Callable[..., Tensor]]:
    functions: dict[str, Callable[..., Tensor]] = {
        "ours": lambda x, o, w, m=None: deform_conv2d(x, o, w, None, m, padding=1, groups=groups)
    }
    if vision := optional("torchvision.ops"):
        functions["torchvision"] = lambda x, o, w, m=None: vision.deform_conv2d(x, o, w, None, 1, 1, 1, m)
    if mmcv := optional("mmcv.ops"):

        def by_mmcv(x: Tensor, o: Tensor, w: Tensor, m: Tensor | None = None) -> Tensor:
            if m is None:
                return mmcv.deform_conv2d(x, o, w, 1, 1, 1, groups, 1)
            return mmcv.modulated_deform_conv2d(x, o, m, w, None, 1, 1, 1, groups, 1)

        functions["mmcv"] = by_mmcv
    return functions
