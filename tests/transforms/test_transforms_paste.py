"""Object pasting: collisions, what is added and removed, when the database is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mmdet3d.datasets.nuscenes as nuscenes
from mmdet3d.datasets.transforms import Compose, LoadAnnotations3D, LoadPointsFromFile, ObjectPaste
from mmdet3d.datasets.transforms.paste import ObjectFilter, ObjectSource, footprints_collide
from mmdet3d.registry import TRANSFORMS
from mmdet3d.structures import Boxes3D, Sample


@dataclass
class Record:
    name: str
    path: str
    box: np.ndarray
    num_points: int = 9
    difficulty: int = 0
    origin: np.ndarray = field(default_factory=lambda: np.zeros(3))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_collisions_agree_with_shapely(seed: int) -> None:
    from shapely.geometry import Polygon

    tensor = torch.from_numpy(np.random.RandomState(seed).uniform(-5, 5, (9, 9)))
    tensor[:, 3:6] = tensor[:, 3:6].abs() + 0.2
    corners = Boxes3D(tensor).footprint().numpy()
    collide = footprints_collide(corners[:4], corners)
    for i in range(4):
        for j in range(9):
            assert collide[i, j] == (Polygon(corners[i]).intersection(Polygon(corners[j])).area > 1e-12)


def test_containment_collides_and_touching_does_not() -> None:
    boxes = torch.zeros(3, 9)
    boxes[:, 3:6] = torch.tensor([[4.0, 4, 1], [1, 1, 1], [2, 2, 1]])
    boxes[2, 0] = 3
    corners = Boxes3D(boxes).footprint().numpy()
    assert footprints_collide(corners, corners).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert footprints_collide(corners[:0], corners).shape == (0, 3)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Record]]:
    """Cars in a row along x = 20, one of them on the scene's car; the number of reads is in `reads`."""
    records = []
    for i, (x, y) in enumerate([(20, -15), (20, -5), (20, 5), (20, 5.5), (5, 6)]):
        np.array([[0.1, 0.2, 0.3, 7, 0], [-0.5, 0, 0, 8, 0.1]], dtype="<f4").tofile(tmp_path / f"car{i}.bin")
        box = np.array([x, y, 0.5, 4, 2, 1.5, 0.2, np.nan, np.nan])
        records.append(Record("car", f"car{i}.bin", box, origin=box[:3]))
    content = {"car": records, "bus": [Record("bus", "bus.bin", records[0].box, num_points=2)], "reads": []}

    def read(path: Path) -> dict[str, list[Record]]:
        content["reads"].append(path)
        return {k: v for k, v in content.items() if k != "reads"}

    monkeypatch.setattr(nuscenes, "read_database", read, raising=False)
    return content


SAMPLER = {
    "info_path": "db.pkl",
    "sample_groups": {"car": 9, "bus": 3, "trailer": 2},
    "prepare": ObjectFilter({"car": 5, "bus": 5}, filter_by_difficulty=[-1]),
}


def pasted(root: Path, seed: int = 0, stop_epoch: int | None = None, epoch: int = 0) -> Sample:
    pipeline = Compose([LoadPointsFromFile(), LoadAnnotations3D(), ObjectPaste(ObjectSource(**SAMPLER), stop_epoch)])
    return pipeline.load(frames.context(frames.small_frame(root), root, seed, epoch=epoch))


def test_objects_are_added_where_there_is_room(tmp_path: Path, database: dict) -> None:
    for seed in range(5):
        sample = pasted(tmp_path, seed)
        # Two of the five cars exclude each other, one stands on the scene's car; the bus has too few points.
        assert sample.labels.tolist() == [0, 8, -1, 0, 0, 0]
        new = sample.boxes[3:]
        assert new.velocity.abs().sum() == 0
        assert footprints_collide(new.footprint().numpy(), sample.boxes.footprint().numpy()).sum() == 3
        expected = new.centers[0] + torch.tensor([0.1, 0.2, 0.3])
        np.testing.assert_allclose(sample.points[0], [*expected, 7, 0], atol=1e-6)
        assert torch.equal(sample.meta["pasted_boxes"].tensor, new.tensor)
        inside = new.contains(sample.points)
        assert inside.sum(dim=1).tolist() == [2, 2, 2] and inside[:, :6].sum() == 6


def test_drawing_depends_on_the_given_generator_only(tmp_path: Path, database: dict) -> None:
    first, again = pasted(tmp_path, 1), pasted(tmp_path, 1)
    assert torch.equal(first.boxes.tensor, again.boxes.tensor) and torch.equal(first.points, again.points)
    orders = {tuple(pasted(tmp_path, s).boxes.tensor[3:, 1].tolist()) for s in range(8)}
    assert len(orders) > 1


@pytest.mark.parametrize(("stop", "epoch", "active"), [(None, 99, 1), (2, 1, 1), (2, 2, 0), (0, 0, 0), (-1, 0, 0)])
def test_stops_with_the_epoch_and_reads_the_database_only_if_active(
    tmp_path: Path, database: dict, stop: int | None, epoch: int, active: int
) -> None:
    sample = pasted(tmp_path, stop_epoch=stop, epoch=epoch)
    assert (len(sample.boxes) > 3) == active and len(database["reads"]) == active
    assert database["reads"] == [tmp_path / "db.pkl"][:active]


def test_hidden_scene_points_are_removed(tmp_path: Path, database: dict) -> None:
    record = frames.small_frame(tmp_path)
    np.array([[20, -15, 0.5, 1, 0], [20, -12, 0.5, 1, 0]], dtype="<f4").tofile(tmp_path / "key.bin")
    pipeline = Compose([LoadPointsFromFile(), LoadAnnotations3D(), ObjectPaste(ObjectSource(**SAMPLER))])
    points = pipeline.load(frames.context(record, tmp_path)).points
    assert points[6:, 1].tolist() == [-12]


def test_mistakes_in_the_sampler_are_explained(tmp_path: Path, database: dict) -> None:
    with pytest.raises(ValueError, match=r"unknown config key ObjectPaste\.db_sampler\.rates, did you mean 'rate'"):
        TRANSFORMS.build({"type": "ObjectPaste", "db_sampler": SAMPLER | {"rates": 1.0}})
    pipeline = Compose([LoadPointsFromFile(), LoadAnnotations3D(), ObjectPaste(ObjectSource("db.pkl", {"cars": 2}))])
    with pytest.raises(ValueError, match="names 'cars', did you mean 'car'"):
        pipeline.load(frames.context(frames.small_frame(tmp_path), tmp_path))
    with pytest.raises(ValueError, match=r"key ObjectPaste\.db_sampler\.prepare\.filter_by_age.*known: filter_by_min"):
        TRANSFORMS.build({"type": "ObjectPaste", "db_sampler": SAMPLER | {"prepare": {"filter_by_age": 3}}})
