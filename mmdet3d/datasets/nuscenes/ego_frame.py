"""Frames as the vehicle sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from mmdet3d.datasets.records import FrameRecord, SensorRecord
from mmdet3d.structures import Boxes3D

__all__ = ["in_ego_frame"]

_Sensor = TypeVar("_Sensor", bound=SensorRecord)


def in_ego_frame(record: FrameRecord) -> FrameRecord:
    """The record with the ego frame at LiDAR time (x forward, y left, z up) in the place of its LiDAR frame.

    Sensor poses and boxes move, `lidar2ego` becomes the identity; files, and what is read from them, stay as they are.
    """
    to_ego = record.lidar2ego

    def moved(sensor: _Sensor) -> _Sensor:
        return replace(sensor, sensor2lidar=to_ego @ sensor.sensor2lidar)

    boxes = record.boxes
    if boxes is not None:
        boxes = Boxes3D(torch.from_numpy(boxes)).transform(torch.from_numpy(to_ego)).tensor.numpy()
    return replace(
        record,
        lidar=moved(record.lidar),
        lidar2ego=np.eye(4),
        sweeps=[moved(sweep) for sweep in record.sweeps],
        cameras={channel: moved(camera) for channel, camera in record.cameras.items()},
        radars={channel: [moved(sweep) for sweep in sweeps] for channel, sweeps in record.radars.items()},
        boxes=boxes,
    )
