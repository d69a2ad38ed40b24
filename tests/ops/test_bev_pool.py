from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch

from mmdet3d.ops import build, native
from mmdet3d.ops.bev_pool import (
    PlanCache,
    bev_pool,
    bev_pool_lifted,
    fused,
    kernels,
    plan_coordinates,
    plan_pool,
)
from mmdet3d.ops.bev_pool import reference as twin

needs_compiler = pytest.mark.skipif(build.compiler("cpu") is None, reason="there is no C++ compiler on this machine")
every_backend = pytest.mark.usefixtures("backend")

GRID = {"lower": (-4.0, -3.0, -2.0), "cell": (1.0, 0.5, 2.0), "shape": (8, 12, 2)}
COARSE = {"lower": (-4.0, -3.0, -2.0), "cell": (4.0, 3.0, 2.0), "shape": (2, 2, 2)}


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


def lifted(depth, context, cameras=3):
    """(B, N, D, h, w, C)"""
    return twin.lift(depth, context).unflatten(0, (-1, cameras))


@every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels", [1, 6, 16, 40, 131])
def test_equals_twin(dtype, channels):
    """More cells than are written at once, channels around the widths of blocks and warps."""
    grid = {"lower": (-4.0, -3.0, -2.0), "cell": (0.5, 0.375, 2.0), "shape": (16, 17, 2)}
    depth, context, geometry = inputs(dtype, cameras=1, channels=channels, size=(3, 17))
    depth.requires_grad_()
    context.requires_grad_()
    got, expected = (pool(depth, context, geometry, **grid) for pool in (bev_pool, twin.bev_pool))
    assert got.dtype == dtype
    torch.testing.assert_close(got, expected)
    seed = torch.randn_like(expected)
    for g, e in zip(*(torch.autograd.grad(o, (depth, context), seed) for o in (got, expected)), strict=True):
        torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-5)


@every_backend
@pytest.mark.parametrize("floor", [False, True])
def test_fused_equals_twin_and_loop(floor):
    depth, context, geometry = inputs()
    expected = by_loop(depth, context, geometry, **GRID, floor=floor)
    assert expected.abs().sum() > 0
    torch.testing.assert_close(bev_pool(depth, context, geometry, **GRID, floor=floor), expected)
    torch.testing.assert_close(
        bev_pool_lifted(lifted(depth, context), geometry, **GRID, floor=floor), expected, rtol=1e-5, atol=1e-6
    )


@every_backend
def test_gradients():
    depth, context, geometry = inputs(torch.float64, batch=1, cameras=2, bins=3, size=(2, 3), channels=2)
    depth.requires_grad_()
    context.requires_grad_()
    assert torch.autograd.gradcheck(lambda d, c: bev_pool(d, c, geometry, **COARSE), (depth, context))
    features = lifted(depth, context, 2).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: bev_pool_lifted(f, geometry, **COARSE), features)


@every_backend
def test_only_the_gradients_that_are_asked_for():
    depth, context, geometry = inputs()
    for needy in (depth, context):
        needy.requires_grad_()
        bev_pool(depth, context, geometry, **GRID).sum().backward()
        needy.requires_grad_(False)
    expected = [t.clone().requires_grad_() for t in (depth, context)]
    twin.bev_pool(*expected, geometry, **GRID).sum().backward()
    torch.testing.assert_close([depth.grad, context.grad], [t.grad for t in expected])


def test_without_a_compiler(monkeypatch):
    """The form for machines without kernels, which forms no lifted tensor."""
    depth, context, geometry = inputs()
    expected = twin.bev_pool(depth, context, geometry, **GRID)
    calls = []
    real = fused.lift_splat
    monkeypatch.setattr(kernels, "available", lambda tensor: False)
    monkeypatch.setattr(fused, "lift_splat", lambda *a: calls.append(1) or real(*a))
    depth.requires_grad_()
    context.requires_grad_()
    torch.testing.assert_close(bev_pool(depth, context, geometry, **GRID), expected)
    assert calls == [1]
    features = lifted(depth, context).detach().requires_grad_()
    torch.testing.assert_close(bev_pool_lifted(features, geometry, **GRID), expected)
    assert torch.autograd.gradcheck(
        lambda d, c: bev_pool(d, c, geometry[:1, :1, :, :2, :2].double(), **COARSE),
        [t[:1, :, :2, :2].detach().double().requires_grad_() for t in (depth, context)],
    )


