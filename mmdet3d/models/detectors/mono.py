"""3-D detection from one image, or from a depth map in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.heads.mono.decode import MonoDecoder
from mmdet3d.models.heads.mono.depth_bins import bin_map
from mmdet3d.models.heads.mono.depth_branch import DepthBranch, DepthBranchBlock
from mmdet3d.models.heads.mono.geometry import ImageGeometry
from mmdet3d.models.heads.mono.layers import DENSE, REGION, dense_layers, region_layers
from mmdet3d.models.heads.mono.losses import detection_losses
from mmdet3d.models.heads.mono.regions import (
    EXTRA_CHANNELS,
    find_peaks,
    predict_boxes,
    predict_regions,
    region_features,
)
from mmdet3d.models.heads.mono.targets import MonoTargets, encode_objects, heat_maps, visible_depth
from mmdet3d.models.heads.mono.task_schedule import TaskSchedule, TaskScheduleBlock
from mmdet3d.models.layers import channels_last
from mmdet3d.models.steps import ImageCrops
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Detections3D

__all__ = ["MonoDetector"]

_STRIDE = 4
_FULL_DEPTH = 80.0  # metres
_DEPTH_UNITS = {"metres_over_80": _FULL_DEPTH, "legacy": 256 * _FULL_DEPTH}


@MODELS.register
class MonoDetector(Detector):
    """Backbone, neck, maps over the image and predictions per region (DID-M3D as MonoSKD uses it).

    The state dict has the published names. Taps: `backbone` (six maps), `neck` (four maps, strides 32, 16, 8, 4),
    `heads.dense` (maps of stride 4 by name), `targets` (see `MonoTargets`), `heads.roi` (what is predicted in the
    regions of the ground-truth objects) and `heads.candidates` (the same for the peaks of the heat map). Regions are
    those that the network itself predicts at these places. With `depth_branch` also `depth.logits` (B, classes, h, w),
    the predicted depth of each cell as a class, and `depth.bins` (B, h, w), the true one; detection uses neither.

    Args:
        backbone: images to six maps, strides 1 to 32.
        neck: the last four of them to as many, coarsest first.
        classes: their names.
        mean_sizes: by class name, height, width and length in metres.
        input: `rgb` reads the image; `depth` the dense depth map.
        depth_norm: unit of a depth map's input: `metres_over_80`, or `legacy`, 256 times less, which published weights
            of depth networks were trained with.
        head_channels: width of the prediction layers.
        candidates: peaks per image that are looked at in testing.
        score_threshold: least height of a peak.
        exact_affine: see `ImageGeometry.from_batch`; false for published weights.
        htl: how the losses are weighed; None: all count in full.
        depth_branch: beside the heads, for distillation (MonoMMKD).

    Raises:
        ValueError: a class without a mean size.
    """

    loss_taps = ("heads.dense", "heads.roi", "targets")
    predict_taps = ("heads.candidates",)
    pretrained_parts = ("backbone",)

    def __init__(
        self,
        backbone: Mapping[str, Any],
        neck: Mapping[str, Any],
        classes: Sequence[str],
        mean_sizes: Mapping[str, Sequence[float]],
        input: Literal["rgb", "depth"] = "rgb",
        depth_norm: Literal["metres_over_80", "legacy"] = "metres_over_80",
        head_channels: int = 256,
        candidates: int = 50,
        score_threshold: float = 0.2,
        exact_affine: bool = True,
        htl: TaskScheduleBlock | None = None,
        depth_branch: DepthBranchBlock | None = None,
    ) -> None:
        super().__init__()
        self.input, self.depth_norm = input, depth_norm
        self.candidates, self.score_threshold, self.exact_affine = candidates, score_threshold, exact_affine
        self._schedule = None if htl is None else TaskSchedule(htl.epochs, htl.window)
        self.mean_size = nn.Parameter(_size_table(classes, mean_sizes), requires_grad=False)
        self.backbone = MODELS.build(backbone, "backbone")
        self.feat_up = MODELS.build(neck, "neck")
        channels = self.feat_up.out_channels[-1]
        layers = dense_layers(channels, head_channels, len(classes))
        layers |= region_layers(channels + EXTRA_CHANNELS + len(classes), head_channels)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.add_stage("crops", ImageCrops(), step=ImageCrops, tap=False)
        if input == "rgb":
            self.add_stage("backbone", self._backbone, dense=True, reads=("images",))
        else:
            self.add_stage("backbone", self._backbone, ("crops",), dense=True, reads=("depths",))
        self.add_stage("neck", self._neck, ("backbone",), dense=True)
        self.add_stage("heads.dense", self._dense, ("neck",), dense=True)
        self.add_stage("targets", self._targets, ("neck",))
        self.add_stage("heads.roi", self._object_regions, ("neck", "heads.dense", "targets"))
        used = ("neck", "heads.dense") if exact_affine else ("neck", "heads.dense", "crops")
        geometry = ("calibration.image_aug", "calibration.intrinsics")
        self.add_stage("heads.candidates", self._candidate_regions, used, reads=geometry)
        if depth_branch is not None:
            self.depth_branch = DepthBranch(self.feat_up.out_channels[-3:], depth_branch.width, depth_branch.bins)
            self.add_stage("depth.logits", self._depth_logits, ("neck",))
            self.add_stage("depth.bins", self._depth_bins, ("neck",))

    @property
    def inputs(self) -> tuple[str, ...]:
        """Dense depth maps are made of LiDAR points."""
        return ("lidar",) if self.input == "depth" else ("camera",)

    def start_epoch(self, epoch: int) -> None:
        """Set the weights of the losses, see `htl`."""
        if self._schedule:
            self._schedule.start_epoch(epoch)

    def training_state(self) -> dict[str, Any]:
        return {"htl": self._schedule.state()} if self._schedule else {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        if self._schedule and "htl" in state:
            self._schedule.load_state(state["htl"])

    # -- stages -----------------------------------------------------------------------------------------------------

    def _backbone(self, batch: Batch, crops: Tensor | None = None) -> list[Tensor]:
        if self.input == "rgb":
            return self.backbone(channels_last(batch.require("images", "MonoDetector")[:, 0]))
        depth = batch.require("depths", "MonoDetector with input: depth")
        assert crops is not None  # the stage of `input: depth` is given them
        scaled = depth * crops[:, 2, None, None, None].to(depth) / _DEPTH_UNITS[self.depth_norm]
        return self.backbone(channels_last(scaled.expand(-1, 3, -1, -1)))

    def _neck(self, batch: Batch, levels: list[Tensor]) -> list[Tensor]:
        return self.feat_up(levels[-4:])

    def _dense(self, batch: Batch, maps: list[Tensor]) -> dict[str, Tensor]:
        return {name: getattr(self, name)(maps[-1]) for name in DENSE}

    def _targets(self, batch: Batch, maps: list[Tensor]) -> MonoTargets:
        size = _size(maps[-1])
        objects = batch.require("objects", "MonoDetector (for training)")
        return encode_objects(objects, ImageGeometry.from_batch(batch, _STRIDE, size), size, self.mean_size)

    def _depth_logits(self, batch: Batch, maps: list[Tensor]) -> Tensor:
        return self.depth_branch(maps[-3:])

    def _depth_bins(self, batch: Batch, maps: list[Tensor]) -> Tensor:
        depths = batch.require("depths", "the depth branch (for training)")[:, 0]
        return bin_map(depths, _crop_scale(batch, depths), _size(maps[-1]), self.depth_branch.bins)

    def _object_regions(
        self, batch: Batch, maps: list[Tensor], dense: Mapping[str, Tensor], targets: MonoTargets
    ) -> dict[str, Tensor]:
        chosen = targets[targets.regressed]
        geometry = self._geometry(batch, maps, None if self.exact_affine else ImageCrops()(batch))
        return self._regions(geometry, maps[-1], dense, chosen.image, chosen.labels, chosen.cells)

    def _candidate_regions(
        self, batch: Batch, maps: list[Tensor], dense: Mapping[str, Tensor], crops: Tensor | None = None
    ) -> dict[str, Tensor]:
        image, labels, cells, scores = find_peaks(dense["heatmap"], self.candidates)
        geometry = self._geometry(batch, maps, crops)
        return self._regions(geometry, maps[-1], dense, image, labels, cells) | {"scores": scores}

    def _geometry(self, batch: Batch, maps: list[Tensor], crops: Tensor | None) -> ImageGeometry:
        return ImageGeometry.from_batch(batch, _STRIDE, _size(maps[-1]), crops)

    def _regions(
        self,
        geometry: ImageGeometry,
        features: Tensor,
        dense: Mapping[str, Tensor],
        image: Tensor,
        labels: Tensor,
        cells: Tensor,
    ) -> dict[str, Tensor]:
        boxes = predict_boxes(dense, image, cells)
        regions = region_features(features, boxes, image, labels, len(self.mean_size), geometry)
        zoom = _STRIDE / geometry.scale[image, 1]
        layers = {name: getattr(self, name) for name in REGION}
        place = {"image": image, "labels": labels, "cells": cells, "boxes": boxes}
        return place | predict_regions(layers, regions, zoom)

    # -- the protocol -----------------------------------------------------------------------------------------------

    def of_labelled(self, features: Mapping[str, Any], batch: Batch) -> Mapping[str, Any]:
        # Objects and their regions belong to samples with labels alone; maps have an entry for every sample.
        maps = super().of_labelled({k: v for k, v in features.items() if k not in ("targets", "heads.roi")}, batch)
        return {**features, **maps}

    def losses(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`loss/object/` and the names of `heads.mono.losses.TASKS`.

        With `htl` these are weighted; `stats/object/` then holds the losses before, and `stats/htl/` the weights.

        Raises:
            ValueError: the batch holds no objects or no depth maps.
        """
        dense, regions, targets = (features[tap] for tap in self.loss_taps)
        heat = heat_maps(targets, tuple(dense["heatmap"].shape))
        chosen = targets[targets.regressed]
        depths = batch.require("depths", "the depth loss")[:, 0]
        visible, belongs = visible_depth(depths, chosen, _size(heat))
        terms = detection_losses(dense, regions, heat, chosen, visible, belongs)
        return {f"loss/object/{name}": value for name, value in terms.items()} | self._weighted(terms)

    def _weighted(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries that the schedule changes or adds."""
        if self._schedule is None:
            return {}
        if self.training and torch.is_grad_enabled():
            self._schedule.add(terms)
        entries = {}
        for name, weight in self._schedule.weights.items():
            entries[f"loss/object/{name}"] = weight * terms[name]
            entries[f"stats/object/{name}"] = terms[name].detach()
            entries[f"stats/htl/{name}"] = torch.tensor(weight)
        return entries

    def predictions(self, features: Mapping[str, Any], batch: Batch) -> list[Detections3D]:
        """Detections of each sample in the level camera frame, with 2-D boxes and observation angles."""
        return self.decoder_step(batch)(features["heads.candidates"], batch)

    def decoder_step(self, batch: Batch) -> MonoDecoder:
        """See `Detector.decoder_step`."""
        seen = batch.require("images" if self.input == "rgb" else "depths", "MonoDetector")
        map_size = [side // _STRIDE for side in seen.shape[-2:]]
        return MonoDecoder(self.mean_size.tolist(), self.score_threshold, self.exact_affine, _STRIDE, map_size)


def _size(maps: Tensor) -> tuple[int, int]:
    height, width = maps.shape[-2:]
    return height, width


def _crop_scale(batch: Batch, like: Tensor) -> Tensor:
    """(B,) size of the crop that the network sees over the size of the image."""
    return like.new_tensor([meta["crop_scale"] for meta in batch.metas])


def _size_table(classes: Sequence[str], mean_sizes: Mapping[str, Sequence[float]]) -> Tensor:
    for name in classes:
        if len(mean_sizes.get(name) or ()) != 3:
            raise ValueError(f"model.mean_sizes needs height, width and length of {name!r}, got {mean_sizes.get(name)}")
    return torch.tensor([list(mean_sizes[name]) for name in classes], dtype=torch.float32)
