"""Views of an image, mirrored calibration, resampling, colour."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mmdet3d.blocks import read_block
from mmdet3d.datasets.kitti.augment import (
    Augmentation,
    View,
    flip_calibration,
    jitter_colours,
    warp_depth,
    warp_image,
)
from mmdet3d.datasets.kitti.files import KittiCalibration

SIZE, TARGET = (1242, 375), (384, 1280)
P2 = np.array(
    [[721.5377, 0, 609.5593, 44.85728], [0, 721.5377, 172.854, 0.2163791], [0, 0, 1, 0.002745884]], dtype=np.float64
)


def calibration() -> KittiCalibration:
    to_camera = np.eye(4)
    to_camera[:3] = [[0, -1, 0, 0.1], [0, 0, -1, -0.08], [1, 0, 0, -0.27]]
    return KittiCalibration(p2=P2, rectification=np.eye(4), velo2camera=to_camera)


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    return points @ matrix[:2, :2].T + matrix[:2, 3]


# -- geometry -------------------------------------------------------------------------------------------------------


def test_the_whole_image_of_the_usual_size() -> None:
    """Values measured on the published program."""
    matrix = View.whole(SIZE).matrix(SIZE, TARGET)
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(1.03059581, abs=1e-8)
    corners = apply(matrix, np.array([[0.0, 0], SIZE]))
    np.testing.assert_allclose(corners, [[0, -1.2367], [1280, 385.2367]], atol=5e-5)
    back = np.linalg.inv(matrix)
    assert back[0, 0] == pytest.approx(0.9703125)
    assert back[1, 3] == pytest.approx(1.2)


@pytest.mark.parametrize("size", [SIZE, (1224, 370), (640, 192)])
@pytest.mark.parametrize("target", [TARGET, (96, 320)])
def test_a_crop_and_back(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Both axes are zoomed alike, by the crop's width; the crop's centre comes to the middle."""
    view = View(False, 0.7, (500.0, 200.0))
    matrix = view.matrix(size, target)
    assert matrix[0, 0] == matrix[1, 1] == pytest.approx(target[1] / (0.7 * size[0]))
    left = np.array([500 - 0.35 * size[0], 200.0])
    np.testing.assert_allclose(apply(matrix, left), [0, target[0] / 2], atol=1e-9)
    points = np.random.default_rng(0).uniform(0, 400, (20, 2))
    np.testing.assert_allclose(apply(np.linalg.inv(matrix), apply(matrix, points)), points, atol=1e-9)


def test_a_mirrored_calibration() -> None:
    """Values of the published program, except that P2[2, 2] stays 1."""
    mirrored = flip_calibration(calibration(), 1242)
    expected = P2.copy()
    expected[0, 2:] = [632.4407, -44.85728]
    np.testing.assert_allclose(mirrored.p2, expected, atol=1e-9)
    twice = flip_calibration(mirrored, 1242)
    np.testing.assert_allclose(twice.p2, P2, atol=1e-9)
    np.testing.assert_array_equal(twice.lidar2rect, calibration().lidar2rect)


def test_points_meet_their_mirrored_pixels() -> None:
    points = np.column_stack([np.random.default_rng(0).uniform([5, -8, -1], [40, 8, 1], (30, 3)), np.ones(30)])
    plain, mirrored = calibration(), flip_calibration(calibration(), 1242)
    u, v, depth = plain.p2 @ plain.lidar2rect @ points.T
    flipped_u, flipped_v, flipped_depth = mirrored.p2 @ mirrored.lidar2rect @ points.T
    np.testing.assert_allclose(flipped_depth, depth, atol=1e-9)
    np.testing.assert_allclose(flipped_v / depth, v / depth, atol=1e-9)
    # P2[2, 3] is not zero, so the mirror is exact up to that over the depth.
    np.testing.assert_allclose(flipped_u / depth, 1242 - u / depth, atol=1242 * 0.0028 / 5)


# -- resampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [TARGET, (96, 320), (32, 96)])
@pytest.mark.parametrize("view", [View.whole(SIZE), View(False, 0.6, (700.0, 180.0)), View(False, 1.4, (600.0, 190.0))])
def test_pixels_go_where_the_matrix_says(view: View, target: tuple[int, int]) -> None:
    image = Image.new("RGB", SIZE)
    image.paste((255, 255, 255), (640, 150, 700, 210))  # centre 670, 180 in continuous pixels
    matrix = view.matrix(SIZE, target)
    warped = np.asarray(warp_image(image, matrix, target), dtype=float)[..., 0]
    assert warped.shape == target
    rows, columns = np.indices(target) + 0.5
    found = np.array([(columns * warped).sum(), (rows * warped).sum()]) / warped.sum()
    np.testing.assert_allclose(found, apply(matrix, np.array([670.0, 180.0])), atol=0.15)


