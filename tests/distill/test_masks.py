from __future__ import annotations

import math

import pytest
import torch
from distill_inputs import GRID
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdet3d.distill.masks import enlarge, footprint_mask
from mmdet3d.structures import BEVGrid, Boxes3D, rotate_z

SMALL = BEVGrid((-3.0, -2.0), (0.5, 0.4), (12, 10))


def box(x=0.0, y=0.0, length=4.0, width=2.0, yaw=0.0, vx=0.0, vy=0.0) -> Boxes3D:
    return Boxes3D(torch.tensor([[x, y, 0.0, length, width, 1.5, yaw, vx, vy]]))


def published(row: list[float]) -> Boxes3D:
    """A box of the conformance values (x, y, z bottom, w, l, h, old yaw, vx, vy) in our convention."""
    x, y, z, w, length, h, yaw, vx, vy = row
    return Boxes3D(torch.tensor([[x, y, z + h / 2, length, w, h, -yaw - math.pi / 2, vx, vy]]))


def test_axis_aligned_box_covers_the_cells_whose_centres_it_holds():
    mask = footprint_mask([box(x=0.3, y=0.15, length=2.0, width=1.0)], SMALL)[0]
    # x centres at -2.75 + 0.5 i inside [-0.7, 1.3]; y centres at -1.8 + 0.4 j inside [-0.35, 0.65]
    expected = torch.zeros(12, 10, dtype=torch.bool)
    expected[5:9, 4:7] = True
    assert torch.equal(mask, expected)


def test_quarter_turn_swaps_the_axes():
    grid = BEVGrid((-3.0, -3.0), (0.5, 0.5), (12, 12))
    turned = footprint_mask([box(0.1, 0.1, yaw=math.pi / 2)], grid)
    assert torch.equal(turned, footprint_mask([box(0.1, 0.1, length=2.0, width=4.0)], grid))
    assert turned.sum() == 4 * 8


@settings(max_examples=40, deadline=None)
@given(
    x=st.floats(-4, 4),
    y=st.floats(-3, 3),
    length=st.floats(0.05, 5),
    width=st.floats(0.05, 3),
    yaw=st.floats(-4, 4),
)
def test_mask_is_the_set_of_cell_centres_in_the_box_plus_the_centre_cell(x, y, length, width, yaw):
    one = box(x, y, length, width, yaw)
    mask = footprint_mask([one], SMALL)[0]
    xs = -3.0 + 0.5 * (torch.arange(12) + 0.5)
    ys = -2.0 + 0.4 * (torch.arange(10) + 0.5)
    points = torch.stack([*torch.meshgrid(xs, ys, indexing="ij"), torch.zeros(12, 10)], dim=-1).reshape(-1, 3)
    local = rotate_z(points - one.centers, -one.yaw)
    margin = (local[:, :2].abs() - one.dims[:, :2] / 2).amax(1).reshape(12, 10)
    decided = margin.abs() > 1e-4
    i, j = math.floor((x + 3) / 0.5), math.floor((y + 2) / 0.4)
    if 0 <= i < 12 and 0 <= j < 10:
        decided[i, j] = False
        # A centre on a cell border may round to either side.
        near_border = (
            min((x + 3) / 0.5 % 1, (y + 2) / 0.4 % 1) < 1e-4 or max((x + 3) / 0.5 % 1, (y + 2) / 0.4 % 1) > 0.9999
        )
        assert mask[i, j] or near_border
        if near_border:
            decided[:] = False
    assert torch.equal(mask[decided], (margin < 0)[decided])


def test_no_box_vanishes_and_boxes_outside_leave_no_trace():
    tiny = box(1.03, 0.02, length=0.05, width=0.05)
    assert footprint_mask([tiny], SMALL).sum() == 1
    far = box(40.0, 0.0)
    mask = footprint_mask([far, Boxes3D.empty(), Boxes3D.cat([far, tiny])], SMALL)
    assert mask.flatten(1).sum(1).tolist() == [0, 0, 1]


def test_published_rectangle_is_the_same_where_its_formula_is_exact(crkd_values):
    """Upstream's rectangle is the box for headings along LiDAR y; its borders are truncated to cells."""
    high_x, low_y, low_x, high_y = crkd_values["get_gt_masks int rows [x4,y0,x0,y2]"][0]
    first = published(crkd_values["boxes (x,y,z_bottom,w,l,h,yaw,vx,vy)"][0])
    rows, columns = footprint_mask([first], GRID)[0].nonzero(as_tuple=True)
    ours = (rows.max() + 1, columns.min(), rows.min(), columns.max() + 1)
    assert all(abs(int(a) - b) <= 1 for a, b in zip(ours, (high_x, low_y, low_x, high_y), strict=True))


def test_box_across_the_driving_direction_is_covered(crkd_values):
    """Upstream's rectangle is empty for this box."""
    crossing = published(crkd_values["boxes (x,y,z_bottom,w,l,h,yaw,vx,vy)"][1])
    covered = footprint_mask([crossing], GRID).sum() * 0.36
    assert covered == pytest.approx(1.9 * 4.5, rel=0.25)


def test_enlarged_sizes_are_the_published_ones_for_velocities_in_the_box_frame(crkd_values):
    """Upstream compares LiDAR-frame velocity components with box axes (vx with the width, vy with the length)."""
    sizes = crkd_values["scale_mask -> new (w,l)"]
    for row, (width, length) in zip(crkd_values["boxes (x,y,z_bottom,w,l,h,yaw,vx,vy)"], sizes, strict=True):
        one = published(row)
        vx, vy = row[7:]
        one.tensor[:, 7:9] = rotate_z(torch.tensor([[vy, vx, 0.0]]), one.yaw)[:, :2]
        assert enlarge(one).dims[0, :2].tolist() == pytest.approx([length, width], abs=1e-5)


def test_enlarged_sizes_are_the_published_ones_where_the_frames_coincide(crkd_values):
    sizes = crkd_values["scale_mask -> new (w,l)"]
    rows = crkd_values["boxes (x,y,z_bottom,w,l,h,yaw,vx,vy)"]
    for i in (0, 1, 2):
        assert enlarge(published(rows[i])).dims[0, :2].tolist() == pytest.approx(sizes[i][::-1], abs=1e-5)


@pytest.mark.parametrize(
    ("change", "grown"),
    [
        ({}, (4.5, 2.5)),  # nearby and static: the least growth
        ({"x": 25.0}, (5.0, 2.5)),
        ({"y": 30.0}, (6.0, 3.0)),
        ({"vx": 0.5}, (5.0, 2.5)),
        ({"vx": 0.5, "yaw": math.pi / 2}, (4.5, 2.5)),  # the velocity lies along the width
        ({"vx": 1.0, "yaw": math.pi / 2}, (4.5, 3.0)),
        ({"x": 31.0, "vx": 9.0}, (8.0, 3.0)),  # the greatest growth
        ({"vx": math.nan}, (4.5, 2.5)),
    ],
)
def test_growth_by_distance_and_speed(change, grown):
    original = box(**change)
    before = original.tensor.clone()
    assert enlarge(original).dims[0, :2].tolist() == pytest.approx(grown, abs=1e-5)
    assert torch.equal(original.tensor.nan_to_num(), before.nan_to_num())


def test_growth_of_no_boxes():
    assert len(enlarge(Boxes3D.empty())) == 0
