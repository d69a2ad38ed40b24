from __future__ import annotations

import pytest
import torch

from mmdet3d.blocks import read_block
from mmdet3d.models.encoders import DynamicVoxelizer, VoxelizeBlock, Voxelizer, build_voxelizer, voxelize_batch

BLOCK = {
    "max_num_points": 3,
    "point_cloud_range": [-4.0, -4.0, -2.0, 4.0, 4.0, 2.0],
    "voxel_size": [0.5, 0.5, 4.0],
    "max_voxels": [5, 9],
}


def build(block):
    return build_voxelizer(read_block(VoxelizeBlock, block, "voxelize"))


def cloud(count, seed=0):
    return (torch.rand(count, 5, generator=torch.Generator().manual_seed(seed)) - 0.5) * 7


def test_training_and_evaluation_bounds():
    voxelizer = build(BLOCK)
    assert len(voxelizer.train()(cloud(50))[0]) == 5
    assert len(voxelizer.eval()(cloud(50))[0]) == 9
    assert Voxelizer(3, BLOCK["point_cloud_range"], BLOCK["voxel_size"], 7).max_voxels == (7, 7)
    assert not voxelizer.state_dict()


def test_samples_without_points_still_count():
    voxelizer = build(BLOCK).eval()
    clouds = [torch.zeros(0, 5), cloud(20), torch.full((4, 5), 99.0)]
    features, coordinates, counts, batch_size = voxelize_batch(voxelizer, clouds, reduce=False)
    assert batch_size == 3
    assert set(coordinates[:, 0].tolist()) == {1}
    single = voxelizer(clouds[1])
    assert torch.equal(features, single[0])
    assert torch.equal(coordinates[:, 1:], single[1])
    assert torch.equal(counts, single[2])


def test_order_of_samples():
    voxelizer = build(BLOCK).eval()
    _, coordinates, _, _ = voxelize_batch(voxelizer, [cloud(9, 1), cloud(9, 2)], reduce=True)
    assert torch.equal(coordinates[:, 0], coordinates[:, 0].sort().values)
    assert torch.equal(coordinates[coordinates[:, 0] == 1, 1:], voxelizer(cloud(9, 2))[1])


def test_reduction_is_the_mean_of_the_stored_points():
    points = torch.tensor([[0.1, 0.1, 0, 3, 0], [0.3, 0.1, 0, 5, 0], [1.1, 0.1, 0, 7, 0]])
    features, _, counts, _ = voxelize_batch(build(BLOCK), [points], reduce=True)
    torch.testing.assert_close(features, torch.tensor([[0.2, 0.1, 0, 4, 0], [1.1, 0.1, 0, 7, 0]]))
    assert counts.tolist() == [2, 1]


@pytest.mark.parametrize("reduce", [True, False])
def test_all_empty(reduce):
    features, coordinates, counts, batch_size = voxelize_batch(build(BLOCK), [torch.zeros(0, 5)] * 2, reduce)
    assert features.shape == ((0, 5) if reduce else (0, 3, 5))
    assert (coordinates.shape, counts.shape, batch_size) == ((0, 4), (0,), 2)


def test_dynamic_is_the_mean_of_all_points():
    voxelizer = build({**BLOCK, "max_num_points": -1})
    assert isinstance(voxelizer, DynamicVoxelizer)
    points = cloud(300)
    bounded = Voxelizer(300, BLOCK["point_cloud_range"], BLOCK["voxel_size"], 1000)
    got, expected = (voxelize_batch(v, [points, points[:7]], reduce=True) for v in (voxelizer, bounded))
    torch.testing.assert_close(got[0], expected[0])
    assert all(torch.equal(a, b) for a, b in zip(got[1:3], expected[1:3], strict=True))
    with pytest.raises(ValueError, match="set voxelize_reduce: true"):
        voxelize_batch(voxelizer, [points], reduce=False)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_single_precision_under_autocast_and_no_gradient(dtype):
    points = cloud(30).requires_grad_()
    voxelizer = build(BLOCK)
    with torch.autocast("cpu", dtype=dtype):
        features, *_ = voxelize_batch(voxelizer, [points], reduce=True)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    assert torch.equal(features, voxelize_batch(voxelizer, [points], reduce=True)[0])
    assert voxelizer(points.to(dtype))[0].dtype == torch.float32


def test_coordinates_are_not_quantised_to_half_precision():
    """0.075 m cells at 50 m: half precision (1/32 m) would move points to neighbouring cells."""
    voxelizer = Voxelizer(10, [-54, -54, -5, 54, 54, 3], [0.075, 0.075, 0.2], 1000)
    points = torch.zeros(400, 5)
    points[:, 0] = torch.linspace(50, 53.9, 400)
    expected = ((points[:, 0].double() + 54) / 0.075).floor().long().bincount()
    with torch.autocast("cpu", dtype=torch.float16):
        got = voxelizer(points)
    moved = (got[2] - expected[expected > 0]).abs().sum()
    assert moved <= 2  # one point lies on a border to within single precision
    assert (voxelizer(points.half())[2] - expected[expected > 0]).abs().sum() > 20


def test_bev_grid():
    grid = build(BLOCK).bev_grid((4, 8))
    assert (grid.lower, grid.cell, grid.shape) == ((-4.0, -4.0), (2.0, 1.0), (4, 8))
    assert build(BLOCK).grid_shape == (16, 16, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_voxel": 3}, "unknown config key voxelize.max_voxel, did you mean 'max_voxels'"),
        ({"max_voxels": [0, 5]}, "max_voxels >= 1"),
        ({"voxel_size": [0.5, 0.5]}, "voxel_size of 3 numbers"),
        ({"voxel_size": [0.5, 0.5, 0]}, "covers nothing"),
        ({"point_cloud_range": [4, -4, -2, -4, 4, 2]}, "covers nothing"),
    ],
)
def test_wrong_blocks(change, message):
    with pytest.raises(ValueError, match=message):
        build(BLOCK | change)


def test_missing_key_and_no_samples():
    with pytest.raises(ValueError, match=r"config key voxelize\.max_voxels is missing"):
        build({k: v for k, v in BLOCK.items() if k != "max_voxels"})
    with pytest.raises(ValueError, match="no samples"):
        voxelize_batch(build(BLOCK), [], reduce=True)
