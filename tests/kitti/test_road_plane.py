"""Where the default range and number of depth bins come from: the camera above the road, and what it sees of it."""

from __future__ import annotations

import math
import zipfile

import numpy as np
import pytest

FOCAL, HORIZON, ROWS, WIDTH = 721.54, 172.85, 375, 1242  # pixels of a KITTI image
HEIGHT = 1.65  # metres, nominal


def nearest_road(height: float, pitch: float) -> float:
    """Depth of the road in the last row of the image, metres; pitch in degrees, positive looking down."""
    angle = math.radians(pitch)
    return FOCAL * height / ((ROWS - 1 - HORIZON + FOCAL * math.tan(angle)) * math.cos(angle))


def robust_line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Intercept and slope with the least Huber loss."""
    columns, weight = np.column_stack([np.ones_like(x), x]), np.ones_like(x)
    for _ in range(20):
        line = np.linalg.lstsq(columns * weight[:, None] ** 0.5, y * weight**0.5, rcond=None)[0]
        rest = np.abs(y - columns @ line)
        weight = np.minimum(1, 1.345 * 1.4826 * np.median(rest) / np.maximum(rest, 1e-9))
    return line[0], line[1]


@pytest.mark.parametrize(("pitch", "depth"), [(0.0, 5.92), (0.5, 5.74), (1.0, 5.57), (-0.5, 6.11)])
def test_the_nearest_road_that_an_image_shows(pitch, depth):
    assert nearest_road(HEIGHT, pitch) == pytest.approx(depth, abs=5e-3)


def test_rows_of_the_default_bins():
    """At stride 4 the range from 5 to 80 m covers 57.5 rows, so that each of 96 bins has 0.6."""
    rows_per_inverse_metre = FOCAL * HEIGHT * 1280 / (4 * WIDTH)
    assert rows_per_inverse_metre == pytest.approx(306.74, abs=0.01)
    rows = (1 / 5 - 1 / 80) * rows_per_inverse_metre
    assert rows == pytest.approx(57.5, abs=0.05)
    assert rows / 96 == pytest.approx(0.6, abs=0.01)
    last = FOCAL * HEIGHT / 80  # pixels below the horizon
    assert last == pytest.approx(14.9, abs=0.05)


def test_height_and_pitch_of_the_real_camera(shared):
    """Bottom centres of all labelled objects nearer than 40 m lie on a plane 1.59 m below the camera."""
    bottom = []
    with zipfile.ZipFile(shared / "data" / "kitti_all" / "label_2.zip") as archive:
        for name in archive.namelist():
            for line in archive.read(name).decode().splitlines() if name.endswith(".txt") else ():
                kind, *values = line.split()
                if kind not in ("DontCare", "Misc"):
                    bottom.append([float(values[11]), float(values[12])])
    y, z = np.array(bottom).T
    near = (z > 2) & (z < 40)
    assert near.sum() == 30_455
    intercept, slope = robust_line(z[near], y[near])
    pitch = -math.degrees(math.atan(slope))
    height = intercept * math.cos(math.radians(pitch))
    assert (height, pitch) == (pytest.approx(1.587, abs=2e-3), pytest.approx(-0.19, abs=0.01))
    assert nearest_road(height, pitch) == pytest.approx(5.76, abs=0.02)
