"""What a data set knows about a key frame before anything is loaded, and what a transform is given."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mmdet3d.datasets.cache import Read, read_anew
from mmdet3d.shell import command
from mmdet3d.structures import Sample

__all__ = ["CameraRecord", "Context", "FrameRecord", "SensorRecord", "Transform"]


@dataclass
class SensorRecord:
    """One sensor file.

    Args:
        path: relative to the dataset root.
        timestamp: microseconds.
        sensor2lidar: (4, 4) float64, to the key frame's LiDAR frame (see `FrameRecord`), ego motion included.
        token: sample_data token, if known.
        channel: of a scan, in rigs of several LiDARs; empty otherwise.
        velocity: (3,) m/s, the sensor's own over ground in its frame, where the data set tells.
    """

    path: str
    timestamp: int
    sensor2lidar: np.ndarray
    token: str = ""
    channel: str = ""
    velocity: np.ndarray | None = None


@dataclass
class CameraRecord(SensorRecord):
    """An image with its pinhole model.

    Args:
        intrinsics: (3, 3) float64, pixels of the raw image.
        camera2ego: (4, 4) float64, ego at camera time.
        size: width and height of the raw image that the intrinsics belong to, None if the source does not say.
    """

    intrinsics: np.ndarray = field(default_factory=lambda: np.eye(3))
    camera2ego: np.ndarray = field(default_factory=lambda: np.eye(4))
    size: tuple[int, int] | None = None

    def check_size(self, found: tuple[int, int]) -> None:
        """Raises ValueError if the calibration cannot belong to an image of `found` width and height."""
        u, v = self.intrinsics[:2, 2]
        if self.size is not None and tuple(self.size) != tuple(found):
            why = f"sample_data.json gives its calibration for {self.size[0]} x {self.size[1]}"
        elif not (0 <= u <= found[0] and 0 <= v <= found[1]):
            why = f"its calibration puts the principal point at ({u:.0f}, {v:.0f})"
        else:
            return
        raise ValueError(
            f"image file {self.path} has {found[0]} x {found[1]} pixels, but {why}; it belongs to an image of another "
            "size: take the original images, or scale camera_intrinsic, width and height with them and create the info "
            "files anew"
        )


@dataclass
class FrameRecord:
    """One key frame, whatever info file it came from; box convention of `Boxes3D`, LiDAR frame.

    "LiDAR frame" is the one frame of points, boxes and images: that of the scanner, where `lidar.sensor2lidar` is the
    identity, unless a data set expresses its records in another frame at the same time (`nuscenes.in_ego_frame`).

    Args:
        token: sample token.
        timestamp: microseconds, of the sample.
        lidar: the key-frame scan; `sensor2lidar` maps from the scanner. Its path is empty where there is no file.
        lidar2ego: (4, 4) float64.
        ego2global: (4, 4) float64, ego at LiDAR time.
        sweeps: earlier scans, newest first, and those of the rig's other LiDARs.
        cameras: by channel, in the order of the camera index.
        radars: by channel, each the key-frame sweep first, then earlier ones; a channel without files is absent.
        boxes: (N, 9) float64, velocity NaN where unknown; None where there is no annotation (test split).
        names: (N,) class names, the full category for classes outside the ten.
        left_out: annotated objects that are not in `boxes`, by class and reason in words, see `Tally`.
        num_lidar_pts, num_radar_pts: (N,) int.
        scene_token, location: empty where the info file lacks them.
        prev_token, next_token: samples before and after this one in its scene; empty at its ends, None where the info
            file does not say.
    """

    token: str
    timestamp: int
    lidar: SensorRecord
    lidar2ego: np.ndarray
    ego2global: np.ndarray
    sweeps: list[SensorRecord] = field(default_factory=list)
    cameras: dict[str, CameraRecord] = field(default_factory=dict)
    radars: dict[str, list[SensorRecord]] = field(default_factory=dict)
    boxes: np.ndarray | None = None
    names: np.ndarray | None = None
    num_lidar_pts: np.ndarray | None = None
    num_radar_pts: np.ndarray | None = None
    left_out: dict[str, int] = field(default_factory=dict)
    scene_token: str = ""
    prev_token: str | None = None
    next_token: str | None = None
    location: str = ""


@dataclass
class Context:
    """What a transform may look at besides the sample.

    Args:
        record: the frame being loaded.
        root: dataset root.
        rng: see `Views`; the only source of randomness.
        epoch: 0-based.
        training: False in validation and test data sets.
        classes: class list of the data set; a label is an index into it, -1 for a name outside it.
        find: the data set's frame of a token, None if there is none; None outside of a data set.
        incomplete: tokens of the data set's frames that lack a file.
        read: `read(reader, files, *arguments)`: what the reader makes of the files, out of the data set's cache if it
            has one. The way for all that is read from files and does not depend on `rng`; see `datasets.cache`.
    """

    record: FrameRecord
    root: Path
    rng: np.random.RandomState
    epoch: int = 0
    training: bool = True
    classes: tuple[str, ...] = ()
    find: Callable[[str], FrameRecord | None] | None = None
    incomplete: Collection[str] = ()
    read: Read = read_anew

    def earlier(self, steps: int) -> FrameRecord | None:
        """The key frame `steps` before this one in its scene; None if the scene, or the data set, begins after it.

        Raises:
            ValueError: the info file does not say which frame precedes which.
        """
        if self.find is None or self.record.prev_token is None:
            raise ValueError(
                f"sample {self.record.token} needs earlier frames, but the info file does not say which frame precedes "
                f"which; create it anew with {command('create-data')}"
            )
        frame = self.record
        for _ in range(steps):
            before = self.find(frame.prev_token) if frame.prev_token else None
            if before is None or before.scene_token != frame.scene_token:
                return None
            frame = before
        return frame


class Transform:
    """One step of a pipeline: returns the sample (changed in place or new), or None to drop it.

    Attributes:
        epoch_setting: None, or for a transform that works differently in later epochs, the setting that stops this.
    """

    epoch_setting: str | None = None

    def __call__(self, sample: Sample, context: Context) -> Sample | None:
        raise NotImplementedError
