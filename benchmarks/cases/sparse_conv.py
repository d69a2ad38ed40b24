"""The SparseEncoder of the CRKD and BEVFusion teachers on ten simulated LiDAR sweeps in a 1440x1440x41 grid."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.framework import Case, Implementation, optional, twin
from mmdet3d.models.encoders.sparse import SparseEncoder
from mmdet3d.ops.sparse_conv import SparseConv3d, SparseTensor, SubMConv3d, strided_table, submanifold_table
from mmdet3d.ops.voxelize import voxelize

SIZE = [0.075, 0.075, 0.2]
RANGE = [-54.0, -54.0, -5.0, 54.0, 54.0, 3.0]
SHAPE = (1440, 1440, 41)
MAX_VOXELS = 120_000


def cases(device: torch.device, sweeps: int = 10, azimuths: int = 1080) -> list[Case]:
    features, coordinates = (t.to(device) for t in _voxels(sweeps, azimuths))
    encoder = _teacher().to(device)
    sparse = SparseTensor(features, coordinates, SHAPE, 1)
    forward, both = _calls(lambda: encoder(features, coordinates, features[:, 0], 1), encoder)
    in_half = _autocast(forward, device)
    peer_forward, peer_both = _peers(encoder, features, coordinates)
    flops = _flops(encoder, features, coordinates)
    shape = f"{len(features)} voxels of {'x'.join(map(str, SHAPE))}"

    def tables() -> tuple[Tensor, ...]:
        submanifold = submanifold_table(sparse, (3, 3, 3), (1, 1, 1))
        strided = strided_table(sparse, (3, 3, 3), (2, 2, 2), (1, 1, 1), (1, 1, 1))
        return submanifold.neighbors, strided.coordinates, strided.neighbors

    encoder_forward = {"ours": forward, "ours bfloat16": in_half, "twin": twin(forward)} | peer_forward
    return [
        Case("sparse_conv encoder forward", shape, encoder_forward, flops=flops),
        Case(
            "sparse_conv encoder forward + backward",
            shape,
            {"ours": both, "twin": twin(both)} | peer_both,
            flops=3 * flops,
        ),
        Case("sparse_conv tables, submanifold and strided", shape, {"ours": tables, "twin": twin(tables)}),
    ]


def _teacher() -> SparseEncoder:
    return SparseEncoder(
        in_channels=5,
        sparse_shape=SHAPE,
        output_channels=128,
        encoder_channels=[[16, 16, 32], [32, 32, 64], [64, 64, 128], [128, 128]],
        encoder_paddings=[[0, 0, 1], [0, 0, 1], [0, 0, [1, 1, 0]], [0, 0]],
        block_type="basicblock",
    )


def _calls(
    run: Callable[[], Tensor], encoder: nn.Module, order: tuple[int, ...] = (0, 1, 2, 3, 4)
) -> tuple[Implementation, Implementation]:
    """Forward without gradient; forward with the gradients of all parameters, which returns those of kernels.

    Args:
        run: the forward pass.
        encoder: whose parameters.
        order: of its kernels' axes that brings them to (kx, ky, kz, Cin, Cout).
    """
    parameters = list(encoder.parameters())

    def forward() -> Tensor:
        with torch.no_grad():
            return run()

    def both() -> tuple[Tensor, ...]:
        out = run()
        gradients = torch.autograd.grad(out.square().mean(), parameters)
        return out.detach(), *(g.permute(order) for g in gradients if g.ndim == 5)

    return forward, both


def _autocast(call: Implementation, device: torch.device) -> Implementation:
    def run() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return call()

    return run


def _flops(encoder: SparseEncoder, features: Tensor, coordinates: Tensor) -> int:
    """Of all products of one forward pass."""
    total = 0

    def add(layer: nn.Module, inputs: tuple[SparseTensor], out: SparseTensor) -> None:
        nonlocal total
        if isinstance(layer, SubMConv3d):
            table = submanifold_table(inputs[0], layer.kernel_size, layer.dilation)
        else:
            geometry = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
            table = strided_table(inputs[0], *geometry)
        total += 2 * int(table.counts.sum()) * layer.weight.shape[3] * layer.weight.shape[4]

    layers = [m for m in encoder.modules() if isinstance(m, SubMConv3d | SparseConv3d)]
    hooks = [m.register_forward_hook(add) for m in layers]
    with torch.no_grad():
        encoder(features, coordinates, features[:, 0], 1)
    for hook in hooks:
        hook.remove()
    return total


class _PeerTensor:
    """spconv's tensor with the interface of ours."""

    def __init__(self, tensor: Any) -> None:
        self.tensor = tensor
        self.features = tensor.features

    def with_features(self, features: Tensor) -> _PeerTensor:
        return _PeerTensor(self.tensor.replace_feature(features))

    def dense(self) -> Tensor:
        return self.tensor.dense()


