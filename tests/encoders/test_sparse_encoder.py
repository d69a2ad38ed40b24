from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from encoder_configs import published, randomise, state
from published import tensors

from mmdet3d.models.encoders.sparse import SparseBasicBlock
from mmdet3d.ops.sparse_conv import SparseConv3d, SubMConv3d
from mmdet3d.registry import MODELS

SMALL = {
    "type": "SparseEncoder",
    "in_channels": 4,
    "sparse_shape": [16, 24, 21],
    "base_channels": 6,
    "output_channels": 8,
    "encoder_channels": [[6, 8], [8, 8, 12], [12]],
    "encoder_paddings": [[0, 1], [0, 0, [1, 1, 0]], [0]],
    "block_type": "basicblock",
}
PLAIN = SMALL | {
    "block_type": "conv_module",
    "encoder_channels": [[6], [8, 8], [12]],
    "encoder_paddings": [[1], [1, 1], [[1, 1, 0]]],
}


def voxels(count=150, batch=2, channels=4, shape=(16, 24, 21)):
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(batch * shape[0] * shape[1] * shape[2], generator=generator)[:count]
    coordinates = torch.stack(torch.unravel_index(cells, (batch, *shape)), dim=1).int()
    return torch.randn(count, channels, generator=generator), coordinates, torch.ones(count, dtype=torch.int32), batch


