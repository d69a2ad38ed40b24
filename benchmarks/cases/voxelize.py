"""Voxelisation of CRKD's LiDAR: 300,000 points in 120,000 voxels of 1440x1440x41, ten slots each; reductions."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.framework import Case, Implementation, forward_backward, optional, twin
from mmdet3d.ops.voxelize import scatter_max, scatter_mean, voxelize

SIZE = [0.075, 0.075, 0.2]
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.2]
SHAPE = (1440, 1440, 41)
SLOTS = 10


def cases(device: torch.device, points: int = 300_000, voxels: int = 120_000) -> list[Case]:
    generator = torch.Generator().manual_seed(0)
    cloud, index = _cloud(points, voxels, generator)
    cloud, index = cloud.to(device), index.to(device)
    features = torch.randn(points, 64, generator=generator).to(device).requires_grad_()
    shape = f"{points} points, {voxels} voxels of {'x'.join(map(str, SHAPE))}"

    def hard() -> tuple[Tensor, Tensor, Tensor]:
        return voxelize(cloud, SIZE, RANGE, SLOTS, voxels)

    slots = voxels * SLOTS * cloud.shape[1] * cloud.element_size()
    found = [
        Case(
            "voxelize hard",
            shape,
            {"ours": hard, "twin": twin(hard)} | _peer(cloud, voxels),
            bytes=cloud.nbytes + slots + voxels * 16,
        )
    ]
    for reduce in (scatter_mean, scatter_max):
        call = forward_backward(lambda f, r=reduce: r(f, index, voxels), features)
        found.append(
            Case(
                f"{reduce.__name__} forward + backward",
                f"{points}x64 -> {voxels}x64",
                {"ours": call, "twin": twin(call)},
                bytes=2 * (features.nbytes + voxels * 64 * features.element_size()) + 2 * index.nbytes,
            )
        )
    return found


def _cloud(points: int, voxels: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points (P, 5) that fill exactly `voxels` cells, in random order, and the cell of each (P,)."""
    x, y, z = SHAPE
    cells = torch.randperm(x * y * z // 64, generator=generator)[:voxels] * 64
    index = torch.cat([torch.arange(voxels), torch.randint(0, voxels, (points - voxels,), generator=generator)])
    index = index[torch.randperm(points, generator=generator)]
    cell = cells[index]
    corner = torch.stack([cell // (y * z), cell // z % y, cell % z], dim=1)
    inside = 0.1 + 0.8 * torch.rand(points, 3, generator=generator)  # off the borders, where peers may round otherwise
    xyz = (corner + inside) * torch.tensor(SIZE) + torch.tensor(RANGE[:3])
    return torch.cat([xyz, torch.rand(points, 2, generator=generator)], dim=1), index


def _peer(cloud: Tensor, voxels: int) -> dict[str, Implementation]:
    ops = optional("mmcv.ops")
    if ops is None:
        return {}
    layer = ops.Voxelization(SIZE, RANGE, SLOTS, voxels)

    def hard() -> tuple[Tensor, Tensor, Tensor]:
        slots, coordinates, counts = layer(cloud)
        return slots, coordinates.flip(1), counts  # mmcv counts z, y, x

    return {"mmcv": hard}
