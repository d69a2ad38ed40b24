"""Heads are tasks: a second one joins from outside, and so does a sensor that no detector names."""

from __future__ import annotations

import copy

import pytest
import torch
from bev_models import CENTER_HEAD, CHANNELS, ENCODERS, RANGE, make_batch, model_config
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.distill import Distiller
from mmdet3d.distill.losses import FeatureLoss
from mmdet3d.models.heads import Head
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid


@MODELS.register
class OccupiedCells(Head):
    """In which cells LiDAR points lie."""

    needs = ("points",)

    def __init__(self, in_channels: int, lower: float = RANGE[0], cell: float = 0.8, cells: int = 64) -> None:
        super().__init__()
        self.grid = BEVGrid((lower, lower), (cell, cell), (cells, cells))
        self.logit = nn.Conv2d(in_channels, 1, 1)

    def forward(self, bev: Tensor) -> Tensor:
        return self.logit(bev)

    def truth(self, batch: Batch) -> Tensor:
        maps = torch.zeros(len(batch), 1, *self.grid.shape)
        for sample, points in zip(maps, batch.points, strict=True):
            x, y = self.grid.to_cells(points[:, :2]).long().clamp(0, self.grid.shape[0] - 1).unbind(1)
            sample[0, x, y] = 1
        return maps

    def loss(self, raw: Tensor, batch: Batch) -> dict[str, Tensor]:
        truth = self.truth(batch)
        return {
            "cells": F.binary_cross_entropy_with_logits(raw, truth),
            "stats/occupied": truth.mean(),
        }

    def decode(self, raw: Tensor, batch: Batch) -> list[Tensor]:
        return list(raw.sigmoid()[:, 0])


TOY = {"type": "OccupiedCells", "in_channels": 8}


def config(**heads: dict) -> dict:
    return model_config("lidar") | {"heads": copy.deepcopy(heads)}


def build(seed: int = 0, **heads: dict) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(config(**heads))


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(value for name, value in terms.items() if name.startswith("loss/"))