class Dense:
    """The encoder with dense convolutions and an explicit mask of occupied sites."""

    def __init__(self, features, coordinates, batch, shape):
        sample, x, y, z = coordinates.long().unbind(1)
        self.value = torch.zeros(batch, features.shape[1], *shape)
        self.mask = torch.zeros(batch, 1, *shape)
        self.value[sample, :, x, y, z] = features
        self.mask[sample, :, x, y, z] = 1

    def conv(self, layer):
        weight = layer.weight.permute(4, 3, 0, 1, 2)
        if isinstance(layer, SubMConv3d):
            self.value = F.conv3d(self.value, weight, padding=[k // 2 for k in layer.kernel_size]) * self.mask
        else:
            self.value = F.conv3d(self.value, weight, stride=layer.stride, padding=layer.padding)
            ones = torch.ones(1, 1, *layer.kernel_size)
            self.mask = (F.conv3d(self.mask, ones, stride=layer.stride, padding=layer.padding) > 0).float()

    def norm(self, layer):
        arguments = (layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)
        self.value = F.batch_norm(self.value, *arguments) * self.mask

    def run(self, module):
        if isinstance(module, SparseBasicBlock):
            identity = self.value
            for conv, norm in ((module.conv1, module.bn1), (module.conv2, module.bn2)):
                self.conv(conv)
                self.norm(norm)
                self.value = (self.value + (identity if conv is module.conv2 else 0)).relu()
        elif isinstance(module, (SubMConv3d, SparseConv3d)):
            self.conv(module)
        elif isinstance(module, torch.nn.BatchNorm1d):
            self.norm(module)
        elif isinstance(module, torch.nn.ReLU):
            self.value = self.value.relu()
        else:
            for child in module.children():
                self.run(child)


@pytest.mark.parametrize("cfg", [SMALL, PLAIN, PLAIN | {"order": ["norm", "act", "conv"]}])
def test_equals_dense_network(cfg):
    torch.manual_seed(0)
    encoder = MODELS.build(cfg).eval()
    randomise(encoder)
    features, coordinates, counts, batch = voxels()
    with torch.no_grad():
        bev = encoder(features, coordinates, counts, batch)
        dense = Dense(features, coordinates, batch, cfg["sparse_shape"])
        dense.run(encoder)
    b, c, x, y, z = dense.value.shape
    assert bev.shape == (b, c * z, x, y) == (2, encoder.out_channels, *encoder.output_shape)
    assert bev.abs().max() > 0.01
    for channel in range(c):
        for height in range(z):
            torch.testing.assert_close(bev[:, channel * z + height], dense.value[:, channel, :, :, height])


def test_published_state_and_shape(shared):
    encoder = MODELS.build(published(shared, "a_teacher_LC_swint_v0p075_gatedfuser", "encoders", "lidar", "backbone"))
    expected = tensors("a_teacher_LC_swint_v0p075_gatedfuser", "encoders.lidar.backbone.")
    assert len(expected) == 126
    assert state(encoder) == expected
    assert (encoder.output_shape, encoder.out_channels) == ((180, 180), 256)


def test_training_reaches_every_parameter():
    encoder = MODELS.build(SMALL)
    encoder(*voxels()).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("count", [0, 1])
def test_no_voxel_and_one_voxel_in_training(count):
    encoder = MODELS.build(SMALL).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    features, coordinates, counts, batch = voxels(count)
    bev = encoder(features, coordinates, counts, batch)
    assert bev.shape == (2, 16, *encoder.output_shape)
    assert bev.isfinite().all()
    bev.sum().backward()
    # Gradients exist (zero) for every parameter, which distributed training relies on; statistics stay finite.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in encoder.parameters())
    assert all(v.isfinite().all() for v in encoder.state_dict().values())
    if count == 0:
        assert not bev.any()
        assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_trailing_sample_without_voxels_keeps_its_map():
    encoder = MODELS.build(SMALL).eval()
    features, coordinates, counts, _ = voxels()
    bev = encoder(features, coordinates, counts, 3)
    assert len(bev) == 3
    assert not bev[2].any()
    torch.testing.assert_close(bev[:2], encoder(features, coordinates, counts, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    encoder = MODELS.build(SMALL).eval()
    exact = encoder(*voxels())
    with torch.autocast("cpu", dtype=dtype):
        bev = encoder(*voxels())
    torch.testing.assert_close(bev.float(), exact, rtol=0.1, atol=0.05 * exact.abs().max().item())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="order must arrange conv, norm and act"):
        MODELS.build(SMALL | {"order": ["conv", "act"]})
    with pytest.raises(ValueError, match="block_type must be basicblock or conv_module, got 'resblock'"):
        MODELS.build(SMALL | {"block_type": "resblock"})
    with pytest.raises(ValueError, match="same lengths"):
        MODELS.build(SMALL | {"encoder_paddings": [[0, 1], [0], [0]]})
    with pytest.raises(ValueError, match="keeps its channels, encoder_channels asks for 6 -> 8"):
        MODELS.build(SMALL | {"encoder_channels": [[8, 8], [8, 8, 12], [12]]})
    with pytest.raises(ValueError, match="leaves nothing of a grid"):
        MODELS.build(SMALL | {"sparse_shape": [16, 24, 3]})


def test_wrong_voxels():
    encoder = MODELS.build(SMALL)
    features, coordinates, counts, batch = voxels()
    with pytest.raises(ValueError, match=r"got features of shape \(150, 3\)"):
        encoder(features[:, :3], coordinates, counts, batch)
    with pytest.raises(ValueError, match=r"voxelize_reduce: true\), got features of shape \(150, 1, 4\)"):
        encoder(features[:, None], coordinates, counts, batch)
    coordinates[7] = torch.tensor([1, 16, 0, 0])
    with pytest.raises(ValueError, match=r"got voxel \(1, 16, 0, 0\)"):
        encoder(features, coordinates, counts, batch)


@pytest.mark.slow
def test_real_frame(shared):
    """The published LiDAR branch on one real sweep."""
    from mmdet3d.models.encoders import VoxelizeBlock, build_voxelizer, voxelize_batch

    lidar = published(shared, "a_teacher_LC_swint_v0p075_gatedfuser", "encoders", "lidar")
    file = next((shared / "data" / "nuscenes").rglob("samples/LIDAR_TOP/*.bin"))
    points = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float32).view(-1, 5)
    encoder = MODELS.build(lidar["backbone"]).eval()
    with torch.no_grad():
        voxels = voxelize_batch(build_voxelizer(VoxelizeBlock(**lidar["voxelize"])), [points], reduce=True)
        bev = encoder(*voxels)
    assert len(voxels[0]) > 5000
    assert bev.shape == (1, 256, 180, 180)
    # The map is occupied around the voxels and nowhere else.
    occupied = F.max_pool2d((bev[0].abs().sum(0) > 0).float()[None], 5, 1, 2)[0]
    cells = voxels[1][:, 1:3].long() // 8
    assert occupied[cells[:, 0], cells[:, 1]].float().mean() > 0.99
    assert 0.02 < (bev[0].abs().sum(0) > 0).float().mean() < 0.9
