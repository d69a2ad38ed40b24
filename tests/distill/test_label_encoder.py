"""Painting of ground truth and the network that encodes it."""

from __future__ import annotations

import math

import pytest
import torch
from shapely import Point, Polygon

from mmdet3d.distill.label_encoder import LabelEncoder, paint_labels
from mmdet3d.structures import BEVGrid, Boxes3D

GRID = BEVGrid((-51.2, -51.2), (0.8, 0.8), (128, 128))
RECTANGLE = {(y, x) for y in (63, 64) for x in range(123, 128)}


def box(x=0.0, y=0.0, length=4.5, width=1.9, yaw=0.0, z=-1.0, height=1.5, vx=0.0, vy=0.0) -> Boxes3D:
    return Boxes3D(torch.tensor([[x, y, z, length, width, height, yaw, vx, vy]]))


def painted(one: Boxes3D, raster: str, grid: BEVGrid = GRID) -> set[tuple[int, int]]:
    """Cells as (row of y, column of x)."""
    _, classes = paint_labels([one], [torch.zeros(len(one), dtype=torch.int64)], 1, grid, raster)
    return {(y, x) for x, y in classes[0, 0].nonzero().tolist()}


@pytest.mark.parametrize(
    ("numbers", "cells"),
    [
        ((10, 5, 4.5, 1.9, 0.3), {(69, 75), (70, 74), (70, 75), (70, 76), (70, 77), (70, 78), (71, 77)}),
        ((-20.3, 14.7, 0.7, 0.7, 1.0), {(82, 38)}),
        ((50.9, 0, 12, 2.6, 0), RECTANGLE),
        ((60, 10, 4.5, 1.9, 0), {(75, 127), (76, 127), (77, 127)}),
        ((-60, 10, 4.5, 1.9, 0), set()),
        ((3, 7, 0.5, 2.5, 0), {(71, 67), (73, 67)}),
        ((0.3, -51, 4.5, 1.9, math.pi / 2), {(0, 63), (0, 64), (1, 63), (1, 64)}),
    ],
)
def test_published_raster(numbers, cells):
    assert painted(box(*numbers), "published") == cells


def test_published_raster_of_a_diagonal_box():
    cells = painted(box(0, 0, 12, 3, math.pi / 4), "published")
    assert len(cells) == 28
    assert {y for y, _ in cells} == set(range(60, 68))


def test_published_raster_is_the_closed_polygon_of_truncated_corners():
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        x, y, length, width, yaw = (
            (torch.rand(5, generator=generator) - 0.5).mul(torch.tensor([80, 80, 0, 0, 7])).tolist()
        )
        length, width = (torch.rand(2, generator=generator) * 14 + 3).tolist()
        one = box(x, y, length, width, yaw)
        shrunk = box(x, y, length / 2, width / 2, yaw)
        corners = GRID.to_cells(shrunk.footprint()[0]).trunc().tolist()
        polygon = Polygon(corners)
        low_x, low_y, high_x, high_y = map(int, polygon.bounds)
        inside = {
            (v, u)
            for u in range(low_x, high_x + 1)
            for v in range(low_y, high_y + 1)
            if polygon.covers(Point(u, v)) and 0 <= u < 128 and 0 <= v < 128
        }
        assert polygon.is_valid and painted(one, "published") == inside


@pytest.mark.parametrize(
    ("numbers", "cells"),
    [
        # Cell (70, 77) of (column 77, row 70) has its centre at (10.8, 5.2).
        ((10, 5, 4.5, 1.9, 0.3), {(69, 75), (70, 75), (70, 76), (70, 77)}),
        ((-20.3, 14.7, 0.7, 0.7, 1.0), {(82, 38)}),
        ((50.9, 0, 12, 2.6, 0), {(y, x) for y in (63, 64) for x in range(124, 128)}),
        ((60, 10, 4.5, 1.9, 0), set()),
        ((-60, 10, 4.5, 1.9, 0), set()),
        ((3, 7, 0.5, 2.5, 0), {(72, 67)}),
        ((0.3, -51, 4.5, 1.9, math.pi / 2), {(0, 64), (1, 64)}),
    ],
)
def test_exact_raster(numbers, cells):
    assert painted(box(*numbers), "exact") == cells


def test_exact_raster_paints_the_centre_of_every_box_on_the_grid():
    generator = torch.Generator().manual_seed(1)
    numbers = torch.rand(200, 9, generator=generator)
    numbers[:, :2] = (numbers[:, :2] - 0.5) * 110
    numbers[:, 3:6] *= 3
    for k in range(len(numbers)):
        cells = GRID.to_cells(numbers[k, :2]).floor().int().tolist()
        found = painted(Boxes3D(numbers[k : k + 1]), "exact")
        on_grid = all(0 <= c < 128 for c in cells)
        assert ((cells[1], cells[0]) in found) == on_grid == bool(found)


@pytest.mark.parametrize("raster", ["exact", "published"])
def test_the_last_class_wins_whatever_the_order_of_the_boxes(raster):
    boxes = Boxes3D.cat([box(0.4, 0.4, 6, 6), box(0.4, 0.4, 8, 8), box(0.4, 0.4, 7, 7)])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        numbers, classes = paint_labels([boxes[order]], [torch.tensor([3, 8, 5])[order]], 10, GRID, raster)
        assert classes.sum() == classes[0, 8].sum() > 1
        assert (numbers[0][:, classes[0, 8] > 0] == boxes.tensor[1][:, None]).all()
        assert not numbers[0][:, classes[0].sum(0) == 0].any()


