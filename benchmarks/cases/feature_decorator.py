"""Pillar decoration at the size of CRKD's radar branch: 30,000 pillars of 20 points with 45 features."""

from __future__ import annotations

import torch

from benchmarks.framework import Case, forward_backward, twin
from mmdet3d.ops.feature_decorator import feature_decorator

RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
SIZE = [0.6, 0.6, 8.0]


def cases(device: torch.device, pillars: int = 30000, slots: int = 20, features: int = 45) -> list[Case]:
    points = torch.randn(pillars, slots, features, device=device)
    counts = torch.randint(1, slots + 1, (pillars,), device=device)
    cells = torch.randint(0, 180, (pillars, 3), device=device)
    needy = points.clone().requires_grad_()

    def decorate(points: torch.Tensor) -> torch.Tensor:
        return feature_decorator(points, counts, cells, SIZE, RANGE, normalize=True, cluster=True)

    outputs = pillars * slots * (features + 5) * points.element_size()
    shape = f"{pillars}x{slots}x{features}"
    both = forward_backward(decorate, needy)
    return [
        Case(
            "feature_decorator forward",
            shape,
            {"ours": lambda: decorate(points), "twin": twin(lambda: decorate(points))},
            bytes=points.nbytes + outputs,
        ),
        Case(
            "feature_decorator forward + backward",
            shape,
            {"ours": both, "twin": twin(both)},
            bytes=2 * (points.nbytes + outputs),
        ),
    ]