@every_backend
def test_points_of_one_pixel_in_one_cell_add_up():
    depth = torch.tensor([0.25, 0.5]).view(1, 2, 1, 1).requires_grad_()
    context = torch.tensor([2.0, 4.0]).view(1, 2, 1, 1).requires_grad_()
    bev = bev_pool(depth, context, torch.zeros(1, 1, 2, 1, 1, 3), **GRID)
    assert bev[0, 2:, 4, 6].tolist() == [1.5, 3.0]  # z = 0 m is in the upper of the two slices
    bev.sum().backward()
    assert depth.grad.flatten().tolist() == [6.0, 6.0]
    assert context.grad.flatten().tolist() == [0.75, 0.75]


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_borders(dtype):
    # x: just below the lower border, on it, just below the upper border, on it, far outside, NaN, infinite, huge.
    x = torch.tensor([-4.5, -4.0, 3.96875, 4.0, -5.5, float("nan"), float("inf"), -float("inf"), 3e38, -1e20])
    geometry = torch.zeros(1, 1, len(x), 1, 1, 3, dtype=dtype)
    geometry[0, 0, :, 0, 0, 0] = x
    truncated = plan_pool(geometry, **GRID).cells.flatten()
    floored = plan_pool(geometry, **GRID, floor=True).cells.flatten()
    assert (truncated >= 0).tolist() == [True] * 3 + [False] * 7
    assert (floored >= 0).tolist() == [False, True, True] + [False] * 7
    assert truncated[:3].tolist() == [96 + 6, 96 + 6, 96 + 7 * 12 + 6]
    for cells, floor in ((truncated, False), (floored, True)):
        assert torch.equal(cells.long(), twin.cell_indices(geometry, **GRID, floor=floor).flatten())
    depth = torch.arange(1.0, len(x) + 1).view(1, -1, 1, 1)
    assert bev_pool(depth, torch.ones(1, 1, 1, 1), geometry, **GRID).sum() == 6


@every_backend
def test_every_cell_as_the_twin_has_it():
    """The same rounding in the division, at the teacher's cell size, on cell borders too."""
    grid = {"lower": (-54.0, -54.0, -10.0), "cell": (0.3, 0.3, 20.0), "shape": (360, 360, 1)}
    x = torch.cat([torch.arange(-2, 363) * 0.3 - 54, torch.linspace(-55, 55, 3001)])
    geometry = torch.stack([x, x.flip(0), torch.zeros_like(x)], dim=-1)[None]
    cells = plan_pool(geometry, **grid).cells
    assert torch.equal(cells.long(), twin.cell_indices(geometry, **grid))


@every_backend
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


@every_backend
def test_non_contiguous_inputs():
    depth, context, geometry = inputs()
    expected = bev_pool(depth, context, geometry, **GRID)
    strided = [t.transpose(-1, -2).contiguous().transpose(-1, -2) for t in (depth, context, geometry)]
    assert not any(t.is_contiguous() for t in strided)
    torch.testing.assert_close(bev_pool(*strided, **GRID), expected)
    features = lifted(depth, context)
    torch.testing.assert_close(bev_pool_lifted(features.mT.contiguous().mT, geometry, **GRID), expected)
    channels_last = context.contiguous(memory_format=torch.channels_last).requires_grad_()
    bev = bev_pool(depth, channels_last, geometry, **GRID)
    torch.testing.assert_close(bev, expected)
    # Gradients that come expanded, or channels last.
    for seed in (torch.ones(()).expand_as(bev), torch.randn_like(bev).contiguous(memory_format=torch.channels_last)):
        (got,) = torch.autograd.grad(bev, channels_last, seed, retain_graph=True)
        (want,) = torch.autograd.grad(bev, channels_last, seed.contiguous(), retain_graph=True)
        assert torch.equal(got, want)


