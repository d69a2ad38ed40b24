from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bev_models import CAMERA, CENTER_HEAD, make_batch, model_config

from mmdet3d.models.detectors import SimulatedFusion
from mmdet3d.registry import MODELS


def config(**simulated: Any) -> dict[str, Any]:
    cfg = model_config("camera", "lidar", head=CENTER_HEAD)
    camera = copy.deepcopy(CAMERA)
    camera["vtransform"]["type"] = "ConvLSSTransform"
    defaults = {"vtransform": {"compensation": {"heads": 2, "points": 3}}, "compensation": {"heads": 2, "points": 4}}
    cfg["type"] = "SimulatedFusion"
    cfg["encoders"] = {"camera": camera, "simulated": defaults | simulated}
    cfg["fuser"]["in_channels"] = [6, 6]
    return cfg


def build(**simulated: Any) -> SimulatedFusion:
    torch.manual_seed(0)
    return MODELS.build(config(**simulated))


def shared(compensation: dict[str, Any] | None = None) -> SimulatedFusion:
    """One view transform for both branches, with compensated image features."""
    torch.manual_seed(0)
    cfg = config(vtransform=None, compensation=compensation, share_view_transform=True)
    cfg["encoders"]["camera"]["vtransform"]["compensation"] = {"heads": 2, "points": 3}
    return MODELS.build(cfg)


def test_loss_backward_predict():
    model, batch = build(), make_batch()
    losses = model.loss(batch)
    assert set(losses) == {f"loss/object/{kind}/task{t}" for kind in ("heatmap", "bbox") for t in range(3)}
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert len(model.eval().predict(batch)) == 2


def test_taps_and_shapes():
    model = build()
    assert model.taps == (
        "encoders.camera.backbone",
        "encoders.camera.neck",
        "encoders.camera",
        "encoders.camera.depth",
        "encoders.simulated",
        "encoders.simulated.depth",
        "fuser",
        "fuser.simulated",
        "fuser.camera",
        "decoder.backbone",
        "decoder",
        "heads.object",
    )
    features = model.extract(make_batch(), {"fuser", "encoders.simulated.depth"})
    for branch in ("camera", "simulated"):
        assert features[f"encoders.{branch}"].shape == (2, 6, 64, 64)
        assert features[f"encoders.{branch}.depth"].shape == (4, 12, 4, 8)
    assert features["fuser"].shape == (2, 8, 64, 64)


def test_the_fuser_gets_the_simulated_branch_first():
    model = build().eval()
    features = model.extract(make_batch(), {"fuser"})
    by_hand, _ = model.fuser([features["encoders.simulated"], features["encoders.camera"]])
    assert torch.allclose(features["fuser"], by_hand, atol=1e-5)
    assert features["fuser.simulated"] is features["encoders.simulated"]


def test_reads_cameras_alone():
    """The published student takes LiDAR points in training and testing."""
    model, batch = build(), make_batch()
    bare = batch.without("points", "radar", "depths")
    model.eval()
    full, without = model.loss(batch), model.loss(bare)
    assert all(torch.equal(value, without[key]) for key, value in full.items())
    for full, without in zip(model.predict(batch), model.predict(bare.without("boxes", "labels")), strict=True):
        assert torch.equal(full.boxes.tensor, without.boxes.tensor) and torch.equal(full.scores, without.scores)


def test_each_branch_lifts_by_itself():
    model, batch = build(), make_batch()
    camera, simulated = model.encoders["camera"]["vtransform"], model.encoders["simulated"]["vtransform"]
    assert camera.compensation is None and simulated.compensation is not None
    assert not {id(p) for p in camera.parameters()} & {id(p) for p in simulated.parameters()}
    model.extract(batch, {"encoders.simulated"})["encoders.simulated"].sum().backward()
    assert all(p.grad is None for p in camera.parameters())
    assert all(p.grad is not None for p in simulated.parameters())


def test_a_shared_view_transform_runs_once():
    """Published: the same transform is called twice, its BatchNorm statistics are updated twice."""
    model = shared()
    calls = []
    model.encoders["camera"]["vtransform"].register_forward_hook(lambda *_: calls.append(1))
    features = model.extract(make_batch(), {"fuser"})
    assert len(calls) == 1
    assert torch.equal(features["encoders.simulated"], features["encoders.camera"])
    compensated = shared({"heads": 2, "points": 4})
    features = compensated.eval().extract(make_batch(), {"fuser"})
    by_hand = compensated.encoders["simulated"]["compensation"](features["encoders.camera"])
    assert torch.equal(features["encoders.simulated"], by_hand)
    assert "encoders.simulated.depth" not in compensated.taps
    assert not any("simulated.vtransform" in k for k in compensated.state_dict())


def test_compensation_is_optional():
    plain = build(vtransform={}, compensation=None)
    assert not any("compensation" in k for k in plain.state_dict())
    plain.loss(make_batch())


def test_supervised_depth_of_both_branches():
    cfg = config(compensation=None, vtransform={})
    cfg["encoders"]["camera"]["vtransform"]["type"] = "AwareBEVDepth"
    model = MODELS.build(cfg)
    losses = model.loss(make_batch())
    assert {"loss/depth", "loss/depth_simulated"} <= set(losses)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoders": {"camera": CAMERA}}, r"encoders\.simulated is missing"),
        (
            {"encoders": {"camera": CAMERA, "simulate": {}}},
            r"SimulatedFusion\.encoders\.simulate.*'simulated'",
        ),
        ({"fuser": None}, "2 sensors to fuse: simulated, camera"),
        (
            {"simulated": {"compensate": {}}},
            r"SimulatedFusion\.encoders\.simulated\.compensate.*'compensation'",
        ),
        (
            {"simulated": {"compensation": {"point": 3}}},
            r"SimulatedFusion\.encoders\.simulated\.compensation\.point.*'points'",
        ),
        ({"simulated": {"compensation": {"heads": 4}}}, "multiple of 4 heads, got 6"),
        ({"simulated": {"share_view_transform": True, "vtransform": {"downsample": 1}}}, "changes downsample, but"),
        ({"simulated": {"vtransform": {"xbound": [-12.8, 12.8, 0.4]}, "compensation": None}}, "BEV"),
    ],
)
def test_config_mistakes(change, message):
    cfg = config()
    cfg["encoders"]["simulated"] = change.pop("simulated", cfg["encoders"]["simulated"])
    with pytest.raises(ValueError, match=message):
        MODELS.build(cfg | change)
