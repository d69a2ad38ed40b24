"""Losses of SimDistill. Golden values are those of the published routines; of changed formulas the core is compared."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from distill_inputs import GRID, batch_of
from torch import Tensor

from mmdet3d.distill.losses import FeatureLoss, PredictionLoss
from mmdet3d.distill.losses.prediction import box_distance
from mmdet3d.distill.losses.response import quality_focal_loss
from mmdet3d.models.heads import CenterHead, TransFusionHead
from mmdet3d.models.heads.config import CenterHeadTesting, HeadTraining, TransFusionTesting, TransFusionTraining
from mmdet3d.models.heads.targets import object_heat
from mmdet3d.structures import BEVGrid, Boxes3D

SMALL = BEVGrid((-3.0, -3.0), (1.0, 1.0), (6, 6))
SETTINGS = {"point_cloud_range": [-3.0, -3, -3, 3, 3, 3], "voxel_size": [0.125] * 3, "out_size_factor": 8}
CODE_WEIGHTS = [1.0] * 8 + [0.2, 0.2]


def center_head(tasks=(("car",), ("truck", "bus")), **train_cfg) -> CenterHead:
    training = HeadTraining(**SETTINGS | {"code_weights": CODE_WEIGHTS} | train_cfg)
    return CenterHead(4, tasks, training, CenterHeadTesting([-9.0, -9, -9, 9, 9, 9]), share_conv_channel=4)


def detector(head=None, grid: BEVGrid = SMALL) -> SimpleNamespace:
    return SimpleNamespace(grid=grid, heads={"object": head or center_head()})


def boxes(*rows: tuple[float, ...]) -> Boxes3D:
    """From published rows (x, y, z bottom, w, l, h)."""
    return Boxes3D(torch.tensor([[x, y, z + h / 2, length, w, h, 0.0, 0, 0] for x, y, z, w, length, h in rows]))


def ground_truth(batch_size: int = 2):
    """A car in cell (3, 2), a bus in cell (4, 4) and a truck in cell (1, 5); further samples are empty."""
    some = boxes((0.5, -0.6, -1, 1.9, 1.5, 1.6), (1.5, 1.2, -1, 1, 1, 1), (-1.4, 2.3, -1, 1, 1, 1))
    empty = [Boxes3D.empty()] * (batch_size - 1)
    labels = [torch.tensor([0, 2, 1]), *[torch.zeros(0, dtype=torch.int64)] * (batch_size - 1)]
    return batch_of([some, *empty], labels=labels)


def head_output(seed: int, batch_size: int = 2, dtype=torch.float32) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    channels = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    return [
        {
            name: torch.randn(batch_size, c, 6, 6, generator=generator).to(dtype)
            for name, c in (channels | {"heatmap": classes}).items()
        }
        for classes in (1, 2)
    ]


# -- features ---------------------------------------------------------------------------------------------------------


def test_published_object_mask():
    rows = (
        (0, 0, -1, 1.9, 4.5, 1.6),
        (3, -20, -1, 2.5, 8, 3),
        (3, -20.3, -1, 0.7, 0.7, 1.7),
        (60, 0, -1, 1.9, 4.5, 1.6),
    )
    (heat,) = object_heat([boxes(*rows)], [torch.tensor([0, 1, 8, 0])], GRID)
    assert heat.shape == (180, 180)
    assert heat.sum().item() == pytest.approx(17.219059, rel=1e-5)
    assert heat.max() == 2 and (heat > 0).sum() == 74
    assert (heat[90, 90], heat[95, 56], heat[95, 60]) == (1, 2, 0)


def test_constant_difference_by_hand():
    teacher = torch.randn(2, 3, 6, 6)
    assert FeatureLoss()(teacher + 1, teacher, ground_truth()).item() == pytest.approx(1, rel=1e-6)
    masked = FeatureLoss(object_mask=True)
    masked.bind(detector(), detector())
    batch = ground_truth()
    heat = object_heat(batch.boxes, batch.labels, SMALL)
    value = masked(teacher + 1, teacher, batch)
    assert value.item() == pytest.approx((heat**2).mean().item(), rel=1e-5)


def test_mask_is_drawn_as_the_students_targets():
    loss = FeatureLoss(object_mask=True)
    loss.bind(detector(), detector(center_head(min_radius=1)))
    student, teacher = torch.ones(1, 1, 6, 6, requires_grad=True), torch.zeros(1, 1, 6, 6)
    loss(student, teacher, ground_truth(1)).backward()
    assert (student.grad != 0).sum() == 9 + 9 + 6 - 2  # squares of radius 1; one is cut by the border, two overlap


def test_projection_belongs_to_the_loss():
    loss = FeatureLoss(projection=[3, 5])
    assert {k.partition(".")[0] for k in loss.state_dict()} == {"projection"}
    student, teacher = torch.randn(2, 3, 6, 6, requires_grad=True), torch.randn(2, 5, 6, 6)
    loss(student, teacher, ground_truth()).backward()
    assert student.grad.any() and all(p.grad.any() for p in loss.parameters())
    # Convolution, BatchNorm, ReLU: the result is not negative.
    assert loss.projection(student).min() == 0


def test_without_objects_the_masked_loss_is_zero_with_a_gradient():
    loss = FeatureLoss(object_mask=True)
    loss.bind(detector(), detector())
    student = torch.randn(1, 2, 6, 6, requires_grad=True)
    nothing = batch_of([Boxes3D.empty()], labels=[torch.zeros(0, dtype=torch.int64)])
    value = loss(student, torch.randn(1, 2, 6, 6), nothing)
    value.backward()
    assert value == 0 and not student.grad.any()


def test_feature_loss_rejects():
    with pytest.raises(ValueError, match=r"\(1, 2, 6, 6\) and \(1, 3, 6, 6\).*projection"):
        FeatureLoss()(torch.zeros(1, 2, 6, 6), torch.zeros(1, 3, 6, 6), ground_truth(1))
    masked = FeatureLoss(object_mask=True)
    masked.bind(detector(), detector())
    with pytest.raises(ValueError, match="boxes"):
        masked(torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 6, 6), ground_truth(1).without("boxes"))


@pytest.mark.parametrize("options", [{}, {"object_mask": True}, {"projection": [2, 2]}], ids=str)
def test_feature_loss_gradcheck(options):
    torch.manual_seed(0)
    loss = FeatureLoss(**options).double()
    loss.bind(detector(), detector())
    teacher = torch.rand(2, 2, 6, 6, dtype=torch.float64)
    student = torch.rand(2, 2, 6, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher, ground_truth()), student, fast_mode=True)


def test_float32_under_autocast():
    large = torch.full((1, 2, 6, 6), 6e4)
    with torch.autocast("cpu", torch.bfloat16):
        value = FeatureLoss()(large.half(), -large.half(), ground_truth(1))
    assert value.dtype == torch.float32 and value.isfinite()


# -- predictions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("classes", "golden"), [(1, 0.00213410), (2, 0.00853641)])
def test_published_heatmap_term_has_this_core(classes, golden):
    """Published: sigmoid twice, so every cell is a positive and the normaliser is HW / C, and summed over samples."""
    i = torch.arange(2 * classes * 180 * 180, dtype=torch.float64).view(2, classes, 180, 180)
    student, teacher = 2 * (0.37 * i).sin() - 2.19, 3 * (0.23 * i).cos() - 2
    twice = [z.sigmoid().clamp(1e-4, 1 - 1e-4).sigmoid() for z in (student, teacher)]
    core = quality_focal_loss(*twice, positive=0.1)
    cells = 2 * classes * 180 * 180  # all are positives
    assert (0.25 * classes / 180**2 * core * cells).item() == pytest.approx(golden, rel=1e-5)


def test_published_box_term_has_this_core():
    """Published: all 500 slots of a sample, sin(a - b) on the sine of the yaw, divided by the number of slots."""
    i = torch.arange(2 * 500 * 10, dtype=torch.float64).view(-1, 10)
    a, b = (0.011 * i).sin(), (0.013 * i).cos()
    sine = a[:, 6].sin() * b[:, 6].cos(), a[:, 6].cos() * b[:, 6].sin()
    a[:, 6], b[:, 6] = sine
    core = box_distance(a, b, torch.tensor(CODE_WEIGHTS, dtype=torch.float64))
    assert (0.25 / 500 * core).item() == pytest.approx(3.10355821, rel=1e-6)


def bound(**options) -> PredictionLoss:
    loss = PredictionLoss(**options)
    loss.bind(detector(), detector())
    return loss


def test_prediction_loss_by_hand():
    student, teacher, batch = head_output(0), head_output(1), ground_truth()
    terms = bound()(student, teacher, batch)
    assert set(terms) == {f"{kind}/task{t}" for kind in ("heatmap", "bbox") for t in (0, 1)}

    def smooth(d: float) -> float:
        return d * d * 4.5 if abs(d) < 1 / 9 else abs(d) - 1 / 18

    # Task 0 has the car in cell (3, 2), task 1 the bus in (4, 4) and the truck in (1, 5), all in sample 0.
    for t, cells in enumerate([[(3, 2)], [(4, 4), (1, 5)]]):
        expected = 0.0
        for x, y in cells:
            codes = [
                torch.cat([side[t][name][0, :, x, y] for name in ("reg", "height", "dim", "rot", "vel")])
                for side in (student, teacher)
            ]
            expected += sum(smooth(w * (a - b).item()) for w, a, b in zip(CODE_WEIGHTS, *codes, strict=True))
        assert terms[f"bbox/task{t}"].item() == pytest.approx(expected / len(cells), rel=1e-5)
        total, positives = 0.0, 0
        for p, q in zip(*(side[t]["heatmap"].sigmoid().flatten().tolist() for side in (student, teacher)), strict=True):
            total += (p - q) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
            positives += q > 0.1
        assert terms[f"heatmap/task{t}"].item() == pytest.approx(total / positives, rel=1e-5)


def test_strength_does_not_depend_on_the_batch_size():
    once = bound()(head_output(0, 1), head_output(1, 1), ground_truth(1))
    double = [[{k: torch.cat([v, v]) for k, v in task.items()} for task in head_output(seed, 1)] for seed in (0, 1)]
    one = ground_truth(1)
    twice = bound()(*double, batch_of(one.boxes * 2, labels=one.labels * 2))
    assert all(twice[k].item() == pytest.approx(once[k].item(), rel=1e-5) for k in once)


def test_predictions_are_not_changed_and_agreement_costs_nothing():
    teacher = head_output(1)
    before = [{k: v.clone() for k, v in task.items()} for task in teacher]
    terms = bound()(teacher, teacher, ground_truth())
    assert all(v == 0 for v in terms.values())
    assert all(torch.equal(v, before[t][k]) for t, task in enumerate(teacher) for k, v in task.items())


def test_no_objects_teach_no_boxes():
    """Published: each of the 500 empty slots teaches the box of cell (0, 0)."""
    student = head_output(0)
    for task in student:
        for value in task.values():
            value.requires_grad_()
    none = batch_of([Boxes3D.empty()] * 2, labels=[torch.zeros(0, dtype=torch.int64)] * 2)
    terms = bound()(student, head_output(1), none)
    sum(terms.values()).backward()
    assert terms["bbox/task0"] == 0 and not student[0]["reg"].grad.any()
    assert student[0]["heatmap"].grad.any()


def test_a_nan_of_the_teacher_is_not_hidden():
    teacher = head_output(1)
    teacher[0]["reg"][0, 0, 3, 2] = torch.nan
    assert bound()(head_output(0), teacher, ground_truth())["bbox/task0"].isnan()


def test_prediction_loss_gradcheck():
    student, teacher = head_output(0, dtype=torch.float64), head_output(1, dtype=torch.float64)
    loss = bound()
    names = [(t, name) for t, task in enumerate(student) for name in task]

    def function(*values: Tensor) -> Tensor:
        tasks: list[dict[str, Tensor]] = [{}, {}]
        for (t, name), value in zip(names, values, strict=True):
            tasks[t][name] = value
        return torch.stack(list(loss(tasks, teacher, ground_truth()).values()))

    inputs = [student[t][name].requires_grad_() for t, name in names]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def test_heads_must_be_alike():
    transfusion = TransFusionHead(
        4, TransFusionTraining(**SETTINGS), TransFusionTesting([-9.0] * 3 + [9.0] * 3), num_proposals=4, num_classes=2,
        hidden_channel=8, num_heads=2, point_classes=[],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"the teacher has a TransFusionHead; switch this loss off \(null\)"):
        PredictionLoss().bind(detector(transfusion), detector())
    with pytest.raises(ValueError, match=r"same tasks.*\[\['car'\]\].*\[\['car'\], \['truck', 'bus'\]\]"):
        PredictionLoss().bind(detector(), detector(center_head(tasks=[["car"]])))
