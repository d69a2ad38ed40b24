"""DLA-34 (Yu et al., "Deep Layer Aggregation", CVPR 2018) with the published parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmdet3d.models.backbones.pretrained import Pretrained, backbone_weights, load_fitting
from mmdet3d.models.layers import PointwiseConv2d
from mmdet3d.registry import MODELS

__all__ = ["DLA"]

# Of the levels 2 to 5: how often a tree branches, and whether its root also sees the tree's input.
_TREES = {34: ((1, False), (2, True), (2, True), (1, True))}


class _BasicBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(out)) + shortcut)


class _Root(nn.Module):
    """Aggregation node: 1x1 convolution over everything that a tree collected."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv = PointwiseConv2d(in_channels, channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.relu(self.bn(self.conv(torch.cat(list(inputs), dim=1))))


class _Tree(nn.Module):
    """Two blocks and a root (`depth` 1), or two trees of which the second one's root sees the first one's output.

    Args:
        collected: channels that its innermost root gets beside those of its two blocks.
        level_root: that root also gets the input of the tree.
    """

    def __init__(
        self, depth: int, in_channels: int, channels: int, stride: int, collected: int = 0, level_root: bool = False
    ) -> None:
        super().__init__()
        self.depth, self.level_root = depth, level_root
        collected += in_channels if level_root else 0
        if depth == 1:
            self.tree1: nn.Module = _BasicBlock(in_channels, channels, stride)
            self.tree2: nn.Module = _BasicBlock(channels, channels, 1)
            self.root = _Root(2 * channels + collected, channels)
        else:
            self.tree1 = _Tree(depth - 1, in_channels, channels, stride)
            self.tree2 = _Tree(depth - 1, channels, channels, 1, collected + channels)
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.project: nn.Module = nn.Identity()
        if in_channels != channels:
            self.project = nn.Sequential(PointwiseConv2d(in_channels, channels, bias=False), nn.BatchNorm2d(channels))
            if depth > 1:
                # Part of published weights, but the inner tree projects its input itself.
                self.project.requires_grad_(False)

    def forward(self, x: Tensor, children: Sequence[Tensor] = ()) -> Tensor:
        bottom = self.pool(x)
        children = (*children, bottom) if self.level_root else children
        if self.depth > 1:
            first = self.tree1(x)
            return self.tree2(first, (*children, first))
        first = self.tree1(x, self.project(bottom))
        second = self.tree2(first, first)
        return self.root((second, first, *children))


@MODELS.register
class DLA(nn.Module):
    """Deep layer aggregation over images.

    The ImageNet classifier `fc`, and projections that no output depends on, are parts of published weights; they are
    kept, and take no gradient.

    Args:
        depth: 34.
        base_channels: width of the stem; 16 is the published network, less makes a small twin.
        init_cfg: see `init_weights`.

    Raises:
        ValueError: an unknown depth.
    """

    def __init__(self, depth: int = 34, base_channels: int = 16, init_cfg: Pretrained | None = None) -> None:
        super().__init__()
        if depth not in _TREES:
            raise ValueError(f"DLA depth must be one of {', '.join(map(str, _TREES))}, got {depth}")
        self._checkpoint = init_cfg.checkpoint if init_cfg else None
        self.depth = depth
        self.channels = tuple(base_channels * 2**i for i in range(6))
        self.base_layer = _conv_level(3, base_channels, kernel=7)
        self.level0 = _conv_level(base_channels, base_channels)
        self.level1 = _conv_level(base_channels, self.channels[1], stride=2)
        for level, (branches, level_root) in enumerate(_TREES[depth], start=2):
            tree = _Tree(branches, self.channels[level - 1], self.channels[level], 2, level_root=level_root)
            self.add_module(f"level{level}", tree)
        self.fc = nn.Conv2d(self.channels[-1], 1000, 1).requires_grad_(False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def init_weights(self) -> None:
        """Load `init_cfg.checkpoint` (names of the DLA release); without `init_cfg` do nothing.

        Raises:
            ValueError: the file is missing, a URL, or of another architecture.
        """
        if self._checkpoint is not None:
            weights = backbone_weights(self._checkpoint, f"DLA-{self.depth}", "--model.backbone.init_cfg")
            load_fitting(self, weights, self._checkpoint)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to six maps (B, C_i, H / 2**i, W / 2**i); H and W must be multiples of 32."""
        x = self.base_layer(images)
        outputs = []
        for level in range(6):
            x = getattr(self, f"level{level}")(x)
            outputs.append(x)
        return outputs


def _conv_level(in_channels: int, channels: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
