from __future__ import annotations

import pytest
import torch
from encoder_configs import published, randomise, state
from published import tensors
from torch import nn

from mmdet3d.models.encoders import VoxelizeBlock, build_voxelizer, voxelize_batch
from mmdet3d.ops.feature_decorator import feature_decorator
from mmdet3d.registry import MODELS

RANGE, SIZE = [-6.0, -6.0, -5.0, 6.0, 6.0, 3.0], [0.6, 0.6, 8]
VOXELIZE = {"max_num_points": 4, "point_cloud_range": RANGE, "voxel_size": SIZE, "max_voxels": [300, 600]}
RADAR = {
    "type": "RadarEncoder",
    "pts_voxel_encoder": {
        "type": "RadarFeatureNet",
        "in_channels": 9,
        "feat_channels": [8, 8],
        "with_distance": False,
        "voxel_size": SIZE,
        "point_cloud_range": RANGE,
        "norm_cfg": {"type": "BN1d", "eps": 1e-3, "momentum": 0.01},
    },
    "pts_middle_encoder": {"type": "PointPillarsScatter", "in_channels": 8, "output_shape": [20, 20]},
    "pts_bev_encoder": None,
}
CALIBRATED = RADAR | {"type": "RadarEncoderCalib", "distill_caliber": {"dilated": False}}


def clouds(counts=(40, 25)):
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(n, 9, generator=generator) - 0.5) * torch.tensor([12.0, 12, 6, *[2] * 6]) for n in counts]


def pillars(points=None):
    voxelizer = build_voxelizer(VoxelizeBlock(**VOXELIZE))
    return voxelize_batch(voxelizer, clouds() if points is None else points, reduce=False)


