"""What travels from a dataset through a detector to the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from mmdet3d.structures.boxes import Boxes3D
from mmdet3d.structures.calibration import Calibration
from mmdet3d.structures.image_objects import ImageObjects
from mmdet3d.structures.masks import BEVMasks
from mmdet3d.structures.sensors import LIDAR, RADAR

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Batch", "Detections3D", "Sample"]

_MOVABLE = (Tensor, Boxes3D, BEVMasks, Calibration, ImageObjects)
_TRUTH = ("boxes", "labels", "masks", "objects")  # of a batch, of its samples with labels alone

_Points = TypeVar("_Points")


class _WithClouds(Generic[_Points]):
    """What holds points by sensor: `points` (LiDAR) and `radar` are short for entries of `clouds`.

    `clouds` itself is never changed, because copies by `dataclasses.replace` share it; `put` gives the holder another.
    """

    clouds: Mapping[str, _Points]

    def put(self, name: str, points: _Points | None) -> None:
        """Hold these points by that field of a `PointSensor`; None for none."""
        others = {field: cloud for field, cloud in self.clouds.items() if field != name}
        self.clouds = others if points is None else {**self.clouds, name: points}

    def held(self, name: str) -> Any:
        """The attribute, or the points, of that name; None where there is nothing."""
        return getattr(self, name, None) if name in _names(self) else self.clouds.get(name)

    @property
    def points(self) -> _Points | None:
        return self.clouds.get(LIDAR.field)

    @points.setter
    def points(self, value: _Points | None) -> None:
        self.put(LIDAR.field, value)

    @property
    def radar(self) -> _Points | None:
        return self.clouds.get(RADAR.field)

    @radar.setter
    def radar(self, value: _Points | None) -> None:
        self.put(RADAR.field, value)


@dataclass
class Sample(_WithClouds[Tensor]):
    """One key frame of a data set after its pipeline. A field that no transform loads stays None.

    Args:
        token: the sample's name in its data set.
        calibration: see `Calibration`.
        images: (N, 3, H, W) float, normalised RGB; within the pipeline, until `ImageNormalize`, N pictures.
        clouds: by the field of each `PointSensor` its points, (P, C) float, augmented LiDAR frame. `points` of a LiDAR:
            x, y, z, intensity, time lag in s. `radar`: x, y, z, rcs, vx, vy (compensated), time lag, one-hot states.
        boxes: ground truth, augmented LiDAR frame.
        labels: (M,) int64, index into the class list.
        depths: (N, H, W) float, metres, 0 where no LiDAR point falls.
        masks: ground truth of the map, augmented LiDAR frame.
        objects: ground truth of the image, for detectors that look through one camera.
        unlabelled: nobody annotated this frame, which is not the same as a frame without objects.
        history: T earlier frames, newest first, of the same cameras: images and calibration only. Their `camera2lidar`
            maps to the LiDAR frame of this sample, their `image_aug` and `lidar_aug` are this sample's.
        meta: anything small that a user may want to see (paths, timestamp, image size).
        view: names this very sample, augmentation included, among all that data sets give; None if it is augmented in a
            way that does not come back.
    """

    token: str
    calibration: Calibration
    images: Tensor | Sequence[Image] | None = None
    clouds: Mapping[str, Tensor] = field(default_factory=dict)
    boxes: Boxes3D | None = None
    labels: Tensor | None = None
    depths: Tensor | None = None
    masks: BEVMasks | None = None
    objects: ImageObjects | None = None
    unlabelled: bool = False
    history: list[Sample] | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    view: str | None = None

    @property
    def frames(self) -> list[Sample]:
        """The sample itself, then its history."""
        return [self, *(self.history or ())]

    def set_augmentation(self, **matrices: Tensor) -> None:
        """Replace `image_aug` or `lidar_aug` of all frames, which share them."""
        for frame in self.frames:
            frame.calibration = replace(frame.calibration, **matrices)


@dataclass
class Batch(_WithClouds[list[Tensor]]):
    """Samples side by side: dense fields are stacked, ragged ones are lists of B, `history` is a list of T batches.

    Samples without labels come last, and the ground truth (`boxes`, `labels`, `masks`, `objects`) is a list of the
    others alone, so that no loss can take "not annotated" for "no object".

    Args:
        unlabelled: how many samples have no labels.
    """

    tokens: list[str]
    calibration: Calibration
    images: Tensor | None = None
    clouds: Mapping[str, list[Tensor]] = field(default_factory=dict)
    boxes: list[Boxes3D] | None = None
    labels: list[Tensor] | None = None
    depths: Tensor | None = None
    masks: list[BEVMasks] | None = None
    objects: list[ImageObjects] | None = None
    unlabelled: int = 0
    history: list[Batch] | None = None
    metas: list[dict[str, Any]] = field(default_factory=list)
    views: list[str | None] = field(default_factory=list)

    @classmethod
    def collate(cls, samples: Sequence[Sample]) -> Batch:
        """Raises ValueError if a field is present in some samples only, or if cameras or histories differ in number."""
        samples = sorted(samples, key=lambda s: s.unlabelled)  # stable: the order is otherwise that of the sampler
        cameras = {s.token: len(s.calibration.intrinsics) for s in samples}
        if len(set(cameras.values())) > 1:
            counts = ", ".join(f"{token} has {n}" for token, n in cameras.items())
            raise ValueError(
                f"cannot batch: the samples have different numbers of cameras ({counts}); complete the data set, or "
                "set data.samples_per_gpu to 1"
            )

        def column(name: str, samples: Sequence[Sample] = samples) -> list[Any] | None:
            values = [s.held(name) for s in samples]
            present = [v is not None for v in values]
            if any(present) and not all(present):
                missing = samples[present.index(False)].token
                raise ValueError(f"cannot batch: sample {missing} has no {name}, others do")
            return values if values and all(present) else None

        def stacked(name: str) -> Tensor | None:
            values = column(name)
            return None if values is None else torch.stack(values)

        def past() -> list[Batch] | None:
            values = column("history")
            if values is None:
                return None
            if len({len(v) for v in values}) > 1:
                raise ValueError(
                    f"cannot batch: the histories have {[len(v) for v in values]} frames, not equally many"
                )
            return [cls.collate(frames) for frames in zip(*values, strict=True)]

        labelled = [s for s in samples if not s.unlabelled]
        return cls(
            tokens=[s.token for s in samples],
            calibration=Calibration.stack([s.calibration for s in samples]),
            images=stacked("images"),
            clouds={
                name: column(name) or []
                for name in dict.fromkeys(n for s in samples for n, v in s.clouds.items() if v is not None)
            },
            boxes=column("boxes", labelled),
            labels=column("labels", labelled),
            depths=stacked("depths"),
            masks=column("masks", labelled),
            objects=column("objects", labelled),
            unlabelled=len(samples) - len(labelled),
            history=past(),
            metas=[s.meta for s in samples],
            views=[s.view for s in samples],
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def labelled(self) -> Batch:
        """The samples with labels."""
        return self.first(len(self) - self.unlabelled) if self.unlabelled else self

    def first(self, count: int) -> Batch:
        """The first `count` samples."""
        return self._part(slice(0, count))

    def alone(self, index: int) -> Batch:
        """Sample `index` as a batch of its own; dense fields share their memory."""
        return self._part(slice(index, index + 1))

    def _part(self, chosen: slice) -> Batch:
        labelled = len(range(len(self) - self.unlabelled)[chosen])

        def pick(name: str, value: Any) -> Any:
            if name in _TRUTH and not labelled:
                return None
            return value[chosen] if isinstance(value, (Tensor, Calibration, list)) else value

        values = {f.name: pick(f.name, getattr(self, f.name)) for f in fields(self)}
        values["unlabelled"] = len(range(len(self))[chosen]) - labelled if self.unlabelled else 0
        values["clouds"] = {name: cloud[chosen] for name, cloud in self.clouds.items()}
        values["history"] = self.history and [past._part(chosen) for past in self.history]
        return Batch(**values)

    @property
    def device(self) -> torch.device:
        return self.calibration.lidar_aug.device

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch on another device."""

        movable = (*_MOVABLE, Batch)

        def move(value: Any) -> Any:
            if isinstance(value, movable):
                return value.to(device, non_blocking=non_blocking)
            if isinstance(value, list) and value and isinstance(value[0], movable):
                return [move(v) for v in value]
            return {k: move(v) for k, v in value.items()} if isinstance(value, Mapping) else value

        return Batch(**{f.name: move(getattr(self, f.name)) for f in fields(self)})

    def without(self, *names: str) -> Batch:
        """The same batch with the named fields removed (`batch.without("points")`), from its history too."""
        history = None if self.history is None else [past.without(*names) for past in self.history]
        clouds = {name: cloud for name, cloud in self.clouds.items() if name not in names}
        changes: dict[str, Any] = {"history": history, "clouds": clouds}
        changes |= dict.fromkeys(name for name in names if name in _names(self))
        return replace(self, **changes)

    def require(self, name: str, user: str) -> Any:
        """The field `name`, or a ValueError that says who needs it and that the pipeline does not load it."""
        value = self.held(name)
        if value is None:
            raise ValueError(
                f"{user} needs `{name}`, which this batch does not hold; add its loader to the config's pipeline"
            )
        return value


@dataclass
class Detections3D:
    """Detections of one sample.

    Args:
        boxes: LiDAR frame of the sample, augmentation not undone (evaluation pipelines do not augment). Detectors that
            look through one camera: its level frame, see `structures.camera_boxes`.
        scores: (N,) in [0, 1].
        labels: (N,) int64, index into the class list.
        boxes2d: (N, 4) x1, y1, x2, y2 in pixels of the raw image, from detectors that predict them.
        alphas: (N,) observation angles in radians, from detectors that predict them.
    """

    boxes: Boxes3D
    scores: Tensor
    labels: Tensor
    boxes2d: Tensor | None = None
    alphas: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Detections3D:
        return self._each(lambda value: value[index])

    def to(self, device: torch.device | str) -> Detections3D:
        return self._each(lambda value: value.to(device))

    def _each(self, function: Callable[[Any], Any]) -> Detections3D:
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        values: dict[str, Any] = {name: None if v is None else function(v) for name, v in given.items()}
        return Detections3D(**values)


def _names(value: Any) -> set[str]:
    return {f.name for f in fields(value)}
