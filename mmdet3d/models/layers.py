"""Small blocks that several parts share, named as OpenMMLab names them in checkpoints (`conv`, `bn`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["BasicBlock", "ConvModule", "DropPath", "build_norm2d", "conv_bn_relu", "freeze"]


def build_norm2d(cfg: Mapping[str, Any] | None, channels: int) -> nn.BatchNorm2d:
    """BatchNorm2d from a `norm_cfg`: `type` (BN or BN2d), `eps`, `momentum`, `requires_grad`.

    Raises:
        ValueError: another type or key.
    """
    arguments = dict(cfg or {"type": "BN2d"})
    kind = arguments.pop("type", None)
    trainable = arguments.pop("requires_grad", True)
    if kind not in ("BN", "BN2d") or set(arguments) - {"eps", "momentum"}:
        raise ValueError(f"norm_cfg must be {{type: BN2d, eps, momentum, requires_grad}}, got {dict(cfg or {})}")
    norm = nn.BatchNorm2d(channels, **arguments)
    norm.requires_grad_(trainable)
    return norm


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = False
) -> list[nn.Module]:
    """Convolution, BatchNorm2d, ReLU as a list, to be spliced into a Sequential (flat checkpoint indices)."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=bias)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


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
        norm_cfg: Mapping[str, Any] | None = None,
        norm: bool = True,
    ) -> None:
        super().__init__()
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
