"""Boxes, calibration, grid, batch."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmdet3d.structures import (
    Batch,
    BEVGrid,
    Boxes3D,
    Calibration,
    Detections3D,
    ImageObjects,
    Sample,
    limit_period,
    project,
)

BOX = torch.tensor([[10.0, 5.0, -1.0, 4.0, 2.0, 1.5, 0.3, 3.0, 1.0]], dtype=torch.float64)


def similarity(angle: float, scale: float, mirror: bool, shift: list[float]) -> torch.Tensor:
    c, s = math.cos(angle), math.sin(angle)
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[c, -s], [s, c]])
    if mirror:
        matrix[:2, :2] = torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)) @ matrix[:2, :2]
    matrix[:3, :3] *= scale
    matrix[:3, 3] = torch.tensor(shift)
    return matrix


similarities = st.builds(
    similarity,
    st.floats(-3, 3),
    st.floats(0.5, 2),
    st.booleans(),
    st.lists(st.floats(-20, 20), min_size=3, max_size=3),
)


@given(similarities)
def test_transform_moves_corners_like_points(matrix: torch.Tensor) -> None:
    moved = Boxes3D(BOX).transform(matrix)
    expected = Boxes3D(BOX).corners() @ matrix[:3, :3].T + matrix[:3, 3]
    # A mirror swaps left and right, so corners are compared as sets.
    distance = torch.cdist(moved.corners(), expected)
    assert distance.min(dim=2).values.max() < 1e-6
    assert distance.min(dim=1).values.max() < 1e-6


@given(similarities)
def test_transform_and_back(matrix: torch.Tensor) -> None:
    back = Boxes3D(BOX).transform(matrix).transform(torch.linalg.inv(matrix))
    assert torch.allclose(back.tensor, BOX, atol=1e-6)


def test_transform_refuses_shear() -> None:
    matrix = torch.eye(4)
    matrix[0, 1] = 0.5
    with pytest.raises(ValueError, match="rotation, mirror"):
        Boxes3D(BOX).transform(matrix)


def test_velocity_follows_the_heading() -> None:
    box = BOX.clone()
    box[0, 7:] = 5 * torch.stack([box[0, 6].cos(), box[0, 6].sin()])
    moved = Boxes3D(box).transform(similarity(1.1, 1.0, True, [0, 0, 0])).tensor[0]
    assert torch.allclose(torch.atan2(moved[8], moved[7]), moved[6])


def test_contains_is_strict_and_follows_the_yaw() -> None:
    box = Boxes3D(torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 2.0, math.pi / 2, 0.0, 0.0]], dtype=torch.float64))
    points = torch.tensor([[0.0, 1.9, 0.0], [1.9, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.99]], dtype=torch.float64)
    assert box.contains(points).tolist() == [[True, False, False, True]]


def test_corner_order() -> None:
    box = Boxes3D(torch.tensor([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0, 0.0, 0.0, 0.0]]))
    assert box.corners()[0, :5].tolist() == [[2, 1, -0.5], [-2, 1, -0.5], [-2, -1, -0.5], [2, -1, -0.5], [2, 1, 0.5]]


@given(st.floats(-50, 50))
def test_limit_period(angle: float) -> None:
    limited = float(limit_period(torch.tensor(angle, dtype=torch.float64)))
    assert -math.pi - 1e-9 <= limited < math.pi + 1e-9
    assert math.cos(limited) == pytest.approx(math.cos(angle), abs=1e-9)


def test_boxes_refuse_another_width() -> None:
    with pytest.raises(ValueError, match=r"\(N, 9\)"):
        Boxes3D(torch.zeros(2, 7))


def test_grid() -> None:
    grid = BEVGrid.from_range([-54, -54, -5, 54, 54, 3], [0.6, 0.6])
    assert grid.shape == (180, 180)
    assert torch.allclose(grid.to_cells(torch.tensor([[-54.0, 0.3]])), torch.tensor([[0.0, 90.5]]))
    assert grid.matches(BEVGrid((-54.0, -54.0), (0.6, 0.6), (180, 180)))
    assert not grid.matches(BEVGrid((-54.0, -54.0), (0.8, 0.8), (135, 135)))


def make_calibration(cameras: int = 2) -> Calibration:
    eye = torch.eye(4)
    many = [eye.repeat(cameras, 1, 1) for _ in range(4)]
    return Calibration(eye, eye, *many, eye)


def test_projection_inverts_the_intrinsics() -> None:
    calibration = make_calibration(1)
    calibration.intrinsics[0, :3, :3] = torch.tensor([[500.0, 0, 320], [0, 500, 240], [0, 0, 1]])
    points = torch.tensor([[1.0, 2.0, 10.0], [0.0, 0.0, -5.0]])
    pixels, depth = project(points, calibration.lidar2image[0])
    assert torch.allclose(pixels[0], torch.tensor([370.0, 340.0]))
    assert depth.tolist() == [10.0, -5.0]


def test_geometry_keeps_its_precision_under_autocast() -> None:
    calibration = make_calibration()
    boxes = Boxes3D(BOX.float().repeat(3, 1) * torch.tensor([[1.0], [1.7], [2.3]]))
    points = 50 * torch.rand(100, 4, generator=torch.Generator().manual_seed(0))
    motion = similarity(0.7, 1.1, True, [30.0, -20.0, 1.0]).float()

    def found() -> list[torch.Tensor]:
        return [calibration.lidar2image, *project(points, calibration.lidar2image), boxes.transform(motion).tensor]

    expected = found()
    with torch.autocast("cpu", torch.bfloat16):
        for half, full in zip(found(), expected, strict=True):
            assert torch.equal(half, full)


def test_collate_stacks_dense_and_lists_ragged() -> None:
    samples = [
        Sample(str(i), make_calibration(), torch.zeros(2, 3, 4, 5), {"points": torch.zeros(i + 1, 5)}) for i in range(3)
    ]
    batch = Batch.collate(samples)
    assert batch.images.shape == (3, 2, 3, 4, 5)
    assert [len(p) for p in batch.points] == [1, 2, 3]
    assert batch.calibration.intrinsics.shape == (3, 2, 4, 4)
    assert batch.radar is None and len(batch) == 3
    assert batch.without("points").points is None and batch.points is not None
    assert torch.equal(batch.calibration[1].lidar_aug, torch.eye(4))


def test_collate_names_the_sample_that_lacks_a_field() -> None:
    samples = [Sample("a", make_calibration(), clouds={"points": torch.zeros(1, 5)}), Sample("b", make_calibration())]
    with pytest.raises(ValueError, match="sample b has no points"):
        Batch.collate(samples)


def test_samples_without_labels_come_last_and_have_no_ground_truth() -> None:
    frames = [("a", None), ("b", Boxes3D.empty()), ("c", None), ("d", Boxes3D.empty())]
    samples = [
        Sample(t, make_calibration(), images=torch.full((2, 3, 4, 5), float(ord(t))), boxes=b, unlabelled=b is None)
        for t, b in frames
    ]
    batch = Batch.collate(samples)
    assert batch.tokens == ["b", "d", "a", "c"] and batch.unlabelled == 2
    assert len(batch.boxes) == 2 and batch.images[:, 0, 0, 0, 0].tolist() == [98, 100, 97, 99]
    assert batch.labelled.tokens == ["b", "d"] and batch.labelled.unlabelled == 0
    assert batch.labelled.images.shape[0] == batch.labelled.calibration.lidar_aug.shape[0] == 2
    assert batch.to("cpu").unlabelled == 2
    whole = Batch.collate(samples[1::2])
    assert whole.labelled is whole


def test_require_names_the_user() -> None:
    batch = Batch.collate([Sample("a", make_calibration())])
    with pytest.raises(ValueError, match="DepthLSSTransform needs `points`"):
        batch.require("points", "DepthLSSTransform")


def image_objects() -> ImageObjects:
    rng = torch.Generator().manual_seed(0)
    values = {name: torch.rand(3, generator=rng) for name in ("yaws", "alphas")}
    columns = {"boxes2d": 4, "sizes": 3, "centers": 3}
    values |= {name: torch.rand(3, width, generator=rng) for name, width in columns.items()}
    return ImageObjects(labels=torch.tensor([1, 0, 2]), regressed=torch.tensor([True, False, True]), **values)


def test_image_objects_flip_twice_is_nothing() -> None:
    objects = image_objects()
    once, twice = objects.flip(10.0), objects.flip(10.0).flip(10.0)
    for field in dataclasses.fields(objects):
        torch.testing.assert_close(getattr(twice, field.name), getattr(objects, field.name))
    torch.testing.assert_close(once.boxes2d[:, 0] + objects.boxes2d[:, 2], torch.full((3,), 10.0))
    torch.testing.assert_close(once.yaws, torch.pi - objects.yaws)


def test_image_objects_travel_in_a_batch() -> None:
    none = Calibration(*(torch.eye(4) for _ in range(7)))
    batch = Batch.collate([Sample("a", none, objects=image_objects()), Sample("b", none, objects=ImageObjects.empty())])
    moved = batch.to("meta")
    assert [len(o) for o in moved.objects] == [3, 0]
    assert moved.objects[0].boxes2d.device.type == "meta"
    assert batch.objects[0][torch.tensor([True, False, False])].labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"sizes of ImageObjects must have shape \(3, 3\), got \(1, 3\)"):
        dataclasses.replace(image_objects(), sizes=torch.zeros(1, 3))


def test_detections_keep_what_they_know() -> None:
    plain = Detections3D(Boxes3D(BOX.repeat(2, 1)), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]))
    assert plain[torch.tensor([1])].to("cpu").boxes2d is None
    full = dataclasses.replace(plain, boxes2d=torch.arange(8.0).view(2, 4), alphas=torch.tensor([1.0, 2.0]))
    assert full[torch.tensor([1])].to("cpu").boxes2d.tolist() == [[4, 5, 6, 7]]
    assert full[torch.tensor([1])].alphas.tolist() == [2]