def test_of_one_class_the_later_box_wins():
    boxes = Boxes3D.cat([box(0.4, 0.4, 6, 6), box(2.0, 0.4, 6, 6)])
    numbers, _ = paint_labels([boxes], [torch.tensor([0, 0])], 10, GRID, "published")
    assert numbers[0, 0, 64, 64] == 2.0


def test_a_box_below_another_keeps_its_centre_cell():
    """A child beside a bus whose class comes later must not vanish."""
    boxes = Boxes3D.cat([box(0.4, 0.4, 0.5, 0.5), box(2.0, 0.4, 12, 6)])
    _, exact = paint_labels([boxes], [torch.tensor([0, 3])], 10, GRID)
    _, published = paint_labels([boxes], [torch.tensor([0, 3])], 10, GRID, "published")
    assert exact[0, 0].nonzero().tolist() == [[64, 64]]
    assert not published[0, 0].any()


def test_maps_hold_the_numbers_of_the_box_and_its_class():
    one = box(1.0, 2.0, z=-0.7, yaw=2.0, vx=3.0, vy=-4.0)
    numbers, classes = paint_labels([one, Boxes3D.empty()], [torch.tensor([4]), torch.tensor([]).long()], 10, GRID)
    assert numbers.shape == (2, 9, 128, 128) and classes.shape == (2, 10, 128, 128)
    x, y = GRID.to_cells(one.centers[0, :2]).int().tolist()
    assert torch.equal(numbers[0, :, x, y], one.tensor[0])
    assert classes[0, :, x, y].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 0, 0]
    assert not numbers[1].any() and not classes[1].any()


@pytest.mark.parametrize("raster", ["exact", "published"])
def test_boxes_without_extent_or_class_are_not_painted(raster):
    boxes = Boxes3D.cat([box(length=0.0), box(width=-1.0), box()])
    numbers, classes = paint_labels([boxes], [torch.tensor([0, 0, -1])], 10, GRID, raster)
    assert not numbers.any() and not classes.any()


def test_bad_input_of_painting_is_named():
    with pytest.raises(ValueError, match=r"label 10.* 10 classes"):
        paint_labels([box()], [torch.tensor([10])], 10, GRID)
    with pytest.raises(ValueError, match="raster must be one of exact, published, got 'round'"):
        paint_labels([box()], [torch.tensor([0])], 10, GRID, "round")


# -- the network ------------------------------------------------------------------------------------------------------


def test_published_size():
    encoder = LabelEncoder(10, (128, 128), (1, 2))
    assert sum(p.numel() for p in encoder.parameters()) == 8_626_304
    assert [block[1].weight.numel() * 2 for block in encoder.conv_blocks] == [4_194_304, 2_097_152]


@pytest.mark.parametrize("norm", ["spatial", "channel"])
def test_levels_have_the_strides_of_the_backbone_and_every_parameter_learns(norm):
    torch.manual_seed(0)
    encoder = LabelEncoder(3, (10, 7), (1, 2, 4), channels=(4, 6, 8), hidden=5, norm=norm)
    maps = paint_labels(
        [box(), box(1.0)], [torch.tensor([0]), torch.tensor([2])], 3, BEVGrid((-4, -4), (0.8, 1.2), (10, 7))
    )
    levels = encoder(*maps)
    assert [tuple(v.shape) for v in levels] == [(2, 4, 10, 7), (2, 6, 5, 4), (2, 8, 3, 2)]
    sum(v.square().sum() for v in levels).backward()
    assert not [k for k, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


def test_an_empty_sample_has_a_constant_code_away_from_the_border():
    torch.manual_seed(0)
    encoder = LabelEncoder(2, (12, 12), (1,), channels=(4,), hidden=6, norm="channel").eval()
    (level,) = encoder(
        *paint_labels([Boxes3D.empty()], [torch.tensor([]).long()], 2, BEVGrid((0, 0), (1, 1), (12, 12)))
    )
    inner = level[0, :, 4:-4, 4:-4]
    torch.testing.assert_close(inner, inner[:, :1, :1].expand_as(inner))


def test_centimetres_count_under_autocast():
    """At 48 m, steps of bfloat16 are 25 cm; the head that reads the code is asked for less."""
    torch.manual_seed(0)
    grid = BEVGrid((44.0, -4.0), (0.8, 0.8), (8, 8))
    encoder, codes = LabelEncoder(1, grid.shape, [1], [8], 16, "channel"), []
    encoder.mlp_box.register_forward_hook(lambda module, args, output: codes.append(output))
    with torch.autocast("cpu", torch.bfloat16):
        for x in (48.0, 48.08):
            encoder(*paint_labels([box(x=x)], [torch.zeros(1).long()], 1, grid))
    assert (codes[0] - codes[1]).abs().max() > 1e-3


def test_bad_settings_of_the_network_are_named():
    with pytest.raises(ValueError, match=r"label_encoder.channels .* one number per level.*strides \[1, 2\]"):
        LabelEncoder(10, (8, 8), (1, 2), channels=(4,))
    with pytest.raises(ValueError, match=r"label_encoder.norm must be spatial or channel, got 'layer'"):
        LabelEncoder(10, (8, 8), (1,), channels=(4,), norm="layer")
