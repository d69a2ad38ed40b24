"""Detection from cameras over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mmdet3d.models.detectors.bevfusion import BEVFusion
from mmdet3d.models.detectors.config import CameraEncoder, DecoderBlock
from mmdet3d.models.layers import channels_last
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch

__all__ = ["TemporalCamera"]


@MODELS.register
class TemporalCamera(BEVFusion):
    """Cameras at the key frame and at earlier ones, all lifted by one encoder (BEVDepth, Li et al., AAAI 2023).

    The BEVs of all times lie in the key frame and are concatenated, the key frame's first. Earlier frames get no
    gradient, but while training their batch statistics count and dropout acts, as in the published program. The depth
    network is told the key frame's camera parameters for all times.

    Args:
        encoders: `camera`, see `BEVFusion`.
        decoder, heads: see `BEVFusion`; the decoder's backbone gets (1 + `history`) times the channels of one BEV.
        history: number of earlier frames, which `LoadHistoryImages` loads.
        fuser: must be null.

    Raises:
        ValueError: another sensor, a fuser, no earlier frame, or a decoder of other channels.
    """

    def __init__(
        self,
        encoders: CameraEncoder,
        decoder: DecoderBlock,
        heads: Mapping[str, Any],
        history: int,
        fuser: None = None,
    ) -> None:
        if history < 1:
            raise ValueError(f"model.history must be at least 1, got {history}; one frame alone is a BEVFusion")
        if fuser is not None:
            raise ValueError("model.fuser of a TemporalCamera must be null: the BEVs of all times are concatenated")
        super().__init__(encoders, decoder, heads, history=history)
        self._check_decoder()

    def _check_decoder(self) -> None:
        one = self.encoders["camera"]["vtransform"].bev_channels
        wanted = (1 + self.history) * one
        found = getattr(self.decoder["backbone"], "in_channels", wanted)
        if found != wanted:
            raise ValueError(
                f"model.decoder.backbone.in_channels is {found}, but 1 + history = {1 + self.history} frames of {one} "
                f"channels make {wanted}"
            )

    def _fuse(self, batch: Batch, key: Tensor, history: Tensor) -> tuple[Tensor, ...]:
        return channels_last(torch.cat([key, history], dim=1)), key
