"""What a synthetic data set is made from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mmdet3d.blocks import MOST_SEED
from mmdet3d.datasets.synthetic.radar import RadarNoise
from mmdet3d.datasets.synthetic.rig import RIGS

__all__ = ["KEYFRAME_INTERVAL", "WorldSettings"]

KEYFRAME_INTERVAL = 0.5  # seconds
_GENERATION = 3  # raised whenever the same settings give another world


@dataclass(frozen=True)
class WorldSettings:
    """Parameters of a world; equal settings give equal bytes.

    Args:
        scenes: number of scenes.
        seed: of everything random.
        keyframes: per scene, at 2 Hz.
        lidar_sweeps, radar_sweeps: scans between two key frames (4 give 10 Hz, 9 give 20 Hz).
        image_size: width and height, pixels; `configs/synthetic` expects the default, published configs 1600 x 900.
        difficulty: 0 is a clean world, 1 the default, larger is harder for every sensor. It scales the car's sway,
            which blurs what a camera can infer from where an object meets the ground; light and noise of the cameras;
            the radar's angular error, misses and clutter; and, least of all, the LiDAR's drop-out.
        reach: how far the road is populated before and behind the way that the car drives, metres.
        val_fraction: share of the scenes in the split `synthetic_val`.
        cameras: their number, 1, 4, 6 (nuScenes') or 8; see `rig.RIGS`.

    Raises:
        ValueError: a value outside its range.
    """

    scenes: int = 60
    seed: int = 0
    keyframes: int = 6
    lidar_sweeps: int = 4
    radar_sweeps: int = 5
    image_size: tuple[int, int] = (400, 225)
    difficulty: float = 1.0
    reach: float = 45.0
    val_fraction: float = 0.2
    cameras: int = 6

    def __post_init__(self) -> None:
        least = {"scenes": 1, "keyframes": 1, "lidar_sweeps": 0, "radar_sweeps": 0}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, got {getattr(self, name)}")
        if not 0 <= self.seed <= MOST_SEED:
            raise ValueError(f"seed must lie in [0, {MOST_SEED}], got {self.seed}")
        if not 0 <= self.difficulty <= 3:
            raise ValueError(f"difficulty must lie in [0, 3], got {self.difficulty:g}")
        if not 20 <= self.reach <= 100:
            raise ValueError(f"reach must lie in [20, 100] metres, got {self.reach:g}")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"val_fraction must lie in [0, 1), got {self.val_fraction:g}")
        if self.cameras not in RIGS:
            raise ValueError(f"cameras must be one of {', '.join(map(str, RIGS))}, got {self.cameras}")
        if len(self.image_size) != 2 or min(self.image_size) < 16:
            raise ValueError(f"image_size must be a width and a height of 16 pixels or more, got {self.image_size}")

    @property
    def duration(self) -> float:
        """Seconds from the first key frame of a scene to its last."""
        return (self.keyframes - 1) * KEYFRAME_INTERVAL

    @property
    def sway(self) -> float:
        """Amplitude of the car's pitch and roll, radians."""
        return 0.006 * self.difficulty

    @property
    def dropout(self) -> float:
        """Share of LiDAR returns lost."""
        return 0.05 + 0.05 * self.difficulty

    @property
    def radar_noise(self) -> RadarNoise:
        d = self.difficulty
        return RadarNoise(
            azimuth=float(np.radians(0.1 + 0.7 * d)),
            distance=0.1 + 0.1 * d,
            doppler=0.05 + 0.05 * d,
            miss=min(0.12 * d, 0.9),
            clutter=4.0 * d,
        )

    @property
    def camera_noise(self) -> float:
        """Grey levels."""
        return 1.0 + 3.0 * self.difficulty

    @property
    def camera_gain(self) -> float:
        """Relative standard deviation of brightness."""
        return 0.08 * self.difficulty

    def split(self) -> dict[str, list[int]]:
        """Numbers of the scenes of each split; the last ones are for validation, and training keeps at least one."""
        count = 0
        if self.scenes > 1 and self.val_fraction > 0:
            count = min(self.scenes - 1, max(1, round(self.val_fraction * self.scenes)))
        numbers = list(range(self.scenes))
        return {"synthetic_train": numbers[: self.scenes - count], "synthetic_val": numbers[self.scenes - count :]}

    def to_dict(self) -> dict[str, Any]:
        """As written to the data set's `synthetic.json`."""
        record = {"generation": _GENERATION, **asdict(self), "image_size": list(self.image_size)}
        if self.cameras == 6:  # which worlds made before there was a choice do not say
            del record["cameras"]
        return record
