"""Detection in a bird's-eye view that any set of sensors shares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.detectors.config import CameraBlock, DecoderBlock, Encoders, PointSensorBlock
from mmdet3d.models.detectors.grids import check_grids, check_image_size
from mmdet3d.models.encoders import build_voxelizer, voxelize_batch
from mmdet3d.models.layers import channels_last
from mmdet3d.models.steps import VOXELS, PointVoxels
from mmdet3d.models.vtransforms.depth_map import DrawnPoints
from mmdet3d.ops.bev_pool import PoolPlan
from mmdet3d.registry import MODELS
from mmdet3d.shell import number_of
from mmdet3d.structures import Batch, BEVGrid, Detections3D, sensor_of

__all__ = ["BEVFusion", "build_camera"]

_LONGEST_HISTORY = 100  # frames; a scene of nuScenes has 40 key frames

DETECTION = "object"  # the head whose answers are detections


@MODELS.register
class BEVFusion(Detector):
    """Encodes every sensor into a BEV, fuses, decodes and predicts (BEVFusion).

    Its heads are tasks (`models.heads.base.Head`), any number by any names; what they have in common ends with the
    decoder. The head `object` detects, and what it finds is what `predict` returns; `predict_tasks` asks all of them.
    `forward` is not defined: use `loss`, `predict`, or `extract` with the taps listed in docs/architecture.md.

    Args:
        encoders: by sensor; one that is null or missing is not part of the model.
        fuser: part; null if there is one sensor.
        decoder: between the fused BEV and the heads.
        heads: what is predicted, a part by the name of each task; one that is null is not part of the model.
        history: how many earlier frames the camera encoder lifts as well, which `LoadHistoryImages` loads (BEVDet4D).
            Of the camera the fuser then gets the BEVs of all times, which lie in the key frame, the key frame's first:
            `in_channels` begins with (1 + `history`) times the channels of one. Earlier frames get no gradient.

    Attributes:
        grid: the BEV raster of the heads.
        sensors: names of the model's encoders, in the order in which the fuser gets them.
        fused: what the fuser gets, as names below `encoders`.

    Raises:
        ValueError: an unknown key, no sensor, no head, several sensors without a fuser, parts on different rasters, or
            a history without a camera or for a fuser of other channels.
    """

    def __init__(
        self,
        encoders: Encoders,
        decoder: DecoderBlock,
        heads: Mapping[str, Any],
        fuser: Mapping[str, Any] | None = None,
        history: int = 0,
    ) -> None:
        super().__init__()
        self.sensors = tuple(encoders.by_sensor)
        self.history = history
        self._check_fuser(fuser)
        self._reads = {name: block.reads for name, block in encoders.by_sensor.items()}
        self._reduce: dict[str, bool] = {}
        self.encoders = self._build_encoders(encoders)
        self._check_history(fuser)
        self.fuser = None if fuser is None else MODELS.build(fuser, "fuser")
        self.decoder = nn.ModuleDict(
            {
                "backbone": MODELS.build(decoder.backbone, "decoder.backbone"),
                "neck": MODELS.build(decoder.neck, "decoder.neck"),
            }
        )
        self.heads = _build_heads(heads)
        self.loss_taps = tuple(f"heads.{name}" for name in self.heads)
        self.predict_taps = (f"heads.{DETECTION}",) if DETECTION in self.heads else ()
        rasters = {name: head.grid for name, head in self.heads.items()}
        self.grid: BEVGrid = next(iter(rasters.values()))
        check_grids({name: self._sensor_grid(name) for name in self.sensors}, self.decoder, rasters)
        self._declare_stages()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The sensors that the encoders read; what a model simulates is none."""
        fields = [field for field in self._reads.values() if field is not None]
        return tuple(dict.fromkeys("camera" if field == "images" else sensor_of(field).name for field in fields))

    @property
    def fused(self) -> tuple[str, ...]:
        earlier = {"camera": ("camera", "camera.history")} if self.history else {}
        return tuple(part for name in self.sensors for part in earlier.get(name, (name,)))

    @property
    def not_exportable(self) -> str:
        """Why an exported network cannot do what this one does; empty if it can."""
        drawn = self.history and self.encoders["camera"]["vtransform"].drawing is not None
        return "points are drawn into the images of earlier frames inside of it" if drawn else ""

    @property
    def pretrained_parts(self) -> tuple[str, ...]:
        return ("encoders.camera.backbone",) if "camera" in self.encoders else ()

    @property
    def optional_parts(self) -> tuple[str, ...]:
        """Encoders and fuser, so that a detector of one sensor starts one of several (BEVFusion's second stage)."""
        return (*(f"encoders.{name}" for name in self.encoders), *(() if self.fuser is None else ("fuser",)))

    def _build_encoders(self, encoders: Encoders) -> nn.ModuleDict:
        modules = nn.ModuleDict()
        for name in self.sensors:
            block, key = encoders.by_sensor[name], f"encoders.{name}"
            if isinstance(block, CameraBlock):
                modules[name] = build_camera(block, key)
            else:
                modules[name] = _build_point_sensor(block, key)
                self._reduce[name] = block.voxelize_reduce
        return modules

    def _check_fuser(self, fuser: Mapping[str, Any] | None) -> None:
        sensors = ", ".join(self.sensors)
        if not sensors:
            raise ValueError("model.encoders names no sensor; give at least one, such as camera, lidar or radar")
        if fuser is None:
            if len(self.sensors) > 1:
                raise ValueError(f"model.fuser is null, but there are {len(self.sensors)} sensors to fuse: {sensors}")
        elif len(fuser.get("in_channels", self.sensors)) != len(self.sensors):
            raise ValueError(
                f"model.fuser.in_channels names {len(fuser['in_channels'])} sensors, "
                f"but model.encoders has {len(self.sensors)}: {sensors}"
            )

    def _check_history(self, fuser: Mapping[str, Any] | None) -> None:
        if self.history < 0:
            raise ValueError(f"model.history must not be negative, got {self.history}")
        if self.history > _LONGEST_HISTORY:
            raise ValueError(
                f"model.history must be at most {_LONGEST_HISTORY} earlier frames, each of which goes through the "
                f"camera encoder, got {self.history}"
            )
        if self.history and "camera" not in self.sensors:
            raise ValueError(f"model.history is {self.history}, but there is no camera to look back with; set it to 0")
        if self.history and fuser is not None:
            one = self.encoders["camera"]["vtransform"].bev_channels
            wanted, found = (1 + self.history) * one, fuser["in_channels"][0]
            if found != wanted:
                raise ValueError(
                    f"model.fuser.in_channels begins with {found}, but 1 + history = {1 + self.history} frames of "
                    f"{one} channels make {wanted}"
                )

    # -- stages -----------------------------------------------------------------------------------------------------

    def _declare_stages(self) -> None:
        self._declare_encoders()
        outputs = ("fuser", *(f"fuser.{name}" for name in self.sensors))
        self.add_stage(outputs, self._fuse, tuple(f"encoders.{name}" for name in self.fused), dense=True)
        self.add_stage("decoder.backbone", self._decode_backbone, ("fuser",), dense=True)
        self.add_stage("decoder", self._decode_neck, ("decoder.backbone",), dense=True)
        for name in self.heads:
            self.add_stage(f"heads.{name}", partial(self._head, name), ("decoder",), dense=True)

    def _declare_encoders(self) -> None:
        for name in self.sensors:
            if name == "camera":
                self._declare_camera()
            else:
                self._declare_point_sensor(name)

    def _declare_camera(self) -> None:
        camera = "encoders.camera"
        self.add_stage(f"{camera}.backbone", self._image_backbone, dense=True, reads=("images",))
        self.add_stage(f"{camera}.neck", self._image_neck, (f"{camera}.backbone",), dense=True)
        self._declare_view_transform("camera", self._view_transform)
        if self.encoders["camera"]["vtransform"].supervises_depth:
            self.loss_taps = (*self.loss_taps, f"{camera}.depth")
        if self.history:
            vtransform = self.encoders["camera"]["vtransform"]
            names = ("images", *vtransform.geometry_reads)
            earlier = [f"history.{t}.{name}" for t in range(self.history) for name in names]
            self.add_stage(f"{camera}.history", self._encode_history, reads=(*earlier, *vtransform.lift_reads))

    def _declare_view_transform(self, name: str, run: Callable[..., Any]) -> None:
        """That of an encoder; `run(batch, features, plan)`, or with the points drawn into the images after these."""
        tap, vtransform = f"encoders.{name}", self.encoders[name]["vtransform"]
        inputs = ["encoders.camera.neck", f"{tap}.plan"]
        self.add_stage(inputs[1], partial(self._plan, name), reads=vtransform.geometry_reads, tap=False)
        if vtransform.drawing is not None:
            inputs.append(f"{tap}.drawn")
            self.add_stage(inputs[2], partial(self._draw, name), step=partial(self._drawing, name), tap=False)
        self.add_stage((tap, f"{tap}.depth"), run, tuple(inputs), reads=vtransform.lift_reads)

    def _declare_point_sensor(self, name: str) -> None:
        tap = f"encoders.{name}"
        self.add_stage(f"{tap}.voxels", partial(self._voxels, name), step=partial(self._voxel_step, name), tap=False)
        activated = self.encoders[name]["backbone"].has_activation
        outputs = (tap, f"{tap}.activation") if activated else tap
        self.add_stage(outputs, partial(self._encode_points, name), (f"{tap}.voxels",))

    def _image_backbone(self, batch: Batch) -> list[Tensor]:
        images = batch.require("images", "the camera encoder")
        return list(self.encoders["camera"]["backbone"](channels_last(images.flatten(0, 1))))

    def _image_neck(self, batch: Batch, levels: list[Tensor]) -> Tensor:
        return self.encoders["camera"]["neck"](levels).unflatten(0, (len(batch), -1))

    def _plan(self, name: str, batch: Batch) -> PoolPlan:
        return self.encoders[name]["vtransform"].plan(batch.calibration)

    def _draw(self, name: str, batch: Batch) -> Tensor:
        return self.encoders[name]["vtransform"].draw(batch)

    def _drawing(self, name: str) -> DrawnPoints:
        return self.encoders[name]["vtransform"].drawing

    def _view_transform(
        self, batch: Batch, features: Tensor, plan: PoolPlan, drawn: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        bev, depth = self.encoders["camera"]["vtransform"](features, batch, plan=plan, drawn=drawn)
        return channels_last(bev), depth

    @torch.no_grad()
    def _encode_history(self, batch: Batch) -> Tensor:
        frames = batch.require("history", type(self).__name__)
        if len(frames) != self.history:
            raise ValueError(
                f"model.history is {self.history}, but the batch holds {number_of(len(frames), 'earlier frame')}; "
                "make it the number of key_offsets of LoadHistoryImages"
            )
        return torch.cat([self._encode_frame(frame, batch) for frame in frames], dim=1)

    def _encode_frame(self, frame: Batch, key: Batch) -> Tensor:
        """The BEV of an earlier frame in the key frame; points that are drawn into its images are the key frame's."""
        features = self._image_neck(frame, self._image_backbone(frame))
        vtransform = self.encoders["camera"]["vtransform"]
        drawn = vtransform.draw(replace(key, calibration=frame.calibration))
        return vtransform(features, key, frame.calibration, drawn=drawn)[0]

    def _voxels(self, name: str, batch: Batch) -> dict[str, Tensor]:
        points = batch.require(self._reads[name], f"the {name} encoder")
        voxels = voxelize_batch(self.encoders[name]["voxelize"], points, self._reduce[name])
        return dict(zip(VOXELS, voxels, strict=False))

    def _voxel_step(self, name: str) -> PointVoxels:
        return PointVoxels(self._reads[name], self.encoders[name]["voxelize"].block, self._reduce[name])

    def _encode_points(self, name: str, batch: Batch, voxels: Mapping[str, Tensor]) -> Tensor | tuple[Tensor, Tensor]:
        found = self.encoders[name]["backbone"](*(voxels[part] for part in VOXELS), len(batch))
        return channels_last(found) if isinstance(found, Tensor) else (channels_last(found[0]), *found[1:])

    def _fuse(self, batch: Batch, *bevs: Tensor) -> tuple[Tensor, ...]:
        if self.history:  # the camera is the first of all sensors
            bevs = (channels_last(torch.cat(bevs[:2], dim=1)), *bevs[2:])
        if self.fuser is None:
            return bevs[0], bevs[0]
        fused, used = self.fuser(list(bevs))
        return fused, *used

    def _decode_backbone(self, batch: Batch, bev: Tensor) -> list[Tensor]:
        return self.decoder["backbone"](bev)

    def _decode_neck(self, batch: Batch, levels: list[Tensor]) -> Tensor:
        return self.decoder["neck"](levels)

    def _head(self, name: str, batch: Batch, bev: Tensor) -> Any:
        return self.heads[name](bev)

    # -- the protocol -----------------------------------------------------------------------------------------------

    def losses(self, features: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """`loss/NAME/...` of every head and, with supervised depth, `loss/depth`.

        Raises:
            ValueError: the batch lacks what a head learns from.
        """
        losses = {}
        for name, head in self.heads.items():
            for field in head.needs:
                batch.require(field, f"the loss of heads.{name}")
            terms = head.loss(features[f"heads.{name}"], batch)
            losses |= {_loss_name(name, term): value for term, value in terms.items()}
        if "encoders.camera.depth" in self.loss_taps:
            depth = features["encoders.camera.depth"]
            losses["loss/depth"] = self.encoders["camera"]["vtransform"].depth_loss(depth, batch)
        return losses

    def decoder_step(self, batch: Batch) -> Any:
        """See `Detector.decoder_step`."""
        return self.heads[DETECTION].box_decoder if DETECTION in self.heads else super().decoder_step(batch)

    def predictions(self, features: Mapping[str, Any], batch: Batch) -> list[Detections3D]:
        """Detections of each sample.

        Raises:
            ValueError: no head detects.
        """
        if DETECTION not in self.heads:
            raise ValueError(
                f"the detector has no head `{DETECTION}`, which alone says boxes; ask predict_tasks for what its heads "
                f"({', '.join(self.heads)}) say"
            )
        return self.heads[DETECTION].decode(features[f"heads.{DETECTION}"], batch)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.heads)

    def predict_tasks(self, batch: Batch, tasks: Collection[str] | None = None) -> dict[str, Sequence[Any]]:
        asked = {name: head for name, head in self.heads.items() if tasks is None or name in tasks}
        features = self.extract(batch, [f"heads.{name}" for name in asked])
        return {name: head.decode(features[f"heads.{name}"], batch) for name, head in asked.items()}

    def _sensor_grid(self, name: str) -> BEVGrid:
        encoder = self.encoders[name]
        if name == "camera":
            return encoder["vtransform"].grid
        return encoder["voxelize"].bev_grid(encoder["backbone"].output_shape)


def _loss_name(head: str, term: str) -> str:
    """A head marks what is only logged by `stats/`."""
    return f"stats/{head}/{term.removeprefix('stats/')}" if term.startswith("stats/") else f"loss/{head}/{term}"


def _build_heads(parts: Mapping[str, Any]) -> nn.ModuleDict:
    heads = {name: MODELS.build(part, f"heads.{name}") for name, part in parts.items() if part is not None}
    if not heads:
        raise ValueError("model.heads names no head; give at least one, such as object: {type: CenterHead, ...}")
    return nn.ModuleDict(heads)


def build_camera(block: CameraBlock, key: str) -> nn.ModuleDict:
    """Backbone, neck and view transform of the block `key` of a model."""
    modules = nn.ModuleDict(
        {
            "backbone": MODELS.build(block.backbone, f"{key}.backbone"),
            "neck": MODELS.build(block.neck, f"{key}.neck"),
        }
    )
    check_image_size(modules["neck"], block.vtransform, key)
    modules["vtransform"] = MODELS.build(block.vtransform, f"{key}.vtransform")
    return modules


def _build_point_sensor(block: PointSensorBlock, key: str) -> nn.ModuleDict:
    return nn.ModuleDict(
        {
            "voxelize": build_voxelizer(block.voxelize),
            "backbone": MODELS.build(block.backbone, f"{key}.backbone"),
        }
    )
