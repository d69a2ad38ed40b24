"""Which frames of an incomplete data set can be trained on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.datasets.records import FrameRecord

__all__ = ["incomplete_frames"]


def incomplete_frames(records: Sequence[FrameRecord], root: Path, pipeline: Sequence[Mapping[str, Any]]) -> set[str]:
    """Tokens of the frames that lack a camera that others have, or the key-frame scan if `pipeline` reads it.

    One line of the log counts them.

    Raises:
        ValueError: no other frame is left.
    """
    channels = {c for r in records for c in r.cameras}
    blind = {r.token for r in records if not channels <= r.cameras.keys()}
    reads_scan = any(isinstance(step, Mapping) and step.get("type") == "LoadPointsFromFile" for step in pipeline)
    without_scan = {r.token for r in records if not (root / r.lidar.path).is_file()} if reads_scan else set()
    found = blind | without_scan
    if not found:
        return found
    reasons = f"{len(blind)} without all {len(channels)} cameras, {len(without_scan)} without their LiDAR scan"
    if len(found) == len(records):
        raise ValueError(f"no frame in {root} can be trained on: of {len(records)}, {reasons}; complete the data set")
    logging.getLogger("mmdet3d").warning(
        "%d of %d frames in %s are not trained on: %s", len(found), len(records), root, reasons
    )
    return found
