"""The camera detector that looks back: geometry and gradient of its history, its parts, the published students."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import bev_models
import pytest
import torch
from torch import nn

from mmdet3d.config import load_config
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.models import build_model
from mmdet3d.models.decoders import BEVResNet
from mmdet3d.models.vtransforms.depth_net import CAMERA_VALUES, DepthNet, camera_vector
from mmdet3d.models.vtransforms.depth_supervision import depth_loss, depth_targets
from mmdet3d.structures import Batch

PUBLISHED = "nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50"
# Of the specification, per part; the trunk and its neck depend on the number of frames.
PARTS = {"backbone": 23_508_032, "neck": 1_967_104, "vtransform": 27_853_646}
STUDENTS = {"2key": (67_476_000, 5_635_712, 127_960_180), "4key": (71_886_000, 5_654_912, 132_389_380)}


def config(history: int = 2, **changes: Any) -> dict[str, Any]:
    camera = copy.deepcopy(bev_models.CAMERA)
    camera["vtransform"] |= {"type": "AwareBEVDepth", "dcn_groups": 4, "bevdepth_refine": False}
    bev = 6 * (1 + history)
    return {
        "type": "TemporalCamera",
        "history": history,
        "encoders": {"camera": camera},
        "decoder": {
            "backbone": {"type": "BEVResNet", "in_channels": bev, "blocks": [[1, 8, 1], [1, 12, 2]]},
            "neck": {"type": "SECONDFPN", "in_channels": [bev, 8, 12], "out_channels": [4, 4, 4]}
            | {"upsample_strides": [1, 2, 4]},
        },
        "heads": {"object": bev_models.CENTER_HEAD | {"in_channels": 12}},
    } | changes


def make_batch(history: int = 2, seed: int = 0) -> Batch:
    return bev_models.look_back(bev_models.make_batch(seed=seed), history, seed)


def model(history: int = 2) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config(history))


def total(terms: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(v for k, v in terms.items() if k.startswith("loss/"))


# -- history --------------------------------------------------------------------------------------------------------


def test_taps() -> None:
    features = model().extract(make_batch(), {"heads.object"})
    assert features["encoders.camera"].shape == (2, 6, 64, 64)
    assert features["encoders.camera.history"].shape == (2, 12, 64, 64)
    fused = torch.cat([features["encoders.camera"], features["encoders.camera.history"]], dim=1)
    assert torch.equal(features["fuser"], fused)
    assert torch.equal(features["fuser.camera"], features["encoders.camera"])
    assert [tuple(level.shape[1:]) for level in features["decoder.backbone"]] == [
        (18, 64, 64),
        (8, 32, 32),
        (12, 16, 16),
    ]
    assert features["decoder.backbone"][0] is features["fuser"]
    assert "encoders.camera.history" not in model().extract(make_batch(), {"encoders.camera"})


def test_history_carries_no_gradient() -> None:
    detector, batch = model().train(), make_batch()
    for frame in (batch, *batch.history):
        frame.images.requires_grad_()
    features = detector.extract(batch, {*detector.loss_taps, "encoders.camera.history"})
    assert not features["encoders.camera.history"].requires_grad and features["encoders.camera"].requires_grad
    total(detector.losses(features, batch)).backward()
    assert batch.images.grad.abs().sum() > 0
    assert all(frame.images.grad is None for frame in batch.history)
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_the_history_matters() -> None:
    detector, batch, other = model().eval(), make_batch(), make_batch()
    other.history = other.history[::-1]
    with torch.no_grad():
        one, two = (detector.extract(b, {"heads.object"})["heads.object"] for b in (batch, other))
    assert not torch.allclose(one[0]["heatmap"], two[0]["heatmap"])


def test_a_frame_that_repeats_the_key_frame_gives_its_bev() -> None:
    detector, batch = model().eval(), make_batch()
    batch.history = [Batch(batch.tokens, batch.calibration, images=batch.images)] * 2
    with torch.no_grad():
        features = detector.extract(batch, {"fuser"})
    key, *past = features["fuser"].split(6, dim=1)
    assert all(torch.equal(bev, key) for bev in past)


def test_where_the_cameras_were_moves_their_bev() -> None:
    """Eight metres of ego motion are ten cells in the map, but for points on the border of two cells."""
    detector, batch = model(1).eval(), make_batch(1)
    shift = torch.eye(4)
    shift[0, 3] = 8.0
    moved = replace(batch.calibration, camera2lidar=shift @ batch.calibration.camera2lidar)
    batch.history = [Batch(batch.tokens, moved, images=batch.images)]
    with torch.no_grad():
        key, past = detector.extract(batch, {"fuser"})["fuser"].split(6, dim=1)
    differs = (past[:, :, 20:60] - key[:, :, 10:50]).abs() > 1e-4
    assert differs.float().mean() < 0.005 < (key[:, :, 20:60] != 0).float().mean()


def test_the_depth_network_is_told_the_key_frame_at_all_times(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, batch = model().eval(), make_batch()
    for frame in batch.history:
        k = frame.calibration.intrinsics.clone()
        k[..., 0, 0] += 5
        frame.calibration = replace(frame.calibration, intrinsics=k)
    told = []
    net = detector.encoders["camera"]["vtransform"].depthnet
    net.register_forward_pre_hook(lambda module, inputs: told.append(inputs[1]))
    with torch.no_grad():
        detector.extract(batch, {"fuser"})
    assert len(told) == 3
    assert all(torch.equal(vector, camera_vector(batch.calibration)) for vector in told)


def test_statistics_count_every_frame_while_training_and_none_in_evaluation() -> None:
    """As published: history frames pass BatchNorm in training mode, though without gradient."""
    detector, batch = model(), make_batch()
    camera, decoder = detector.encoders["camera"], detector.decoder
    norms = {
        "encoder": [m for m in camera.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training],
        "decoder": [m for m in decoder.modules() if isinstance(m, nn.BatchNorm2d)],
    }
    detector.train().loss(batch)
    fed = {name: {int(m.num_batches_tracked) for m in found} for name, found in norms.items()}
    trained = [m for m in norms["encoder"] if m.training]
    assert trained and {int(m.num_batches_tracked) for m in trained} == {3} and fed["decoder"] == {1}
    before = copy.deepcopy(detector.state_dict())
    detector.eval().predict(batch)
    assert all(torch.equal(v, before[k]) for k, v in detector.state_dict().items())


def test_lidar_is_not_looked_at() -> None:
    detector, batch = model().eval(), make_batch()
    alone = batch.without("points", "radar", "boxes", "labels", "depths")
    for one, other in zip(detector.predict(batch), detector.predict(alone), strict=True):
        assert len(one) > 0
        assert torch.equal(one.boxes.tensor, other.boxes.tensor) and torch.equal(one.scores, other.scores)


def test_loss_terms_and_depth_of_the_key_frame_alone() -> None:
    detector, batch = model().train(), make_batch()
    features = detector.extract(batch, detector.loss_taps)
    assert features["encoders.camera.depth"].shape == (4, 12, 4, 8)
    terms = detector.losses(features, batch)
    assert "loss/depth" in terms and total(terms).isfinite()
    measured = depth_loss(features["encoders.camera.depth"], batch.depths.flatten(0, 1), 8, (1.0, 25.0, 2.0))
    torch.testing.assert_close(terms["loss/depth"], 3 * measured)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history": 0}, "model.history must be at least 1, got 0"),
        ({"history": 10**9}, "model.history must be at most 100 earlier frames.*got 1000000000"),
        ({"history": 3}, r"in_channels is 18, but 1 \+ history = 4 frames of 6 channels make 24"),
        ({"fuser": {"type": "ConvFuser"}}, "fuser of a TemporalCamera must be null"),
        ({"encoders": {"lidar": {}}}, r"unknown config key model\.encoders\.lidar"),
    ],
)
def test_mistakes_in_the_config(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_model(config() | changes)


def test_mistakes_in_the_batch() -> None:
    with pytest.raises(ValueError, match="TemporalCamera needs `history`"):
        model().predict(bev_models.make_batch())
    with pytest.raises(ValueError, match=r"model.history is 2, but the batch holds 1 earlier frame;.*key_offsets"):
        model().predict(make_batch(1))


# -- parts ----------------------------------------------------------------------------------------------------------


def test_trunk() -> None:
    trunk = BEVResNet(5, [[2, 4, 1], [2, 8, 2], [2, 16, 2]])
    x = torch.randn(2, 5, 32, 32)
    levels = trunk(x)
    assert levels[0] is x and trunk.strides == [1, 2, 4, 8]
    assert [tuple(level.shape[1:]) for level in levels[1:]] == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    # The second norm of a block starts at zero, so a fresh block without projection is a ReLU of its input.
    stem = trunk.bn1(trunk.conv1(x)).relu()
    torch.testing.assert_close(trunk.layer1(stem), stem)
    keys = set(trunk.state_dict())
    assert {"conv1.weight", "bn1.bias", "layer2.0.downsample.0.weight", "layer3.1.bn2.running_var"} <= keys


def test_depth_network_with_a_deformable_convolution() -> None:
    """Of no norms behind it; fresh offsets are zero, so it equals the grouped convolution."""
    torch.manual_seed(0)
    net = DepthNet(6, 8, 5, 7, dcn_groups=4).eval()
    _, deformable = net.depth_conv_2
    x = torch.randn(3, 8, 6, 9)
    expected = nn.functional.conv2d(x, deformable.weight, padding=1, groups=4)
    torch.testing.assert_close(deformable(x), expected, atol=1e-5, rtol=1e-4)
    assert deformable.weight.shape == (8, 2, 3, 3) and len(net.depth_conv_3) == 1
    out = net(torch.randn(3, 6, 6, 9), torch.randn(3, CAMERA_VALUES))
    assert out.shape == (3, 12, 6, 9)
    plain = DepthNet(6, 8, 5, 7)
    assert isinstance(plain.depth_conv_2[2], nn.BatchNorm2d) and isinstance(plain.depth_conv_3[1], nn.BatchNorm2d)
    net.train()(torch.randn(3, 6, 6, 9), torch.randn(3, CAMERA_VALUES)).sum().backward()
    assert net.depth_conv_2[1].conv_offset.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("metres", "depth_bin"), [(1.99, None), (2.0, 0), (2.49, 0), (2.5, 1), (30.26, 56), (57.99, 111), (58.0, None)]
)
def test_depth_bins(metres: float, depth_bin: int | None) -> None:
    """The nearest measurement of a block counts; zeros are none."""
    depths = torch.zeros(1, 16, 16)
    depths[0, 3, 4], depths[0, 9, 9] = metres, 59.0
    bins, valid = depth_targets(depths, 16, (2.0, 58.0, 0.5))
    assert valid.item() == (depth_bin is not None)
    assert depth_bin is None or bins.item() == depth_bin


# -- published students -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=STUDENTS)
def student(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    with torch.device("meta"):
        return request.param, build_model(load_config(f"{PUBLISHED}/{request.param}.yaml").model)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_parameter_counts(student: tuple[str, nn.Module]) -> None:
    name, detector = student
    trunk, neck, everything = STUDENTS[name]
    assert {part: count(m) for part, m in detector.encoders["camera"].items()} == PARTS
    assert count(detector.decoder["backbone"]) == trunk and count(detector.decoder["neck"]) == neck
    assert count(detector.heads) == 1_519_686 and count(detector) == everything
    assert sum(p.numel() for p in detector.parameters() if not p.requires_grad) == 9_536  # the stem


def test_published_learning_rates(student: tuple[str, nn.Module]) -> None:
    """Half the rate for backbone, neck and depth network, weight decay for all."""
    name, detector = student
    groups = build_optimizer(detector, load_config(f"{PUBLISHED}/{name}.yaml").optimizer).param_groups
    names = {id(p): k for k, p in detector.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    for key, found in rates.items():
        assert found == (2e-4 if key.startswith("encoders.camera.") else 4e-4, 0.01)
    assert len(rates) == sum(p.requires_grad for p in detector.parameters())


def test_published_frames_and_grid(student: tuple[str, nn.Module]) -> None:
    name, detector = student
    cfg = load_config(f"{PUBLISHED}/{name}.yaml")
    assert cfg.history.key_offsets == [-2 * (k + 1) for k in range(detector.history)]
    for split in ("train", "val", "test"):
        assert cfg.data[split].frame == "ego" and cfg.data[split].type == "NuScenesDataset"
    assert detector.grid.shape == (128, 128) and detector.encoders["camera"]["vtransform"].depth_bins == 112
