"""Info files: ours, those of BEVFusion / CRKD / mmdetection3d before v1.0, and those of mmdetection3d 1.x."""

from __future__ import annotations

import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.datasets.nuscenes.published import records_of_data_list, records_of_infos
from mmdet3d.datasets.records import CameraRecord, FrameRecord, SensorRecord
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.shell import command

__all__ = ["FORMAT", "read_infos", "write_infos"]

FORMAT = "distill3d"


def read_infos(path: str | Path) -> tuple[list[FrameRecord], dict[str, Any]]:
    """Frames of an info file, in the file's order, and its metadata.

    Boxes come in the convention of `Boxes3D` whatever the file's own; paths are relative to the dataset root. Boxes
    with a size or position that is no positive, finite number are left out with a warning.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown layout, an unsafe or damaged file, or a calibration that is not finite.
    """
    content = load_pickle(path)
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} is no info file: it holds a {type(content).__name__} instead of a dict")
    metadata = dict(content.get("metadata") or content.get("metainfo") or {})
    try:
        if metadata.get("format") == FORMAT:
            records = [record_from_dict(i) for i in content["infos"]]
        elif "infos" in content:
            records = records_of_infos(content["infos"])
        elif "data_list" in content:
            records = records_of_data_list(content["data_list"], metadata)
        else:
            raise ValueError(f"{path} is no info file: it has neither `infos` nor `data_list` (keys: {list(content)})")
    except KeyError as error:
        raise ValueError(
            f"{path}: an info has no key {error}; create the file anew with {command('create-data')}"
        ) from None
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: an info is of another layout ({error}); create the file anew with {command('create-data')}"
        ) from None
    for record in records:
        check_token(record.token, path)
        check_calibration(record, path)
        drop_bad_boxes(record)
    return records, metadata


def write_infos(records: Iterable[FrameRecord], metadata: Mapping[str, Any], path: str | Path) -> None:
    """Store frames as plain dicts and arrays; `metadata["format"]` is set here."""
    infos = [dataclasses.asdict(r) for r in records]
    dump_pickle({"infos": infos, "metadata": {**metadata, "format": FORMAT}}, path)


def record_from_dict(info: Mapping[str, Any]) -> FrameRecord:
    """The inverse of `dataclasses.asdict`."""
    fields = dict(info)
    fields["lidar"] = SensorRecord(**info["lidar"])
    fields["sweeps"] = [SensorRecord(**s) for s in info["sweeps"]]
    fields["cameras"] = {channel: CameraRecord(**c) for channel, c in info["cameras"].items()}
    fields["radars"] = {channel: [SensorRecord(**s) for s in sweeps] for channel, sweeps in info["radars"].items()}
    return FrameRecord(**fields)


def check_token(token: str, source: str | Path) -> None:
    """Raises ValueError if a sample's token is none that files can be named by without leaving their folder."""
    if not isinstance(token, str) or not token or set(token) & {"/", "\\", "\0"} or token.startswith("."):
        raise ValueError(f"{source}: {token!r} is no token of a sample, by which files are named")


def check_calibration(record: FrameRecord, source: str | Path) -> None:
    """Raises ValueError naming sample and sensor where a pose, intrinsic matrix or motion has NaN or infinity."""
    matrices = [("LIDAR_TOP", record.lidar2ego), ("ego pose", record.ego2global)]
    matrices += [("a LiDAR sweep", s.sensor2lidar) for s in record.sweeps]
    sweeps = [(channel, sweep) for channel, of_channel in record.radars.items() for sweep in of_channel]
    matrices += [(channel, sweep.sensor2lidar) for channel, sweep in sweeps]
    for channel, camera in record.cameras.items():
        matrices += [(channel, m) for m in (camera.sensor2lidar, camera.camera2ego, camera.intrinsics)]
    for sensor, matrix in matrices:
        if not np.isfinite(matrix).all():
            raise ValueError(f"{source}: the calibration of {sensor} in sample {record.token} is not finite")
    for sensor, sweep in sweeps:
        if sweep.velocity is not None and not np.isfinite(sweep.velocity).all():
            raise ValueError(
                f"{source}: the motion of {sensor} in sample {record.token} (table ego_motion_cabin) is not finite; "
                "correct that table, or fetch it again"
            )


def drop_bad_boxes(record: FrameRecord) -> None:
    """Remove annotations that no detector can learn from: a size that is not positive, a coordinate not finite."""
    if record.boxes is None:
        return
    good = np.isfinite(record.boxes[:, :7]).all(axis=1) & (record.boxes[:, 3:6] > 0).all(axis=1)
    if good.all():
        return
    warnings.warn(
        f"sample {record.token}: {(~good).sum()} of {len(good)} boxes left out, whose size is not positive or whose "
        "position is not finite",
        stacklevel=3,
    )
    if record.names is not None:
        bad = Counter(f"{name} of no positive size or finite position" for name in record.names[~good].tolist())
        record.left_out = {**record.left_out, **bad}
    for name in ("boxes", "names", "num_lidar_pts", "num_radar_pts"):
        value = getattr(record, name)
        setattr(record, name, None if value is None else value[good])
