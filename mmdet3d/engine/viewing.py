"""What detectors see and find over many frames, as a recording that is looked at interactively."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from mmdet3d.engine.data import PictureDataset
from mmdet3d.engine.detector import Detector
from mmdet3d.engine.pictures import in_scene
from mmdet3d.progress import progress_bar
from mmdet3d.structures import Sample, by_sensor
from mmdet3d.visualization.layers import TRUTH
from mmdet3d.visualization.recording import Recording

__all__ = ["record"]

_MICROSECONDS = 1e6


def record(
    detectors: Mapping[str, tuple[Detector, PictureDataset]], indices: Iterable[int], path: Path, min_score: float
) -> dict[str, int]:
    """Write cameras, points of all sensors, ground truth and the boxes of every detector into a `.rrd` file.

    Args:
        detectors: by title a detector, and the frames as it reads them.
        indices: of the frames, the same of every data set.
        min_score: of the detections that are shown.

    Returns:
        By title the number of boxes; `truth` among them where there is ground truth.

    Raises:
        ValueError: detectors read different frames under one number; see also `check_recording`.
    """
    _, first_frames = next(iter(detectors.values()))
    recording = Recording(path, first_frames.classes)
    counts: dict[str, int] = {}
    begin: float | None = None
    for number, index in enumerate(progress_bar(list(indices), desc="record", unit="frame")):
        token: str | None = None
        for title, (detector, frames) in detectors.items():
            sample = frames[index]
            scene = frames.scene(sample)
            if token is None:
                token = sample.token
                begin = _time(sample) if begin is None else begin
                seconds = None if begin is None else (_time(sample) or 0.0) - begin
                recording.begin(number, seconds)
                recording.cameras(scene.calibration, scene.images, scene.names)
                for sensor, points in by_sensor(scene.clouds):
                    recording.points(sensor, points)
                if scene.boxes is not None and scene.labels is not None:
                    recording.boxes("truth", scene.boxes, scene.labels, color=TRUTH)
                    counts["truth"] = counts.get("truth", 0) + len(scene.boxes)
            elif sample.token != token:
                raise ValueError(
                    f"{title} reads another frame as number {index}; give all models one folder (--frames)"
                )
            found = in_scene(detector(sample), scene, min_score)
            recording.boxes(title, found.boxes, found.labels, found.scores)
            counts[title] = counts.get(title, 0) + len(found)
    recording.close()
    return counts


def _time(sample: Sample) -> float | None:
    """Seconds, where the data set knows the time of its frames."""
    time = sample.meta.get("timestamp")
    return None if time is None else float(time) / _MICROSECONDS
