"""A frozen detector that reads ground truth instead of its sensor: what a label encoder is trained through."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from mmdet3d.blocks import read_block
from mmdet3d.distill.blocks import NamedModel, check_file
from mmdet3d.distill.label_encoder import RASTERS, LabelEncoder, paint_labels
from mmdet3d.distill.outline import head_of
from mmdet3d.distill.teacher import build_detector, recorded_score, refuse_weak
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.io.weights import metadata_path
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.detectors.bevfusion import BEVFusion
from mmdet3d.models.heads.centerhead import CenterHead
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, BEVGrid, Detections3D

__all__ = ["EncoderBlock", "LabelEncoderDetector", "TrainedDetector"]


@dataclass(frozen=True, kw_only=True)
class TrainedDetector(NamedModel):
    """The detector through which a label encoder is trained.

    Args:
        checkpoint: its weights.
        min_score: least value of its metric `metric` that must be recorded beside the checkpoint.
        metric: of validation.
    """

    checkpoint: str
    min_score: float | None = None
    metric: str = "object/map"


@dataclass(frozen=True)
class EncoderBlock:
    """The label encoder.

    Args:
        channels, hidden, norm: see `LabelEncoder`.
        raster: see `paint_labels`.
    """

    channels: tuple[int, ...] = (128, 256)
    hidden: int = 256
    norm: str = "spatial"
    raster: str = "exact"


@MODELS.register
class LabelEncoderDetector(Detector):
    """A label encoder in front of the neck and head of a trained detector (LabelDistill, stage 2).

    The encoder learns what the detector's BEV backbone should have said, by the detection loss of the frozen neck and
    head on what it says. It has the detector's taps, and `label_encoder` (one map per level of `decoder.backbone`) and
    `heads.label` (the head's answer to them), so that it can teach from both.

    Unlike other detectors it reads `boxes` and `labels` in `predict`: the score is that of ground truth that went
    through encoder, neck and head.

    Args:
        detector: see `TrainedDetector`.
        label_encoder: see `EncoderBlock`.

    Raises:
        ValueError: unknown keys, or levels that the neck does not take.
    """

    loss_taps = predict_taps = ("heads.label",)

    def __init__(self, detector: Mapping[str, Any], label_encoder: Mapping[str, Any]) -> None:
        super().__init__()
        self._block = read_block(TrainedDetector, detector, "model.detector")
        encoder = read_block(EncoderBlock, label_encoder, "model.label_encoder")
        if encoder.raster not in RASTERS:
            raise ValueError(f"model.label_encoder.raster must be one of {', '.join(RASTERS)}, got {encoder.raster!r}")
        self._raster = encoder.raster
        trained = build_detector(self._block.model, "model.detector").requires_grad_(False).eval()
        head = head_of(trained)
        if not isinstance(trained, BEVFusion) or not isinstance(head, CenterHead):
            raise ValueError(
                f"model.detector: a label encoder is trained through a CenterHead, but {self._block.config} has "
                f"{'none' if head is None else f'a {type(head).__name__}'}"
            )
        self.detector = trained
        self.grid: BEVGrid = trained.grid
        backbone: Any = trained.decoder["backbone"]
        strides = backbone.strides
        self.label_encoder = LabelEncoder(
            head.num_classes, self.grid.shape, strides, encoder.channels, encoder.hidden, encoder.norm
        )
        _check_levels(self.detector.decoder["neck"], encoder.channels, strides, self.grid.shape)
        for stage in dict.fromkeys(self.detector._stages.values()):
            self.adopt_stage(stage)
        self.add_stage("label_encoder", self._encode)
        self.add_stage("heads.label", self._answer, ("label_encoder",))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The detector's."""
        return self.detector.inputs

    @property
    def heads(self) -> nn.ModuleDict:
        """The detector's."""
        return self.detector.heads

    @property
    def _head(self) -> CenterHead:
        return cast(CenterHead, self.detector.heads["object"])

    def init_weights(self, inherited: Collection[str] = ()) -> None:
        """Load the detector, all of it; the label encoder keeps its random start.

        Raises:
            FileNotFoundError: no such checkpoint.
            ValueError: it does not hold exactly the detector's tensors, or its recorded score is too low or missing.
        """
        block = self._block
        check_file(block.checkpoint, "model.detector.checkpoint")
        if block.min_score is not None:
            score, side = recorded_score(block.checkpoint, block.metric), metadata_path(block.checkpoint)
            if score is None:
                raise ValueError(
                    f"no {block.metric} of {block.checkpoint} is recorded in {side}, so it cannot be compared with "
                    "model.detector.min_score; pass --model.detector.min_score null to go on without"
                )
            refuse_weak(score, block.checkpoint, block.metric, block.min_score, f"recorded in {side}", "model.detector")
        load_checkpoint(self.detector, block.checkpoint)

    def train(self, mode: bool = True) -> LabelEncoderDetector:
        """The detector stays in eval mode."""
        super().train(mode)
        self.detector.eval()
        return self

    def requires_grad_(self, requires_grad: bool = True) -> LabelEncoderDetector:
        """The detector's parameters never take a gradient."""
        super().requires_grad_(requires_grad)
        self.detector.requires_grad_(False)
        return self

    def losses(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`loss/label/...`: the terms of the detector's head against the ground truth that was encoded."""
        terms = self._head.box_losses(features["heads.label"], *_ground_truth(batch))
        return {f"loss/label/{name}": value for name, value in terms.items()}

    def predictions(self, features: Mapping[str, Any], batch: Batch) -> list[Detections3D]:
        """What the head reads out of the encoded ground truth of each sample."""
        return self._head.decode(features["heads.label"], batch)

    def _encode(self, batch: Batch) -> list[Tensor]:
        maps = paint_labels(*_ground_truth(batch), self._head.num_classes, self.grid, self._raster)
        levels: list[Tensor] = self.label_encoder(*maps)
        return levels

    def _answer(self, batch: Batch, levels: list[Tensor]) -> Any:
        bev = self._stages["decoder"].run(batch, levels)
        return self._stages["heads.object"].run(batch, bev)


def _ground_truth(batch: Batch) -> tuple[Any, Any]:
    return batch.require("boxes", "the label encoder"), batch.require("labels", "the label encoder")


def _check_levels(neck: nn.Module, channels: Sequence[int], strides: Sequence[int], shape: tuple[int, int]) -> None:
    """Show the neck such levels, without computing anything."""
    levels = [
        torch.empty(1, c, *((n - 1) // stride + 1 for n in shape), device="meta")
        for c, stride in zip(channels, strides, strict=True)
    ]
    try:
        size = tuple(copy.deepcopy(neck).to("meta")(levels).shape[-2:])
    except RuntimeError as error:
        raise ValueError(
            f"model.label_encoder.channels {list(channels)} are not those of the detector's decoder.backbone, which "
            f"its neck takes ({str(error).splitlines()[0]})"
        ) from None
    if size != tuple(shape):
        raise ValueError(
            f"labels are painted on the head's {shape[0]}x{shape[1]} cells, but the detector's decoder makes "
            f"{size[0]}x{size[1]} of them; take a detector whose decoder keeps the size of its input"
        )
