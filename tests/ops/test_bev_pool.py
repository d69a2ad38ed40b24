from __future__ import annotations

import pytest
import torch

from mmdet3d.ops.bev_pool import bev_pool
from mmdet3d.ops.bev_pool import reference as twin

GRID = {"lower": (-4.0, -3.0, -2.0), "cell": (1.0, 0.5, 2.0), "shape": (8, 12, 2)}


def inputs(dtype=torch.float32, batch=2, cameras=3, bins=4, size=(3, 5), channels=6):
    generator = torch.Generator().manual_seed(0)
    h, w = size
    depth = torch.rand(batch * cameras, bins, h, w, generator=generator, dtype=dtype).softmax(1)
    context = torch.randn(batch * cameras, channels, h, w, generator=generator, dtype=dtype)
    geometry = torch.rand(batch, cameras, bins, h, w, 3, generator=generator, dtype=dtype) * 12 - 6
    return depth, context, geometry


def by_loop(depth, context, geometry, lower, cell, shape, floor):
    """Point by point."""
    batch, cameras = geometry.shape[:2]
    channels = context.shape[1]
    out = torch.zeros(batch, shape[2] * channels, *shape[:2], dtype=context.dtype)
    for index in torch.cartesian_prod(*(torch.arange(n) for n in geometry.shape[:5])).tolist():
        b, n, d, h, w = index
        position = (geometry[b, n, d, h, w] - torch.tensor(lower)) / torch.tensor(cell)
        x, y, z = (position.floor() if floor else position.trunc()).int().tolist()
        if 0 <= x < shape[0] and 0 <= y < shape[1] and 0 <= z < shape[2]:
            image = b * cameras + n
            out[b, z * channels : (z + 1) * channels, x, y] += depth[image, d, h, w] * context[image, :, h, w]
    return out


@pytest.mark.parametrize("floor", [False, True])
def test_fused_equals_twin_and_loop(floor):
    depth, context, geometry = inputs()
    expected = by_loop(depth, context, geometry, **GRID, floor=floor)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(bev_pool(depth, context, geometry, **GRID, floor=floor), expected)
    torch.testing.assert_close(twin.bev_pool(depth, context, geometry, **GRID, floor=floor), expected)


@pytest.mark.parametrize("pool", [bev_pool, twin.bev_pool])
def test_gradients(pool):
    depth, context, geometry = inputs(torch.float64, batch=1, cameras=2, bins=3, size=(2, 3), channels=2)
    depth.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: pool(d, c, geometry, **GRID), (depth, context))


def test_points_of_one_pixel_in_one_cell_add_up():
    depth = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1).requires_grad_()
    context = torch.tensor([2.0, 4.0]).view(1, 2, 1, 1).requires_grad_()
    bev = bev_pool(depth, context, torch.zeros(1, 1, 2, 1, 1, 3), **GRID)
    assert bev[0, 2:, 4, 6].tolist() == [1.5, 3.0]  # z = 0 m is in the upper of the two slices
    bev.sum().backward()
    assert depth.grad.flatten().tolist() == [6.0, 6.0]
    assert context.grad.flatten().tolist() == [0.75, 0.75]


def test_borders():
    # x: just below the lower border, on it, just below the upper border, on it, far outside, NaN, infinite, huge.
    x = torch.tensor([-4.5, -4.0, 3.999, 4.0, -5.5, float("nan"), float("inf"), 1e20])
    geometry = torch.zeros(1, 1, len(x), 1, 1, 3)
    geometry[0, 0, :, 0, 0, 0] = x
    truncated = twin.cell_indices(geometry, **GRID).flatten() >= 0
    floored = twin.cell_indices(geometry, **GRID, floor=True).flatten() >= 0
    assert truncated.tolist() == [True, True, True, False, False, False, False, False]
    assert floored.tolist() == [False, True, True, False, False, False, False, False]


def test_nothing_in_the_grid_gives_zeros_with_zero_gradients():
    depth, context, geometry = inputs()
    depth.requires_grad_()
    context.requires_grad_()
    bev = bev_pool(depth, context, geometry + 100, **GRID)
    assert bev.shape == (2, 12, 8, 12)
    assert not bev.any()
    bev.sum().backward()
    assert not depth.grad.any()
    assert not context.grad.any()


