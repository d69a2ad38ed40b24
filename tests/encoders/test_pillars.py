from __future__ import annotations

import pytest
import torch
from encoder_configs import randomise, state

from mmdet3d.models.encoders import PointPillarsScatter, voxelize_batch
from mmdet3d.models.encoders.voxelizer import VoxelizeBlock, build_voxelizer
from mmdet3d.ops.feature_decorator import feature_decorator
from mmdet3d.registry import MODELS

RANGE, SIZE = [-4.0, -8.0, -2.0, 4.0, 8.0, 2.0], [0.5, 1.0, 4.0]
VOXELIZE = {"max_num_points": 3, "point_cloud_range": RANGE, "voxel_size": SIZE, "max_voxels": [100, 100]}
LIDAR = {
    "type": "PointPillarsEncoder",
    "pts_voxel_encoder": {
        "type": "PillarFeatureNet",
        "in_channels": 5,
        "feat_channels": [8, 6],
        "with_distance": False,
        "voxel_size": SIZE,
        "point_cloud_range": RANGE,
        "norm_cfg": {"type": "BN1d", "eps": 1e-3, "momentum": 0.01},
    },
    "pts_middle_encoder": {"type": "PointPillarsScatter", "in_channels": 6, "output_shape": [16, 16]},
}


def build(**voxel_encoder):
    return MODELS.build(LIDAR | {"pts_voxel_encoder": LIDAR["pts_voxel_encoder"] | voxel_encoder})


def pillars(counts=(60, 40)):
    generator = torch.Generator().manual_seed(0)
    clouds = [(torch.rand(n, 5, generator=generator) - 0.5) * torch.tensor([8.0, 16, 4, 1, 1]) for n in counts]
    return voxelize_batch(build_voxelizer(VoxelizeBlock(**VOXELIZE)), clouds, reduce=False)


def test_scatter_puts_rows_into_cells():
    scatter = PointPillarsScatter(2, [3, 4])
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    coordinates = torch.tensor([[0, 2, 1, 0], [1, 0, 3, 0]], dtype=torch.int32)
    bev = scatter(features, coordinates, 3)
    assert bev.shape == (3, 2, 3, 4)
    assert bev.is_contiguous()
    assert bev[0, :, 2, 1].tolist() == [1.0, 2.0]
    assert bev[1, :, 0, 3].tolist() == [3.0, 4.0]
    assert bev.count_nonzero() == 4


def test_scatter_gradient_and_borders():
    scatter = PointPillarsScatter(2, [3, 4])
    coordinates = torch.tensor([[0, 2, 1, 0], [0, 0, 3, 0]])
    features = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda f: scatter(f, coordinates, 1), features)
    with pytest.raises(
        ValueError, match=r"output_shape covers 1 samples of \(3, 4\) voxels, but got voxel \(0, 3, 1, 0\)"
    ):
        scatter(features, torch.tensor([[0, 2, 1, 0], [0, 3, 1, 0]]), 1)
    with pytest.raises(ValueError, match="covers 1 samples"):
        scatter(features, torch.tensor([[0, 2, 1, 0], [1, 0, 0, 0]]), 1)


def test_network_against_plain_formula():
    torch.manual_seed(0)
    encoder = build().eval()
    randomise(encoder)
    features, coordinates, counts, batch = pillars()
    net = encoder.pts_voxel_encoder
    x = feature_decorator(features, counts, coordinates[:, 1:], SIZE, RANGE, cluster=True)

    def layer(x, block):
        norm = block.norm
        y = (x @ block.linear.weight.T - norm.running_mean) / (norm.running_var + 1e-3).sqrt()
        return (y * norm.weight + norm.bias).clamp(min=0)

    with torch.no_grad():
        x = layer(x, net.pfn_layers[0])
        x = torch.cat([x, x.amax(1, keepdim=True).expand_as(x)], dim=2)
        x = layer(x, net.pfn_layers[1]).amax(1)
        bev = encoder(features, coordinates, counts, batch)
    sample, cx, cy, _ = coordinates.long().unbind(1)
    torch.testing.assert_close(bev[sample, :, cx, cy], x)
    empty = torch.ones(2, 16, 16, dtype=torch.bool)
    empty[sample, cx, cy] = False
    assert not bev.permute(0, 2, 3, 1)[empty].any()


def test_state_and_attributes():
    encoder = build()
    assert {k: v for k, v in state(encoder).items() if "linear" in k} == {
        "pts_voxel_encoder.pfn_layers.0.linear.weight": (4, 10),
        "pts_voxel_encoder.pfn_layers.1.linear.weight": (6, 8),
    }
    assert (encoder.output_shape, encoder.out_channels, encoder.grid.shape) == ((16, 16), 6, (16, 16))
    assert not encoder.has_activation


def test_distance_widens_the_first_layer():
    encoder = build(with_distance=True).eval()
    assert encoder.pts_voxel_encoder.pfn_layers[0].linear.in_features == 11
    assert encoder(*pillars()).isfinite().all()


@pytest.mark.parametrize("counts", [(0, 0), (1, 0), (0, 30)])
def test_empty_samples_in_training(counts):
    encoder = build()
    bev = encoder(*pillars(counts))
    assert bev.shape == (2, 6, 16, 16)
    assert [bool(b.any()) for b in bev] == [n > 0 for n in counts]
    bev.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(v.isfinite().all() for v in encoder.state_dict().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    encoder = build().eval()
    exact = encoder(*pillars())
    with torch.autocast("cpu", dtype=dtype):
        bev = encoder(*pillars())
    torch.testing.assert_close(bev.float(), exact, rtol=0.05, atol=0.05 * exact.abs().max().item())


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"output_shape is \[16, 16\], but .* make \[32, 16\] cells"):
        build(voxel_size=[0.25, 1.0, 4.0])
    with pytest.raises(ValueError, match="in_channels is 6, but pts_voxel_encoder gives 7 channels"):
        build(feat_channels=[7])
    with pytest.raises(ValueError, match="at least one layer"):
        build(feat_channels=[])
    with pytest.raises(ValueError, match=r"norm_cfg\.type must be one of BN1d, BN, got 'LN'"):
        build(norm_cfg={"type": "LN"})
    features, coordinates, counts, batch = pillars()
    with pytest.raises(
        ValueError, match=r"takes \(M, slots, 5\) points of pillars .* got features of shape \(\d+, 3, 4\)"
    ):
        build()(features[..., :4], coordinates, counts, batch)
