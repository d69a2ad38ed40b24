"""Losses of published methods: golden values of their formulas, gradients, and what happens where there is nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from distill_inputs import batch_of, center_head, detector_on
from torch import nn

from mmdet3d.distill.losses import (
    ActiveFeatureLoss,
    ContrastiveLoss,
    FeatureLoss,
    GaussianFeatureLoss,
    GaussianResponseLoss,
    InstanceLoss,
    ObjectPointsLoss,
    OccupancyLoss,
    RegionFeatureLoss,
    TrajectoryFeatureLoss,
)
from mmdet3d.distill.losses.active import active_distance
from mmdet3d.distill.losses.foreground import foreground_distance
from mmdet3d.distill.losses.gaussian_features import standardised, trajectory_distance, went_back
from mmdet3d.distill.losses.gaussian_response import weighted_mean
from mmdet3d.distill.losses.instances import info_nce, instance_distance
from mmdet3d.distill.losses.object_points import features_at, nine_points, relation_distance
from mmdet3d.distill.losses.occupancy import gaussian_volume, occupancy
from mmdet3d.distill.losses.partition import masked_distance
from mmdet3d.distill.losses.relation import affinity_distance
from mmdet3d.distill.losses.response import quality_focal_loss, soft_box_loss
from mmdet3d.distill.masks import gaussian_mask
from mmdet3d.models.heads.gaussian import gaussian_radius
from mmdet3d.ops.bev_pool import plan_pool
from mmdet3d.structures import BEVGrid, Boxes3D, Detections3D

CAR = [0.5, 0.5, 0.0, 2.0, 1.0, 1.5, 0.3, 1.0, -1.0]
OTHER = [-2.5, 1.5, 0.0, 2.0, 1.0, 1.5, -0.4, 0.0, 2.0]


def boxes(*rows: list[float]) -> Boxes3D:
    return Boxes3D(torch.tensor(rows)) if rows else Boxes3D.empty()


def labelled(*rows: list[float], samples: int = 1):
    return batch_of([boxes(*rows)] * samples, labels=[torch.zeros(len(rows), dtype=torch.int64)] * samples)


def bound(loss):
    """The loss with teacher and student heads of two tasks on 8 x 8 cells of 1 m."""
    torch.manual_seed(0)
    heads = center_head().eval(), center_head()
    teacher, student = (SimpleNamespace(grid=head.grid, heads={"object": head}) for head in heads)
    loss.bind(teacher, student)
    return loss


def maps(seed: int, samples: int = 1, size: int = 8, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(samples, 4, size, size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def answers(seed: int, samples: int = 1, dtype=torch.float32) -> list[dict[str, torch.Tensor]]:
    """What a head with two tasks might say."""
    generator = torch.Generator().manual_seed(seed)
    channels = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    return [
        {
            name: torch.randn(samples, c, 8, 8, generator=generator).to(dtype)
            for name, c in (channels | {"heatmap": n}).items()
        }
        for n in (1, 2)
    ]


def joined(task_maps, again=2):
    return [{name: torch.cat([value] * again) for name, value in task.items()} for task in task_maps]


def total(value) -> torch.Tensor:
    return sum(value.values()) if isinstance(value, dict) else value


# -- RadarDistill -----------------------------------------------------------------------------------------------------

SHOWN = torch.tensor([[[[1.0, -1], [1, 0.5]], [[0, 0], [0, 0.5]]]])
TAUGHT = torch.tensor([[[[0.5, 0.5], [0, 0]], [[0.5, 0.5], [0, 0]]]])


def test_active_features_golden() -> None:
    """One cell is active on both sides, two in the student alone, one in the teacher alone."""
    value = active_distance(SHOWN, TAUGHT, 2 * 3e-4, 2 * 5e-5)  # published weights, of a sum over two channels
    assert value.item() == pytest.approx(1.875e-4, rel=1e-5)


def test_activity_golden() -> None:
    student = torch.tensor([2.0, -2]).view(1, 1, 1, 2)
    terms = ActiveFeatureLoss()(student, torch.tensor([1.0, 0]).view(1, 1, 1, 2), labelled())
    assert terms["activity"].item() == pytest.approx(0.1192029, rel=1e-6)
    assert set(ActiveFeatureLoss(activity=0)(student, student, labelled())) == {"features"}


# -- UniDistill -------------------------------------------------------------------------------------------------------


def test_nine_points_are_corners_middles_of_edges_and_centre() -> None:
    box = boxes(CAR)
    points = nine_points(box)[0]
    corners = box.footprint()[0]
    assert all((points - corner).norm(dim=1).min() < 1e-6 for corner in corners)
    assert torch.allclose(points.mean(0), box.centers[0, :2]) and torch.allclose(points[4], box.centers[0, :2])
    middle = (corners + corners.roll(1, 0)) / 2
    assert all((points - m).norm(dim=1).min() < 1e-6 for m in middle)


def test_features_are_read_between_the_centres_of_cells() -> None:
    """3.5 cells from the border of 8 is -0.125 of the half width; on a map that says its own x, 3.0 between centres."""
    grid = BEVGrid((0.0, 0.0), (1.0, 1.0), (8, 4))
    x, y = torch.meshgrid(torch.arange(8.0), torch.arange(4.0), indexing="ij")
    value = features_at(torch.stack([x, y])[None], [torch.tensor([[[3.5, 1.0], [3.9, 2.5], [20.0, 1]]])], grid)
    assert torch.allclose(value, torch.tensor([[[3.0, 0.5], [3.4, 2.0], [0, 0]]]), atol=1e-5)
    assert features_at(torch.stack([x, y])[None], [torch.zeros(0, 9, 2)], grid).shape == (0, 9, 2)


def test_relations_golden() -> None:
    teacher, student = torch.tensor([[[1.0, 0], [0, 1]]]), torch.tensor([[[1.0, 0], [1, 0]]])
    assert relation_distance(student, teacher).item() == pytest.approx(0.4999, rel=1e-5)


def test_near_objects_golden() -> None:
    apart = torch.tensor([0.6 - torch.tensor(2.0 / 2).sigmoid().item(), 0.2]).abs().view(1, 1, 2)
    assert weighted_mean(apart, torch.tensor([1.0, 0.5]).view(1, 1, 2)).item() == pytest.approx(0.1540288, rel=1e-4)
    roots = gaussian_radius(torch.tensor([7.0]), torch.tensor([3.0]), 0.7)
    assert roots.item() == pytest.approx(1.1633328, rel=1e-6)
    grid = BEVGrid((0.0, 0.0), (1.0, 1.0), (20, 20))
    near = gaussian_mask([boxes([10.5, 10.5, 0, 7, 3, 1, 0, 0, 0])], grid, 0.7, 0)
    assert (near > 0).sum() == 9 and near[0, 10, 10] == 1  # radius 1


def test_the_response_is_the_highest_class_and_every_box_parameter() -> None:
    loss, student, teacher = bound(GaussianResponseLoss()), answers(0), answers(1)
    terms = loss(student, teacher, labelled(CAR))
    near = gaussian_mask([boxes(CAR)], loss._grid, 0.7, 0)
    seen = torch.cat([t["heatmap"] for t in student], 1).sigmoid().amax(1)
    told = (torch.cat([t["heatmap"] for t in teacher], 1) / 2).sigmoid().amax(1)
    assert terms["heatmap"].item() == pytest.approx(weighted_mean((seen - told).abs(), near).item(), rel=1e-5)
    order = ("reg", "height", "dim", "rot", "vel")
    codes = [torch.cat([task[name] for task in side for name in order], 1) for side in (student, teacher)]
    expected = weighted_mean((codes[0] - codes[1]).abs().mean(1), near)
    assert terms["bbox"].item() == pytest.approx(expected.item(), rel=1e-5)


# -- VCD and BEVDistill -----------------------------------------------------------------------------------------------


def test_dense_features_golden() -> None:
    apart = torch.tensor([[0.2, 0.1, 5.0], [0.4, 0.3, 5.0]]).view(1, 2, 1, 3)
    near = torch.tensor([1.0, 0.5, 0]).view(1, 1, 3)
    assert masked_distance(apart, torch.zeros_like(apart), near).item() == pytest.approx(0.1666667, rel=1e-5)


def test_trajectory_golden() -> None:
    student, teacher = torch.tensor([1.0, 2]).view(1, 1, 1, 2), torch.tensor([0.0, 1]).view(1, 1, 1, 2)
    value = trajectory_distance(student, teacher, torch.tensor([1.0, 0.5]).view(1, 1, 2))
    assert value.item() == pytest.approx(0.8333333, rel=1e-6)
    channels = standardised(maps(0, samples=2)).transpose(0, 1).flatten(1)
    assert torch.allclose(channels.mean(1), torch.zeros(4), atol=1e-6)
    assert torch.allclose(channels.var(1, unbiased=False), torch.ones(4), atol=1e-4)


def test_objects_came_the_way_that_they_move() -> None:
    unknown = [*OTHER[:7], math.nan, math.nan]
    back = went_back(boxes(CAR, unknown), 1.5)
    assert back.centers[:, :2].tolist() == [[-1.0, 2.0], OTHER[:2]]
    loss, teacher = bound(TrajectoryFeatureLoss(frames=3, interval=0.5)), maps(1)
    student = standardised(teacher)
    for place, counts in (((4, 4), True), ((2, 6), True), ((7, 1), False)):  # now, 1.5 s ago, ahead
        wrong = student.clone()
        wrong[0, :, place[0], place[1]] += 1
        assert bool(loss(wrong, teacher, labelled(CAR)) > 1e-3) is counts
    assert loss(student, teacher, labelled(CAR)) == 0


def test_instances_golden() -> None:
    """Scores count twice in the sum, once in the normaliser, which is at least 1."""
    assert instance_distance(torch.tensor([1.0, 4]), torch.tensor([0.9, 0.5])).item() == pytest.approx(1.81 / 1.4)
    assert instance_distance(torch.tensor([2.0]), torch.tensor([0.5])).item() == pytest.approx(0.5)


def test_instances_are_the_surest_boxes_of_the_teacher() -> None:
    loss = bound(InstanceLoss(count=1))
    found = Detections3D(boxes(CAR, OTHER), torch.tensor([0.4, 0.9]), torch.tensor([0, 0]))
    loss._teacher_head.module.decode = lambda raw: [found]
    student, teacher = answers(0), answers(1)
    objects = loss._student_head.module.objects([boxes(OTHER)], [torch.tensor([0])])
    x, y = objects.cells[0].tolist()
    told = objects.codes[0].clone()
    told[:2] -= objects.cells[0]
    ours = torch.cat([student[0][name][0, :, x, y] for name in ("reg", "height", "dim", "rot", "vel")])
    apart = ((ours - told).abs() * torch.tensor([1.0] * 8 + [0.5] * 2)).sum()
    score = teacher[0]["heatmap"][0, 0, x, y].sigmoid()
    assert loss(student, teacher, labelled()).item() == pytest.approx((apart * score**2).item(), rel=1e-5)


def test_contrast_golden() -> None:
    same = torch.tensor([[1.0, 0], [1, 0]])
    assert info_nce(same, same, 0.07).item() == pytest.approx(math.log(2), rel=1e-6)
    told_apart = torch.eye(2)
    assert info_nce(told_apart, told_apart, 0.07) < 1e-5


def test_contrast_of_fewer_than_two_objects_is_nothing_with_a_gradient() -> None:
    loss, student = bound(ContrastiveLoss((4, 4), width=6)), maps(0).requires_grad_()
    value = loss(student, maps(1), labelled(CAR))
    value.backward()
    assert value == 0 and not student.grad.any() and "fewer than two objects" in loss.faults()[0]


# -- occupancy --------------------------------------------------------------------------------------------------------

BOUNDS = {"xbound": (-4.0, 4.0, 1.0), "ybound": (-4.0, 4.0, 1.0), "zbound": (-2.0, 2.0, 1.0)}


def frustum_points() -> torch.Tensor:
    """(1, 1, 2, 1, 2, 3): two depths of two pixels; the far ones fall into one voxel, one near one nowhere."""
    points = torch.tensor([[0.5, 0.5, 0.5], [9.0, 0, 0], [1.5, 1.5, 0.5], [1.6, 1.4, 0.4]])
    return points.view(1, 1, 2, 1, 2, 3)


def test_occupancy_sums_the_probabilities_of_a_voxel() -> None:
    plan = plan_pool(frustum_points(), [-4, -4, -2], [1, 1, 1], [8, 8, 4], True)
    depth = torch.tensor([0.3, 0.2, 0.7, 0.8]).view(1, 2, 1, 2)
    found = occupancy(depth, plan)
    assert found.shape == (1, 4, 8, 8) and (found != 0).sum() == 2
    assert found[0, 2, 4, 4].item() == pytest.approx(torch.tensor(0.3).sigmoid().item() - 0.5)
    assert found[0, 2, 5, 5].item() == pytest.approx(torch.tensor(1.5).sigmoid().item() - 0.5)


def test_a_gaussian_stands_around_the_centre_of_every_box() -> None:
    """Its middle layer is the heat map of the same radius; along z it falls by the larger of two radii."""
    size = ([-4.0, -4, -2], [1.0, 1, 0.5], [8, 8, 8])
    volume = gaussian_volume(boxes([0.5, 0.5, 0.2, 3, 3, 3, 0, 0, 0]), *size, 0.1, 1)
    layer = gaussian_mask([boxes([0.5, 0.5, 0.2, 3, 3, 3, 0, 0, 0])], BEVGrid((-4.0, -4.0), (1.0, 1.0), (8, 8)), 0.1, 1)
    assert torch.allclose(volume[4], layer[0])
    radius = gaussian_radius(torch.tensor(3.0), torch.tensor(3.0), 0.1)
    upright = int(radius / 0.5)
    assert volume[5, 4, 4].item() == pytest.approx(math.exp(-0.5 * (6 / (2 * upright + 1)) ** 2), rel=1e-5)
    assert gaussian_volume(boxes(), *size, 0.1, 1).shape == (8, 8, 8)


def occupancy_loss() -> OccupancyLoss:
    loss = OccupancyLoss(**BOUNDS)
    view = SimpleNamespace(module=SimpleNamespace(geometry=lambda calibration: frustum_points()))
    loss._views, loss._overlap, loss._min_radius = [view, view], 0.1, 1
    return loss


def test_occupancy_loss_by_hand() -> None:
    loss, depth = occupancy_loss(), torch.tensor([0.3, 0.2, 0.7, 0.8]).view(1, 2, 1, 2)
    nothing = torch.zeros_like(depth)
    mask = gaussian_volume(boxes(CAR), loss.lower, loss.cell, loss.cells, 0.1, 1) + 1e-7
    plan = plan_pool(frustum_points(), loss.lower, loss.cell, loss.cells, True)
    expected = (mask * occupancy(depth, plan)[0]).sum() / mask.sum()
    assert loss(depth, nothing, labelled(CAR)).item() == pytest.approx(expected.item(), rel=1e-5)
    assert loss(depth, depth, labelled(CAR)) == 0 and loss(depth, nothing, labelled()).isfinite()


def test_occupancy_needs_cameras_on_both_sides() -> None:
    detector = SimpleNamespace(grid=center_head().grid, heads={"object": center_head()})
    with pytest.raises(ValueError, match="where the student's camera encoder lifts its pixels to"):
        OccupancyLoss().bind(detector, detector)


# -- DistillBEV, on levels --------------------------------------------------------------------------------------------


def test_regions_of_a_level_are_those_of_its_own_cells() -> None:
    """Half as many cells along each axis: a box of 2 m x 2 m is one cell large."""
    loss = bound(RegionFeatureLoss(foreground=1, background=0, false_positives=0, attention=False))
    box = [1.0, 1.0, 0, 2, 2, 1, 0, 0, 0]
    terms = loss(torch.zeros(1, 4, 4, 4), torch.ones(1, 4, 4, 4), labelled(box))
    assert terms["foreground"].item() == pytest.approx(1) and set(terms) == {"foreground", "background"}
    with pytest.raises(ValueError, match="a map of 4x5 cells is no level of the student's raster"):
        loss(torch.zeros(1, 4, 4, 5), torch.ones(1, 4, 4, 5), labelled(box))


def test_the_mean_channel_is_compared_through_a_convolution() -> None:
    loss = bound(RegionFeatureLoss(false_positives=0, spatial=2.5e-3))
    student, teacher = maps(0, samples=2), maps(1, samples=2)
    seen = nn.functional.conv2d(
        student.mean(1, keepdim=True), loss.spatial_conv.weight, loss.spatial_conv.bias, padding=1
    )
    expected = 2.5e-3 * (teacher.mean(1, keepdim=True) - seen).abs().sum() / 2
    assert loss(student, teacher, labelled(CAR, samples=2))["spatial"].item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_blocks_are_convolutions_with_norm_in_place_of_one_without() -> None:
    layers = RegionFeatureLoss(projection=[4, 6], blocks=3).projection
    widths = [(m.in_channels, m.out_channels) for m in layers if isinstance(m, nn.Conv2d)]
    assert widths == [(4, 4), (4, 4), (4, 6)] and isinstance(layers[-1], nn.ReLU)
    with pytest.raises(ValueError, match="blocks need a projection"):
        RegionFeatureLoss(blocks=3)


# -- CMKD, CrossKD, MonoDistill, made of what was there ---------------------------------------------------------------


def test_both_stages_of_cmkd_golden() -> None:
    student = torch.tensor([[0.1, 1.5], [1.0, 0.2]]).view(1, 1, 2, 2)
    teacher = torch.tensor([[0.0, 1.0], [2.0, 0.0]]).view(1, 1, 2, 2)
    assert 32 * FeatureLoss()(student, teacher, labelled()).item() == pytest.approx(10.4, rel=1e-6)
    p, q = torch.tensor([0.5, 0.1]), torch.tensor([0.9, 0.2])
    assert quality_focal_loss(p, q, beta=2.0).item() == pytest.approx(0.1163516, rel=1e-6)
    apart = torch.tensor([0.5, 2.0]).view(1, 2, 1, 1)
    assert soft_box_loss(apart, torch.zeros_like(apart), torch.full((1, 1, 1), 0.8)).item() == pytest.approx(5.2)


def test_crossed_heat_maps_golden() -> None:
    p, q = torch.tensor([0.5]), torch.tensor([0.8])
    assert quality_focal_loss(p, q, beta=1.0).item() == pytest.approx(0.2079442, rel=1e-6)
    assert quality_focal_loss(p, q, beta=2.0).item() == pytest.approx(0.0623832, rel=1e-5)


def test_monodistill_golden() -> None:
    apart = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    inside = torch.ones(1, 1, 2, dtype=torch.bool)
    assert foreground_distance(apart, torch.zeros_like(apart), inside).item() == pytest.approx(2.5)
    student, teacher = torch.tensor([1.0, 0]).view(1, 1, 1, 2), torch.tensor([1.0, 2]).view(1, 1, 1, 2)
    assert affinity_distance(student, teacher).item() == pytest.approx(2.0)


# -- all of them ------------------------------------------------------------------------------------------------------

ON_MAPS = {
    "active": lambda: ActiveFeatureLoss(),
    "points": lambda: ObjectPointsLoss(),
    "relations": lambda: ObjectPointsLoss(compare="relations"),
    "dense": lambda: GaussianFeatureLoss(),
    "trajectory": lambda: TrajectoryFeatureLoss(),
    "regions": lambda: RegionFeatureLoss(false_positives=0, attention=False, spatial=1.0),
    "contrast": lambda: ContrastiveLoss((4, 4), width=6),
}
ON_HEADS = {"response": lambda: GaussianResponseLoss(), "instances": lambda: InstanceLoss()}


@pytest.mark.parametrize("name", ON_MAPS)
def test_gradients_of_maps(name: str) -> None:
    loss = bound(ON_MAPS[name]()).double()
    student, teacher = maps(2, dtype=torch.float64).requires_grad_(), maps(1, dtype=torch.float64)
    batch = labelled(CAR, OTHER)
    assert torch.autograd.gradcheck(lambda s: total(loss(s, teacher, batch)), student, fast_mode=True)


@pytest.mark.parametrize("name", ON_HEADS)
def test_gradients_of_head_outputs(name: str) -> None:
    loss, teacher = bound(ON_HEADS[name]()), answers(1, dtype=torch.float64)
    leaves = [value.requires_grad_() for task in answers(0, dtype=torch.float64) for value in task.values()]
    names = [list(task) for task in teacher]

    def of(*values):
        given = iter(values)
        return total(loss([{n: next(given) for n in task} for task in names], teacher, labelled(CAR, OTHER)))

    assert torch.autograd.gradcheck(of, leaves, fast_mode=True)


def test_gradient_of_occupancy() -> None:
    loss, depth = occupancy_loss(), torch.rand(1, 2, 1, 2, dtype=torch.float64).requires_grad_()
    teacher = torch.rand(1, 2, 1, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda d: loss(d, teacher, labelled(CAR)), depth, fast_mode=True)


@pytest.mark.parametrize("name", [n for n in ON_MAPS if n != "contrast"])  # which has more objects to confuse
def test_a_repeated_batch_costs_the_same(name: str) -> None:
    loss, student, teacher = bound(ON_MAPS[name]()), maps(2), maps(1)
    once = total(loss(student, teacher, labelled(CAR)))
    twice = total(loss(torch.cat([student] * 2), torch.cat([teacher] * 2), labelled(CAR, samples=2)))
    assert torch.allclose(once, twice, rtol=1e-3) and once > 0


@pytest.mark.parametrize("name", ON_HEADS)
def test_a_repeated_batch_of_answers_costs_the_same(name: str) -> None:
    loss, student, teacher = bound(ON_HEADS[name]()), answers(0), answers(1)
    once = total(loss(student, teacher, labelled(CAR)))
    twice = total(loss(joined(student), joined(teacher), labelled(CAR, samples=2)))
    assert torch.allclose(once, twice, rtol=1e-3) and once > 0


@pytest.mark.parametrize("name", ON_MAPS)
@pytest.mark.parametrize("rows", [(), ([90.0, 90.0, *CAR[2:]],), ([0.2, 0.2, 0, 0.1, 0.1, 0.5, 0, 0, 0],)])
def test_no_object_one_outside_and_one_smaller_than_a_cell(name: str, rows: tuple[list[float], ...]) -> None:
    value = total(bound(ON_MAPS[name]())(maps(2), maps(1), labelled(*rows)))
    assert value.isfinite() and value >= 0
    value = total(bound(ON_HEADS["response"]())(answers(0), answers(1), labelled(*rows)))
    assert value.isfinite() and value >= 0


@pytest.mark.parametrize("name", ["points", "relations", "dense", "active"])
def test_the_teachers_own_map_costs_nothing(name: str) -> None:
    loss, same = bound(ON_MAPS[name]()), maps(1)
    terms = loss(same, same, labelled(CAR))
    assert (terms["features"] if isinstance(terms, dict) else terms).item() == pytest.approx(0, abs=1e-6)


def test_choices_that_do_not_exist_and_detectors_without_what_is_compared_are_named() -> None:
    with pytest.raises(ValueError, match="compare must be features or relations, got 'relation'"):
        ObjectPointsLoss(compare="relation")
    with pytest.raises(ValueError, match="ObjectPointsLoss compares bird's-eye views"):
        ObjectPointsLoss().bind(detector_on(None), detector_on(None))
