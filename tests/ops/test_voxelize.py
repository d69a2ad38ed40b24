from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmdet3d.ops.native import forced
from mmdet3d.ops.voxelize import (
    compiled,
    dynamic_voxelize,
    grid_shape,
    reference,
    scatter_max,
    scatter_mean,
    scatter_sum,
    voxelize,
)

pytestmark = pytest.mark.usefixtures("backend")
SIZE, RANGE = (0.5, 1.0, 2.0), (-2.0, -3.0, -1.0, 2.0, 3.0, 3.0)


def by_loop(points, max_points, max_voxels):
    """First come, first served, one point at a time."""
    slots: dict[tuple, list] = {}
    shape = grid_shape(SIZE, RANGE)
    for point in points:
        cell = ((point[:3] - torch.tensor(RANGE[:3])) / torch.tensor(SIZE)).floor()
        if not all(0 <= c < n for c, n in zip(cell.tolist(), shape, strict=True)):
            continue
        key = tuple(int(c) for c in cell)
        if key not in slots and len(slots) < max_voxels:
            slots[key] = []
        if key in slots and len(slots[key]) < max_points:
            slots[key].append(point)
    voxels = torch.zeros(len(slots), max_points, points.shape[1])
    for i, stored in enumerate(slots.values()):
        voxels[i, : len(stored)] = torch.stack(stored)
    coordinates = torch.tensor(list(slots), dtype=torch.int32).view(-1, 3)
    return voxels, coordinates, torch.tensor([len(s) for s in slots.values()], dtype=torch.int32)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 80), st.integers(1, 4), st.integers(1, 30), st.integers(0, 2**16))
def test_equals_loop(count, max_points, max_voxels, seed):
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 5, generator=generator) - 0.5) * torch.tensor([5.0, 7.0, 6.0, 1.0, 1.0])
    points = torch.round(points * 4) / 4  # many points on borders
    for got, expected in zip(
        voxelize(points, SIZE, RANGE, max_points, max_voxels), by_loop(points, max_points, max_voxels), strict=True
    ):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)


def cloud(count, seed=0, dtype=torch.float32):
    """Points in and around the range, many of them on borders of voxels."""
    generator = torch.Generator().manual_seed(seed)
    points = (torch.rand(count, 5, generator=generator) - 0.5) * torch.tensor([5.0, 7.0, 6.0, 1.0, 1.0])
    points[::3] = torch.round(points[::3] * 4) / 4
    return points.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_equals_twin(dtype):
    points = cloud(3000, dtype=dtype)
    for got, expected in zip(
        voxelize(points, SIZE, RANGE, 5, 90), reference.voxelize(points, SIZE, RANGE, 5, 90), strict=True
    ):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    for got, expected in zip(
        dynamic_voxelize(points, SIZE, RANGE), reference.dynamic_voxelize(points, SIZE, RANGE), strict=True
    ):
        assert torch.equal(got, expected)


def test_grids_far_larger_than_memory():
    """A grid of 4e18 cells costs nothing: only voxels with points exist."""
    points = torch.rand(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2e6 - 1e6
    points = torch.cat([points, points[:200]])
    size, limits = [1.0, 1.0, 1.0], [-1e6, -1e6, -5e5, 1e6, 1e6, 5e5]
    voxels, coordinates, counts = voxelize(points, size, limits, 3, 1000)
    inside = points[:500][points[:500, 2].abs() < 5e5]
    assert torch.equal(voxels[:, 0], inside)
    expected = (inside - points.new_tensor(limits[:3])).floor().int()
    assert torch.equal(coordinates, expected)
    assert counts.sum() == (points[:, 2].abs() < 5e5).sum()
    keys = torch.tensor([[1e6 - 0.5, 1e6 - 0.5, 5e5 - 0.5]], dtype=torch.float64)
    assert dynamic_voxelize(keys, size, limits)[1].tolist() == [[1999999, 1999999, 999999]]


def test_more_voxels_than_a_table_starts_with():
    x = torch.arange(40000.0).repeat(2)
    points = torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)
    index, coordinates = dynamic_voxelize(points, [1.0] * 3, [0.0, 0, 0, 40000, 1, 1])
    assert torch.equal(index, torch.arange(40000).repeat(2))
    assert torch.equal(coordinates[:, 0], torch.arange(40000, dtype=torch.int32))


def test_borders_and_points_that_are_not_finite():
    nan, inf = float("nan"), float("inf")
    points = torch.tensor(
        [
            [-2.0, -3.0, -1.0],
            [2.0, 0, 0],
            [-2.001, 0, 0],
            [nan, 0, 0],
            [0, inf, 0],
            [0, 0, -1e30],
            [1.999, 2.999, 2.999],
        ]
    )
    _, coordinates, counts = voxelize(points, SIZE, RANGE, 2, 10)
    assert coordinates.tolist() == [[0, 0, 0], [7, 5, 1]]
    assert counts.tolist() == [1, 1]


