"""ResNet (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016) with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from mmdet3d.models.backbones.pretrained import Pretrained, backbone_weights, load_fitting
from mmdet3d.models.deformable import ModulatedDeformConv
from mmdet3d.models.layers import Norm2d, PointwiseConv2d, build_norm2d, freeze
from mmdet3d.registry import MODELS

__all__ = ["ResNet"]


@dataclass(frozen=True)
class DeformableConvolution:
    """The block `dcn` of a `ResNet`.

    Args:
        type: modulated deformable convolutions.
        deform_groups: groups of channels with offsets of their own.
        fallback_on_stride: must be false.
    """

    type: Literal["DCNv2"] = "DCNv2"
    deform_groups: int = 1
    fallback_on_stride: bool = False


def _conv3x3(channels: int, stride: int, deform_groups: int) -> nn.Module:
    """A plain convolution, or with `deform_groups` > 0 a modulated deformable one (DCNv2)."""
    if deform_groups == 0:
        return nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
    return ModulatedDeformConv(channels, channels, 3, stride, 1, deform_groups=deform_groups, bias=False)


def _projection(in_channels: int, out_channels: int, stride: int, norm_cfg: Norm2d | None) -> nn.Module | None:
    if stride == 1 and in_channels == out_channels:
        return None
    conv = PointwiseConv2d(in_channels, out_channels, stride, bias=False)
    return nn.Sequential(conv, build_norm2d(norm_cfg, out_channels))


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(
        self, in_channels: int, width: int, stride: int, style: str, norm_cfg: Norm2d | None, deform_groups: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, 1, bias=False)
        self.bn1 = build_norm2d(norm_cfg, width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = build_norm2d(norm_cfg, width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, width, stride, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(
        self, in_channels: int, width: int, stride: int, style: str, norm_cfg: Norm2d | None, deform_groups: int
    ) -> None:
        super().__init__()
        first, second = (1, stride) if style == "pytorch" else (stride, 1)
        self.conv1 = PointwiseConv2d(in_channels, width, first, bias=False)
        self.bn1 = build_norm2d(norm_cfg, width)
        self.conv2 = _conv3x3(width, second, deform_groups)
        self.bn2 = build_norm2d(norm_cfg, width)
        self.conv3 = PointwiseConv2d(width, 4 * width, bias=False)
        self.bn3 = build_norm2d(norm_cfg, 4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, 4 * width, stride, norm_cfg)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


_LAYOUTS: dict[int, tuple[type[_BasicBlock] | type[_Bottleneck], tuple[int, ...]]] = {
    18: (_BasicBlock, (2, 2, 2, 2)),
    34: (_BasicBlock, (3, 4, 6, 3)),
    50: (_Bottleneck, (3, 4, 6, 3)),
    101: (_Bottleneck, (3, 4, 23, 3)),
}


@MODELS.register
class ResNet(nn.Module):
    """Residual network over images.

    Args:
        depth: 18, 34, 50 or 101.
        num_stages: how many of the four stages are built.
        out_indices: which stages are returned; stage i has stride 4 * 2**i.
        frozen_stages: -1 trains all; 0 freezes the stem; k freezes the stem and stages 1..k.
        norm_eval: keep batch-norm statistics fixed in training.
        norm_cfg: of all convolutions.
        style: `pytorch` puts a bottleneck's stride on the 3x3, `caffe` on the first 1x1.
        base_channels: width of the stem; 64 is the published network, less makes a small twin.
        dcn: what `stage_with_dcn` stages have for their 3x3 convolutions; bottlenecks only.
        stage_with_dcn: which of the four stages are deformable.
        init_cfg: see `init_weights`.

    Raises:
        ValueError: an unknown depth, style, stage count, index or `dcn`.
    """

    def __init__(
        self,
        depth: int,
        num_stages: int = 4,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        norm_cfg: Norm2d | None = None,
        style: str = "pytorch",
        base_channels: int = 64,
        dcn: DeformableConvolution | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        init_cfg: Pretrained | None = None,
    ) -> None:
        super().__init__()
        _check(depth, num_stages, out_indices, frozen_stages, style)
        deform_groups = _deform_groups(depth, dcn, stage_with_dcn)
        self._checkpoint = init_cfg.checkpoint if init_cfg else None
        self.depth = depth
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.conv1 = nn.Conv2d(3, base_channels, 7, 2, 3, bias=False)
        self.bn1 = build_norm2d(norm_cfg, base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        block, counts = _LAYOUTS[depth]
        channels = base_channels
        self._stages: list[str] = []
        for i, count in enumerate(counts[:num_stages]):
            width = base_channels * 2**i
            blocks = []
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, width, stride, style, norm_cfg, deform_groups[i]))
                channels = width * block.expansion
            self._stages.append(f"layer{i + 1}")
            self.add_module(self._stages[-1], nn.Sequential(*blocks))
        for name, module in self.named_modules():
            # Offsets of deformable convolutions start at zero.
            if isinstance(module, nn.Conv2d) and not name.endswith("conv_offset"):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._freeze()

    def init_weights(self) -> None:
        """Load `init_cfg.checkpoint` (torchvision names; the classifier is ignored); without `init_cfg` do nothing.

        Raises:
            ValueError: the file is missing, a URL, or of another architecture.
        """
        if self._checkpoint is not None:
            weights = backbone_weights(self._checkpoint, f"ResNet-{self.depth}")
            load_fitting(self, {k: v for k, v in weights.items() if not k.startswith("fc.")}, self._checkpoint)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised RGB to a list of (B, C_i, H / s_i, W / s_i), one per entry of `out_indices`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        outputs = []
        for i, name in enumerate(self._stages):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outputs.append(x)
        return outputs

    def train(self, mode: bool = True) -> ResNet:
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            for name in ("conv1", "bn1", *self._stages[: self.frozen_stages]):
                freeze(getattr(self, name))


def _check(depth: int, num_stages: int, out_indices: Sequence[int], frozen_stages: int, style: str) -> None:
    if depth not in _LAYOUTS:
        raise ValueError(f"ResNet depth must be one of {', '.join(map(str, _LAYOUTS))}, got {depth}")
    if style not in ("pytorch", "caffe"):
        raise ValueError(f"ResNet style must be pytorch or caffe, got {style!r}")
    if not 1 <= num_stages <= 4:
        raise ValueError(f"ResNet num_stages must be 1 to 4, got {num_stages}")
    if not out_indices or not all(0 <= i < num_stages for i in out_indices):
        raise ValueError(f"ResNet out_indices {list(out_indices)} must lie in 0..{num_stages - 1}")
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(f"ResNet frozen_stages must lie in -1..{num_stages}, got {frozen_stages}")


def _deform_groups(depth: int, dcn: DeformableConvolution | None, stage_with_dcn: Sequence[bool]) -> list[int]:
    """Per stage, 0 for plain convolutions."""
    if len(stage_with_dcn) != 4:
        raise ValueError(f"ResNet stage_with_dcn needs four entries, got {list(stage_with_dcn)}")
    if dcn is None:
        if any(stage_with_dcn):
            raise ValueError(
                "ResNet stage_with_dcn names stages, but dcn is null; give {type: DCNv2, deform_groups: 1}"
            )
        return [0] * 4
    if dcn.fallback_on_stride or depth < 50:
        raise ValueError(
            f"ResNet-{depth} takes dcn with fallback_on_stride false and in bottlenecks (depth 50, 101) only"
        )
    return [dcn.deform_groups if deformable else 0 for deformable in stage_with_dcn]
