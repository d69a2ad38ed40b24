"""LabelDistill's losses: partitioned features and the responses of a CenterHead."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from distill_inputs import batch_of, center_head
from torch import nn

from mmdet3d.distill.losses import CenterResponseLoss, PartitionedFeatureLoss
from mmdet3d.distill.losses.partition import masked_distance
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.models.heads.targets import object_heat
from mmdet3d.structures import BEVGrid, Boxes3D

GRID = BEVGrid((-51.2, -51.2), (0.8, 0.8), (128, 128))
SMALL = BEVGrid((-4.0, -4.0), (1.0, 1.0), (8, 8))
CAR = torch.tensor([[0.4, 0.4, -1.0, 1.0, 1.0, 1.5, 0.3, 2.0, -1.0]])


def scene(*boxes: torch.Tensor, labels: list[int]) -> object:
    return batch_of([Boxes3D(torch.cat(boxes)) if boxes else Boxes3D.empty()], labels=[torch.tensor(labels).long()])


def bound(loss, grid: BEVGrid):
    head = center_head()
    head.grid = grid
    detector = SimpleNamespace(grid=grid, heads={"object": head}, history=loss.frames - 1)
    loss.bind(detector, detector)
    return loss


def plain(loss: PartitionedFeatureLoss, grid: BEVGrid) -> PartitionedFeatureLoss:
    """Without adapters: the third itself is compared."""
    loss.adaptors = nn.ModuleList(nn.Identity() for _ in loss.adaptors)
    return bound(loss, grid)


# -- features ---------------------------------------------------------------------------------------------------------


def test_mask_of_one_car():
    soft = object_heat([Boxes3D(CAR)], [torch.tensor([0])], GRID)
    assert soft.sum().item() == pytest.approx(4.3504, abs=3e-4)
    assert (soft > 0).sum() == 25
    assert soft[0, 64, 64] == 1 and soft[0, 65, 64].item() == pytest.approx(0.4868, abs=1e-4)


@pytest.mark.parametrize(
    ("frames", "partition", "channels", "parameters"),
    [
        (3, "contiguous_thirds", 450, 3_760_896),
        (5, "contiguous_thirds", 750, 3_991_296),
        # A third of 50 instead of 150 channels enters the first convolution.
        (3, "per_frame_thirds", 450, 3_760_896 - 2 * 100 * 128 * 9),
    ],
)
def test_published_adapters(frames, partition, channels, parameters):
    losses = [PartitionedFeatureLoss(p, partition, frames, (channels, 300)) for p in ("label", "lidar")]
    assert sum(p.numel() for loss in losses for p in loss.parameters()) == parameters


@pytest.mark.parametrize(
    ("partition", "part", "first", "second"),
    [
        ("per_frame_thirds", "label", range(0, 50), range(0, 100)),
        ("per_frame_thirds", "lidar", range(50, 100), range(100, 200)),
        ("contiguous_thirds", "label", range(0, 150), range(0, 100)),
        ("contiguous_thirds", "lidar", range(150, 300), range(100, 200)),
    ],
)
def test_which_channels_learn(partition, part, first, second):
    torch.manual_seed(0)
    loss = bound(PartitionedFeatureLoss(part, partition, 3, (450, 300), (4, 6)), SMALL)
    levels = [torch.randn(2, 450, 8, 8, requires_grad=True), torch.randn(2, 300, 4, 4, requires_grad=True)]
    batch = batch_of([Boxes3D(CAR)] * 2, labels=[torch.tensor([0])] * 2)
    loss([*levels, torch.zeros(2, 9, 2, 2)], [torch.randn(2, 4, 8, 8), torch.randn(2, 6, 4, 4)], batch).backward()
    for level, expected in zip(levels, (first, second), strict=True):
        assert level.grad.abs().amax((0, 2, 3)).nonzero()[:, 0].tolist() == list(expected)
    assert not [k for k, p in loss.named_parameters() if p.grad is None]


def test_the_published_lidar_third_of_the_first_level_teaches_the_key_frame_nothing():
    """The camera branch's weight feeds the key frame; past frames come without gradient."""
    torch.manual_seed(0)
    camera = nn.Conv2d(3, 6, 1)
    for partition, learns in (("contiguous_thirds", False), ("per_frame_thirds", True)):
        camera.zero_grad()
        key = camera(torch.randn(1, 3, 8, 8))
        with torch.no_grad():
            history = [camera(torch.randn(1, 3, 8, 8)) for _ in range(2)]
        loss = bound(PartitionedFeatureLoss("lidar", partition, 3, (18,), (4,)), SMALL)
        loss([torch.cat([key, *history], 1)], [torch.randn(1, 4, 8, 8)], scene(CAR, labels=[0])).backward()
        assert bool((camera.weight.grad != 0).any()) == learns


