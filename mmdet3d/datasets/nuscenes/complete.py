"""Which frames of an incomplete data set can be used."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.datasets.records import FrameRecord

__all__ = ["incomplete_frames"]

_READERS = {"LoadMultiViewImageFromFiles", "LoadPointsFromFile", "LoadRadarPointsMultiSweeps"}
_NAMED = 3  # frames that a message names


def incomplete_frames(records: Sequence[FrameRecord], root: Path, pipeline: Sequence[Mapping[str, Any]]) -> set[str]:
    """Tokens of the frames that lack a camera that others have, or what `pipeline` reads: the key-frame scan, a radar.

    A pipeline that reads no sensor needs no file. Where no frame has a radar, none lacks it. One line of the log counts
    and names the frames.

    Raises:
        ValueError: no other frame is left.
    """
    steps = {step.get("type") for step in pipeline if isinstance(step, Mapping)}
    # Batches hold the geometry of all cameras, so their number must be the same whatever is read.
    channels = {c for r in records for c in r.cameras} if steps & _READERS else set()
    blind = {r.token for r in records if not channels <= r.cameras.keys()}
    reads_scan = "LoadPointsFromFile" in steps
    without_scan = {r.token for r in records if not (root / r.lidar.path).is_file()} if reads_scan else set()
    without_radar = {r.token for r in records if not any(r.radars.values())}
    if "LoadRadarPointsMultiSweeps" not in steps or len(without_radar) == len(records):
        without_radar = set()
    found = blind | without_scan | without_radar
    if not found:
        return found
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
    return found
