"""Fusion whose cameras look back: what the fuser gets, where earlier frames lie, and what cannot be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from bev_models import look_back, make_batch, model_config

from mmdet3d.models import build_model
from mmdet3d.models.network import Network
from mmdet3d.structures import Batch


def config(*sensors: str, vtransform: str = "LSSTransform", history: int = 2) -> dict[str, Any]:
    found = model_config(*sensors, fuser="GatedFuser")
    found["fuser"]["in_channels"] = [6 * (1 + history), 7]
    found["encoders"]["camera"]["vtransform"]["type"] = vtransform
    return found | {"history": history}


def model(*args: str, **kwargs: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config(*args, **kwargs))


def batch(history: int = 2) -> Batch:
    return look_back(make_batch(), history)


def test_the_fuser_gets_all_times_as_the_cameras() -> None:
    detector = model("camera", "radar")
    assert detector.fused == ("camera", "camera.history", "radar") and detector.inputs == ("camera", "radar")
    seen = {}
    detector.fuser.register_forward_pre_hook(lambda fuser, args: seen.update(inputs=args[0]))
    found = detector.extract(batch(), {"fuser.camera", "encoders.camera", "encoders.camera.history", "encoders.radar"})
    assert found["fuser.camera"].shape == (2, 18, 64, 64)
    camera, radar = seen["inputs"]
    assert torch.equal(camera, torch.cat([found["encoders.camera"], found["encoders.camera.history"]], dim=1))
    assert torch.equal(radar, found["encoders.radar"])


@pytest.mark.parametrize(
    ("sensors", "vtransform"), [(("camera", "radar"), "LSSTransform"), (("camera", "lidar"), "DepthLSSTransform")]
)
def test_an_earlier_frame_is_lifted_from_where_its_cameras_stood(sensors: tuple[str, ...], vtransform: str) -> None:
    """As if it were the key frame; LiDAR points of the key frame are drawn where its cameras see them."""
    detector, now = model(*sensors, vtransform=vtransform).eval(), batch()
    with torch.no_grad():
        earlier = detector.extract(now, {"encoders.camera.history"})["encoders.camera.history"].split(6, dim=1)
        for past, bev in zip(now.history, earlier, strict=True):
            then = replace(now, images=past.images, calibration=past.calibration, history=None)
            assert torch.equal(bev, detector.extract(then, {"encoders.camera"})["encoders.camera"])
    assert not torch.equal(*earlier)


def test_only_the_key_frame_learns() -> None:
    detector, now = model("camera", "radar").train(), batch()
    for frame in (now, *now.history):
        frame.images.requires_grad_()
    sum(value for key, value in detector.loss(now).items() if key.startswith("loss/")).backward()
    assert now.images.grad.abs().sum() > 0 and all(frame.images.grad is None for frame in now.history)
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_without_history_nothing_changes() -> None:
    detector, plain = model("camera", "radar", history=0), build_model(model_config("camera", "radar"))
    assert detector.fused == detector.sensors and "encoders.camera.history" not in detector.taps
    assert detector.taps == plain.taps and detector.predict(make_batch())


def test_an_exported_network_gets_earlier_images_but_no_points_to_draw() -> None:
    one = look_back(make_batch(1), 2)
    reads = Network(model("camera", "radar").eval(), one).interface.reads
    assert {"history.0.images", "history.1.calibration.camera2lidar"} <= set(reads)
    with pytest.raises(ValueError, match=r"BEVFusion .* cannot be exported: points are drawn into the images of earl"):
        Network(model("camera", "lidar", vtransform="DepthLSSTransform").eval(), one)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": -1}, "model.history must not be negative, got -1"),
        (
            {"encoders": {"radar": model_config("radar")["encoders"]["radar"]}, "fuser": None},
            "model.history is 2, but there is no camera to look back",
        ),
        ({"history": 1}, r"in_channels begins with 18, but 1 \+ history = 2 frames of 6 channels make 12"),
    ],
)
def test_mistakes_in_the_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config("camera", "radar") | changes)


def test_mistakes_in_the_batch() -> None:
    with pytest.raises(ValueError, match="BEVFusion needs `history`"):
        model("camera", "radar").predict(make_batch())
    with pytest.raises(ValueError, match=r"model.history is 2, but the batch holds 1 earlier frame;.*key_offsets"):
        model("camera", "radar").predict(batch(1))