def test_outside_the_image_is_black() -> None:
    warped = np.asarray(
        warp_image(Image.new("RGB", SIZE, (9, 9, 9)), View(False, 1.4, (621.0, 187.5)).matrix(SIZE, TARGET), TARGET)
    )
    assert (warped[:50] == 0).all() and (warped[:, :150] == 0).all() and (warped[150:230, 300:900] == 9).all()


def test_unknown_depth_neither_spreads_nor_pulls() -> None:
    """A hole stays a hole, and its neighbours keep their depth instead of coming nearer."""
    depth = np.full((375, 1242), 30.0, dtype=np.float32)
    depth[100:200, 300:500] = 0
    warped = warp_depth(depth, View(False, 1.3, (640.0, 200.0)).matrix(SIZE, TARGET), TARGET)
    np.testing.assert_allclose(np.unique(warped.round(3)), [0, 30])
    share = (warped[:, 200:1080] == 0).mean()
    assert 0 < share < 1
    whole = warp_depth(depth, View.whole(SIZE).matrix(SIZE, TARGET), TARGET)
    assert (whole[110:195, 320:500] == 0).all() and (whole[:90] > 29.99).all()


# -- drawing --------------------------------------------------------------------------------------------------------


def test_draws_stay_within_their_limits() -> None:
    rng = np.random.RandomState(0)
    views = [Augmentation(scale=0.4, shift=0.1).draw(SIZE, rng) for _ in range(2000)]
    scales = np.array([v.scale for v in views])
    centers = np.array([v.center for v in views]) / SIZE - 0.5
    assert scales.min() == pytest.approx(0.6) and scales.max() == pytest.approx(1.4)
    assert np.abs(centers).max() == pytest.approx(0.2)
    cropped = scales != 1
    assert np.std(scales[cropped]) > 0.25
    for share in (cropped.mean(), np.mean([v.flip for v in views])):
        assert share == pytest.approx(0.5, abs=0.05)
    never = Augmentation(random_flip=0, random_crop=0)
    assert never.draw(SIZE, rng) == View.whole(SIZE)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"random_flips": 0.5}, r"unknown config key augment.random_flips, did you mean 'random_flip'"),
        ({"random_crop": 1.5}, r"augment.random_crop must lie in \[0, 1\], got 1.5"),
        ({"scale": 1.0}, r"augment.scale must lie in \[0, 0.99\], got 1"),
    ],
)
def test_mistakes(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_block(Augmentation, cfg, "augment")


# -- colour ---------------------------------------------------------------------------------------------------------

ORDER, SAME, NONE = np.arange(3), np.ones(3), np.zeros(3)


def picture() -> np.ndarray:
    return np.random.default_rng(0).random((5, 7, 3), dtype=np.float32)


def test_colour_by_hand() -> None:
    image = picture()
    grey = (0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2])[..., None]
    close = dict(atol=1e-6, rtol=0)
    np.testing.assert_allclose(jitter_colours(image, ORDER, SAME, NONE), image, **close)
    np.testing.assert_allclose(jitter_colours(image, ORDER, np.array([1.3, 1, 1]), NONE), 1.3 * image, **close)
    contrast = jitter_colours(image, ORDER, np.array([1, 0.7, 1]), NONE)
    np.testing.assert_allclose(contrast, 0.7 * image + 0.3 * grey.mean(), **close)
    saturation = jitter_colours(image, ORDER, np.array([1, 1, 0.0]), NONE)
    np.testing.assert_allclose(saturation, np.repeat(grey, 3, axis=2), **close)
    both = jitter_colours(image, np.array([1, 0, 2]), np.array([1.3, 0.7, 1]), NONE)
    np.testing.assert_allclose(both, 1.3 * (0.7 * image + 0.3 * grey.mean()), **close)


def test_lighting_moves_along_the_components_of_red_green_blue() -> None:
    """The first component is nearly grey, the second takes from blue what it gives to red."""
    moved = jitter_colours(picture(), ORDER, SAME, np.array([0, 1.0, 0])) - picture()
    np.testing.assert_allclose(moved[0, 0], 0.01817699 * np.array([0.71832671, 0.00994535, -0.69563484]), atol=1e-6)


def test_colour_is_drawn_from_the_generator_alone() -> None:
    draws = [Augmentation().colour(picture(), np.random.RandomState(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert np.abs(draws[0] - draws[2]).max() > 0.01
    still = dataclasses.replace(Augmentation(), color_jitter=0.0, lighting=0.0)
    np.testing.assert_allclose(still.colour(picture(), np.random.RandomState(0)), picture(), atol=1e-6)
