"""Small blocks that several parts share, named as OpenMMLab names them in checkpoints (`conv`, `bn`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = [
    "BasicBlock",
    "ConvModule",
    "DropPath",
    "PointwiseConv2d",
    "batch_norm_together",
    "build_norm2d",
    "channels_last",
    "conv_bn_relu",
    "convolve_together",
    "freeze",
    "pointwise",
]


def channels_last(x: Tensor) -> Tensor:
    """A map (B, C, H, W), on the CPU with its channels next to each other in memory; what follows keeps it so.

    There convolutions, batch norm, pooling and resizing of this layout take a third to a half less time
    (docs/performance.md). On a GPU it was not measured, and maps stay as they are.
    """
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def convolve_together(convolutions: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """What convolutions of one kernel say of the same map, concatenated: (B, C, H, W) to (B, sum of C_i, H, W).

    One wide convolution reads `x` once, and its gradient is written once.
    """
    first = convolutions[0]
    weight = torch.cat([c.weight for c in convolutions])
    bias = None if first.bias is None else torch.cat([c.bias for c in convolutions if c.bias is not None])
    if first.kernel_size == (1, 1):
        return pointwise(x, weight, bias)
    return F.conv2d(x, weight, bias, first.stride, first.padding)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution of (B, C, H, W) by (C', C, 1, 1).

    Where channels lie next to each other on the CPU it is one matrix product: PyTorch hands 1x1 convolutions of few
    samples on one thread to `_slow_conv2d`, whose gradient first fills its result with zeros and loses the layout.
    """
    if x.device.type == "cpu" and x.stride(1) == 1:
        return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias)


def batch_norm_together(norms: Sequence[nn.BatchNorm2d], x: Tensor) -> Tensor:
    """`norms`, all of one mode and with the same settings, applied to their shares of the channels of `x`."""
    first = norms[0]
    assert first.momentum is not None, "no norm of this project averages over all batches alike"
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    means, variances, steps = ([getattr(n, name) for n in norms] for name in buffers)
    mean, variance = torch.cat(means), torch.cat(variances)
    weight, bias = torch.cat([n.weight for n in norms]), torch.cat([n.bias for n in norms])
    x = F.batch_norm(x, mean, variance, weight, bias, first.training, first.momentum, first.eps)
    if first.training:
        sizes = [n.num_features for n in norms]
        torch._foreach_copy_(means, mean.split(sizes))
        torch._foreach_copy_(variances, variance.split(sizes))
        torch._foreach_add_(steps, 1)
    return x


@dataclass(frozen=True)
class Norm2d:
    """Batch normalisation of maps.

    Args:
        type: both mean the same.
        eps: added to the variance.
        momentum: share of a batch in the running statistics.
        requires_grad: scale and shift are learnt.
    """

    type: Literal["BN", "BN2d"] = "BN2d"
    eps: float = 1e-5
    momentum: float = 0.1
    requires_grad: bool = True


def build_norm2d(cfg: Norm2d | None, channels: int) -> nn.BatchNorm2d:
    """BatchNorm2d from a `norm_cfg`."""
    cfg = cfg or Norm2d()
    norm = nn.BatchNorm2d(channels, cfg.eps, cfg.momentum)
    norm.requires_grad_(cfg.requires_grad)
    return norm


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = False
) -> list[nn.Module]:
    """Convolution, BatchNorm2d, ReLU as a list, to be spliced into a Sequential (flat checkpoint indices)."""
    if (kernel, stride, padding) == (1, 1, 0):
        conv: nn.Conv2d = PointwiseConv2d(in_channels, out_channels, bias=bias)
    else:
        conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class PointwiseConv2d(nn.Conv2d):
    """1x1 convolution, see `pointwise`; its stride is a slice.

    The gradient of oneDNN's strided 1x1 convolution on channels-last tensors writes out of bounds for some sizes
    (PyTorch 2.13, 8 channels on 64 x 64 cells).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise(x[..., :: self.stride[0], :: self.stride[1]], self.weight, self.bias)


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions that keeps channels and size (He et al., CVPR 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + x).relu()


class ConvModule(nn.Module):
    """Convolution without bias, batch norm, ReLU; Kaiming-normal (fan out). With `norm` false: convolution with bias.

    Maps (B, C_in, H, W) to (B, C_out, H, W) for odd kernels.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        norm_cfg: Norm2d | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
        if kernel == 1:
            self.conv: nn.Conv2d = PointwiseConv2d(in_channels, out_channels, bias=not norm)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=not norm)
        self.bn = build_norm2d(norm_cfg, out_channels) if norm else nn.Identity()
        self.activate = nn.ReLU(inplace=True)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.bn(self.conv(x)))


class DropPath(nn.Module):
    """Drop a residual branch per sample with probability `rate`, scaling the kept ones (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(x.shape[0], *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


def freeze(module: nn.Module) -> None:
    """Eval mode and no gradients."""
    module.eval()
    module.requires_grad_(False)
