"""Sensors that measure points: what is known of one, and what cannot be one."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import frames
import numpy as np
import pytest
import torch

from mmdet3d.datasets.records import FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import PointsRangeFilter
from mmdet3d.models.detectors.config import Encoders, PointSensorBlock
from mmdet3d.registry import MODELS
from mmdet3d.structures import Batch, Calibration, PointSensor, Sample, add_sensor, by_sensor, point_sensors, sensors

EYE, NONE = torch.eye(4), torch.zeros(0, 4, 4)
CALIBRATION = Calibration(EYE, EYE, NONE, NONE, NONE, NONE, EYE)
SONAR = PointSensor("sonar", loaders=("LoadSonar",), values=6, velocity=4, measures_height=False)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensors, "_known", dict(sensors._known))


def test_a_sensor_is_added_once() -> None:
    assert add_sensor(SONAR) == add_sensor(replace(SONAR)) == point_sensors()[-1]
    assert SONAR.field == SONAR.title == "sonar"
    with pytest.raises(ValueError, match=r"cannot be named 'sonar'; .* other than camera, lidar, radar, sonar"):
        add_sensor(replace(SONAR, values=7))


@pytest.mark.parametrize("name", ["camera", "radar", "side-scan"])
def test_names_that_no_sensor_can_have(name: str) -> None:
    with pytest.raises(ValueError, match=f"cannot be named '{name}'"):
        add_sensor(PointSensor(name))


def test_a_module_that_is_imported_anew_describes_its_sensor_again() -> None:
    def described() -> PointSensor:
        kind = type("Sonar", (PointSensor,), {"__module__": "my_sonar", "__qualname__": "Sonar"})
        return kind("sonar", loaders=("LoadSonar",))

    first, again = described(), described()
    assert type(first) is not type(again)
    assert add_sensor(first) is first and add_sensor(again) is again and point_sensors()[-1] is again


def test_points_that_are_not_there_are_none() -> None:
    batch = Batch.collate([Sample("a", CALIBRATION, clouds={"points": torch.ones(2, 5), "radar": None})])
    assert list(batch.clouds) == ["points"] and batch.radar is None


@pytest.mark.parametrize(
    "held", [*dict.fromkeys(f.name for k in (Batch, Sample) for f in fields(k)), "points", "radar"]
)
def test_fields_that_hold_something_else(held: str) -> None:
    with pytest.raises(ValueError, match=f"the sensor sonar cannot be held as '{held}', which a batch holds already"):
        add_sensor(replace(SONAR, field=held))


def test_points_of_nobody_are_named() -> None:
    with pytest.raises(ValueError, match=r"no sensor has its points in the field 'sonar' \(known: points, radar\)"):
        by_sensor({"sonar": torch.zeros(1, 6)})


def test_positions_and_velocities_move_and_nothing_else_does() -> None:
    turn = torch.tensor([[0.0, -2, 0, 1], [2, 0, 0, 2], [0, 0, 2, 3], [0, 0, 0, 1]])
    points = torch.tensor([[1.0, 2, 3, 4, 5, 6]])
    assert SONAR.moved(points, turn).tolist() == [[-3, 4, 9, 4, -12, 10]]
    assert replace(SONAR, velocity=None).moved(points, turn).tolist() == [[-3, 4, 9, 4, 5, 6]]
    assert points.tolist() == [[1, 2, 3, 4, 5, 6]]


def test_a_copy_of_a_sample_shares_no_change() -> None:
    sample = Sample("a", CALIBRATION, clouds={"radar": torch.zeros(1, 45)})
    copy = replace(sample)
    copy.put("sonar", torch.ones(2, 6))
    copy.radar = None
    assert list(sample.clouds) == ["radar"] and len(copy.held("sonar")) == 2 and copy.held("radar") is None
    copy.put("sonar", None)
    assert copy.clouds == {} and copy.held("token") == "a"


def test_ranges_of_sensors() -> None:
    """Without height x and y decide; radars have a range of their own."""
    add_sensor(SONAR)
    far = torch.tensor([[0.0, 0, 9, 0, 0, 0], [40, 0, 0, 0, 0, 0], [60, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    sample = Sample("a", CALIBRATION, clouds={"points": far, "radar": far, "sonar": far})
    record = FrameRecord("a", 0, SensorRecord("", 0, np.eye(4)), np.eye(4), np.eye(4))
    filtered = PointsRangeFilter([-30, -30, -5, 30, 30, 3], [-50, -50, 50, 50])(sample, frames.context(record, Path()))
    kept = filtered.clouds
    assert {name: cloud.tolist() for name, cloud in kept.items()} == {
        "points": far[[3]].tolist(),
        "radar": far[[0, 1, 3]].tolist(),
        "sonar": far[[0, 3]].tolist(),
    }


def test_encoders_know_sensors_by_name() -> None:
    add_sensor(SONAR)
    block = {"voxelize": {"max_num_points": 0, "point_cloud_range": [0] * 6, "voxel_size": [1] * 3}, "backbone": {}}
    found = Encoders(sonar=block, extra={**block, "reads": "radar"}, lidar=block, radar=None).by_sensor
    assert {name: each.reads for name, each in found.items()} == {"lidar": "points", "sonar": "sonar", "extra": "radar"}
    assert list(found) == ["lidar", "sonar", "extra"] and all(isinstance(b, PointSensorBlock) for b in found.values())
    with pytest.raises(ValueError, match="unknown config key sonnar, did you mean 'sonar'"):
        Encoders(sonnar=block)
    with pytest.raises(ValueError, match="use_points must be one of lidar, radar, sonar, got 'sonnar'"):
        MODELS.build({**_VIEW, "use_points": "sonnar"})
    with pytest.raises(ValueError, match="needs point_channels, the values per point of blind"):
        add_sensor(PointSensor("blind"))
        MODELS.build({**_VIEW, "use_points": "blind"})
    assert MODELS.build({**_VIEW, "use_points": "sonar"}).drawing.field == "sonar"


_VIEW = {
    "type": "AwareDBEVDepth",
    "in_channels": 8,
    "out_channels": 4,
    "image_size": [32, 64],
    "feature_size": [4, 8],
    "xbound": [-8, 8, 1],
    "ybound": [-8, 8, 1],
    "zbound": [-5, 5, 10],
    "dbound": [1, 9, 1],
    "add_depth_features": True,
    "bevdepth_refine": False,
    "bevdepth_downsample": 8,
}
