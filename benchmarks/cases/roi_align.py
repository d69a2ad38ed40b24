"""RoIAlign as MonoSKD has it: 64 channels at 96x320, eight images of eight boxes each, 7x7 bins."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, optional, twin
from mmdet3d.ops.roi_align import roi_align


def cases(device: torch.device, images: int = 8, per_image: int = 8, channels: int = 64) -> list[Case]:
    features = torch.randn(images, channels, 96, 320, device=device)
    corners = torch.rand(images * per_image, 2, device=device) * torch.tensor([280.0, 70.0], device=device)
    extents = torch.rand(images * per_image, 2, device=device) * torch.tensor([60.0, 40.0], device=device) + 4
    index = torch.arange(images, device=device).repeat_interleave(per_image)[:, None]
    boxes = torch.cat([index, corners, corners + extents], 1)
    touched = int((extents.prod(1)).sum()) * channels * 4
    outputs = len(boxes) * channels * 49 * 4
    shape = f"{len(boxes)} boxes of {images}x{channels}x96x320 -> 7x7"
    needy = features.clone().requires_grad_()
    forward: dict[str, Implementation] = {}
    both: dict[str, Implementation] = {}
    for name, function in {"ours": _ours, **_peers()}.items():
        forward[name] = _bound(function, features, boxes)
        both[name] = forward_backward(function, needy, boxes)
    return [
        Case("roi_align forward", shape, forward | {"twin": twin(forward["ours"])}, bytes=touched + outputs),
        Case(
            "roi_align forward + backward",
            shape,
            both | {"twin": twin(both["ours"])},
            bytes=3 * touched + 2 * outputs + features.nbytes,
        ),
    ]


def _ours(features: Tensor, boxes: Tensor) -> Tensor:
    return roi_align(features, boxes, 7)


def _bound(function: Callable[[Tensor, Tensor], Tensor], features: Tensor, boxes: Tensor) -> Implementation:
    return lambda: function(features, boxes)


def _peers() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    peers: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    if mmcv := optional("mmcv.ops"):
        peers["mmcv"] = lambda f, b: mmcv.roi_align(f, b, 7, 1.0, 0, "avg", False)
    if vision := optional("torchvision.ops"):
        peers["torchvision"] = lambda f, b: vision.roi_align(f, b, 7)
    return peers
