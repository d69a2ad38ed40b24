"""Which frames of an incomplete data set can be used."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.datasets.records import FrameRecord
from mmdet3d.structures import LIDAR, RADAR, point_sensors

__all__ = ["incomplete_frames"]

_NAMED = 3  # frames that a message names


def incomplete_frames(
    records: Sequence[FrameRecord],
    root: Path,
    pipeline: Sequence[Mapping[str, Any]],
    sensors: Collection[str] | None = None,
    test_mode: bool = False,
) -> tuple[set[str], set[str]]:
    """Which frames cannot be used, and which of the others have no scan.

    A frame cannot be used if it lacks a camera that others have, or the key-frame scan or radar that `pipeline` reads
    and that is needed: `sensors` are what the model reads, None for all; training also needs scans for depth labels.
    A pipeline that reads no sensor needs no file. Where no frame has a radar, none lacks it. One line of the log counts
    and names the frames.

    Returns:
        Their tokens.

    Raises:
        ValueError: no frame can be used.
    """
    steps = {step.get("type") for step in pipeline if isinstance(step, Mapping)}
    needed = {"camera", *(s.name for s in point_sensors())} if sensors is None else set(sensors)
    if "GTDepth" in steps and not test_mode:
        needed.add("lidar")
    # Batches hold the geometry of all cameras, so their number must be the same whatever is read.
    readers = {"LoadMultiViewImageFromFiles"}.union(*(s.loaders for s in point_sensors()))
    channels = {c for r in records for c in r.cameras} if steps & readers else set()
    blind = {r.token for r in records if not channels <= r.cameras.keys()}
    reads_scan = not steps.isdisjoint(LIDAR.loaders)
    scanless = {r.token for r in records if not (root / r.lidar.path).is_file()} if reads_scan else set()
    without_scan = scanless if "lidar" in needed else set()
    without_radar = {r.token for r in records if not any(r.radars.values())}
    if steps.isdisjoint(RADAR.loaders) or "radar" not in needed or len(without_radar) == len(records):
        without_radar = set()
    found = blind | without_scan | without_radar
    if not found:
        return found, scanless
    reasons = f"{len(blind)} without all {len(channels)} cameras, {len(without_scan)} without their LiDAR scan"
    reasons += f", {len(without_radar)} without radar" if without_radar else ""
    if len(found) == len(records):
        raise ValueError(
            f"no frame in {root} can be used: of {len(records)}, {reasons}; complete the data set, or make a split of "
            "scenes whose files are there"
        )
    names = [r.token for r in records if r.token in found]
    logging.getLogger("mmdet3d").warning(
        "%d of %d frames in %s are left out: %s (%s%s)",
        len(found),
        len(records),
        root,
        reasons,
        ", ".join(names[:_NAMED]),
        ", ..." if len(names) > _NAMED else "",
    )
    return found, scanless - found