def test_two_tasks_are_trained_and_asked_side_by_side() -> None:
    model, alone = build(object=CENTER_HEAD, toy=TOY).train(), build(object=CENTER_HEAD).train()
    alone.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("heads.toy.")})
    batch = make_batch()
    terms, expected = model.loss(batch), alone.loss(batch)
    assert set(terms) - set(expected) == {"loss/toy/cells", "stats/toy/occupied"}
    assert all(torch.equal(terms[name], value) for name, value in expected.items())
    before = {name: value.clone() for name, value in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    total(terms).backward()
    optimizer.step()
    moved = [name for name, value in model.named_parameters() if not torch.equal(value, before[name])]
    assert {"heads.toy.logit.weight", "heads.object.shared_conv.conv.weight"} <= set(moved)
    answers = model.eval().predict_tasks(batch)
    assert [a.shape for a in answers["toy"]] == [(64, 64)] * 2
    for ours, told in zip(model.predict(batch), answers["object"], strict=True):
        assert torch.equal(ours.scores, told.scores)


def test_a_prediction_of_boxes_does_not_ask_other_heads() -> None:
    model = build(object=CENTER_HEAD, toy=TOY).eval()
    model.heads["toy"].forward = None
    assert len(model.predict(make_batch())) == 2


def test_a_head_may_be_alone() -> None:
    model = build(toy=TOY, object=None).train()
    batch = make_batch().without("boxes", "labels")
    terms = model.loss(batch)
    assert set(terms) == {"loss/toy/cells", "stats/toy/occupied"} and model.grid == model.heads["toy"].grid
    total(terms).backward()
    assert set(model.eval().predict_tasks(batch)) == {"toy"}
    with pytest.raises(ValueError, match=r"no head `object`.*ask predict_tasks for what its heads \(toy\) say"):
        model.predict(batch)
    with pytest.raises(ValueError, match=r"the loss of heads\.toy needs `points`"):
        model.losses(model.extract(batch, model.loss_taps), batch.without("points"))


def test_a_second_task_is_distilled_by_its_tap(tmp_path) -> None:
    teacher = build(1, object=CENTER_HEAD, toy=TOY)
    torch.save({"state_dict": teacher.state_dict()}, tmp_path / "teacher.pth")
    heads = {"object": CENTER_HEAD, "toy": TOY}
    torch.manual_seed(2)
    distiller = Distiller(
        teacher={"model": config(**heads), "checkpoint": str(tmp_path / "teacher.pth")},
        student={"model": config(**heads)},
        losses={"cells": {"type": "FeatureLoss", "student": "heads.toy", "teacher": "heads.toy", "weight": 2.0}},
    )
    distiller.setup_training(None)
    batch = make_batch()
    terms = distiller.train().loss(batch)
    assert {"loss/kd/cells", "loss/toy/cells", "loss/object/heatmap/task0"} <= set(terms)
    with torch.no_grad():
        ours = distiller.student.extract(batch, ["heads.toy"])["heads.toy"]
        theirs = teacher.eval().extract(batch, ["heads.toy"])["heads.toy"]
    assert terms["loss/kd/cells"].item() == pytest.approx(2 * F.mse_loss(ours, theirs).item(), rel=1e-4)
    (pull,) = torch.autograd.grad(terms["loss/kd/cells"], distiller.student.heads["toy"].logit.weight)
    assert pull.abs().sum() > 0
    assert set(distiller.predict_tasks(batch)) == {"object", "toy"}


def test_a_loss_that_asks_for_targets_names_a_student_that_does_not_detect() -> None:
    with pytest.raises(ValueError, match=r"FeatureLoss with an object mask .* but the student has none"):
        FeatureLoss(object_mask=True).bind(build(object=CENTER_HEAD), build(toy=TOY))


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"object": CENTER_HEAD, "toy": TOY | {"cell": 1.6, "cells": 32}}, "heads.object expects .* but heads.toy one"),
        ({"toy": {"in_channels": 8}}, r"heads\.toy.* needs a `type`"),
        ({"toy": TOY | {"in_chanels": 8}}, r"unknown config key .*heads\.toy\.in_chanels, did you mean"),
        ({}, "model.heads names no head"),
    ],
)
def test_mistakes_in_heads_are_named(heads: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**heads)


# -- sensors ----------------------------------------------------------------------------------------------------------


def fourth(**changes: object) -> dict:
    """LiDAR, radar, and a sensor of points named `ahead` that reads the radar's field."""
    cfg = model_config("lidar", "radar")
    cfg["encoders"] = {"ahead": copy.deepcopy(ENCODERS["radar"]) | {"reads": "radar"} | changes} | cfg["encoders"]
    cfg["fuser"]["in_channels"] = [*cfg["fuser"]["in_channels"], CHANNELS["radar"]]
    return cfg


def test_a_further_sensor_joins_without_an_edit_of_the_detector() -> None:
    model = MODELS.build(fourth()).train()
    assert model.sensors == ("lidar", "radar", "ahead") and model.inputs == ("lidar", "radar")
    assert "fuser.ahead" in model.taps
    total(model.loss(make_batch())).backward()
    assert all(p.grad is not None for p in model.encoders["ahead"].parameters())
    with pytest.raises(ValueError, match="the ahead encoder needs `radar`"):
        model.extract(make_batch().without("radar"), ["encoders.ahead"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"reads": "rader"},
            r"encoders\.ahead\.reads is 'rader', in which no .*, did you mean 'radar'",
        ),
        ({"voxelise": {}}, r"unknown config key .*encoders\.ahead\.voxelise, did you mean 'voxelize'"),
    ],
)
def test_mistakes_in_a_further_sensor_are_named(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODELS.build(fourth(**changes))