@pytest.mark.parametrize("points", [torch.zeros(0, 4), torch.full((3, 4), 50.0)])
def test_nothing_inside(points):
    voxels, coordinates, counts = voxelize(points, SIZE, RANGE, 3, 10)
    assert (voxels.shape, coordinates.shape, counts.shape) == ((0, 3, 4), (0, 3), (0,))
    index, coordinates = dynamic_voxelize(points, SIZE, RANGE)
    assert (index == -1).all()
    assert coordinates.shape == (0, 3)


def test_single_point_and_non_contiguous():
    points = torch.tensor([[0.1, 0.1, 0.1, 7.0]])
    voxels, coordinates, counts = voxelize(points, SIZE, RANGE, 2, 1)
    assert voxels.tolist() == [[points[0].tolist(), [0.0] * 4]]
    assert (coordinates.tolist(), counts.tolist()) == ([[4, 3, 0]], [1])
    many = torch.rand(5, 40)
    for got, expected in zip(
        voxelize(many.T, SIZE, RANGE, 3, 9), voxelize(many.T.contiguous(), SIZE, RANGE, 3, 9), strict=True
    ):
        assert torch.equal(got, expected)


def test_dynamic_keeps_every_point_in_range():
    generator = torch.Generator().manual_seed(0)
    points = (torch.rand(200, 4, generator=generator) - 0.5) * 9
    index, coordinates = dynamic_voxelize(points, SIZE, RANGE)
    voxels, expected, counts = voxelize(points, SIZE, RANGE, 200, 1000)
    assert torch.equal(coordinates, expected)
    assert torch.equal(torch.bincount(index[index >= 0]), counts.long())
    mean = scatter_mean(points, index, len(coordinates))
    torch.testing.assert_close(mean, voxels.sum(1) / counts[:, None])
    largest = scatter_max(points, index, len(coordinates))
    filled = torch.arange(200) < counts[:, None]
    torch.testing.assert_close(largest, voxels.masked_fill(~filled[..., None], -1e9).amax(1))


def test_scatter_golden_and_empty_group():
    features = torch.tensor([[1.0, -4.0], [3.0, -2.0], [9.0, 9.0], [5.0, -7.0]])
    index = torch.tensor([0, 0, -1, 2])
    assert scatter_sum(features, index, 3).tolist() == [[4.0, -6.0], [0.0, 0.0], [5.0, -7.0]]
    assert scatter_mean(features, index, 3).tolist() == [[2.0, -3.0], [0.0, 0.0], [5.0, -7.0]]
    assert scatter_max(features, index, 3).tolist() == [[3.0, -2.0], [0.0, 0.0], [5.0, -7.0]]


REDUCTIONS = ["scatter_sum", "scatter_mean", "scatter_max"]
FUNCTIONS = {"scatter_sum": scatter_sum, "scatter_mean": scatter_mean, "scatter_max": scatter_max}


