"""The sparse 3-D convolution backbone of SECOND, as BEVFusion uses it.

A suffix of a name says its shape: B samples, X x Y x Z sites, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from mmdet3d.models.encoders.norm import Norm1d, build_norm1d
from mmdet3d.models.encoders.voxelizer import check_coordinates
from mmdet3d.ops.sparse_conv import SparseConv3d, SparseSequential, SparseTensor, SubMConv3d
from mmdet3d.registry import MODELS

__all__ = ["SparseEncoder"]


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions with a residual connection; the sites stay the same."""

    is_sparse = True

    def __init__(self, channels: int, norm_cfg: Norm1d | None) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, 3)
        self.bn1 = build_norm1d(norm_cfg, channels)
        self.conv2 = SubMConv3d(channels, channels, 3)
        self.bn2 = build_norm1d(norm_cfg, channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: SparseTensor) -> SparseTensor:
        out = self.conv1(x)
        out = out.with_features(self.relu(self.bn1(out.features)))
        out = self.conv2(out)
        return out.with_features(self.relu(self.bn2(out.features) + x.features))


@MODELS.register
class SparseEncoder(nn.Module):
    """Voxels to a bird's-eye view: sparse stages that halve the grid, then height folded into channels.

    Products run in autocast's dtype, sums over kernel offsets in float32.

    Args:
        in_channels: F of the voxel features.
        sparse_shape: X, Y, Z of the voxel grid (Z one more than the voxeliser's, so that it halves evenly).
        order: of the layers of a convolution; `norm` and `act` before `conv` give pre-activation.
        norm_cfg: of all layers.
        base_channels: of the first convolution.
        output_channels: of the last convolution, before height is folded in.
        encoder_channels: per stage the channels of its layers.
        encoder_paddings: per stage the padding of its layers; only strided convolutions read theirs.
        block_type: `basicblock` (residual blocks, the last layer of every stage but the last halves the grid) or
            `conv_module` (single convolutions, the first layer of every stage but the first halves the grid).

    Attributes:
        output_shape: X, Y of the result.
        out_channels: of the result, output_channels * Z.

    Raises:
        ValueError: an unknown order or block type, or channels and paddings that do not correspond.
    """

    has_activation = False
    not_exportable = (
        "its sparse convolutions visit sites that depend on the scan, for which neither ONNX nor torch.export has an "
        "operation; ship a model whose LiDAR encoder has pillars (PointPillarsEncoder), or one without LiDAR"
    )

    def __init__(
        self,
        in_channels: int,
        sparse_shape: Sequence[int],
        order: Sequence[str] = ("conv", "norm", "act"),
        norm_cfg: Norm1d | None = None,
        base_channels: int = 16,
        output_channels: int = 128,
        encoder_channels: Sequence[Sequence[int]] = ((16,), (32, 32, 32), (64, 64, 64), (64, 64, 64)),
        encoder_paddings: Sequence[Sequence[Any]] = ((1,), (1, 1, 1), (1, 1, 1), ((0, 1, 1), 1, 1)),
        block_type: str = "conv_module",
    ) -> None:
        super().__init__()
        _check_arguments(order, encoder_channels, encoder_paddings, block_type)
        self.in_channels = in_channels
        nx, ny, nz = sparse_shape
        self.sparse_shape = (nx, ny, nz)
        self._order = tuple(order)
        self._norm_cfg = norm_cfg
        first = SubMConv3d(in_channels, base_channels, 3)
        # With pre-activation the next layer normalises.
        self.conv_input = self._module(first) if order[0] == "conv" else SparseSequential(first)
        make_stage = self._residual_stage if block_type == "basicblock" else self._plain_stage
        channels = base_channels
        self.encoder_layers = SparseSequential()
        for i, (widths, paddings) in enumerate(zip(encoder_channels, encoder_paddings, strict=True)):
            stage = make_stage(channels, widths, paddings, i == 0, i == len(encoder_channels) - 1)
            self.encoder_layers.add_module(f"encoder_layer{i + 1}", stage)
            channels = widths[-1]
        self.conv_out = self._module(SparseConv3d(channels, output_channels, (1, 1, 3), (1, 1, 2)))
        shape = self.sparse_shape
        for layer in self.modules():
            if isinstance(layer, SparseConv3d):
                shape = layer.output_shape(shape)
        self.output_shape = shape[:2]
        self.out_channels = output_channels * shape[2]

    def _module(self, conv: SubMConv3d | SparseConv3d) -> SparseSequential:
        norm_channels = conv.weight.shape[4 if self._order.index("conv") < self._order.index("norm") else 3]
        layers = {"conv": conv, "norm": build_norm1d(self._norm_cfg, norm_channels), "act": nn.ReLU(inplace=True)}
        return SparseSequential(*(layers[name] for name in self._order))

    def _residual_stage(
        self, channels: int, widths: Sequence[int], paddings: Sequence[Any], first: bool, last: bool
    ) -> SparseSequential:
        stage = SparseSequential()
        for j, (width, padding) in enumerate(zip(widths, paddings, strict=True)):
            if j == len(widths) - 1 and not last:
                stage.append(self._module(SparseConv3d(channels, width, 3, 2, padding)))
            elif width == channels:
                stage.append(SparseBasicBlock(width, self._norm_cfg))
            else:
                raise ValueError(
                    f"a residual block keeps its channels, encoder_channels asks for {channels} -> {width}"
                )
            channels = width
        return stage

    def _plain_stage(
        self, channels: int, widths: Sequence[int], paddings: Sequence[Any], first: bool, last: bool
    ) -> SparseSequential:
        stage = SparseSequential()
        for j, (width, padding) in enumerate(zip(widths, paddings, strict=True)):
            strided = j == 0 and not first
            conv = SparseConv3d(channels, width, 3, 2, padding) if strided else SubMConv3d(channels, width, 3)
            stage.append(self._module(conv))
            channels = width
        return stage

    def forward(self, features: Tensor, coordinates: Tensor, counts: Tensor, batch_size: int) -> Tensor:
        """Voxels to BEV.

        Args:
            features: (M, in_channels) means of voxels; M may be 0.
            coordinates: (M, 4) sample, x, y, z.
            counts: (M,) points per voxel, not read.
            batch_size: B.

        Returns:
            (B, output_channels * Z, X, Y), channel = c * Z + z; zero where nothing was seen.

        Raises:
            ValueError: features of another shape, or a voxel outside `sparse_shape`.
        """
        if features.ndim != 2 or features.shape[1] != self.in_channels:
            raise ValueError(
                f"SparseEncoder takes ({self.in_channels}) features per voxel (voxelize_reduce: true), got features of "
                f"shape {tuple(features.shape)}"
            )
        check_coordinates(coordinates, batch_size, self.sparse_shape, "SparseEncoder's sparse_shape")
        x = SparseTensor(features, coordinates, self.sparse_shape, batch_size)
        volume_BCXYZ = self.conv_out(self.encoder_layers(self.conv_input(x))).dense()
        return volume_BCXYZ.permute(0, 1, 4, 2, 3).flatten(1, 2)


def _check_arguments(
    order: Sequence[str], channels: Sequence[Sequence[int]], paddings: Sequence[Sequence[Any]], block_type: str
) -> None:
    if sorted(order) != ["act", "conv", "norm"]:
        raise ValueError(f"SparseEncoder's order must arrange conv, norm and act, got {list(order)}")
    if block_type not in ("basicblock", "conv_module"):
        raise ValueError(f"SparseEncoder's block_type must be basicblock or conv_module, got {block_type!r}")
    if [len(c) for c in channels] != [len(p) for p in paddings]:
        raise ValueError(
            f"encoder_channels and encoder_paddings must have the same lengths, got {list(channels)}, {list(paddings)}"
        )
