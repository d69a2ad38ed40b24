"""Activation checkpointing: the same numbers and random draws, running statistics once, less kept for backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from benchmarks.samples import random_image_sample, random_sample
from mmdet3d.config import load_config
from mmdet3d.distill.teacher import build_detector
from mmdet3d.engine.compilation import checkpoint_activations
from mmdet3d.models.backbones.dla import DLA
from mmdet3d.models.backbones.resnet import ResNet
from mmdet3d.models.backbones.swin import SwinTransformer
from mmdet3d.models.deformable import ModulatedDeformConv
from mmdet3d.models.encoders.norm import VoxelBatchNorm
from mmdet3d.models.layers import batch_norm_together
from mmdet3d.models.recompute import blocks_of, recompute_in_training, recomputed
from mmdet3d.structures import Batch


class Together(nn.Module):
    """Batch norms that one call updates, outside of their own forward."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.BatchNorm2d(2, momentum=0.3), nn.BatchNorm2d(2, momentum=0.3)])

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm_together(list(self.norms), x)


PARTS = {
    "batch norm": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
    "mean of all batches": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=None)),
    "norms together": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Together()),
    "voxels": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), VoxelBatchNorm(5), nn.Dropout(0.5)),
    "deformable": lambda: nn.Sequential(ModulatedDeformConv(3, 4, 3, 1, 1), nn.BatchNorm2d(4)),
    "dropout": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Conv2d(4, 4, 1), nn.Dropout2d(0.5)),
}


@pytest.mark.parametrize("name", PARTS)
def test_nothing_differs(name: str) -> None:
    torch.manual_seed(0)
    plain = PARTS[name]()
    again = copy.deepcopy(plain)
    again.forward = recompute_in_training(again, again.forward)
    for step in range(3):
        images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        for model in (plain, again):
            torch.manual_seed(step)
            model(images).square().sum().backward()
            model.drawn = torch.rand(1)  # whatever draws next draws the same
        assert torch.equal(plain.drawn, again.drawn)
    for a, b in zip(plain.parameters(), again.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    own, theirs = plain.state_dict(), again.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    assert [m.momentum for m in plain.modules() if hasattr(m, "momentum")] == [
        m.momentum for m in again.modules() if hasattr(m, "momentum")
    ]


def test_a_gradient_that_is_asked_for_twice_leaves_the_statistics() -> None:
    """As a distiller that balances its losses does."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss = recomputed(model, model, images).square().sum()
    seen = copy.deepcopy(model.state_dict())
    first = torch.autograd.grad(loss, images, retain_graph=True)[0]
    second = torch.autograd.grad(loss, images)[0]
    assert torch.equal(first, second)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in seen.items())
    assert model[1].num_batches_tracked == 1


def test_backward_keeps_the_input_alone() -> None:
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(8)])
    kept = {}
    for name, run in (("plain", model), ("again", recompute_in_training(model, model.forward))):
        found: dict[int, int] = {}

        def note(tensor: Tensor, found: dict[int, int] = found) -> Tensor:
            found[tensor.data_ptr()] = tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            run(torch.randn(1, 4, 16, 16, requires_grad=True))
        kept[name] = sum(found.values())
    assert kept["again"] == 4 * 16 * 16 * 4
    assert kept["plain"] > 8 * kept["again"]


def test_blocks_are_the_smallest_with_two_layers() -> None:
    resnet, swin = ResNet(depth=18, base_channels=8), SwinTransformer(embed_dims=12, num_heads=[1, 2, 4, 8])
    for network, kind, count in ((resnet, "_BasicBlock", 8), (swin, "_Block", 12), (DLA(), "", 0)):
        found = blocks_of(network)
        assert [type(m).__name__ for m in found] == [kind] * count


STUDENTS = ["synthetic/crkd/demo.yaml", "synthetic/simdistill/demo.yaml", "kitti/synthetic/monoskd.yaml"]


@pytest.mark.parametrize("config", STUDENTS)
def test_a_detector_learns_the_same_from_less(config: str) -> None:
    """Whole students: camera, radar, simulated and monocular stages, heads, and the losses behind them."""
    cfg = load_config(config)
    kitti = config.startswith("kitti")
    sample = random_image_sample(cfg["image_size"], 3) if kitti else random_sample(cfg["image_size"], 2000, 200, 5)
    batch = Batch.collate([sample, sample])
    results, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        model = build_detector(cfg.model["student"]["model"]).train()
        if again:
            checkpoint_activations(model)
        seen: dict[int, int] = {}

        def note(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            total = sum(v for k, v in model.loss(batch).items() if k.startswith("loss/"))
        total.backward()
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        results.append(gradients | model.state_dict(prefix="own."))
        kept.append(sum(seen.values()))
    assert results[0].keys() == results[1].keys()
    assert [k for k, v in results[0].items() if not torch.equal(v, results[1][k])] == []
    assert kept[1] < 0.6 * kept[0]
