"""Rotated IoU of a crowded scene, of TransFusion's matching, and of a KITTI frame, where a call's overhead counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, optional, twin
from mmdet3d.ops.rotated_iou import paired_rotated_iou, rotated_iou, rotated_iou_3d

SIZES = ((1000, 1000), (200, 60), (20, 10))


def cases(device: torch.device, sizes: tuple[tuple[int, int], ...] = SIZES, pairs: int = 100_000) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for n, m in sizes:
        first, second = _boxes(n, generator).to(device), _boxes(m, generator).to(device)
        ground = [b[:, [0, 1, 3, 4, 6]] for b in (first, second)]

        def flat(a: Tensor = ground[0], b: Tensor = ground[1]) -> Tensor:
            return rotated_iou(a, b)

        def space(a: Tensor = first, b: Tensor = second) -> Tensor:
            return rotated_iou_3d(a, b)

        peers = {"ours": flat, "twin": twin(flat)} | _peer(*ground)
        found.append(Case("rotated_iou", f"{n}x{m}", peers))
        found.append(Case("rotated_iou_3d", f"{n}x{m}", {"ours": space, "twin": twin(space)}))
    first = _boxes(pairs, generator).to(device)[:, [0, 1, 3, 4, 6]]
    second = first + torch.randn(pairs, 5, generator=generator).to(device) * 0.3

    def paired() -> Tensor:
        return paired_rotated_iou(first, second)

    peers = {"ours": paired, "twin": twin(paired)} | _peer(first, second, aligned=True)
    return [*found, Case("paired_rotated_iou", f"{pairs} pairs", peers)]


def _boxes(count: int, generator: torch.Generator) -> Tensor:
    """(N, 7) cars within 54 m."""
    scale = torch.tensor([108.0, 108.0, 2.0, 2.0, 0.6, 0.5, 2 * math.pi])
    return torch.rand(count, 7, generator=generator) * scale + torch.tensor([-54.0, -54, -1, 3.5, 1.6, 1.4, -math.pi])


def _peer(first: Tensor, second: Tensor, aligned: bool = False) -> dict[str, Implementation]:
    ops = optional("mmcv.ops")
    return {} if ops is None else {"mmcv": lambda: ops.box_iou_rotated(first, second, aligned=aligned)}
