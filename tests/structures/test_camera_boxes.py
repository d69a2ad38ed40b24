from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet3d.structures.camera_boxes import CAMERA_TO_LEVEL, boxes_from_kitti, boxes_to_kitti

finite = st.floats(-50, 50, width=32)
size = st.floats(0.125, 20, width=32)
angle = st.floats(-3.140625, 3.140625, width=32)


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