class _PeerLayer(nn.Module):
    is_sparse = True

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: _PeerTensor) -> _PeerTensor:
        return _PeerTensor(self.layer(x.tensor))


def _peers(
    encoder: SparseEncoder, features: Tensor, coordinates: Tensor
) -> tuple[dict[str, Implementation], dict[str, Implementation]]:
    spconv = optional("spconv.pytorch")
    if spconv is None:
        return {}, {}
    if not torch.cuda.is_available():  # its backward pass asks for a CUDA stream
        optional("spconv.pytorch.ops").get_current_stream = lambda: 0
    peer = _as_spconv(encoder, spconv).to(features.device)

    def run() -> Tensor:
        x = _PeerTensor(spconv.SparseConvTensor(features, coordinates, list(SHAPE), 1))
        volume = peer.conv_out(peer.encoder_layers(peer.conv_input(x))).dense()
        return volume.permute(0, 1, 4, 2, 3).flatten(1, 2)

    forward, both = _calls(run, peer, (1, 2, 3, 4, 0))
    return {"spconv": forward}, {"spconv": both}


def _as_spconv(encoder: SparseEncoder, spconv: ModuleType) -> SparseEncoder:
    """A copy with the same weights; layers on the same sites share spconv's tables, as they share ours."""
    peer = copy.deepcopy(encoder)
    level = 0
    for name, layer in list(peer.named_modules()):
        if not isinstance(layer, SubMConv3d | SparseConv3d):
            continue
        arguments = {"kernel_size": layer.kernel_size, "bias": False}
        if isinstance(layer, SubMConv3d):
            make, arguments = spconv.SubMConv3d, arguments | {"indice_key": f"level{level}"}
        else:
            make, level = spconv.SparseConv3d, level + 1
            arguments |= {"stride": layer.stride, "padding": layer.padding}
        if layer.weight.device.type == "cpu":
            arguments["algo"] = spconv.ops.ConvAlgo.Native
        made = make(*layer.weight.shape[3:], **arguments)
        made.weight.data = layer.weight.detach().permute(4, 0, 1, 2, 3).contiguous()
        parent, _, child = name.rpartition(".")
        setattr(peer.get_submodule(parent), child, _PeerLayer(made))
    return peer


def _voxels(sweeps: int, azimuths: int) -> tuple[Tensor, Tensor]:
    """Mean features (M, 5) and coordinates (M, 4) of sweeps by a driving car."""
    points = torch.cat([_sweep(azimuths, i) for i in range(sweeps)])
    slots, coordinates, counts = voxelize(points, SIZE, RANGE, 10, MAX_VOXELS)
    means = slots.sum(1) / counts[:, None]
    return means, torch.cat([torch.zeros_like(coordinates[:, :1]), coordinates], dim=1)


def _sweep(azimuths: int, index: int, beams: int = 32, obstacles: int = 120) -> Tensor:
    """Points (P, 5) x, y, z, intensity, age: rays of one turn that meet the ground or upright boxes, metres."""
    generator = torch.Generator().manual_seed(0)
    centers = (torch.rand(obstacles, 2, generator=generator) - 0.5) * 108
    centers = centers[centers.norm(dim=1) > 6]
    half = 0.3 + 4 * torch.rand(len(centers), 3, generator=generator) ** 3
    low, high = torch.cat([centers, -half[:, 2:]], 1) - half, torch.cat([centers, half[:, 2:]], 1) + half
    noise = torch.Generator().manual_seed(index)
    origin = torch.tensor([0.5 * index, 0.0, 0.0])
    up = torch.deg2rad(torch.linspace(-30.7, 10.7, beams))[:, None]
    around = (torch.arange(azimuths) + torch.rand(1, generator=noise)) * (2 * torch.pi / azimuths)
    rays = torch.stack(
        [up.cos() * around.cos(), up.cos() * around.sin(), up.sin().expand(-1, azimuths)], dim=-1
    ).flatten(0, 1)
    ground = torch.where(rays[:, 2] < 0, -1.84 / rays[:, 2], torch.inf)
    entry = ((torch.where(rays[:, None] > 0, low, high) - origin) / rays[:, None]).amax(-1)  # (rays, boxes)
    leave = ((torch.where(rays[:, None] > 0, high, low) - origin) / rays[:, None]).amin(-1)
    hit = torch.where((entry < leave) & (entry > 0), entry, torch.inf).amin(1)
    distance = torch.minimum(ground, hit)
    distance = distance + 0.02 * torch.randn(distance.shape, generator=noise)
    met = distance.isfinite()
    xyz = origin + rays[met] * distance[met, None]
    other = torch.stack([255 * torch.rand(len(xyz), generator=noise), torch.full((len(xyz),), 0.05 * index)], dim=1)
    return torch.cat([xyz, other], dim=1)
