"""Recordings for the viewer of rerun.io: sensors and boxes of many frames on one time line."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor

from mmdet3d.structures import Boxes3D, Calibration, PointSensor
from mmdet3d.visualization.layers import Color, class_color

__all__ = ["Recording", "check_recording"]

_JPEG_QUALITY = 85
_RADII = {"dot": 0.04, "ring": 0.15}  # metres, of points
_PLANE = 3.0  # metres from a camera to where its image hangs in space


def check_recording(path: Path) -> None:
    """Whether a `Recording` can be written there, before minutes are spent on what it should hold.

    Raises:
        ValueError: another ending than .rrd, or rerun is not installed.
    """
    if path.suffix != ".rrd":
        raise ValueError(f"--save {path} must end in .rrd")
    try:
        _rerun()
    except ImportError as error:
        raise ValueError(
            f"--save {path} needs rerun, which cannot be imported ({error}): pip install 'distill3d[viewer]'"
        ) from None


class Recording:
    """A `.rrd` file that grows frame by frame. Everything is in the frame of a scene: x right, y ahead, z up, metres.

    Args:
        path: that is written.
        classes: name of each label.

    Raises:
        ValueError: see `check_recording`.
    """

    def __init__(self, path: Path, classes: Sequence[str]) -> None:
        check_recording(path)
        self._rr = _rerun()
        self._classes = classes
        self._stream = self._rr.new_recording("distill3d", recording_id=path.stem)
        self._stream.save(str(path))
        self._stream.log("world", self._rr.ViewCoordinates.RIGHT_HAND_Z_UP, static=True)

    def begin(self, number: int, seconds: float | None) -> None:
        """The next frame: its number, and its time if it has one."""
        self._stream.set_time_sequence("frame", number)
        if seconds is not None:
            self._stream.set_time_seconds("time", seconds)

    def cameras(self, calibration: Calibration, images: Sequence[Image.Image], names: Sequence[str]) -> None:
        """Raw images, each where its camera is."""
        for i, (name, image) in enumerate(zip(names, images, strict=True)):
            place = f"world/cameras/{name}"
            pose = calibration.camera2lidar[i].numpy()
            self._stream.log(place, self._rr.Transform3D(translation=pose[:3, 3], mat3x3=pose[:3, :3]))
            pinhole = self._rr.Pinhole(
                image_from_camera=calibration.intrinsics[i, :3, :3].numpy(),
                resolution=image.size,
                image_plane_distance=_PLANE,
            )
            self._stream.log(f"{place}/image", pinhole)
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "JPEG", quality=_JPEG_QUALITY)
            picture = self._rr.EncodedImage(contents=buffer.getvalue(), media_type="image/jpeg")
            self._stream.log(f"{place}/image", picture)

    def points(self, sensor: PointSensor, points: Tensor) -> None:
        """Those of a sensor, where it measures velocity with an arrow to where they are after a second."""
        place, colors = f"world/{sensor.name}", [sensor.color]
        drawn = self._rr.Points3D(points[:, :3].numpy(), colors=colors, radii=_RADII[sensor.mark])
        self._stream.log(place, drawn)
        if sensor.velocity is not None:
            velocity = torch.nn.functional.pad(sensor.velocities(points), (0, 1)).numpy()
            arrows = self._rr.Arrows3D(origins=points[:, :3].numpy(), vectors=velocity, colors=colors, radii=0.05)
            self._stream.log(f"{place}/velocity", arrows)

    def boxes(
        self, title: str, boxes: Boxes3D, labels: Tensor, scores: Tensor | None = None, color: Color | None = None
    ) -> None:
        """Boxes of one origin, in the colours of their classes unless one is given; a frame without any clears them."""
        rows = boxes.tensor
        half_yaw = rows[:, 6] / 2
        zero = torch.zeros_like(half_yaw)
        names = [self._classes[label] if label >= 0 else "other class" for label in labels.tolist()]
        said = names if scores is None else [f"{n} {s:.2f}" for n, s in zip(names, scores.tolist(), strict=True)]
        drawn = self._rr.Boxes3D(
            centers=rows[:, :3].numpy(),
            half_sizes=(rows[:, 3:6] / 2).numpy(),
            quaternions=torch.stack([zero, zero, half_yaw.sin(), half_yaw.cos()], 1).numpy(),
            labels=said,
            show_labels=False,
            colors=[color or class_color(k, self._classes) for k in labels.tolist()],
        )
        self._stream.log(f"world/boxes/{title}", drawn)

    def close(self) -> None:
        """Write what is still to be written."""
        self._stream.flush()
        self._stream.disconnect()


def _rerun() -> ModuleType:
    import rerun

    return rerun