@every_backend
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(dtype):
    depth, context, geometry = inputs()
    halves = depth.to(dtype).requires_grad_(), context.to(dtype).requires_grad_()
    singles = [t.detach().float().requires_grad_() for t in halves]
    bev = bev_pool(*halves, geometry, **GRID)
    assert bev.dtype == torch.float32
    expected = bev_pool(*singles, geometry, **GRID)
    torch.testing.assert_close(bev, expected)
    gradients = torch.autograd.grad(bev.sum(), halves), torch.autograd.grad(expected.sum(), singles)
    for got, want in zip(*gradients, strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got, want.to(dtype))
    features = lifted(*halves).detach().to(dtype).requires_grad_()
    bev = bev_pool_lifted(features, geometry, **GRID)
    torch.testing.assert_close(bev, bev_pool_lifted(features.detach().float(), geometry, **GRID))
    assert torch.autograd.grad(bev.sum(), features)[0].dtype == dtype


@every_backend
def test_mixed_precision():
    depth, context, geometry = inputs()
    bev = bev_pool(depth, context.half(), geometry, **GRID)
    assert bev.dtype == torch.float32
    torch.testing.assert_close(bev, bev_pool(depth, context.half().float(), geometry, **GRID))
    assert bev_pool(depth.double(), context, geometry, **GRID).dtype == torch.float64
    torch.testing.assert_close(bev_pool(depth, context, geometry.double(), **GRID), bev_pool(*inputs(), **GRID))


@every_backend
def test_subnormal_infinite_and_missing_values_stay_in_their_cell():
    depth, context, geometry = inputs(batch=1, cameras=1, bins=3, size=(1, 1), channels=2)
    geometry[0, 0, :, 0, 0] = torch.tensor([[0.5, 0.5, 0.5], [2.5, 0.5, 0.5], [99.0, 0.0, 0.0]])
    for value in (float("nan"), float("inf"), 1e-40):
        depth[0, 1] = depth[0, 2] = value
        bev = bev_pool(depth, context, geometry, **GRID)
        torch.testing.assert_close(bev[0, 2:, 6, 7], value * context[0, :, 0, 0], equal_nan=True)
        bev[0, 2:, 6, 7] = 0
        assert bev.isfinite().all()


@every_backend
@pytest.mark.parametrize(
    ("batch", "cameras", "bins", "size", "channels"),
    [(0, 3, 4, (3, 5), 6), (2, 0, 4, (3, 5), 6), (2, 3, 0, (3, 5), 6), (2, 3, 4, (0, 5), 6), (2, 3, 4, (3, 5), 0)],
)
def test_empty(batch, cameras, bins, size, channels):
    depth, context, geometry = inputs(batch=batch, cameras=cameras, bins=bins, size=size, channels=channels)
    depth.requires_grad_()
    context.requires_grad_()
    bev = bev_pool(depth, context, geometry, **GRID)
    assert bev.shape == (batch, 2 * channels, 8, 12)
    assert not bev.any()
    bev.sum().backward()
    assert not depth.grad.any()
    assert not context.grad.any()
    features = torch.zeros(*geometry.shape[:-1], channels, requires_grad=True)
    bev_pool_lifted(features, geometry, **GRID).sum().backward()
    assert features.grad.shape == features.shape


@every_backend
def test_one_point_in_one_cell():
    bev = bev_pool(
        *(torch.full((1, 1, 1, 1), v) for v in (2.0, 3.0)),
        torch.zeros(1, 1, 1, 1, 1, 3),
        (0, 0, 0),
        (1, 1, 1),
        (1, 1, 1),
    )
    assert bev.tolist() == [[[[6.0]]]]


# -- features lifted elsewhere, plans, the cache ---------------------------------------------------------


