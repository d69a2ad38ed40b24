"""The map's response loss against its formula, and a distillation of two map heads."""

from __future__ import annotations

import copy

import pytest
import torch
from bev_models import CENTER_HEAD, make_batch, model_config
from torch import nn

from mmdet3d.distill import Distiller, Outline
from mmdet3d.distill.losses import MapResponseLoss
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVMasks

CLASSES = ("road", "walkway")


def map_head(**changes: object) -> dict:
    bounds = [CENTER_HEAD["train_cfg"]["point_cloud_range"][k] for k in (0, 3)]
    scopes = {"input_scope": [[*bounds, 0.8]] * 2, "output_scope": [[-20.0, 20.0, 1.0]] * 2}
    head = {"type": "BEVSegmentationHead", "in_channels": 8, "classes": list(CLASSES), "loss": "focal"}
    return head | {"grid_transform": scopes} | changes


def config(**heads: dict) -> dict:
    return model_config("lidar") | {"heads": copy.deepcopy(heads)}


def build(seed: int = 0, **heads: dict) -> nn.Module:
    torch.manual_seed(seed)
    return MODELS.build(config(**heads))


def bound(beta: float = 2.0) -> MapResponseLoss:
    loss = MapResponseLoss(beta)
    loss.bind(build(map=map_head()), build(map=map_head()))
    return loss


def nothing() -> Batch:
    return make_batch()


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_formula(beta: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    terms = bound(beta)(ours, theirs, nothing())
    assert list(terms) == list(CLASSES)
    p, q = ours.sigmoid().double(), theirs.sigmoid().double()
    cells = -(q * p.log() + (1 - q) * (1 - p).log()) * (p - q).abs() ** beta
    for k, name in enumerate(CLASSES):
        assert terms[name].item() == pytest.approx(cells[:, k].mean().item(), rel=1e-4)


def test_gradient_and_agreement() -> None:
    loss, batch = bound(), nothing()
    torch.manual_seed(0)
    theirs = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    ours = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: sum(loss(z, theirs, batch).values()), ours)
    assert sum(loss(theirs, theirs, batch).values()) == 0


def test_what_does_not_suit_is_named() -> None:
    student = build(map=map_head())
    with pytest.raises(ValueError, match=r"the student has no head `map`; switch this loss off"):
        MapResponseLoss().bind(student, build(object=CENTER_HEAD))
    with pytest.raises(ValueError, match=r"needs the same map on both sides: the student's has road, walkway over .*"):
        MapResponseLoss().bind(build(map=map_head(classes=["road", "divider"])), student)
    loss = MapResponseLoss()
    loss.bind(Outline(("heads.map",)), student)
    with pytest.raises(ValueError, match="MapResponseLoss compares maps of shapes"):
        loss(torch.zeros(1, 2, 3, 3), torch.zeros(1, 2, 4, 4), nothing())


def test_a_map_is_distilled_beside_its_own_loss(tmp_path) -> None:
    teacher = build(1, map=map_head())
    torch.save({"state_dict": teacher.state_dict()}, tmp_path / "teacher.pth")
    torch.manual_seed(2)
    losses = {
        "response": {"type": "MapResponseLoss", "student": "heads.map", "teacher": "heads.map", "weight": 2.0},
        "fused": {"type": "FeatureLoss", "student": "decoder", "teacher": "decoder", "weight": 0.1},
    }
    distiller = Distiller(
        teacher={"model": config(map=map_head()), "checkpoint": str(tmp_path / "teacher.pth")},
        student={"model": config(map=map_head())},
        losses=losses,
    )
    distiller.setup_training(None)
    batch = make_batch()
    grid = distiller.student.heads["map"].map_grid
    batch.masks = [BEVMasks(torch.rand(2, *grid.shape) > 0.5, CLASSES, grid) for _ in range(len(batch))]
    terms = distiller.train().loss(batch)
    expected = {f"loss/kd/response/{name}" for name in CLASSES} | {"loss/kd/fused"}
    assert expected | {f"loss/map/{name}/focal" for name in CLASSES} <= set(terms)
    pulled = sum(terms[name] for name in expected if "response" in name)
    (pull,) = torch.autograd.grad(pulled, distiller.student.heads["map"].classifier[6].weight)
    assert pull.abs().sum() > 0 and distiller.tasks == ("map",)
    found = distiller.predict_tasks(batch)["map"]
    assert found[0].values.shape == (2, 40, 40) and 0 <= found[0].values.min() <= found[0].values.max() <= 1
