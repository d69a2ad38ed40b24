"""Pasting objects of other frames into the LiDAR scan (ground-truth sampling of SECOND, Yan et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmdet3d.blocks import nearest
from mmdet3d.datasets.records import Context, Transform
from mmdet3d.datasets.transforms.lidar import read_points
from mmdet3d.datasets.transforms.loading import need
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Boxes3D, Sample

__all__ = ["ObjectPaste", "ObjectSampler", "ObjectSource", "footprints_collide"]


def footprints_collide(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Which rectangles overlap, by the separating axis theorem; touching is no overlap.

    Args:
        first, second: (N, 4, 2), (M, 4, 2) corners of rectangles, in order around the rectangle.

    Returns:
        (N, M) bool.
    """
    apart = np.zeros((len(first), len(second)), dtype=bool)
    apart |= _separated(first, second)
    apart |= _separated(second, first).T
    return ~apart


def _separated(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N, M) bool: an edge direction of the first rectangle separates the two."""
    axes = first[:, 1:3] - first[:, 0:2]
    own = np.einsum("nkd,ncd->nkc", axes, first)[:, None]
    other = np.einsum("nkd,mcd->nmkc", axes, second)
    gap = (own.max(-1) <= other.min(-1)) | (other.max(-1) <= own.min(-1))
    return gap.any(axis=-1)


@dataclass(frozen=True)
class ObjectFilter:
    """Which objects of a database may be drawn.

    Args:
        filter_by_min_points: the fewest LiDAR points by class.
        filter_by_difficulty: difficulties to leave out.
    """

    filter_by_min_points: Mapping[str, int] = field(default_factory=dict)
    filter_by_difficulty: Sequence[int] = ()


@dataclass(frozen=True)
class ObjectSource:
    """What an `ObjectSampler` draws, and from where.

    Args:
        info_path: the database's info file, relative to the dataset root.
        sample_groups: wanted number of objects per class.
        rate: share of the missing objects to draw.
        prepare: which objects count.
    """

    info_path: str
    sample_groups: Mapping[str, int]
    rate: float = 1.0
    prepare: ObjectFilter = field(default_factory=ObjectFilter)


class ObjectSampler:
    """Draws objects from a ground-truth database so that each class reaches its number per frame."""

    def __init__(self, source: ObjectSource) -> None:
        self.source = source
        self._database: dict[str, list[Any]] | None = None

    def draw(self, scene: Boxes3D, names: Sequence[str], context: Context) -> list[Any]:
        """Records of objects that overlap neither the scene's boxes nor each other.

        Args:
            scene: all boxes of the frame.
            names: their class names.
        """
        taken = scene.footprint().double().numpy()
        chosen = []
        for name, wanted in self.source.sample_groups.items():
            if name not in context.classes:
                raise ValueError(
                    f"db_sampler.sample_groups names {name!r}{nearest(name, context.classes)}, which is not in the "
                    f"data set's classes; remove it"
                )
            candidates = self._records(context.root).get(name, [])
            number = min(round(self.source.rate * (wanted - list(names).count(name))), len(candidates))
            for i in context.rng.permutation(len(candidates))[: max(number, 0)]:
                footprint = _boxes([candidates[i]]).footprint().double().numpy()
                if not footprints_collide(footprint, taken).any():
                    taken = np.concatenate([taken, footprint])
                    chosen.append(candidates[i])
        return chosen

    def _records(self, root: Path) -> dict[str, list[Any]]:
        # Read at the first draw: a run that does not paste needs no database.
        if self._database is None:
            from mmdet3d.datasets.nuscenes import read_database

            self._database = {
                name: [r for r in records if self._counts(r)]
                for name, records in read_database(root / self.source.info_path).items()
            }
        return self._database

    def _counts(self, record: Any) -> bool:
        wanted = self.source.prepare
        fewest = wanted.filter_by_min_points.get(record.name, 0)
        return record.num_points >= fewest and record.difficulty not in wanted.filter_by_difficulty


@TRANSFORMS.register
class ObjectPaste(Transform):
    """Adds objects of the database to points and boxes; scene points inside a pasted box are removed.

    Images and radar do not see pasted objects; `GTDepth` leaves them out.

    Args:
        db_sampler: what is pasted.
        stop_epoch: the first epoch without pasting; None never stops, -1 and 0 never paste.

    Raises:
        ValueError: while pasting: `sample_groups` names a class that the data set does not have, or the frame is not
            that of the database.
    """

    def __init__(self, db_sampler: ObjectSource, stop_epoch: int | None = None) -> None:
        self.sampler = ObjectSampler(db_sampler)
        self.stop_epoch = stop_epoch
        if stop_epoch is not None and stop_epoch > 0:
            self.epoch_setting = "stop_epoch: -1 (never paste) or null (never stop)"

    def __call__(self, sample: Sample, context: Context) -> Sample:
        if sample.unlabelled or (self.stop_epoch is not None and context.epoch >= self.stop_epoch):
            return sample  # among objects that nobody annotated there is no free place to be known
        if not np.array_equal(context.record.lidar.sensor2lidar, np.eye(4)):
            raise ValueError(
                "the objects of a database lie in the scanner's frame, those of this data set do not; set "
                "gt_paste_stop_epoch: -1, or frame: lidar in its data blocks"
            )
        points = need(sample, "points", self, "LoadPointsFromFile")
        boxes, labels = (need(sample, name, self, "LoadAnnotations3D") for name in ("boxes", "labels"))
        names = [context.classes[i] if i >= 0 else "" for i in labels.tolist()]
        records = self.sampler.draw(boxes, names, context)
        if not records:
            return sample
        pasted = _boxes(records)
        hidden = pasted.contains(points[:, :3]).any(dim=0)
        objects = [_object_points(record, context.root) for record in records]
        sample.points = torch.cat([*objects, points[~hidden]])
        sample.boxes = Boxes3D.cat([boxes, pasted])
        added = torch.tensor([context.classes.index(record.name) for record in records])
        sample.labels = torch.cat([labels, added])
        sample.meta["pasted_boxes"] = pasted
        return sample


def _boxes(records: Sequence[Any]) -> Boxes3D:
    tensor = torch.as_tensor(np.stack([record.box for record in records])).float()
    return Boxes3D(torch.nan_to_num(tensor))


def _object_points(record: Any, root: Path) -> torch.Tensor:
    points = read_points(root / record.path)
    points[:, :3] += np.asarray(record.origin, dtype=np.float32)
    return torch.from_numpy(points)