def test_network_against_plain_formula():
    torch.manual_seed(0)
    encoder = MODELS.build(RADAR).eval()
    randomise(encoder)
    features, coordinates, counts, batch = pillars()
    x = feature_decorator(features, counts, coordinates[:, 1:], SIZE, RANGE, normalize=True)
    with torch.no_grad():
        for block in encoder.pts_voxel_encoder.rfn_layers:
            norm = block.norm
            y = (x @ block.linear.weight.T - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
            x = (y * norm.weight + norm.bias).clamp(min=0)
        bev = encoder(features, coordinates, counts, batch)
    sample, cx, cy, _ = coordinates.long().unbind(1)
    torch.testing.assert_close(bev[sample, :, cx, cy], x.amax(1))


def test_padded_slots_take_part_in_the_statistics():
    """Published checkpoints were trained so: the normalised zero of a padded slot enters mean and maximum."""
    encoder = MODELS.build(RADAR)
    features, coordinates, counts, batch = pillars()
    encoder(features, coordinates, counts, batch)
    x = feature_decorator(features, counts, coordinates[:, 1:], SIZE, RANGE, normalize=True)
    first = encoder.pts_voxel_encoder.rfn_layers[0]
    mean = (x @ first.linear.weight.T).flatten(0, 1).mean(0)
    torch.testing.assert_close(first.norm.running_mean, 0.01 * mean)


def test_nan_measurements_count_as_zero():
    points = clouds()
    encoder = MODELS.build(RADAR).eval()
    points[0][:, 5] = 0
    expected = encoder(*pillars(points))
    points[0][:, 5] = float("nan")
    torch.testing.assert_close(encoder(*pillars(points)), expected)


@pytest.mark.parametrize(
    ("name", "encoders", "entries"),
    [("c_student_CR_swint_default", "encoders", 24), ("e_distill_swint", "encoders_student", 46)],
)
def test_tensors(shared, name, encoders, entries):
    encoder = MODELS.build(published(shared, name, encoders, "radar", "backbone"))
    expected = tensors(name, f"{encoders}.radar.backbone.")
    assert len(expected) == entries
    assert state(encoder) == expected
    assert str(encoder.grid) == "180x180 cells of 0.6x0.6 m from (-54, -54)"
    assert (encoder.output_shape, encoder.out_channels) == ((180, 180), 256)


def test_calibrated_encoder_gives_bev_and_activation():
    torch.manual_seed(0)
    encoder = MODELS.build(CALIBRATED).eval()
    assert encoder.has_activation
    bev, activation = encoder(*pillars())
    assert (bev.shape, activation.shape) == ((2, 8, 20, 20), (2, 1, 20, 20))
    assert (bev >= 0).all()
    torch.testing.assert_close(activation, encoder.distill_activation_head(bev))
    plain = MODELS.build(RADAR).eval()
    plain.load_state_dict(encoder.state_dict(), strict=False)
    torch.testing.assert_close(encoder.caliber(plain(*pillars())), bev)


@pytest.mark.parametrize("off", [False, None])
def test_without_calibration_it_is_the_radar_encoder(off):
    encoder = MODELS.build(CALIBRATED | {"distill_caliber": off})
    assert not encoder.has_activation
    assert list(encoder.state_dict()) == list(MODELS.build(RADAR).state_dict())
    assert isinstance(encoder(*pillars()), torch.Tensor)


@pytest.mark.parametrize(
    ("setting", "dilation"), [(True, 2), ({"dilated": False}, 2), ({"dilated": True}, 2), ({"dilation": 1}, 1)]
)
def test_dilation(setting, dilation):
    encoder = MODELS.build(CALIBRATED | {"distill_caliber": setting}).eval()
    assert {encoder.caliber[i].dilation for i in (0, 3, 6)} == {(dilation, dilation)}
    bev, _ = encoder(*pillars())
    assert bev.shape == (2, 8, 20, 20)


def test_calibration_initialisation():
    torch.manual_seed(0)
    encoder = MODELS.build(CALIBRATED)
    conv, head = encoder.caliber[0], encoder.distill_activation_head[0]
    assert not conv.bias.any()
    assert conv.weight.std().item() == pytest.approx((2 / (8 * 9)) ** 0.5, rel=0.15)  # Kaiming, fan out
    assert head.weight.abs().max() < 0.05 and head.weight.std() > 0


@pytest.mark.parametrize("cfg", [RADAR, CALIBRATED])
@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 20)])
def test_empty_samples_in_training(cfg, counts):
    encoder = MODELS.build(cfg)
    out = encoder(*pillars(clouds(counts)))
    outputs = out if isinstance(out, tuple) else (out,)
    assert all(o.isfinite().all() and len(o) == 2 for o in outputs)
    sum(o.sum() for o in outputs).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(v.isfinite().all() for v in encoder.state_dict().values())
    if cfg is RADAR and counts == (0, 0):
        assert not out.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    encoder = MODELS.build(RADAR).eval()
    exact = encoder(*pillars())
    with torch.autocast("cpu", dtype=dtype):
        bev = encoder(*pillars())
    torch.testing.assert_close(bev.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


@MODELS.register
class HalvedForTest(nn.Module):
    def forward(self, bev):
        return bev / 2


def test_bev_encoder_follows_the_scatter():
    plain = MODELS.build(RADAR).eval()
    halved = MODELS.build(RADAR | {"pts_bev_encoder": {"type": "HalvedForTest"}}).eval()
    halved.load_state_dict(plain.state_dict())
    torch.testing.assert_close(halved(*pillars()), plain(*pillars()) / 2)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"key .*\.distill_caliber\.dilatation, did you mean 'dilation'"):
        MODELS.build(CALIBRATED | {"distill_caliber": {"dilatation": 1}})
    wrong = RADAR | {"pts_middle_encoder": RADAR["pts_middle_encoder"] | {"output_shape": [18, 20]}}
    with pytest.raises(ValueError, match=r"output_shape is \[18, 20\]"):
        MODELS.build(wrong)
    features, coordinates, counts, batch = pillars()
    with pytest.raises(ValueError, match=r"takes \(M, slots, 9\) points"):
        MODELS.build(RADAR)(features.sum(1), coordinates, counts, batch)


def test_distance_widens_the_first_layer():
    encoder = MODELS.build(RADAR | {"pts_voxel_encoder": RADAR["pts_voxel_encoder"] | {"with_distance": True}}).eval()
    assert encoder.pts_voxel_encoder.rfn_layers[0].linear.in_features == 12
    assert encoder(*pillars()).isfinite().all()