@every_backend
def test_known_cells_as_other_ops_take_them():
    """Integer x, y, z and sample per point, in any order; outside any bound a point is dropped."""
    generator = torch.Generator().manual_seed(0)
    coordinates = torch.randint(-2, 14, (300, 4), generator=generator)
    coordinates[:, 3] = torch.randint(0, 2, (300,), generator=generator)
    coordinates[:4] = torch.tensor([[1, 2, 1, 2], [1, 2, 1, -1], [2**62, 0, 0, 0], [-(2**63), 0, 0, 0]])
    features = torch.randn(300, 5, generator=generator)
    expected = torch.zeros(2, 2, 5, 8, 12)
    for (x, y, z, b), row in zip(coordinates.tolist(), features, strict=True):
        if 0 <= x < 8 and 0 <= y < 12 and 0 <= z < 2 and 0 <= b < 2:
            expected[b, z, :, x, y] += row
    got = plan_coordinates(coordinates, 2, (8, 12, 2)).pool_lifted(features)
    torch.testing.assert_close(got, expected.flatten(1, 2))
    got = plan_coordinates(coordinates.clamp(-3, 99).int(), 2, (8, 12, 2)).pool_lifted(features)
    torch.testing.assert_close(got, expected.flatten(1, 2))


@every_backend
def test_voxel_pooling_of_bevdepth():
    """Cells (x, y, z), one slice, (B, C, Y, X): lower 0, cell 1 and exchanged axes."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(-1, 13, (2, 3, 4, 3, 5, 3), generator=generator)
    cells[..., 2] = torch.randint(-1, 2, cells.shape[:-1], generator=generator)
    depth, context, _ = inputs()
    features = lifted(depth, context)
    expected = torch.zeros(2, 6, 12, 8)
    for b, n, d, h, w in torch.cartesian_prod(*(torch.arange(n) for n in cells.shape[:5])).tolist():
        x, y, z = cells[b, n, d, h, w].tolist()
        if 0 <= x < 8 and 0 <= y < 12 and z == 0:
            expected[b, :, y, x] += features[b, n, d, h, w]
    for floor in (False, True):
        plan = plan_pool(cells.float(), (0, 0, 0), (1, 1, 1), (8, 12, 1), floor=floor)
        torch.testing.assert_close(plan.pool(depth, context).mT, expected)
        torch.testing.assert_close(plan.pool_lifted(features).mT, expected)


@every_backend
def test_a_plan_serves_many_poolings():
    depth, context, geometry = inputs()
    plan = plan_pool(geometry, **GRID)
    for scale in (1, 2):
        assert torch.equal(plan.pool(scale * depth, context), bev_pool(scale * depth, context, geometry, **GRID))
    features = lifted(depth, context)
    assert torch.equal(plan.pool_lifted(features), plan.pool_lifted(features.flatten(0, 4)))


@needs_compiler
def test_plans_of_both_devices_are_the_same():
    """Counting sort and PyTorch's stable sort."""
    plans = []
    for backend in ("native", "emulated"):
        with native.forced(backend):
            plans.append(plan_pool(inputs()[2], **GRID))
    for name in ("cells", "order", "starts"):
        first, second = (getattr(p, name) for p in plans)
        assert first.dtype == torch.int32
        assert torch.equal(first, second)
    plan, cells = plans[0], plans[0].cells.flatten()
    for c in range(-1, 2 * 8 * 12 * 2):
        first, last = plan.starts[c].item() if c >= 0 else 0, plan.starts[c + 1].item()
        assert plan.order[first:last].tolist() == (cells == c).nonzero().flatten().tolist()


@needs_compiler
def test_numbers_beyond_32_bits_take_pytorch(monkeypatch):
    assert kernels.fits(2**31 - 1, 2**31 - 2)
    assert not kernels.fits(2**31, 1)
    assert not kernels.fits(1, 2**31 - 1)
    depth, context, geometry = inputs()
    expected = bev_pool(depth, context, geometry, **GRID)
    monkeypatch.setattr(kernels, "fits", lambda points, cells: False)
    plan = plan_pool(geometry, **GRID)
    assert plan.order is None
    assert plan.cells.dtype == torch.int64
    torch.testing.assert_close(plan.pool(depth, context), expected)
    torch.testing.assert_close(plan.pool_lifted(lifted(depth, context)), expected)