@pytest.mark.parametrize("mask", ["soft", "binary"])
def test_a_constant_difference_costs_channels_times_its_square_per_level(mask):
    loss = plain(PartitionedFeatureLoss("lidar", "contiguous_thirds", 1, (12, 9), (4, 3), mask), SMALL)
    teacher = [torch.randn(1, 4, 8, 8), torch.randn(1, 3, 4, 4)]
    student = [torch.zeros(1, 12, 8, 8), torch.zeros(1, 9, 4, 4)]
    student[0][:, 4:8], student[1][:, 3:6] = teacher[0] + 0.5, teacher[1] + 2.0
    # Of the smaller level's cells, one lies on the second car.
    corner = CAR + torch.tensor([3.0, 3, 0, 0, 0, 0, 0, 0, 0])
    assert loss(student, teacher, scene(CAR, corner, labels=[0, 0])).item() == pytest.approx(4 * 0.25 + 3 * 4, rel=1e-5)


def test_masks_follow_the_formula():
    """Two overlapping classes, a mask resized with aligned corners, against a loop in plain Python."""
    other = CAR.clone()
    other[0, 0] += 2
    batch = scene(CAR, other, labels=[0, 3])
    heat = object_heat(batch.boxes, batch.labels, SMALL)[0].tolist()
    teacher, student = torch.randn(1, 2, 4, 4), torch.randn(1, 6, 4, 4)

    def resized(i: int, j: int) -> float:
        x, y = i * 7 / 3, j * 7 / 3
        x0, y0 = min(int(x), 6), min(int(y), 6)
        u, v = x - x0, y - y0
        near = heat[x0][y0] * (1 - v) + heat[x0][y0 + 1] * v
        return near * (1 - u) + (heat[x0 + 1][y0] * (1 - v) + heat[x0 + 1][y0 + 1] * v) * u

    for kind in ("soft", "binary"):
        top = bottom = 0.0
        for i in range(4):
            for j in range(4):
                m = resized(i, j) if kind == "soft" else float(resized(i, j) > 0)
                top += m * sum((teacher[0, c, i, j] - student[0, c, i, j]).item() ** 2 for c in range(2))
                bottom += m
        loss = plain(PartitionedFeatureLoss("label", "contiguous_thirds", 1, (6,), (2,), kind), SMALL)
        assert loss([student], [teacher], batch).item() == pytest.approx(top / max(bottom, 1), rel=1e-4)


def test_no_objects_cost_nothing_and_stay_connected():
    loss = bound(PartitionedFeatureLoss("label", "per_frame_thirds", 1, (6,), (2,)), SMALL)
    student = torch.randn(1, 6, 8, 8, requires_grad=True)
    value = loss([student], [torch.randn(1, 2, 8, 8)], scene(labels=[]))
    value.backward()
    assert value == 0 and not student.grad.any()


def test_a_weak_mask_is_a_sum():
    student, teacher = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    assert masked_distance(student, teacher, torch.full((1, 2, 2), 0.1)).item() == pytest.approx(0.4 * 3)


def test_partition_gradcheck():
    torch.manual_seed(0)
    loss = bound(PartitionedFeatureLoss("label", "per_frame_thirds", 1, (6,), (2,)), SMALL).double().eval()
    teacher = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    student = torch.randn(1, 6, 8, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss([s], [teacher], scene(CAR, labels=[0])), student, fast_mode=True)


def test_half_precision_is_widened():
    loss = plain(PartitionedFeatureLoss("label", "contiguous_thirds", 1, (6,), (2,)), SMALL)
    value = loss([torch.full((1, 6, 8, 8), 300.0).half()], [torch.zeros(1, 2, 8, 8).half()], scene(CAR, labels=[0]))
    assert value.dtype == torch.float32 and value.item() == pytest.approx(180_000, rel=1e-3)


