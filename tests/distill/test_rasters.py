"""Maps and head outputs on another raster, against what the same scene looks like there."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from distill_inputs import center_head
from torch.testing import assert_close

from mmdet3d.distill.center_output import CenterOutput, in_classes, resample_output
from mmdet3d.distill.rasters import covers, crop, resample, strided, with_stride
from mmdet3d.models.heads.targets import center_targets
from mmdet3d.structures import BEVGrid, Boxes3D

WIDE = BEVGrid((-6.0, -4.0), (0.5, 0.25), (24, 32))


def centers(grid: BEVGrid) -> torch.Tensor:
    """(X, Y, 2) metres, written anew: cell k reaches from lower + k * cell to lower + (k + 1) * cell."""
    x, y = (lower + cell * (torch.arange(n) + 0.5) for lower, cell, n in zip(*vars(grid).values(), strict=True))
    return torch.stack(torch.meshgrid(x, y, indexing="ij"), dim=-1)


def plane(points: torch.Tensor) -> torch.Tensor:
    """(2, X, Y): two affine functions of the place, which bilinear interpolation reproduces exactly."""
    x, y = points.unbind(-1)
    return torch.stack([3 * x - 2 * y + 1, 0.5 * y - x])


def turned(angle: float, scale: float = 1.0, mirror: bool = False, shift=(0.0, 0.0, 0.0)) -> torch.Tensor:
    c, s = scale * math.cos(angle), scale * math.sin(angle)
    m = torch.tensor([[c, -s, 0, shift[0]], [s, c, 0, shift[1]], [0, 0, scale, shift[2]], [0, 0, 0, 1]])
    return m @ torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0])) if mirror else m


@pytest.mark.parametrize(
    "target",
    [
        BEVGrid((-3.0, -3.0), (0.4, 0.4), (15, 15)),  # finer along x, coarser along y, shifted by parts of a cell
        BEVGrid((-5.0, -3.0), (1.0, 0.5), (8, 12)),  # twice as coarse
        BEVGrid((-3.5, -2.0), (0.5, 0.25), (14, 16)),  # some of the cells
        BEVGrid((-4.2, -3.0), (1.4, 0.75), (5, 8)),
    ],
    ids=["other", "half", "crop", "coarse"],
)
def test_an_affine_map_stays_what_it_is(target):
    maps = plane(centers(WIDE))[None]
    found = resample(maps, WIDE, target)
    inside = slice(1, -1)
    assert_close(found[0, :, inside, inside], plane(centers(target))[:, inside, inside], rtol=0, atol=2e-5)


def test_a_crop_is_exact_and_only_where_cells_coincide():
    maps = torch.rand(2, 3, 24, 32)
    target = BEVGrid((-3.5, -2.0), (0.5, 0.25), (14, 16))
    assert torch.equal(resample(maps, WIDE, target), maps[:, :, 5:19, 8:24])
    assert crop(WIDE, BEVGrid((-3.4, -2.0), (0.5, 0.25), (14, 16))) is None
    assert crop(WIDE, BEVGrid((-3.5, -2.0), (0.5, 0.25), (20, 16))) is None


def test_nothing_is_shifted_by_half_a_cell():
    """The mistake of `align_corners`: a map on twice as fine a raster has its values between the coarse centres."""
    fine = BEVGrid(WIDE.lower, (0.25, 0.125), (48, 64))
    up = resample(plane(centers(WIDE))[None], WIDE, fine)
    back = resample(up, fine, WIDE)
    assert_close(back[0, :, 1:-1, 1:-1], plane(centers(WIDE))[:, 1:-1, 1:-1], rtol=0, atol=2e-5)
    naive = torch.nn.functional.interpolate(plane(centers(WIDE))[None], (48, 64), mode="bilinear", align_corners=True)
    assert (naive - up)[0, :, 4:-4, 4:-4].abs().max() > 0.1


def test_an_augmented_view_is_the_map_of_the_moved_scene():
    motion = torch.stack([turned(0.3, 1.1, shift=(0.2, -0.4, 0.0)), turned(-0.7, 0.95, mirror=True)])
    target = BEVGrid((-2.0, -2.0), (0.25, 0.25), (16, 16))
    found = resample(plane(centers(WIDE)).expand(2, -1, -1, -1), WIDE, target, motion)
    for k in range(2):
        inverse = torch.linalg.inv(motion[k])
        points = centers(target) @ inverse[:2, :2].T + inverse[:2, 3]
        assert_close(found[k], plane(points), rtol=0, atol=2e-5)


def test_beyond_the_source_there_is_nothing():
    found = resample(torch.ones(1, 1, 24, 32), WIDE, BEVGrid((-8.0, -4.0), (0.5, 0.25), (8, 32)))
    assert not found[..., :4, :].any() and (found[..., 4:, :] == 1).all()
    assert covers(WIDE, BEVGrid((-6.1, -4.0), (0.6, 0.6), (20, 13)))
    assert not covers(WIDE, BEVGrid((-6.5, -4.0), (0.6, 0.6), (20, 13)))


def test_rasters_of_levels():
    grid = BEVGrid((-4.0, -4.0), (1.0, 1.0), (45, 45))
    assert strided(grid, (23, 23)) == (BEVGrid((-4.0, -4.0), (2.0, 2.0), (23, 23)), 2.0)
    assert strided(grid, (90, 90)) == (BEVGrid((-4.0, -4.0), (0.5, 0.5), (90, 90)), 0.5)
    assert strided(grid, (45, 45)) == (grid, 1.0)
    assert strided(grid, (16, 44)) is None and strided(grid, (90, 45)) is None
    assert with_stride(grid, 4.0).shape == (12, 12)


# -- heads ----------------------------------------------------------------------------------------------------------

BOXES = torch.tensor(
    [[1.3, 0.7, -1.0, 4.0, 2.0, 1.5, 0.4, 3.0, -1.0], [-2.2, -1.6, -0.5, 6.0, 2.5, 3.0, -2.0, 0.0, 0.5]]
)
TASKS = CenterOutput((("car",), ("truck", "bus")))


def ideal(boxes: torch.Tensor, grid: BEVGrid, tasks: CenterOutput = TASKS, labels=(0, 1)) -> list[dict]:
    """What a perfect head says: a response at the cell of every object, its box there."""
    label = torch.tensor(labels)
    objects = center_targets([Boxes3D(boxes)], [label], len(tasks.classes), grid, tasks.norm_bbox)
    codes = objects.codes.clone()
    codes[:, :2] -= objects.cells
    found, first = [], 0
    for task in tasks.tasks:
        maps = torch.zeros(1, 10, *grid.shape)
        heat = torch.full((1, len(task), *grid.shape), -8.0)
        for cell, code, name in zip(objects.cells, codes, objects.labels, strict=True):
            if first <= name < first + len(task):
                maps[0, :, cell[0], cell[1]] = code
                heat[0, name - first, cell[0], cell[1]] = 6.0
        parts = dict(zip(("reg", "height", "dim", "rot", "vel"), maps.split([2, 1, 3, 2, 2], 1), strict=True))
        found.append(parts | {"heatmap": heat})
        first += len(task)
    return found


def decoded(output: list[dict], grid: BEVGrid, tasks: CenterOutput = TASKS) -> dict[str, torch.Tensor]:
    head = center_head(tasks.tasks, norm_bbox=tasks.norm_bbox)
    head.grid = grid
    head.test_cfg = replace(head.test_cfg, post_center_limit_range=[-50, -50, -50, 50, 50, 50])
    (found,) = head.decode(output)
    return {head.classes[label]: box for box, label in zip(found.boxes.tensor, found.labels, strict=True)}


@pytest.mark.parametrize(
    "target",
    [
        BEVGrid((-4.0, -4.0), (0.5, 0.25), (16, 32)),
        BEVGrid((-4.0, -4.0), (1.0, 1.0), (8, 8)),
        BEVGrid((-3.9, -3.7), (0.7, 0.3), (11, 24)),
        BEVGrid((-4.0, -4.0), (0.2, 0.2), (40, 40)),
    ],
    ids=["crop", "coarse", "other", "fine"],
)
def test_boxes_stay_where_they_are(target):
    found = decoded(resample_output(ideal(BOXES, WIDE), WIDE, target, True), target)
    assert set(found) == {"car", "truck"}
    assert_close(torch.stack([found["car"], found["truck"]]), BOXES, rtol=0, atol=1e-4)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("norm_bbox", [True, False])
def test_boxes_move_with_the_view(norm_bbox, half):
    motion = torch.stack([turned(0.5, 1.1, shift=(0.3, -0.2, 0.4)), turned(-0.2, 0.9, mirror=True)])
    tasks = CenterOutput(TASKS.tasks, norm_bbox)
    output = [{k: v.expand(2, -1, -1, -1) for k, v in task.items()} for task in ideal(BOXES, WIDE, tasks)]
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        moved = resample_output(output, WIDE, WIDE, norm_bbox, motion)
    for k in range(2):
        found = decoded([{n: v[k : k + 1] for n, v in task.items()} for task in moved], WIDE, tasks)
        expected = Boxes3D(BOXES).transform(motion[k]).tensor
        found = torch.stack([found["car"], found["truck"]])
        turns = (found[:, 6] - expected[:, 6]) / (2 * math.pi)
        assert_close(turns, turns.round(), rtol=0, atol=1e-5)
        assert_close(found[:, [0, 1, 2, 3, 4, 5, 7, 8]], expected[:, [0, 1, 2, 3, 4, 5, 7, 8]], rtol=0, atol=1e-4)


def test_no_response_beyond_the_source():
    target = BEVGrid((-12.0, -4.0), (0.5, 0.25), (12, 32))
    assert all((task["heatmap"] == -10).all() for task in resample_output(ideal(BOXES, WIDE), WIDE, target, True))


@pytest.mark.parametrize(
    "tasks", [(("truck", "car"), ("bus",)), (("bus", "truck", "car"),), (("car",), ("truck",))], ids=str
)
@pytest.mark.parametrize("norm_bbox", [True, False])
def test_classes_are_the_same_where_their_names_are(tasks, norm_bbox):
    target = CenterOutput(tasks, norm_bbox)
    found = decoded(in_classes(ideal(BOXES, WIDE), TASKS, target), WIDE, target)
    assert set(found) == {"car", "truck"}
    assert_close(torch.stack([found["car"], found["truck"]]), BOXES, rtol=0, atol=1e-4)


def test_unknown_classes_get_no_response_and_equal_heads_say_the_same():
    answers = ideal(BOXES, WIDE)
    same = in_classes(answers, TASKS, TASKS)
    assert_close(same, [dict(task) for task in answers], rtol=0, atol=0)
    told = in_classes(answers, TASKS, CenterOutput((("bicycle",), ("car", "pedestrian"))))
    assert (told[0]["heatmap"] == -10).all() and (told[1]["heatmap"][:, 1] == -10).all()
    assert torch.equal(told[1]["heatmap"][:, :1], answers[0]["heatmap"])