def test_cache_keeps_what_comes_again():
    made = []

    def ask(cache, *key):
        return cache.get([torch.tensor(k) for k in key], lambda: made.append(key) or f"plan {len(made)}")

    cache = PlanCache(size=2)
    assert [ask(cache, 1.0) for _ in range(4)] == ["plan 1", "plan 2", "plan 2", "plan 2"]
    assert ask(cache, 1.0, 0.0) == "plan 3"
    assert ask(cache, 1) == "plan 4"  # another type; two keys later 1.0 is forgotten
    assert ask(cache, 1.0) == "plan 5"
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other.size == 2
        assert ask(other, 1.0).startswith("plan")


def test_cache_notices_any_change():
    cache, matrix = PlanCache(), torch.eye(4)
    for _ in range(3):
        kept = cache.get([matrix], lambda: "before")
    matrix[0, 3] += 1e-6
    assert (kept, cache.get([matrix], lambda: "after")) == ("before", "after")
    matrix[0, 3] = -0.0  # equal in value, not in content: worth a new plan, never a wrong one
    assert cache.get([matrix], lambda: "signed zero") == "signed zero"
    assert cache.get([torch.eye(4)], lambda: "again") == "before"
    assert cache.get([torch.eye(4).view(2, 8)], lambda: "shape") == "shape"


@every_backend
def test_a_plan_from_inference_serves_training():
    depth, context, geometry = inputs()
    cache = PlanCache()
    for inference in (True, True, False):
        with torch.inference_mode(inference):
            plan = cache.get([geometry.clone()], lambda: plan_pool(geometry.clone(), **GRID))
    plan.pool(depth.requires_grad_(), context).sum().backward()
    assert depth.grad.any()


def test_cache_is_shared_by_threads():
    cache, wrong = PlanCache(size=2), []

    def ask():
        for i in range(300):
            key = i % 4
            if cache.get([torch.tensor(key)], lambda key=key: key) != key:
                wrong.append(key)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- contract ----------------------------------------------------------------------------------------------


@needs_compiler
def test_same_bits_for_any_number_of_threads(same_bits):
    def pool():
        depth, context, geometry = inputs(size=(20, 40), channels=20)
        depth.requires_grad_()
        context.requires_grad_()
        bev = bev_pool(depth, context, geometry, **GRID)
        bev_lifted = bev_pool_lifted(lifted(depth, context), geometry, **GRID)
        return [bev, bev_lifted, *torch.autograd.grad(bev.square().sum(), (depth, context))]

    same_bits(pool)


@needs_compiler
def test_opcheck():
    depth, context, geometry = inputs(batch=1, cameras=2)
    depth.requires_grad_()
    context.requires_grad_()
    shape = list(GRID["shape"])
    box = [*GRID["lower"], *GRID["cell"]]
    with native.forced("native"):
        torch.library.opcheck(torch.ops.mmdet3d.bev_pool_cells.default, (geometry, box, shape, False))
        plan = plan_pool(geometry, **GRID)
        torch.library.opcheck(torch.ops.mmdet3d.bev_pool_group.default, (plan.cells, 8 * 12 * 2))
        index = (plan.cells, plan.order, plan.starts, 1, shape)
        torch.library.opcheck(torch.ops.mmdet3d.bev_pool.default, (depth, context, *index))
        features = lifted(depth, context, 2).flatten(0, 4).detach().requires_grad_()
        torch.library.opcheck(torch.ops.mmdet3d.bev_pool_lifted.default, (features, *index))


@every_backend
def test_compiles_as_one_graph():
    depth, context, geometry = inputs()
    cache = PlanCache()

    def pool(depth, context, geometry):
        plan = cache.get([geometry], lambda: plan_pool(geometry, **GRID))
        return plan.pool(depth, context) + bev_pool(depth, context, geometry, **GRID)

    compiled = torch.compile(pool, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(depth, context, geometry), 2 * bev_pool(depth, context, geometry, **GRID))


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


@every_backend
@pytest.mark.parametrize("height", [1, 2])
def test_result_is_contiguous(height):
    grid = GRID | {"cell": (1.0, 0.5, 4.0 / height), "shape": (8, 12, height)}
    assert bev_pool(*inputs(), **grid).is_contiguous()