def test_a_nan_of_the_teacher_is_not_hidden():
    loss = plain(PartitionedFeatureLoss("label", "contiguous_thirds", 1, (6,), (2,)), SMALL)
    assert loss([torch.zeros(1, 6, 8, 8)], [torch.full((1, 2, 8, 8), math.nan)], scene(CAR, labels=[0])).isnan()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"part": "radar"}, "part must be one of label, lidar, got 'radar'"),
        ({"partition": "halves"}, "partition must be one of per_frame_thirds, contiguous_thirds, got 'halves'"),
        ({"mask": "hard"}, "mask must be one of soft, binary, got 'hard'"),
        ({"student_channels": [450]}, "one entry per level"),
        ({"frames": 4}, "450 channels of the first level are no 4 frames of equal width; check frames"),
    ],
)
def test_bad_options_of_a_partition_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PartitionedFeatureLoss(**{"part": "label", "frames": 3, **arguments})


def test_a_student_of_other_frames_is_named():
    student = SimpleNamespace(grid=SMALL, heads={"object": center_head()}, history=4)
    with pytest.raises(ValueError, match="the student sees 5 frames, but frames is 3"):
        PartitionedFeatureLoss("label", frames=3).bind(student, student)


def test_levels_that_do_not_fit_are_named():
    loss = bound(PartitionedFeatureLoss("label", "per_frame_thirds", 1, (6,), (2,)), SMALL)
    batch = scene(CAR, labels=[0])
    with pytest.raises(ValueError, match=r"levels have \[6\] channels, but they have \[9\]; set student_channels"):
        loss([torch.zeros(1, 9, 8, 8)], [torch.zeros(1, 2, 8, 8)], batch)
    with pytest.raises(ValueError, match=r"shapes \(1, 2, 8, 8\) and \(1, 3, 8, 8\)"):
        loss([torch.zeros(1, 6, 8, 8)], [torch.zeros(1, 3, 8, 8)], batch)
    with pytest.raises(ValueError, match="teacher_channels names 1 levels, the teacher has 0"):
        loss([torch.zeros(1, 6, 8, 8)], [], batch)


# -- responses --------------------------------------------------------------------------------------------------------


def response(head: CenterHead, **arguments: object) -> CenterResponseLoss:
    loss = CenterResponseLoss(**arguments)
    detector = SimpleNamespace(grid=SMALL, heads={"object": head})
    loss.bind(detector, detector)
    return loss


def head_output(seed: int, dtype: torch.dtype = torch.float32) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    channels = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    return [
        {k: torch.randn(1, c, 8, 8, generator=generator).to(dtype) for k, c in (channels | {"heatmap": n}).items()}
        for n in (1, 2)
    ]


OBJECTS = (CAR, CAR + torch.tensor([2.0, -3, 0, 0, 0, 0, 0, 0, 0]), CAR + torch.tensor([-2.0, 1, 0, 0, 0, 0, 0, 0, 0]))
LABELS = [0, 2, 2]


def test_published_response_leaves_peaks_alone_and_doubles_the_background():
    """A teacher that is sure of every object: no gradient at their cells, the detection loss's own elsewhere."""
    head = center_head()
    batch = scene(*OBJECTS, labels=LABELS)
    student, teacher = head_output(0), head_output(1)
    for task in teacher:
        task["heatmap"].fill_(20.0)
    for task in student:
        task["heatmap"].requires_grad_()
    objects = response(head, target="product")
    values = objects(student, teacher, batch)
    logits = [task["heatmap"] for task in student]
    kd = torch.autograd.grad(sum(v for k, v in values.items() if "heatmap" in k), logits)
    own = head.box_losses(student, batch.boxes, batch.labels)
    gt = torch.autograd.grad(sum(v for k, v in own.items() if "heatmap" in k), logits)
    heat = object_heat(batch.boxes, batch.labels, SMALL)[0]
    peaks = {0: [(4, 4)], 1: [(6, 1), (2, 5)]}
    for t, classes in ((0, 1), (1, 2)):
        for x, y in peaks[t]:
            assert kd[t][0, classes - 1, x, y].abs() < 1e-10
            assert gt[t][0, classes - 1, x, y] < -1e-3
        background = (heat == 0).expand(classes, 8, 8)
        assert background.any()
        torch.testing.assert_close(kd[t][0][background], gt[t][0][background])


