from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet3d.interop.boxes import boxes_from_old, boxes_to_old, yaw_from_old, yaw_to_old
from mmdet3d.structures import Boxes3D
from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_from_kitti, boxes_to_kitti

finite = st.floats(-50, 50, width=32)
size = st.floats(0.125, 20, width=32)
angle = st.floats(-3.140625, 3.140625, width=32)
rows = st.lists(st.tuples(finite, finite, finite, size, size, size, angle, finite, finite), min_size=1, max_size=5)


def old_corners(box: torch.Tensor) -> torch.Tensor:
    """Footprint corners by the old rule: width along local x, length along local y, clockwise rotation by yaw."""
    x, y, _, width, length, _, yaw = box[:7].tolist()
    c, s = math.cos(yaw), math.sin(yaw)
    local = [(a * width / 2, b * length / 2) for a in (-1, 1) for b in (-1, 1)]
    return torch.tensor([(a * c + b * s + x, -a * s + b * c + y) for a, b in local], dtype=torch.float64)


@settings(deadline=None, max_examples=50)
@given(rows=rows, gravity=st.booleans())
def test_round_trip_restores_the_boxes(rows: list, gravity: bool) -> None:
    boxes = Boxes3D(torch.tensor(rows, dtype=torch.float64))
    back = boxes_from_old(boxes_to_old(boxes, gravity=gravity), gravity=gravity)
    torch.testing.assert_close(back.tensor, boxes.tensor)


@settings(deadline=None, max_examples=50)
@given(rows=rows)
def test_footprint_is_the_same_rectangle(rows: list) -> None:
    old = torch.tensor(rows, dtype=torch.float64)
    for box, corners in zip(old, boxes_from_old(old).footprint(), strict=True):
        distance = torch.cdist(old_corners(box), corners)
        assert distance.min(dim=0).values.max() < 1e-9
        assert distance.min(dim=1).values.max() < 1e-9


def test_bottom_and_gravity_heights() -> None:
    old = torch.tensor([[1.0, 2.0, -1.0, 1.9, 4.5, 1.6, 0.0, 3.0, 4.0]])
    bottom, gravity = boxes_from_old(old), boxes_from_old(old, gravity=True)
    assert bottom.tensor[0].tolist() == pytest.approx([1, 2, -0.2, 4.5, 1.9, 1.6, -math.pi / 2, 3, 4])
    assert gravity.tensor[0, 2].item() == -1.0


def test_seven_columns_get_velocity_zero() -> None:
    assert boxes_from_old(torch.ones(3, 7)).velocity.tolist() == [[0, 0]] * 3


@settings(deadline=None, max_examples=50)
@given(yaw=angle)
def test_yaw_map_is_its_own_inverse(yaw: float) -> None:
    value = torch.tensor(yaw, dtype=torch.float64)
    torch.testing.assert_close(yaw_from_old(yaw_to_old(value)), value)


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ValueError, match="7 or 9 columns"):
        boxes_from_old(torch.zeros(2, 8))


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(st.tuples(size, size, size, finite, finite, finite, angle), min_size=1, max_size=5))
def test_kitti_round_trip_restores_the_boxes(rows: list) -> None:
    boxes = torch.tensor(rows, dtype=torch.float64)
    torch.testing.assert_close(boxes_to_kitti(boxes_from_kitti(boxes)), boxes)


@settings(deadline=None, max_examples=50)
@given(row=st.tuples(size, size, size, finite, finite, finite, angle))
def test_kitti_corners_are_the_same(row: tuple) -> None:
    """Corners by KITTI's rule (y down to the bottom face, x' = cos x + sin z), turned to x forward, y left, z up."""
    height, width, length, x, y, z, rotation = row
    c, s = math.cos(rotation), math.sin(rotation)
    corners = [
        (c * a + s * b + x, y + up, -s * a + c * b + z, 1.0)
        for a in (-length / 2, length / 2)
        for b in (-width / 2, width / 2)
        for up in (0.0, -height)
    ]
    expected = (torch.tensor(corners, dtype=torch.float64) @ CAMERA_TO_LEVEL.T)[:, :3]
    got = boxes_from_kitti(torch.tensor([row], dtype=torch.float64)).corners()[0]
    distance = torch.cdist(expected, got)
    assert distance.min(dim=0).values.max() < 1e-6
    assert distance.min(dim=1).values.max() < 1e-6


def test_kitti_heading() -> None:
    """A car that drives away has rotation_y -pi / 2 and yaw 0; one that drives to the right 0 and -pi / 2."""
    boxes = torch.tensor([[1.5, 1.6, 4.0, 2.0, 1.7, 20.0, -math.pi / 2], [1.5, 1.6, 4.0, 2.0, 1.7, 20.0, 0.0]])
    got = boxes_from_kitti(boxes).tensor
    assert got[0, :7].tolist() == pytest.approx([20, -2, -0.95, 4, 1.6, 1.5, 0], abs=1e-6)
    assert got[1, 6].item() == pytest.approx(-math.pi / 2)
    with pytest.raises(ValueError, match=r"need 7 columns, got shape \(2, 9\)"):
        boxes_from_kitti(torch.zeros(2, 9))