def test_non_contiguous_inputs():
    depth, context, geometry = inputs()
    expected = bev_pool(depth, context, geometry, **GRID)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (depth, context, geometry)]
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(bev_pool(*strided, **GRID), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    depth, context, geometry = inputs()
    depth, context = depth.to(dtype).requires_grad_(), context.to(dtype).requires_grad_()
    bev = bev_pool(depth, context, geometry, **GRID)
    assert bev.dtype == torch.float32
    torch.testing.assert_close(bev, bev_pool(depth.float(), context.float(), geometry, **GRID))
    bev.sum().backward()
    assert depth.grad.dtype == context.grad.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": torch.zeros(6, 4, 3, 4)}, "context must have shape"),
        ({"geometry": torch.zeros(2, 3, 5, 3, 5, 3)}, "geometry must have shape"),
        ({"geometry": torch.zeros(2, 2, 4, 3, 5, 3)}, "depth has 6 images, geometry 2 x 2 = 4"),
        ({"depth": torch.zeros(6, 4, 3, 5, dtype=torch.int64)}, "depth must be floating point, got torch.int64"),
        ({"shape": (8, 12)}, "shape needs three values"),
    ],
)
def test_wrong_arguments(change, message):
    depth, context, geometry = inputs()
    arguments = {"depth": depth, "context": context, "geometry": geometry, **GRID} | change
    with pytest.raises(ValueError, match=message):
        bev_pool(**arguments)


@pytest.mark.shared
def test_cells_of_the_published_student(crkd_values):
    """Frustum of 59 x 32 x 88 points through the stored matrices."""
    matrices = {k: torch.tensor(v) for k, v in crkd_values["geometry inputs"].items()}
    u, v = torch.linspace(0, 703, 88), torch.linspace(0, 255, 32)
    d = torch.arange(1.0, 60.0, 1.0)
    frustum = torch.stack([g.permute(2, 1, 0) for g in torch.meshgrid(u, v, d, indexing="ij")], dim=-1)
    image = frustum.clone()
    image[..., :2] = (frustum[..., :2] - matrices["ida"][:2, 3]) @ matrices["ida"][:2, :2].inverse().T
    rays = torch.cat([image[..., :2] * image[..., 2:], image[..., 2:]], dim=-1)
    lidar = rays @ (matrices["camera2lidar"][:3, :3] @ matrices["K"][:3, :3].inverse()).T
    lidar = lidar + matrices["camera2lidar"][:3, 3]
    lidar = lidar @ matrices["bda"][:3, :3].T + matrices["bda"][:3, 3]
    cells = twin.cell_indices(lidar[None, None], (-54, -54, -10), (0.6, 0.6, 20), (180, 180, 1))
    expected = crkd_values["geometry kept cells"]
    x, y, z = expected["idx_d20_h16_w44"]
    assert cells.numel() == expected["total"]
    assert (cells >= 0).sum().item() == expected["kept"]
    assert (cells[0, 0, 20, 16, 44].item(), z) == (x * 180 + y, 0)


@pytest.mark.slow
def test_real_size():
    """One sample of the LiDAR-camera teacher: 2 M frustum points, 80 channels, 360 x 360 cells."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.rand(6, 118, 32, 88, generator=generator).softmax(1).requires_grad_()
    context = torch.randn(6, 80, 32, 88, generator=generator, requires_grad=True)
    geometry = (torch.rand(1, 6, 118, 32, 88, 3, generator=generator) - 0.5) * torch.tensor([120.0, 120.0, 20.0])
    grid = {"lower": (-54, -54, -10), "cell": (0.3, 0.3, 20), "shape": (360, 360, 1)}
    bev = bev_pool(depth, context, geometry, **grid)
    bev.square().sum().backward()
    kept = (twin.cell_indices(geometry, **grid) >= 0).flatten(0, 1)
    total = (depth * kept)[:, :, None].mul(context[:, None].sum(2)[:, :, None]).sum()
    torch.testing.assert_close(bev.sum(), total, rtol=1e-3, atol=1e-1)
    # The op is linear in depth, so the gradient of a square satisfies Euler's identity.
    torch.testing.assert_close((depth.grad * depth).sum(), 2 * bev.square().sum(), rtol=1e-3, atol=0)
    torch.testing.assert_close((context.grad * context).sum(), 2 * bev.square().sum(), rtol=1e-3, atol=0)


@pytest.mark.parametrize("height", [1, 2])
def test_result_is_contiguous(height):
    grid = GRID | {"cell": (1.0, 0.5, 4.0 / height), "shape": (8, 12, height)}
    assert bev_pool(*inputs(), **grid).is_contiguous()