def test_product_target_is_the_published_formula():
    head = center_head()
    batch = scene(CAR, labels=[0])
    student, teacher = head_output(0), head_output(1)
    p = student[0]["heatmap"].sigmoid().clamp(1e-4, 1 - 1e-4).double()
    q = teacher[0]["heatmap"].sigmoid().clamp(1e-4, 1 - 1e-4).double()
    y = object_heat(batch.boxes, batch.labels, SMALL)[:, None].double()
    expected = (-(1 - p).log() * p**2 * (1 - q * y) ** 4).sum()
    value = response(head, target="product")(student, teacher, batch)["heatmap/task0"]
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_target_pulls_scores_up():
    head = center_head()
    batch = scene(CAR, labels=[0])
    teacher = head_output(1)
    teacher[0]["heatmap"].fill_(-3.0)
    teacher[0]["heatmap"][0, 0, 4, 4] = 3.0
    for target, sign in (("teacher", -1), ("product", 1)):
        student = head_output(0)
        student[0]["heatmap"] = torch.zeros(1, 1, 8, 8, requires_grad=True)
        response(head, target=target)(student, teacher, batch)["heatmap/task0"].backward()
        assert student[0]["heatmap"].grad[0, 0, 4, 4].sign() == sign
        assert student[0]["heatmap"].grad[0, 0, 0, 0] > 0


def test_teacher_target_is_the_quality_focal_loss_over_the_objects():
    head = center_head()
    batch = scene(*OBJECTS, labels=LABELS)
    student, teacher = head_output(0), head_output(1)
    p, q = (side[1]["heatmap"].sigmoid().double() for side in (student, teacher))
    entropy = -(q * p.log() + (1 - q) * (1 - p).log())
    expected = (entropy * (p - q) ** 2).sum() / 2
    value = response(head)(student, teacher, batch)["heatmap/task1"]
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


def test_boxes_are_compared_at_the_objects_with_the_heads_weights():
    head = center_head()
    student, teacher = head_output(0), head_output(1)
    values = response(head)(student, teacher, scene(*OBJECTS, labels=LABELS))
    expected = 0.0
    for x, y in ((6, 1), (2, 5)):
        for name, weight in (("reg", 1), ("height", 1), ("dim", 1), ("rot", 1), ("vel", 0.5)):
            expected += weight * (student[1][name] - teacher[1][name])[0, :, x, y].abs().sum().item()
    assert values["bbox/task1"].item() == pytest.approx(0.25 * expected / 2, rel=1e-3)


def test_objects_that_the_teacher_missed_teach_no_box():
    head = center_head()
    student, teacher = head_output(0), head_output(1)
    teacher[1]["heatmap"].fill_(-5.0)
    teacher[1]["heatmap"][0, 1, 2, 5] = 2.0
    batch, alone = scene(*OBJECTS, labels=LABELS), scene(OBJECTS[0], OBJECTS[2], labels=[0, 2])
    gated = response(head, min_score=0.1)(student, teacher, batch)["bbox/task1"]
    assert gated == response(head)(student, teacher, alone)["bbox/task1"] > 0
    assert response(head)(student, teacher, batch)["bbox/task1"] != gated
    teacher[1]["heatmap"].fill_(-5.0)
    assert response(head, min_score=0.1)(student, teacher, batch)["bbox/task1"] == 0


@pytest.mark.parametrize("target", ["teacher", "product"])
def test_response_gradcheck(target):
    loss = response(center_head(), target=target)
    teacher = head_output(1, torch.float64)
    batch = scene(*OBJECTS, labels=LABELS)
    student = head_output(0, torch.float64)
    names = [(t, name) for t in range(2) for name in student[t]]

    def total(*values: torch.Tensor) -> torch.Tensor:
        raw = [{}, {}]
        for (t, name), value in zip(names, values, strict=True):
            raw[t][name] = value
        return sum(loss(raw, teacher, batch).values())

    inputs = [student[t][name].requires_grad_() for t, name in names]
    assert torch.autograd.gradcheck(total, inputs, nondet_tol=0.0, fast_mode=True)


@pytest.mark.parametrize("target", ["teacher", "product"])
def test_response_without_objects_is_finite_and_connected(target):
    student = head_output(0)
    for task in student:
        for value in task.values():
            value.requires_grad_()
    values = response(center_head(), target=target, min_score=0.1)(student, head_output(1), scene(labels=[]))
    sum(values.values()).backward()
    assert all(v.isfinite() for v in values.values())
    assert all(task["heatmap"].grad.any() and not task["reg"].grad.any() for task in student)


def test_heads_that_do_not_fit_and_unknown_targets_are_named():
    student, teacher = (SimpleNamespace(grid=SMALL, heads={"object": center_head(t)}) for t in ([["car"]], [["bus"]]))
    with pytest.raises(ValueError, match="CenterResponseLoss needs the same tasks on both sides"):
        CenterResponseLoss().bind(teacher, student)
    with pytest.raises(ValueError, match="target must be teacher or product, got 'both'"):
        CenterResponseLoss(target="both")
