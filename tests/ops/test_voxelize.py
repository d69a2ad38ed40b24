from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet3d.ops.voxelize import dynamic_voxelize, grid_shape, scatter_max, scatter_mean, voxelize

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


@settings(max_examples=40, deadline=None)
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
    assert scatter_mean(features, index, 3).tolist() == [[2.0, -3.0], [0.0, 0.0], [5.0, -7.0]]
    assert scatter_max(features, index, 3).tolist() == [[3.0, -2.0], [0.0, 0.0], [5.0, -7.0]]


@pytest.mark.parametrize("reduce", [scatter_mean, scatter_max])
def test_scatter_gradients(reduce):
    features = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    index = torch.tensor([1, 0, 1, -1, 3, 1])
    assert torch.autograd.gradcheck(lambda f: reduce(f, index, 4), features)


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
