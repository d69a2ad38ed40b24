"""BEV pooling at the size of CRKD's teacher: six cameras, 118 depth bins, 32x88 pixels, 80 channels, 0.3 m cells.

"forward + backward" works out the cells each time, as training must, where augmentation moves the points. "planned" is
inference with a fixed calibration. "pytorch" is what runs where there is no compiler.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, twin
from mmdet3d.ops.bev_pool import bev_pool, bev_pool_lifted, fused, plan_pool
from mmdet3d.ops.bev_pool.reference import cell_indices


def cases(
    device: torch.device, bins: int = 118, height: int = 32, width: int = 88, channels: int = 80, cells: int = 360
) -> list[Case]:
    size = 108 / cells
    grid = ([-54.0, -54.0, -10.0], [size, size, 20.0], [cells, cells, 1])
    geometry = _frustum(bins, height, width).to(device)
    depth = torch.randn(6, bins, height, width, device=device).softmax(1)
    context = torch.randn(6, channels, height, width, device=device)
    plan = plan_pool(geometry, *grid)
    lifted = torch.randn(*geometry.shape[:-1], 8, device=device)
    needy = [t.clone().requires_grad_() for t in (depth, context)]

    def ours(depth: Tensor, context: Tensor) -> Tensor:
        return bev_pool(depth, context, geometry, *grid)

    def pytorch(depth: Tensor, context: Tensor) -> Tensor:
        return fused.lift_splat(depth, context, cell_indices(geometry, *grid), 1, grid[2])

    def forward() -> Tensor:
        return ours(depth, context)

    def plain() -> Tensor:
        return bev_pool_lifted(lifted, geometry, *grid)

    both = forward_backward(ours, *needy)
    outputs = channels * cells * cells * 4
    moved = geometry.nbytes + depth.nbytes + context.nbytes + outputs
    shape = f"6x{bins}x{height}x{width}x{channels} -> {cells}x{cells}"
    peers: dict[str, Implementation] = {"pytorch": lambda: pytorch(depth, context)}
    return [
        Case("bev_pool forward", shape, {"ours": forward, "twin": twin(forward), **peers}, bytes=moved),
        Case(
            "bev_pool forward, planned",
            shape,
            {"ours": lambda: plan.pool(depth, context), "twin": twin(lambda: plan.pool(depth, context))},
            bytes=moved - geometry.nbytes + plan.cells.nbytes,
        ),
        Case(
            "bev_pool forward + backward",
            shape,
            {"ours": both, "twin": twin(both), "pytorch": forward_backward(pytorch, *needy)},
            bytes=moved + outputs + 2 * (depth.nbytes + context.nbytes),
        ),
        Case(
            "bev_pool_lifted forward",
            f"6x{bins}x{height}x{width}x8 -> {cells}x{cells}",
            {"ours": plain, "twin": twin(plain)},
            bytes=lifted.nbytes + geometry.nbytes + 8 * cells * cells * 4,
        ),
    ]


def _frustum(bins: int, height: int, width: int) -> Tensor:
    """(1, 6, bins, height, width, 3): six cameras that look outward every 60 degrees, depths from 1 m every 0.5 m."""
    depth = torch.arange(bins).view(1, bins, 1, 1) * 0.5 + 1
    turn = torch.arange(6.0).view(6, 1, 1, 1) * math.pi / 3
    column = torch.linspace(-0.58, 0.58, width)
    row = torch.linspace(-0.2, 0.22, height).view(1, 1, height, 1)
    x = (depth * (turn.cos() - column * turn.sin())).expand(6, bins, height, width)
    y = (depth * (turn.sin() + column * turn.cos())).expand(6, bins, height, width)
    return torch.stack([x, y, (-depth * row).expand_as(x)], dim=-1)[None]
