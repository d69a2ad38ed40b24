"""Augmentations: published golden values, inverses, and one geometry for points, boxes, images and depth."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmdet3d.blocks import ConfigKeyError
from mmdet3d.datasets.records import CameraRecord, Context, FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import (
    GlobalRotScaleTrans,
    GTDepth,
    ImageAug3D,
    ImageNormalize,
    LoadBEVSegmentation,
    ObjectRangeFilter,
    PointShuffle,
    PointsRangeFilter,
    RandomFlip3D,
    empty_sample,
)
from mmdet3d.datasets.transforms.augment import transform_lidar_frame
from mmdet3d.datasets.transforms.depth import rasterise_depth
from mmdet3d.structures import BEVGrid, Boxes3D, Sample, limit_period, project

IMAGE_AUG = {"final_dim": [256, 704], "resize_lim": [0.38, 0.55], "rot_lim": [-5.4, 5.4], "rand_flip": True}


def from_old(old: list[float], bottom: bool = True) -> torch.Tensor:
    """(9,) old convention (bottom z, w, l, h, clockwise yaw) to ours."""
    x, y, z, w, l, h, yaw, vx, vy = old  # noqa: E741
    return torch.tensor([x, y, z + h / 2 if bottom else z, l, w, h, -yaw - np.pi / 2, vx, vy])


def bare_frame(size: tuple[int, int] = (1600, 900), cameras: int = 2) -> tuple[Sample, Context]:
    """A sample with blank images, nothing on disk."""
    look = np.eye(4)
    look[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    look[:3, 3] = [0, 0.76, -0.34]
    intrinsics = np.array([[1266.0, 0, 800], [0, 1266, 450], [0, 0, 1]])
    views = {f"CAM_{i}": CameraRecord("", 0, look, intrinsics=intrinsics) for i in range(cameras)}
    record = FrameRecord("bare", 0, SensorRecord("", 0, np.eye(4)), np.eye(4), np.eye(4), cameras=views)
    sample = empty_sample(record)
    sample.images = [Image.new("RGB", size, "white") for _ in range(cameras)]
    return sample, frames.context(record, Path("."))


def test_image_golden_matrices() -> None:
    sample, context = bare_frame()
    ImageAug3D(**IMAGE_AUG)(sample, context)
    first = [[-0.472285, 0.030958, 714.7535], [0.030958, 0.472285, -193.41553]]
    second = [[0.484151, 0.042422, -46.548077], [-0.042422, 0.484151, -147.26251]]
    np.testing.assert_allclose(sample.calibration.image_aug[:, :2][:, :, [0, 1, 3]], [first, second], atol=2e-4)
    assert [image.size for image in sample.images] == [(704, 256)] * 2


def test_image_test_time_matrix_is_fixed() -> None:
    sample, context = bare_frame()
    before = context.rng.get_state()[1].copy()
    ImageAug3D(**IMAGE_AUG | {"resize_lim": [0.48, 0.48], "is_train": False})(sample, context)
    expected = np.diag([0.48, 0.48, 1, 1])
    expected[:2, 3] = [-32, -176]
    np.testing.assert_allclose(sample.calibration.image_aug, [expected, expected], atol=1e-6)
    np.testing.assert_array_equal(context.rng.get_state()[1], before)


@pytest.mark.parametrize("seed", range(6))
def test_image_content_moves_as_the_matrix_says(seed: int) -> None:
    """A white dot painted at a raw pixel appears where `image_aug` sends that pixel."""
    sample, context = bare_frame()
    context.rng = np.random.RandomState(seed)
    raw = (700 + 60 * seed, 650)
    for image in sample.images:
        image.paste("black", (0, 0, *image.size))
        image.paste("white", (raw[0] - 7, raw[1] - 7, raw[0] + 8, raw[1] + 8))
    ImageAug3D(**IMAGE_AUG)(sample, context)
    for image, matrix in zip(sample.images, sample.calibration.image_aug.numpy(), strict=True):
        expected = matrix[:2, :2] @ raw + matrix[:2, 3]
        weights = np.asarray(image.convert("L"), dtype=float)
        rows, columns = np.nonzero(weights > 128)
        assert len(rows) > 10
        # Half a pixel for the pixel centre, the rest for resized sizes being whole numbers.
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], expected + 0.25, atol=1.0)


def test_scene_golden() -> None:
    sample, context = bare_frame()
    sample.points = torch.tensor([[1.0, 2, 3, 0.5, 0]])
    sample.boxes = Boxes3D(from_old([1, 2, 3, 2, 4.5, 1.6, 0.3, 1, 2])[None])
    GlobalRotScaleTrans([0.9, 1.1], [-0.78539816, 0.78539816], 0.5)(sample, context)
    matrix = [
        [0.952624, 0.334856, 0, 0.494147],
        [-0.334856, 0.952624, 0, 1.131385],
        [0, 0, 1.009763, 0.942895],
        [0, 0, 0, 1],
    ]
    np.testing.assert_allclose(sample.calibration.lidar_aug, matrix, atol=2e-6)
    np.testing.assert_allclose(sample.points[0], [2.116482, 2.701777, 3.972183, 0.5, 0], atol=2e-6)
    old = [2.116482, 2.701777, 3.972183, 2.019525, 4.543932, 1.61562, 0.638019, 1.622336, 1.570392]
    ours, expected = sample.boxes.tensor[0], from_old(old)
    np.testing.assert_allclose(limit_period(ours[6] - expected[6]), 0, atol=2e-6)
    np.testing.assert_allclose(np.delete(ours, 6), np.delete(expected, 6), atol=3e-6)


def test_no_scene_augmentation_outside_training() -> None:
    sample, context = bare_frame()
    sample.points = torch.rand(5, 5)
    before = sample.points.clone()
    GlobalRotScaleTrans([1.0, 1.0], [0.0, 0.0], 0.0, is_train=False)(sample, context)
    assert torch.equal(sample.points, before) and torch.equal(sample.calibration.lidar_aug, torch.eye(4))


def scene(seed: int) -> tuple[Sample, Context]:
    sample, context = bare_frame()
    context.rng = np.random.RandomState(seed)
    generator = torch.Generator().manual_seed(seed)
    sample.points = torch.rand(20, 5, generator=generator) * 40 - 20
    sample.radar = torch.rand(7, 45, generator=generator) * 40 - 20
    tensor = torch.rand(6, 9, generator=generator) * 8 - 4
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.5
    sample.boxes = Boxes3D(tensor)
    return sample, context


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_scene_augmentation_is_undone_by_its_inverse(seed: int) -> None:
    sample, context = scene(seed)
    original, _ = scene(seed)
    GlobalRotScaleTrans([0.9, 1.1], [-0.8, 0.8], 0.5)(sample, context)
    RandomFlip3D()(sample, context)
    inside = sample.boxes.contains(sample.points)
    assert torch.equal(inside, original.boxes.contains(original.points))
    transform_lidar_frame(sample, torch.linalg.inv(sample.calibration.lidar_aug.double()))
    np.testing.assert_allclose(sample.calibration.lidar_aug, np.eye(4), atol=1e-5)
    np.testing.assert_allclose(sample.points, original.points, atol=2e-4)
    np.testing.assert_allclose(sample.radar, original.radar, atol=2e-4)
    difference = sample.boxes.tensor - original.boxes.tensor
    difference[:, 6] = limit_period(difference[:, 6])
    np.testing.assert_allclose(difference, 0, atol=2e-4)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_radar_moves_like_a_box_that_it_hits(seed: int) -> None:
    """A detection at a box's centre with the box's velocity keeps both under every augmentation."""
    sample, context = scene(seed)
    sample.radar = torch.rand(6, 45)
    sample.radar[:, :3] = sample.boxes.centers
    sample.radar[:, 4:6] = sample.boxes.velocity
    rest = sample.radar[:, [3, *range(6, 45)]].clone()
    GlobalRotScaleTrans([0.9, 1.1], [-0.8, 0.8], 0.5)(sample, context)
    RandomFlip3D()(sample, context)
    np.testing.assert_allclose(sample.radar[:, :3], sample.boxes.centers, atol=1e-4)
    np.testing.assert_allclose(sample.radar[:, 4:6], sample.boxes.velocity, atol=1e-4)
    assert torch.equal(sample.radar[:, [3, *range(6, 45)]], rest)


def flipped(seed: int) -> tuple[Sample, Context]:
    sample, context = scene(seed)
    context.rng = np.random.RandomState(seed)
    RandomFlip3D()(sample, context)
    return sample, context


@pytest.mark.parametrize("seed", range(8))
def test_flip_twice_is_identity(seed: int) -> None:
    sample, context = flipped(seed)
    context.rng = np.random.RandomState(seed)
    RandomFlip3D()(sample, context)
    original, _ = scene(seed)
    assert torch.equal(sample.points, original.points) and torch.equal(sample.radar, original.radar)
    assert torch.equal(sample.calibration.lidar_aug, torch.eye(4))
    np.testing.assert_allclose(limit_period(sample.boxes.yaw - original.boxes.yaw), 0, atol=1e-5)


def test_flips_draw_both_axes_in_order() -> None:
    seen = set()
    for seed in range(8):
        rng = np.random.RandomState(seed)
        flip_y, flip_x = rng.choice([0, 1]), rng.choice([0, 1])
        signs = flipped(seed)[0].calibration.lidar_aug.diagonal().tolist()
        assert signs == [1.0 - 2 * flip_x, 1.0 - 2 * flip_y, 1, 1]
        seen.add((flip_y, flip_x))
    assert len(seen) == 4


def test_flip_of_old_boxes() -> None:
    """Old convention: y mirrored gives yaw -> pi - yaw, x mirrored gives -yaw."""
    old = [3.0, 4, 0, 2, 4.5, 1.6, 0.3, 1, 2]
    boxes = Boxes3D(from_old(old)[None])
    for axis, yaw in ((1, -0.3 + np.pi), (0, -0.3)):
        signs = torch.ones(4)
        signs[axis] = -1
        expected = list(old)
        expected[axis] *= -1
        expected[7 + axis] *= -1
        expected[6] = yaw
        difference = boxes.transform(torch.diag(signs)).tensor[0] - from_old(expected)
        difference[6] = limit_period(difference[6])
        np.testing.assert_allclose(difference, 0, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_one_geometry_for_points_images_and_depth(seed: int) -> None:
    """Depth labels of an augmented sample lie where raw projection followed by the image augmentation puts them."""
    sample, context = bare_frame(size=(320, 180), cameras=2)
    sample.calibration.intrinsics[:, :2] /= 5
    context.rng = np.random.RandomState(seed)
    raw = torch.from_numpy(np.random.RandomState(seed).uniform([-9, 2, -2], [9, 25, 2], (40, 3))).float()
    sample.points = torch.cat([raw, torch.zeros(40, 2)], dim=1)
    ImageAug3D([64, 128], [0.38, 0.55], (0.0, 0.0), [-5.4, 5.4], rand_flip=True)(sample, context)
    GlobalRotScaleTrans([0.9, 1.1], [-0.8, 0.8], 0.5)(sample, context)
    RandomFlip3D()(sample, context)
    PointShuffle()(sample, context)
    ImageNormalize([0.5] * 3, [0.5] * 3)(sample, context)
    GTDepth(keyframe_only=True)(sample, context)
    for camera in range(2):
        expected = np.zeros((64, 128))
        pixels, depth = project(raw.double(), sample.calibration.lidar2image[camera].double())
        matrix = sample.calibration.image_aug[camera].double()
        uv = pixels @ matrix[:2, :2].T + matrix[:2, 3]
        for (u, v), d in zip(uv.tolist(), depth.tolist(), strict=True):
            if d > 0 and 0 <= u < 128 and 0 <= v < 64:
                old = expected[int(v), int(u)]
                expected[int(v), int(u)] = min(old, d) if old else d
        # Rounding may move a point that lies on a pixel border to the neighbour.
        same = np.isclose(sample.depths[camera].numpy(), expected, atol=1e-3)
        assert (~same).sum() <= 2


def test_depth_golden() -> None:
    sample, context = bare_frame(cameras=1)
    sample.points = torch.tensor([[0.0, 10, 0, 0, 0], [0, 12, 0, 0, 0.05]])
    ImageAug3D([256, 704], [0.48, 0.48], is_train=False)(sample, context)
    ImageNormalize([0.5] * 3, [0.5] * 3)(sample, context)
    GTDepth(keyframe_only=True)(sample, context)
    (index,) = sample.depths.nonzero().tolist()
    assert index == [0, 17, 352]
    assert sample.depths.max().item() == pytest.approx(9.24, abs=1e-5)
    GTDepth(keyframe_only=False)(sample, context)
    assert (sample.depths > 0).sum() == 2


def test_depth_keeps_the_nearest_and_what_is_in_front() -> None:
    lidar2image = torch.eye(4)
    lidar2image[0, 2] = lidar2image[1, 2] = 3.5
    points = torch.tensor([[0.0, 0, 9], [0, 0, 5], [0, 0, 7], [0, 0, -4], [0, 0, 0]])
    for order in ([0, 1, 2, 3, 4], [1, 2, 0, 4, 3], [4, 3, 2, 0, 1]):
        depth = rasterise_depth(points[order], lidar2image, torch.eye(4), (8, 8))
        assert depth[3, 3] == 5 and (depth > 0).sum() == 1


def test_pasted_objects_give_no_depth() -> None:
    sample, context = bare_frame(cameras=1)
    sample.points = torch.tensor([[0.0, 10, 0, 0, 0], [3, 10, 0, 0, 0]])
    sample.meta["pasted_boxes"] = Boxes3D(torch.tensor([[3.0, 11, 0, 4, 2, 2, 1.57, 0, 0]]))
    sample.boxes = Boxes3D.empty()
    GlobalRotScaleTrans([0.9, 1.1], [-0.8, 0.8], 0.5)(sample, context)
    ImageAug3D([256, 704], [0.48, 0.48], is_train=False)(sample, context)
    ImageNormalize([0.5] * 3, [0.5] * 3)(sample, context)
    GTDepth()(sample, context)
    assert sample.depths[sample.depths > 0].tolist() == pytest.approx([9.24], abs=1e-3)


def test_shuffle_permutes_with_the_given_generator() -> None:
    sample, context = scene(3)
    before = sample.points.clone()
    PointShuffle()(sample, context)
    expected = np.random.RandomState(3).permutation(20)
    assert torch.equal(sample.points, before[torch.from_numpy(expected)])


def test_a_camera_that_leaves_the_input_black_is_named_once(caplog: pytest.LogCaptureFixture) -> None:
    """Half the size of the others, at their resize factor."""
    transform = ImageAug3D([64, 192], [0.48, 0.48], is_train=False)
    for _ in range(2):
        transform._warn_of_black((400, 225), "CAM_FRONT")
        transform._warn_of_black((200, 112), "CAM_BACK")
    assert len(caplog.records) == 1
    assert "the images of CAM_BACK, 200 x 112 pixels, fill 42 % of the network's image of 192 x 64" in caplog.text
    assert "augment2d.resize" in caplog.text


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ImageAug3D, {"final_dim": [256], "resize_lim": [1, 1]}, r"final_dim must be \[height, width\], got \[256\]"),
        (ImageAug3D, {"final_dim": [256, 704], "resize_lim": [1]}, r"resize_lim must be \[least, most\], got \[1\]"),
        (ImageAug3D, {"final_dim": [2, 7], "resize_lim": [1, 1], "rot_lim": [5]}, "rot_lim must be"),
        (GlobalRotScaleTrans, {"resize_lim": [1], "rot_lim": [0, 0], "trans_lim": 0.5}, "resize_lim must be"),
        (PointsRangeFilter, {"point_cloud_range": [-1, -1, 1, 1]}, r"range must be \[x0, y0, z0, x1, y1, z1\], got"),
        (PointsRangeFilter, {"point_cloud_range": range(6), "radar_range": [1, 1]}, r"radar_range must be \[x0, y0"),
        (ObjectRangeFilter, {"point_cloud_range": [-1, -1, 1, 1]}, "point_cloud_range must be"),
        (LoadBEVSegmentation, {"xbound": [-1, 1, 1], "ybound": [-1, 1], "classes": []}, "ybound must be"),
        (BEVGrid.from_range, {"point_cloud_range": [-1, -1, 1, 1], "cell": [1, 1]}, "point_cloud_range must be"),
    ],
)
def test_a_range_or_size_of_another_length_is_told_by_its_key(make: Callable, arguments: dict, message: str) -> None:
    with pytest.raises(ConfigKeyError, match=message):
        make(**arguments)
