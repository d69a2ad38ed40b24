"""Wide and channels-last forms against the plain layers whose parameters they use."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdet3d.models.fusers import GatedFuser
from mmdet3d.models.heads.branches import SeparateHead, run_together
from mmdet3d.models.layers import PointwiseConv2d

BRANCHES = {
    "deep": {"reg": (2, 2), "dim": (3, 3), "heatmap": (2, 2)},
    "shallow": {"reg": (2, 1), "height": (1, 1), "heatmap": (2, 1)},
    "mixed": {"reg": (2, 1), "dim": (3, 2), "heatmap": (1, 2)},
}


def check(module: nn.Module, fast: Callable[[Any, Tensor], list[Tensor]], plain: Callable[..., list[Tensor]]) -> None:
    """Values, gradients of input and parameters, and buffers of the two ways to run `module`, in both layouts."""
    for layout in (torch.contiguous_format, torch.channels_last):
        results = []
        for run in (fast, plain):
            twin = copy.deepcopy(module)
            x = torch.randn(2, 8, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            x = x.contiguous(memory_format=layout).requires_grad_()
            values = run(twin, x)
            sum((v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in values).backward()
            gradients = [p.grad for p in twin.parameters()]
            results.append([*values, x.grad, *gradients, *twin.buffers()])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("branches", BRANCHES.values(), ids=BRANCHES)
def test_branches_together_equal_branches_alone(branches: dict, kernel: int, training: bool) -> None:
    torch.manual_seed(0)
    heads = nn.ModuleList(SeparateHead(8, branches, kernel, -2.19) for _ in range(3)).double().train(training)
    # Statistics that differ between the branches.
    for i, norm in enumerate(m for m in heads.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.fill_(0.1 * i)
        norm.running_var.fill_(1 + i)

    def flat(outputs: list[dict[str, Tensor]]) -> list[Tensor]:
        return [output[name] for output in outputs for name in sorted(output)]

    check(heads, lambda m, x: flat(run_together(m, x)), lambda m, x: flat([head(x) for head in m]))


def test_gated_fuser_computes_each_gate_from_both_sensors() -> None:
    torch.manual_seed(0)

    def plain(fuser: GatedFuser, x: Tensor) -> list[Tensor]:
        first = x[:, :5] * fuser.input_conv_sensor_1(x).sigmoid()
        second = x[:, 5:] * fuser.input_conv_sensor_2(x).sigmoid()
        return [fuser.output_fuser_conv_norm(torch.cat([first, second], dim=1)).relu(), first, second]

    def fast(fuser: GatedFuser, x: Tensor) -> list[Tensor]:
        fused, gated = fuser([x[:, :5], x[:, 5:]])
        return [fused, *gated]

    check(GatedFuser([5, 3], 4).double(), fast, plain)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_pointwise_convolution_is_conv2d(stride: int, bias: bool) -> None:
    torch.manual_seed(0)
    conv = PointwiseConv2d(8, 3, stride, bias=bias).double()
    assert {k: v.shape for k, v in conv.state_dict().items()} == {
        k: v.shape for k, v in nn.Conv2d(8, 3, 1, stride, bias=bias).state_dict().items()
    }
    check(conv, lambda m, x: [m(x)], lambda m, x: [F.conv2d(x, m.weight, m.bias, stride)])
