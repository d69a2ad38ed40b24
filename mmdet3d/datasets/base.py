"""What every data set of frames shares: pipeline, random streams, the replacement of empty samples."""

from __future__ import annotations

import dataclasses
import logging
import pickle
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdet3d.datasets.cache import open_cache
from mmdet3d.datasets.frames import Frames
from mmdet3d.datasets.records import Context, FrameRecord
from mmdet3d.datasets.scene import Scene
from mmdet3d.datasets.tally import Tally
from mmdet3d.datasets.transforms.augment import transform_lidar_frame
from mmdet3d.datasets.transforms.compose import Compose
from mmdet3d.datasets.transforms.images import read_image
from mmdet3d.datasets.views import Views
from mmdet3d.structures import Boxes3D, Detections3D, Sample

__all__ = ["FrameDataset", "PackedRecords"]

# x ahead, y left to x right, y ahead.
_TO_PICTURE = torch.tensor([[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
_MAX_REPLACEMENTS, _TRIES_PER_FRAME = 1000, 50
_SEES: Mapping[str, Callable[[FrameRecord], bool]] = {
    "camera": lambda record: bool(record.cameras),
    "lidar": lambda record: bool(record.lidar.path),
    "radar": lambda record: any(record.radars.values()),
}


class PackedRecords:
    """Frame records in one buffer.

    Loader workers share the buffer with the main process; a list of objects would be copied into each of them, because
    reading an object writes its reference count.
    """

    def __init__(self, records: Sequence[FrameRecord]) -> None:
        packed = [pickle.dumps(r, protocol=5) for r in records]
        self._ends = np.cumsum([len(p) for p in packed], dtype=np.int64)
        self._buffer = np.frombuffer(b"".join(packed), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> FrameRecord:
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        start = self._ends[index - 1] if index else 0
        return pickle.loads(self._buffer[start : self._ends[index]].data)


class FrameDataset(Frames):
    """Frames through a pipeline.

    While training, a sample that a transform drops, or that has no box of a wanted class after the pipeline, gives way
    to another; in test mode every sample is returned.

    Args:
        records: the frames, with the annotations that count.
        root: dataset root.
        pipeline: transform configs.
        classes: label -> name.
        test_mode: whether this is a validation or test set.
        filter_empty_gt: replace samples without boxes while training.
        seed: of all random streams.
        interval: every n-th frame is a sample; the others only serve as history.
        incomplete: tokens of frames that lack a file; they are no samples either.
        cache, cache_limit: what keeps the files that were read, see `open_cache`.
        views: fixed augmentations of each sample, see `Views`; None augments anew in every epoch.
        content: plain values that the records depend on, for the samples' names (`Sample.view`).

    Attributes:
        x_ahead: the LiDAR frame of the records is x ahead, y left, instead of x right, y ahead.
        knows_velocity: whether objects are labelled with velocities.

    Raises:
        ValueError: see `Views`.
    """

    x_ahead = False
    knows_velocity = True

    def __init__(
        self,
        records: Sequence[FrameRecord],
        root: str | Path,
        pipeline: Sequence[Mapping[str, Any]],
        classes: Sequence[str],
        test_mode: bool = False,
        filter_empty_gt: bool = True,
        seed: int = 0,
        interval: int = 1,
        incomplete: Collection[str] = (),
        cache: str = "none",
        cache_limit: float = 8,
        views: int | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.classes = tuple(classes)
        self.test_mode = test_mode
        self.filter_empty_gt = filter_empty_gt
        self.epoch = 0
        self._incomplete = frozenset(incomplete)
        self._samples = [k for k in range(0, len(records), interval) if records[k].token not in incomplete]
        self.tokens = [records[k].token for k in self._samples]
        label = {name: k for k, name in enumerate(self.classes)}
        self.classes_present = [{label[n] for n in _names(records[k]) if n in label} for k in self._samples]
        self.tally = self._count(records[k] for k in self._samples)
        self._records = PackedRecords(records)
        self._place = {r.token: k for k, r in enumerate(records)}
        self._pipeline = Compose(pipeline)
        self._read = open_cache(cache, self.root, cache_limit)
        depends = [content, pipeline, self.classes, test_mode, filter_empty_gt, interval, sorted(incomplete)]
        self._views = Views(views, seed, {"depends": depends}, self._pipeline.transforms)
        self.seed = self._views.seed

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classes

    @property
    def views(self) -> int | None:
        """Fixed augmentations of each sample."""
        return self._views.count

    def set_epoch(self, epoch: int) -> None:
        """`epoch` (0-based) of the samples that are asked for next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.tokens)

    def at(self, place: int) -> Sample:
        return self.draw(place, place)

    def check(self, inputs: Collection[str], scored: bool = False) -> None:
        """Find what no frame has before anything is trained; say which annotated objects are not learnt.

        Args:
            inputs: sensors that the model reads; of others than camera, lidar and radar frames know nothing.
            scored: detections will be scored.

        Raises:
            ValueError: no frame has anything of a sensor, or there is no object to learn or to score.
        """
        for sensor in inputs:
            if sensor in _SEES and not any(_SEES[sensor](self.frame(k)) for k in range(len(self))):
                raise ValueError(
                    f"no frame in {self.root} has a file of a {sensor}, which the model (or the teacher that it learns "
                    f"from) reads; take one without {sensor}, or complete the data set and its info files"
                )
        learns = not self.test_mode and self.filter_empty_gt and self.tally.frames > 0
        if (learns or scored) and not self.tally.counting:
            raise ValueError(self.nothing(to="score" if scored else "learn"))
        if learns:
            log = logging.getLogger("mmdet3d")
            log.info("learnt: %s", self.tally)
            boxes = (record.boxes for record in map(self.frame, range(len(self))))
            if self.knows_velocity and not any(b is not None and np.isfinite(b[:, 7:]).any() for b in boxes):
                log.warning("no object in %s has a velocity; all are learnt as standing still", self.root)

    def nothing(self, to: str = "learn") -> str:
        """Why no object counts, in a sentence."""
        if not self.tally.frames:
            return f"there is no object to {to}: no frame in {self.root} is annotated"
        why = f"there is no object of {', '.join(self.classes)} to {to} in {self.root}: {self.tally}"
        if self.tally.left_out and all("points" in reason for reason in self.tally.left_out):
            why += (
                "; if nobody counted the points (num_lidar_pts, num_radar_pts), count those in each box, write the "
                "numbers into sample_annotation.json and create the info files anew"
            )
        return why

    def annotations(self, indices: Iterable[int]) -> Tally:
        """Which annotated objects of these samples count."""
        return self._count(self.frame(k) for k in indices)

    def _count(self, records: Iterable[FrameRecord]) -> Tally:
        tally = Tally()
        for record in records:
            if record.names is not None:
                tally.add(record.names.tolist(), self.classes, record.left_out)
        return tally

    def frame(self, index: int) -> FrameRecord:
        """What is known about sample `index` before anything is loaded."""
        return self._records[self._samples[index]]

    def draw(self, index: int, place: int) -> Sample:
        """Sample `index`, augmented from random stream (seed, epoch, `place`), or (epoch % views, `place`).

        Raises:
            ValueError: there are none but empty samples, or a transform drops a sample in test mode.
        """
        stream = self._views.stream(self.epoch, place)
        if not self.test_mode and self.filter_empty_gt and self.tally.frames and not self.tally.counting:
            raise ValueError(self.nothing())
        tries = min(_MAX_REPLACEMENTS, _TRIES_PER_FRAME * len(self))
        for _ in range(tries):
            stream.begin()
            sample = self._load(index, stream.rng)
            if sample is not None and (self.test_mode or not self._is_empty(sample)):
                sample.view = stream.name(sample.token)
                return sample
            if self.test_mode:
                raise ValueError(f"a transform drops sample {self.tokens[index]}, but in test mode every sample counts")
            index = int(stream.rng.randint(len(self)))
        raise ValueError(
            f"{tries} samples in a row have no object of {', '.join(self.classes)} after the pipeline, although there "
            f"are {self.tally.counting.total()} in {self.tally.frames} frames; check the ranges of the filters"
        )

    def ground_truth(self, index: int) -> Detections3D:
        """Annotated boxes of the known classes as detections of score 1; velocity 0 where unknown.

        Raises:
            ValueError: the frame has no annotation.
        """
        record = self.frame(index)
        if record.boxes is None or record.names is None:
            raise ValueError(f"sample {record.token} is not annotated")
        known = np.isin(record.names, self.classes)
        labels = [self.classes.index(n) for n in record.names[known]]
        boxes = torch.from_numpy(np.nan_to_num(record.boxes[known]))
        return Detections3D(Boxes3D(boxes), torch.ones(len(boxes)), torch.tensor(labels, dtype=torch.int64))

    def scene(self, sample: Sample) -> Scene:
        """For pictures: the raw images, and the rest in the (augmented) frame of the sample, turned to x right."""
        masks = sample.masks  # stay on their raster, which `from_detections` turns
        if self.x_ahead:
            sample = transform_lidar_frame(dataclasses.replace(sample, history=None, masks=None), _TO_PICTURE)
        identity = torch.eye(4).expand_as(sample.calibration.image_aug)
        return Scene(
            calibration=dataclasses.replace(sample.calibration, image_aug=identity),
            images=[read_image(self.root / path) for path in sample.meta["image_paths"]],
            names=sample.meta["cameras"],
            boxes=sample.boxes,
            labels=sample.labels,
            clouds=sample.clouds,
            from_detections=_TO_PICTURE if self.x_ahead else torch.eye(4),
            masks=masks,
        )

    def scenes(self) -> list[list[int]]:
        """Samples of every scene in the order of time."""
        found: dict[str, list[tuple[int, int]]] = {}
        for index in range(len(self)):
            frame = self.frame(index)
            found.setdefault(frame.scene_token, []).append((frame.timestamp, index))
        return [[index for _, index in sorted(frames)] for frames in found.values()]

    def _load(self, index: int, rng: np.random.RandomState) -> Sample | None:
        record = self.frame(index)
        context = Context(
            record,
            self.root,
            rng,
            self.epoch,
            training=not self.test_mode,
            classes=self.classes,
            find=self._find,
            incomplete=self._incomplete,
            read=self._read,
        )
        return self._pipeline.load(context)

    def _find(self, token: str) -> FrameRecord | None:
        place = self._place.get(token)
        return None if place is None else self._records[place]

    def _is_empty(self, sample: Sample) -> bool:
        return self.filter_empty_gt and sample.labels is not None and not bool((sample.labels >= 0).any())


def _names(record: FrameRecord) -> Iterable[str]:
    return () if record.names is None else record.names


def with_annotations(record: FrameRecord, mask: np.ndarray, why: str) -> FrameRecord:
    """The record with the annotations in `mask` (N,) bool only; `why` the others do not count."""
    if record.boxes is None or record.names is None or mask.all():
        return record
    fields = ("boxes", "names", "num_lidar_pts", "num_radar_pts")
    values = {f: getattr(record, f) for f in fields}
    dropped = Counter(f"{name} {why}" for name in record.names[~mask].tolist())
    kept = {f: v[mask] for f, v in values.items() if v is not None}
    return dataclasses.replace(record, **kept, left_out={**record.left_out, **dropped})


def unannotated(record: FrameRecord) -> FrameRecord:
    """The record as if nobody had labelled the frame."""
    return dataclasses.replace(record, boxes=None, names=None, num_lidar_pts=None, num_radar_pts=None, left_out={})
