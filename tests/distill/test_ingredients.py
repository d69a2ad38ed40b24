"""Distillation losses that pay elsewhere: golden values by hand, gradients, and what happens where there is nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from distill_inputs import batch_of, center_head

from mmdet3d.distill.losses import (
    ChannelSoftmaxLoss,
    CrossHeadLoss,
    PearsonFeatureLoss,
    PseudoLabelLoss,
    RegionFeatureLoss,
)
from mmdet3d.distill.losses.channel_softmax import channel_softmax_distance
from mmdet3d.distill.losses.cross_head import aligned
from mmdet3d.distill.losses.pearson import pearson_distance
from mmdet3d.distill.losses.pseudo_labels import away_from
from mmdet3d.distill.losses.region import foreground_scale, spatial_attention
from mmdet3d.distill.terms import build_term
from mmdet3d.structures import BEVGrid, Boxes3D, Detections3D

CAR = [0.5, 0.5, 0.0, 2.0, 1.0, 1.5, 0.3, 1.0, -1.0]


def boxes(*rows: list[float]) -> Boxes3D:
    return Boxes3D(torch.tensor(rows)) if rows else Boxes3D.empty()


def detector(head=None) -> SimpleNamespace:
    head = head or center_head()
    return SimpleNamespace(grid=head.grid, heads={"object": head})


def bound(loss, seed: int = 0):
    """The loss with teacher and student heads of two tasks on 8 x 8 cells of 1 m."""
    torch.manual_seed(seed)
    teacher, student = detector(center_head().eval()), detector()
    loss.bind(teacher, student)
    return loss, teacher, student


def labelled(*rows: list[float], samples: int = 1):
    return batch_of([boxes(*rows)] * samples, labels=[torch.zeros(len(rows), dtype=torch.int64)] * samples)


def maps(seed: int, samples: int = 1, dtype=torch.float32, requires_grad: bool = False) -> torch.Tensor:
    values = torch.randn(samples, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype).requires_grad_(requires_grad)


# -- Pearson ----------------------------------------------------------------------------------------------------------


def cells(values: list[float]) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_pearson_golden():
    student, teacher = cells([1.0, 2, 3, 4]), cells([2.0, 1, 4, 3])
    assert pearson_distance(student, teacher).item() == pytest.approx(0.3, abs=1e-5)
    assert pearson_distance(3 * student + 7, student).item() == pytest.approx(0, abs=1e-6)
    assert pearson_distance(-student, student).item() == pytest.approx(1.5, abs=1e-5)


def test_pearson_leaves_out_channels_without_variance():
    student, teacher = torch.randn(20, 3), torch.randn(20, 3)
    alive = pearson_distance(student[:, :2], teacher[:, :2])
    student[:, 2] = 5
    assert torch.equal(pearson_distance(student, teacher), alive)
    loss, *_ = bound(PearsonFeatureLoss())
    flat = maps(0)
    flat[:, 1] = 2
    loss(maps(1), flat, labelled(CAR))
    assert "same value in all cells" in loss.faults()[0] and loss.faults() == []


@pytest.mark.parametrize("region", ["occupied", "objects"])
def test_pearson_sees_its_region_only(region):
    loss, *_ = bound(PearsonFeatureLoss(region=region))
    teacher, student = maps(0), maps(1)
    teacher[..., 0] = 0
    before = loss(student, teacher, labelled(CAR))
    student[..., 0] = 100
    assert torch.equal(loss(student, teacher, labelled(CAR)), before) and before > 0


def test_pearson_without_a_cell_is_zero_and_said_after_an_epoch():
    loss, *_ = bound(PearsonFeatureLoss(region="objects"))
    student = maps(1, requires_grad=True)
    value = loss(student, maps(0), labelled())
    value.backward()
    assert value == 0 and not student.grad.any()
    assert any("'objects'" in fault for fault in loss.faults())
    loss(student, maps(0), labelled())
    loss(student, maps(0), labelled(CAR))
    assert loss.faults() == []


def test_pearson_projects_and_refuses_other_shapes():
    loss, *_ = bound(PearsonFeatureLoss(projection=[2, 4]))
    assert loss(maps(0)[:, :2], maps(1), labelled(CAR)).requires_grad
    with pytest.raises(ValueError, match=r"\(1, 2, 8, 8\) and \(1, 4, 8, 8\); give `projection"):
        bound(PearsonFeatureLoss())[0](maps(0)[:, :2], maps(1), labelled(CAR))
    with pytest.raises(ValueError, match="region must be one of all, occupied, objects"):
        PearsonFeatureLoss(region="everywhere")


# -- channel softmax --------------------------------------------------------------------------------------------------


def test_channel_softmax_golden():
    """Four cells: two near an object, one invented, one nothing; |softmax difference| sums to 0.5 in each."""
    teacher = torch.tensor([math.log(3), 0.0])[None, :, None, None].expand(1, 2, 1, 4)
    weight = torch.tensor([2.5, 2.5, 1, 0])[None, None]
    assert channel_softmax_distance(torch.zeros(1, 2, 1, 4), teacher, weight).item() == pytest.approx(3.0, rel=1e-6)


def head_answer(p: float) -> list[dict[str, torch.Tensor]]:
    """Both tasks give probability p everywhere."""
    return [{"heatmap": torch.full((1, n, 8, 8), math.log(p / (1 - p)))} for n in (1, 2)]


def test_channel_softmax_weighs_objects_and_inventions():
    loss, *_ = bound(ChannelSoftmaxLoss())
    student, teacher = torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8)
    teacher[:, 0] = math.log(3)  # softmax (1/2, 1/6, 1/6, 1/6): distance 1/2 from uniform
    assert loss((student, head_answer(0.01)), teacher, labelled(CAR)).item() == pytest.approx(2.5, rel=1e-5)
    assert loss((student, head_answer(0.5)), teacher, labelled(CAR)).item() == pytest.approx(3.0, rel=1e-5)
    assert loss((student, head_answer(0.01)), teacher, labelled()) == 0
    # Magnitude is forgotten.
    assert torch.allclose(loss((student + 5, head_answer(0.5)), teacher, labelled(CAR)), torch.tensor(3.0), rtol=1e-5)


def test_channel_softmax_on_a_level_takes_the_highest_response_of_its_cells():
    """One invented cell of 8 x 8 is one of 4 x 4, and weighs 1 alone."""
    loss, *_ = bound(ChannelSoftmaxLoss())
    head = head_answer(0.01)
    head[0]["heatmap"][0, 0, 7, 0] = 2.0
    teacher = torch.zeros(1, 4, 4, 4)
    teacher[0, 0, 3, 0] = math.log(3)
    assert loss((torch.zeros(1, 4, 4, 4), head), teacher, labelled(CAR)).item() == pytest.approx(0.5, rel=1e-5)


# -- regions ----------------------------------------------------------------------------------------------------------


def test_foreground_scale_golden():
    grid = BEVGrid((0.0, 0.0), (0.8, 0.8), (10, 10))
    scale = foreground_scale(boxes([4.0, 4.0, 0, 4.0, 2.0, 1, 0, 0, 0]), grid)
    assert scale.amax().item() == pytest.approx(0.2828427, rel=1e-6)
    small = foreground_scale(boxes([4.0, 4.0, 0, 0.3, 0.3, 1, 0, 0, 0]), grid)
    assert (small > 0).sum() == 1 and small.amax() == 1  # covers no centre, is smaller than a cell
    assert not foreground_scale(boxes(), grid).any()


def test_spatial_attention_golden():
    teacher = torch.tensor([[2.0, 0], [0, 0]])[None, None]
    student = torch.tensor([[0.0, 0], [0, 2]])[None, None]
    expected = torch.tensor([[3.7916600, 0.0694467], [0.0694467, 0.0694467]])
    assert torch.allclose(spatial_attention(teacher)[0], expected, atol=1e-6)
    both = 0.5 * (spatial_attention(teacher) + spatial_attention(student))
    assert torch.allclose(both[0, 0], torch.tensor([1.9305533, 0.0694467]), atol=1e-6)


def test_region_loss_golden():
    """One box of four cells, two false positives, ten cells of background, difference 1 everywhere."""
    loss = RegionFeatureLoss(foreground=6e-3, background=4e-2, false_positives=6e-2, attention=False)
    grid = BEVGrid((0.0, 0.0), (0.8, 0.8), (4, 4))
    loss._grid, loss._tasks = grid, [["car"]]
    logits = torch.full((1, 1, 4, 4), -9.0)
    logits[0, 0, 3, :2] = 2.0
    batch = labelled([0.8, 0.8, 0, 1.6, 1.6, 1, 0, 0, 0])
    # The head's Gaussian of so large an overlap covers the whole map: what counts is that false positives lie outside.
    loss._heat = lambda batch: torch.zeros(1, 1, 4, 4)
    terms = loss(torch.zeros(1, 1, 4, 4), (torch.ones(1, 1, 4, 4), [{"heatmap": logits}]), batch)
    expected = {"foreground": 0.012, "false_positives": 0.06, "background": 0.04}
    assert {k: v.item() for k, v in terms.items()} == pytest.approx(expected, rel=1e-5)
    assert sum(terms.values()).item() == pytest.approx(0.112, rel=1e-5)


def test_region_loss_does_not_change_with_the_batch_and_survives_emptiness():
    loss, *_ = bound(RegionFeatureLoss())
    head, student, teacher = head_answer(0.5), maps(0), maps(1)
    once = sum(loss(student, (teacher, head), labelled(CAR)).values())
    doubled = [{k: torch.cat([v, v]) for k, v in task.items()} for task in head]
    twice = loss(torch.cat([student, student]), (torch.cat([teacher, teacher]), doubled), labelled(CAR, samples=2))
    assert torch.allclose(sum(twice.values()), once)
    assert all(v.isfinite() for v in loss(student, (teacher, head), labelled()).values())


# -- the teacher's head -----------------------------------------------------------------------------------------------


def test_alignment_golden():
    student = torch.tensor([0.0, 2, 4, 6]).view(1, 1, 2, 2)
    teacher = torch.tensor([10.0, 12, 14, 20]).view(1, 1, 2, 2)
    expected = [8.9800418, 12.3266806, 15.6733194, 19.0199582]
    assert aligned(student, teacher).flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_the_teachers_own_features_read_by_its_head_cost_nothing():
    loss, teacher, _ = bound(CrossHeadLoss(align=False))
    features = maps(0)
    with torch.no_grad():
        answers = teacher.heads["object"](features)
    assert sum(loss(features, (features, answers), labelled(CAR)).values()).item() == pytest.approx(0, abs=1e-6)


def test_cross_head_teaches_the_student_and_nobody_else():
    loss, teacher, _ = bound(CrossHeadLoss(projection=[4, 4]))
    head = teacher.heads["object"].requires_grad_(False)
    before = {k: v.clone() for k, v in head.state_dict().items()}
    student = maps(0, samples=2, requires_grad=True)
    head.train()  # whatever the parent calls
    with torch.no_grad():
        answers = head.eval()(maps(1, samples=2))
    head.train()
    sum(loss(student, (maps(1, samples=2), answers), labelled(CAR, samples=2)).values()).backward()
    assert student.grad.abs().sum() > 0 and loss.projection.weight.grad.abs().sum() > 0
    assert all(torch.equal(before[k], v) for k, v in head.state_dict().items())
    assert set(loss.state_dict()) == {"projection.weight", "projection.bias"}


# -- pseudo labels ----------------------------------------------------------------------------------------------------


def detections(*rows: list[float], labels=(), scores=()) -> Detections3D:
    return Detections3D(boxes(*rows), torch.tensor(scores), torch.tensor(labels))


def test_detections_near_a_label_of_their_class_are_superfluous():
    found = detections(CAR, [3.0, 3, 0, *CAR[3:]], CAR, labels=(0, 0, 1), scores=(0.9, 0.8, 0.7))
    assert away_from(found, boxes(CAR), torch.tensor([0]), 2.0).tolist() == [False, True, True]
    assert away_from(found, boxes(), torch.tensor([], dtype=torch.int64), 2.0).all()


def teacher_that_sees(head, *rows, scores) -> None:
    found = Detections3D(boxes(*rows), torch.tensor(scores), torch.zeros(len(rows), dtype=torch.int64))
    head.decode = lambda raw: [found for _ in range(len(raw[0]["heatmap"]))]


def test_pseudo_labels_are_the_students_own_loss_on_unlabelled_samples():
    loss, teacher, student = bound(PseudoLabelLoss(min_score={"default": 0.6, "car": 0.5}))
    far = [3.0, 3.0, *CAR[2:]]
    teacher_that_sees(teacher.heads["object"], CAR, far, scores=[0.9, 0.4])
    head = student.heads["object"]
    raw = head(maps(0, samples=2))
    batch = labelled(CAR, samples=2)
    batch.boxes, batch.labels, batch.unlabelled = batch.boxes[:1], batch.labels[:1], 1
    terms = loss(raw, raw, batch)
    second = [{k: v[1:] for k, v in task.items()} for task in raw]
    expected = head.box_losses(second, [boxes(CAR)], [torch.tensor([0])])
    assert terms.pop("stats/boxes") == 1
    assert terms.keys() == expected.keys() and all(torch.equal(terms[k], expected[k]) for k in terms)


def test_pseudo_labels_join_the_labels_of_labelled_samples():
    loss, teacher, student = bound(PseudoLabelLoss(min_score=0.5, frames="all"))
    far = [3.0, 3.0, *CAR[2:]]
    teacher_that_sees(teacher.heads["object"], CAR, far, scores=[0.9, 0.8])
    head = student.heads["object"]
    raw = head(maps(0))
    terms = loss(raw, raw, labelled(CAR))
    expected = head.box_losses(raw, [boxes(CAR, far)], [torch.tensor([0, 0])])
    assert all(torch.equal(terms[k], v) for k, v in expected.items())


def test_pseudo_labels_of_a_labelled_batch_are_nothing_with_a_gradient():
    loss, _, student = bound(PseudoLabelLoss())
    raw = student.heads["object"](maps(0))
    terms = loss(raw, raw, labelled(CAR))
    total = sum(v for k, v in terms.items() if not k.startswith("stats/"))
    assert total == 0 and total.requires_grad


def test_pseudo_labels_refuse_what_they_do_not_know():
    with pytest.raises(ValueError, match="frames must be unlabelled or all, got 'some'"):
        PseudoLabelLoss(frames="some")
    with pytest.raises(ValueError, match="no class 'cra', did you mean 'car'"):
        bound(PseudoLabelLoss(min_score={"cra": 0.3}))


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "loss, teacher_taps, student_taps",
    [
        (PearsonFeatureLoss(), "map", "map"),
        (PearsonFeatureLoss(region="objects"), "map", "map"),
        (ChannelSoftmaxLoss(), "map", "both"),
        (RegionFeatureLoss(attention=False), "both", "map"),
        (CrossHeadLoss(), "both", "map"),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "forward") else value,
)
def test_gradcheck(loss, teacher_taps, student_taps):
    loss, teacher, _ = bound(loss)
    teacher.heads["object"].double().requires_grad_(False)
    teacher_map = maps(1, dtype=torch.float64)
    answers = [{k: v.double() for k, v in task.items()} for task in teacher.heads["object"](teacher_map)]
    taught = teacher_map if teacher_taps == "map" else (teacher_map, answers)
    student = maps(2, dtype=torch.float64, requires_grad=True)

    def total(value):
        seen = value if student_taps == "map" else (value, head_answer(0.5))
        found = loss(seen, taught, labelled(CAR))
        return sum(found.values()) if isinstance(found, dict) else found

    assert torch.autograd.gradcheck(total, student, fast_mode=True)


def test_a_mistyped_key_of_every_loss_is_told_its_nearest() -> None:
    cfg = {"type": "PearsonFeatureLoss", "student": "fuser", "teacher": "fuser", "wieght": 1.0}
    with pytest.raises(ValueError, match=r"model.losses.a.wieght, did you mean 'weight'\? \(known: type, student"):
        build_term("a", cfg, [""])