def rows(count=400, size=50, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(count, 7, generator=generator, dtype=torch.float64).to(dtype)
    return features, torch.randint(-1, size, (count,), generator=generator)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_scatter_equals_twin(name, dtype):
    features, index = rows(dtype=dtype)
    features[:20] = 0.5  # rows that share a maximum
    grad = torch.randn(53, 7, dtype=dtype, generator=torch.Generator().manual_seed(1))
    results = []
    for function in (FUNCTIONS[name], getattr(reference, name)):
        leaf = features.clone().requires_grad_()
        out = function(leaf, index, 53)
        out.backward(grad)
        results.append((out.detach(), leaf.grad))
    for got, expected in zip(*results, strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", REDUCTIONS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_scatter_half(name, dtype, tolerance):
    features, index = rows(dtype=dtype)
    got = FUNCTIONS[name](features, index, 50)
    assert got.dtype == dtype
    expected = FUNCTIONS[name](features.float(), index, 50)
    torch.testing.assert_close(got.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_scatter_gradients(name):
    features = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    index = torch.tensor([1, 0, 1, -1, 3, 1])
    assert torch.autograd.gradcheck(lambda f: FUNCTIONS[name](f, index, 4), features)
    assert torch.autograd.gradgradcheck(lambda f: FUNCTIONS[name](f, index, 4).square(), features)


@pytest.mark.parametrize("name", REDUCTIONS)
def test_scatter_of_nothing(name):
    function = FUNCTIONS[name]
    assert function(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 2).tolist() == [[0.0] * 3] * 2
    features = torch.ones(4, 3, requires_grad=True)
    left_out = torch.full((4,), -1)
    assert function(features, left_out, 0).shape == (0, 3)
    function(features, left_out, 2).sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("name", REDUCTIONS)
def test_scatter_of_strided_rows_and_narrow_integers(name):
    features, index = rows()
    expected = FUNCTIONS[name](features, index, 50)
    strided = features.T.contiguous().T
    assert torch.equal(FUNCTIONS[name](strided, torch.stack([index, index], 1)[:, 0], 50), expected)
    if compiled.available(features):
        assert torch.equal(FUNCTIONS[name](features, index.int(), 50), expected)


def test_nan_is_the_largest():
    features = torch.tensor([[1.0], [float("nan")], [2.0], [float("-inf")]])
    got = scatter_max(features, torch.tensor([0, 0, 0, 1]), 2)
    assert got[0].isnan()
    assert got[1] == float("-inf")


@pytest.mark.parametrize(
    ("features", "index", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"features must have shape \(P, F\), got \(3,\)"),
        (torch.zeros(3, 2), torch.zeros(2).long(), r"index must have shape \(P\) with P = 3, got \(2,\)"),
        (torch.zeros(3, 2), torch.zeros(3), "index must hold integers, got torch.float32"),
        (torch.zeros(3, 2), torch.tensor([0, 4, 1]), "index must lie below size = 4, got 4"),
    ],
)
@pytest.mark.parametrize("name", REDUCTIONS)
def test_wrong_arguments_of_scatter(name, features, index, message):
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[name](features, index, 4)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_threads_change_nothing(same_bits):
    points = cloud(20000)

    def group():
        index, coordinates = dynamic_voxelize(points, SIZE, RANGE)
        reduced = [f(points, index, len(coordinates)) for f in FUNCTIONS.values()]
        return [*voxelize(points, SIZE, RANGE, 6, 100), index, coordinates, *reduced]

    same_bits(group)


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_registration():
    points = cloud(60)
    box, shape = compiled._grid(SIZE, RANGE)
    index, slot, coordinates, counts = compiled._assign(points, box, shape)
    torch.library.opcheck(compiled._assign, (points, box, shape))
    torch.library.opcheck(compiled._fill, (points, index, slot, counts, 3))
    features = torch.randn(60, 2, requires_grad=True)
    for largest in (False, True):
        torch.library.opcheck(compiled._scatter, (features, index, len(coordinates), largest))
    torch.library.opcheck(compiled._gather, (torch.randn(len(coordinates), 2, requires_grad=True), index))


@pytest.mark.parametrize("backend", ["native", "emulated"], indirect=True)
def test_compiled_graph():
    points = cloud(60)

    def mean(points):
        index, coordinates = dynamic_voxelize(points, SIZE, RANGE)
        return scatter_mean(points, index, len(coordinates)), voxelize(points, SIZE, RANGE, 3, 9)[0]

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        graph = torch.compile(mean, fullgraph=True, backend="eager")
        for got, expected in zip(graph(points), mean(points), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("points", "bounds", "message"),
    [
        (torch.zeros(4), (3, 3), r"points must have shape \(P, F\), got \(4,\)"),
        (torch.zeros(4, 2), (3, 3), r"got torch.float32 of shape \(4, 2\)"),
        (torch.zeros(4, 3, dtype=torch.int32), (3, 3), "got torch.int32"),
        (torch.zeros(4, 3), (0, 3), "max_points must be positive, got 0"),
        (torch.zeros(4, 3), (3, -1), "max_voxels must be positive, got -1"),
    ],
)
def test_wrong_arguments(points, bounds, message):
    with pytest.raises(ValueError, match=message):
        voxelize(points, SIZE, RANGE, *bounds)


@pytest.mark.parametrize(
    ("size", "limits", "message"),
    [
        ((0.5, 0.0, 1.0), RANGE, "voxel_size must be positive"),
        ((0.5, float("nan"), 1.0), RANGE, "voxel_size must be positive"),
        (SIZE, (0, 0, 0, 1, float("inf"), 1), "point_cloud_range finite"),
        (SIZE, (0, 0, 0, -4, 1, 1), "got a grid of"),
        ((1e-3,) * 3, (0, 0, 0, 1e6, 1e6, 1e6), "in 32 bits along an axis"),
        ((1e-3,) * 3, (0, 0, 0, 2.1e6, 2.1e6, 2.1e6), "63 in all"),
        ((1.0, 1.0), RANGE, "voxel_size needs 3 values"),
    ],
)
def test_wrong_grids(size, limits, message):
    for call in (lambda p: voxelize(p, size, limits, 3, 3), lambda p: dynamic_voxelize(p, size, limits)):
        with pytest.raises(ValueError, match=message):
            call(torch.zeros(4, 3))


@pytest.mark.parametrize("backend", ["native"], indirect=True)
def test_the_teachers_grid_equals_the_twin():
    size, limits = [0.075, 0.075, 0.2], [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
    points = torch.randn(20000, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([20.0, 20, 1, 1, 1])
    got = voxelize(points, size, limits, 10, 12000)
    with forced("reference"):
        expected = voxelize(points, size, limits, 10, 12000)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
