"""Batch norms of frozen models as part of the layers before them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from mmdet3d.models.folding import fold_batch_norm
from mmdet3d.models.layers import BasicBlock, ConvModule, PointwiseConv2d, conv_bn_relu


class Parts(nn.Module):
    """Layers whose norms can be folded, and every way in which they cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(3, 8, 3, padding=1, bias=True), *conv_bn_relu(8, 8, 1))
        self.block = BasicBlock(8)
        self.module = ConvModule(8, 8, 3)
        self.strided = PointwiseConv2d(8, 8, stride=2, bias=False)
        self.strided_norm = nn.BatchNorm2d(8)
        self.tapped, self.tapped_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.added, self.added_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.rectified, self.rectified_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)
        self.twice = nn.Conv2d(8, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8), nn.BatchNorm2d(8)])
        self.linear, self.linear_norm = nn.Linear(8, 4, bias=False), nn.BatchNorm1d(4)
        self.unused, self.unused_norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> dict[str, Tensor | list[Tensor]]:
        x = self.strided_norm(self.strided(self.module(self.block(self.stem(x)))))
        tapped = self.tapped(x)
        x = self.tapped_norm(tapped)
        added = self.added(x)
        x = self.added_norm(added) + added
        x = self.rectified_norm(self.rectified(x).relu_())
        levels = [norm(self.twice(x)) for norm in self.norms]
        return {"tapped": [tapped], "levels": levels, "mean": self.linear_norm(self.linear(x.mean((2, 3))))}


FOLDED = {"stem.1", "stem.4", "block.bn1", "block.bn2", "module.bn", "strided_norm", "linear_norm"}


@pytest.fixture
def model() -> Parts:
    torch.manual_seed(0)
    model = Parts().eval()
    for norm in (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)):
        for tensor in (norm.running_mean, norm.weight, norm.bias):
            nn.init.normal_(tensor, 0.5)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


def test_norms_go_into_the_layers_that_only_they_read(model: Parts) -> None:
    images, others = torch.randn(2, 3, 16, 16), torch.randn(1, 3, 8, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    folded = fold_batch_norm(model, lambda m: m(images))
    for inputs in (images, others):
        assert_close(folded(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    norms = {n for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    left = {n for n, m in folded.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    assert norms - left == FOLDED
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert folded.tapped.weight is model.tapped.weight and folded.stem[0].weight is not model.stem[0].weight
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in folded.modules())


def test_what_is_not_looked_at_decides_nothing(model: Parts) -> None:
    """A layer's output that some ask for and others do not: its norm is folded for those alone."""
    images = torch.randn(2, 3, 16, 16)
    folded = fold_batch_norm(model, lambda m: m(images)["mean"])
    assert isinstance(folded.tapped_norm, nn.Identity) and isinstance(folded.added_norm, nn.BatchNorm2d)
    assert_close(folded(images)["mean"], model(images)["mean"], rtol=1e-5, atol=1e-5)
