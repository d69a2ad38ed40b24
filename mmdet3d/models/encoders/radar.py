"""Radar branch: pillars of radar points, and CRKD's calibrated variant for distillation."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mmdet3d.models.encoders.norm import Norm1d
from mmdet3d.models.encoders.pillars import PillarNet, PointLayer, PointPillarsEncoder
from mmdet3d.registry import MODELS

__all__ = ["RadarEncoder", "RadarEncoderCalib", "RadarFeatureNet"]


@MODELS.register
class RadarFeatureNet(PillarNet):
    """Radar pillars: normalised positions and offsets to the pillar's centre, layers, maximum over the slots.

    Arguments as `PillarNet`; NaN in a measurement counts as 0.
    """

    def __init__(
        self,
        in_channels: int = 4,
        feat_channels: Sequence[int] = (64,),
        with_distance: bool = False,
        voxel_size: Sequence[float] = (0.2, 0.2, 4),
        point_cloud_range: Sequence[float] = (0, -40, -3, 70.4, 40, 1),
        norm_cfg: Norm1d | None = None,
    ) -> None:
        super().__init__(in_channels, feat_channels, with_distance, voxel_size, point_cloud_range, norm_cfg)
        widths = [in_channels + 2 + with_distance, *feat_channels]
        self.rfn_layers = nn.ModuleList(PointLayer(a, b, norm_cfg) for a, b in itertools.pairwise(widths))

    def forward(self, features: Tensor, coordinates: Tensor, counts: Tensor) -> Tensor:
        """Points (M, S, F) of pillars (M, 4) as sample, x, y, z with (M,) counts to (M, C)."""
        x = self.decorate(features, coordinates, counts, normalize=True).nan_to_num()
        for layer in self.rfn_layers:
            x = layer(x)
        return x.max(1).values


@MODELS.register
class RadarEncoder(PointPillarsEncoder):
    """Radar pillars to BEV.

    Args:
        pts_voxel_encoder: config of a pillar network.
        pts_middle_encoder: config of the scatter.
        pts_bev_encoder: config of a module (B, C, X, Y) to (B, C, X, Y) that follows, or None.
    """

    def __init__(
        self,
        pts_voxel_encoder: Mapping[str, Any],
        pts_middle_encoder: Mapping[str, Any],
        pts_bev_encoder: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(pts_voxel_encoder, pts_middle_encoder)
        self.pts_bev_encoder = (
            nn.Identity() if pts_bev_encoder is None else MODELS.build(pts_bev_encoder, "pts_bev_encoder")
        )

    def forward(self, features: Tensor, coordinates: Tensor, counts: Tensor, batch_size: int) -> Tensor:
        """See `PointPillarsEncoder.forward`."""
        return self.pts_bev_encoder(super().forward(features, coordinates, counts, batch_size))


@dataclass(frozen=True)
class Calibration:
    """The block `distill_caliber` of a `RadarEncoderCalib`.

    Args:
        dilation: of the three convolutions.
        dilated: not read; published configs set it to false although their checkpoints were trained with dilation 2.
    """

    dilation: int = 2
    dilated: bool | None = None


@MODELS.register
class RadarEncoderCalib(RadarEncoder):
    """Radar encoder whose BEV is calibrated by dilated convolutions, with an activation map to distil (CRKD).

    Args:
        pts_voxel_encoder, pts_middle_encoder, pts_bev_encoder: see `RadarEncoder`.
        distill_caliber: true, or a block, enables the calibration.

    Attributes:
        has_activation: whether `forward` returns the activation too.
    """

    def __init__(
        self,
        pts_voxel_encoder: Mapping[str, Any],
        pts_middle_encoder: Mapping[str, Any],
        pts_bev_encoder: Mapping[str, Any] | None = None,
        distill_caliber: bool | Calibration | None = False,
    ) -> None:
        super().__init__(pts_voxel_encoder, pts_middle_encoder, pts_bev_encoder)
        calibration = Calibration() if distill_caliber is True else distill_caliber
        self.has_activation = bool(calibration)
        if calibration:
            channels = self.out_channels
            self.caliber = _caliber(channels, calibration.dilation)
            self.distill_activation_head = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.ReLU())
            # Responses are near 0 almost everywhere; larger weights would let the first steps undo the pre-training.
            nn.init.normal_(self.distill_activation_head[0].weight, std=0.01)

    def forward(
        self, features: Tensor, coordinates: Tensor, counts: Tensor, batch_size: int
    ) -> Tensor | tuple[Tensor, Tensor]:
        """BEV (B, C, X, Y) as `RadarEncoder`; with calibration the calibrated BEV and its activation (B, 1, X, Y)."""
        bev = super().forward(features, coordinates, counts, batch_size)
        if not self.has_activation:
            return bev
        calibrated = self.caliber(bev)
        return calibrated, self.distill_activation_head(calibrated)


def _caliber(channels: int, dilation: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(3):
        conv = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(conv.bias)
        layers += [conv, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
