"""What an info file holds, and what a model would miss in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np

from mmdet3d.blocks import nearest
from mmdet3d.datasets.nuscenes.source import Source
from mmdet3d.datasets.records import FrameRecord
from mmdet3d.datasets.tally import Tally

__all__ = ["report"]


def report(records: Sequence[FrameRecord], missing: Collection[str], source: Source) -> list[str]:
    """Lines on sensors and annotations: what is there in a word, what is unusual or lost in a sentence each.

    Args:
        missing: paths of absent files.
    """
    absent = set(missing)
    lines = list(_sensors("camera", source.reader.cameras, [r.cameras for r in records], source.name))
    lines += _sensors("radar", source.reader.radars, [r.radars for r in records], source.name)
    if without_scan := sum(r.lidar.path in absent for r in records):
        lines.append(f"{without_scan} of {len(records)} frames are without their LiDAR scan")
    annotated = [r for r in records if r.names is not None]
    return [*lines, *_objects(annotated, source)] if annotated else lines


def _sensors(sort: str, known: Sequence[str], frames: Sequence[Mapping[str, object]], name: str) -> Iterator[str]:
    channels = sorted({c for sensors in frames for c in sensors})
    if not channels:
        yield f"no frame has a {sort}: models that read one cannot be trained on this"
        return
    if others := [c for c in channels if c not in known]:
        yield f"{sort} channels of other names than {_of(name)}: {', '.join(others)} (used like the others)"
    if lacking := sum(len(sensors) < len(channels) for sensors in frames):
        yield f"{lacking} of {len(frames)} frames are without all {len(channels)} {sort} channels"


def _objects(annotated: Sequence[FrameRecord], source: Source) -> Iterator[str]:
    tally = Tally()
    for record in annotated:
        tally.add(_names(record), source.classes, record.left_out)
    yield str(tally)
    if not tally.annotated:
        return
    if not tally.counting:
        known = ", ".join(source.classes)
        yield f"no object is of a detection class ({known}), so there is nothing to train on or to score"
    names = {name for record in annotated for name in _names(record)}
    for name in sorted(names - {*source.classes, *source.categories}):
        number = tally.left_out[f"{name} of no class here"]
        yield (
            f"{number} objects are left out: their category {name!r} is none of {_of(source.name)}"
            f"{_guess(name.lower(), source)}"
        )
    counts = [n for r in annotated for n in (r.num_lidar_pts, r.num_radar_pts) if n is not None]
    if not any(n.any() for n in counts):
        yield (
            "num_lidar_pts and num_radar_pts are 0 in all annotations, so none counts in training and evaluation: "
            "count the points in each box, write the numbers into sample_annotation.json and create the info files anew"
        )
    if not any(r.boxes is not None and np.isfinite(r.boxes[:, 7:]).any() for r in annotated):
        yield "no object has a velocity, which needs prev and next of its annotations; all are learnt as standing still"


def _names(record: FrameRecord) -> list[str]:
    return [] if record.names is None else record.names.tolist()


def _of(name: str) -> str:
    return f"{name}'" if name.endswith("s") else f"{name}'s"


def _guess(name: str, source: Source) -> str:
    """The hint for an unknown category: the class of that name, the category that ends so, or a similar one."""
    whole = [known for known in (*source.classes, *source.categories) if f".{known}".endswith(f".{name}")]
    return nearest(whole[0], whole[:1]) if whole else nearest(name, [*source.categories, *source.classes])
