"""Real info files and ground-truth database through the published pipelines."""

from __future__ import annotations

from pathlib import Path

import frames
import numpy as np
import pytest
import torch

from mmdet3d.datasets import build_dataset
from mmdet3d.datasets.nuscenes import read_database, read_infos
from mmdet3d.datasets.nuscenes.create import create_nuscenes


@pytest.fixture(scope="module")
def root(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real data set with info files and database of its own."""
    folder = tmp_path_factory.mktemp("nuscenes")
    for part in (shared / "data" / "nuscenes").iterdir():
        (folder / part.name).symlink_to(part)
    create_nuscenes(folder, folder, "nuscenes", "v1.0-mini", workers=1, allow_missing=True)
    return folder


def test_created_frame_equals_the_tables(root: Path, shared: Path) -> None:
    records, _ = read_infos(root / "nuscenes_infos_train.pkl")
    created = next(r for r in records if r.token == frames.REAL_TOKEN)
    expected = frames.real_frame(shared / "data" / "nuscenes")
    assert list(created.cameras) == list(expected.cameras) and list(created.radars) == list(expected.radars)
    for channel, camera in expected.cameras.items():
        np.testing.assert_allclose(created.cameras[channel].sensor2lidar, camera.sensor2lidar, atol=1e-6)
        np.testing.assert_allclose(created.cameras[channel].camera2ego, camera.camera2ego, atol=1e-9)
    radar = expected.radars["RADAR_FRONT"][0]
    np.testing.assert_allclose(created.radars["RADAR_FRONT"][0].sensor2lidar, radar.sensor2lidar, atol=1e-6)
    assert sorted(created.names) == sorted(expected.names)
    order, wanted = (np.lexsort(r.boxes[:, :3].round(3).T) for r in (created, expected))
    np.testing.assert_allclose(created.boxes[order, :6], expected.boxes[wanted, :6], atol=1e-4)
    turn = created.boxes[order, 6] - expected.boxes[wanted, 6]
    np.testing.assert_allclose(np.exp(1j * turn), 1, atol=1e-3)


def test_real_objects_are_pasted_with_their_points(root: Path) -> None:
    train, _ = frames.published_pipelines()
    groups = {"pedestrian": 60, "barrier": 40, "car": 20}
    paste = {"info_path": "nuscenes_dbinfos_train.pkl", "sample_groups": groups}
    filters = {"filter_by_min_points": dict.fromkeys(groups, 5), "filter_by_difficulty": [-1]}
    step = {"type": "ObjectPaste", "stop_epoch": None, "db_sampler": paste | {"prepare": filters}}
    loads = train[1:3] + train[4:5]
    block = {"type": "NuScenesDataset", "dataset_root": str(root), "ann_file": "nuscenes_infos_val.pkl"}
    block |= {"pipeline": [*loads, step], "object_classes": frames.CLASSES}
    dataset = build_dataset(block)
    index = dataset.tokens.index("3e8750f331d7499e9b5123e9eb70f2e2")
    sample = dataset[index]
    pasted = sample.meta["pasted_boxes"]
    assert len(pasted) > 10 and len(sample.boxes) > len(pasted)
    counts = {r.box[:3].tobytes(): r.num_points for rs in read_database(root / paste["info_path"]).values() for r in rs}
    inside = pasted.contains(sample.points).sum(dim=1)
    expected = torch.tensor([counts[b.numpy().tobytes()] for b in pasted.centers])
    # Points on a face may fall out by rounding.
    assert ((inside - expected).abs() <= 1).all() and (expected >= 5).all()


def test_published_pipelines_on_the_created_data_set(root: Path) -> None:
    train, test = frames.published_pipelines()
    for pipeline, test_mode in ((train, False), (test, True)):
        block = {"type": "NuScenesDataset", "dataset_root": str(root), "ann_file": "nuscenes_infos_train.pkl"}
        sample = build_dataset(block | {"pipeline": pipeline, "test_mode": test_mode})[0]
        assert sample.token == frames.REAL_TOKEN
        assert sample.images.shape == (6, 3, 256, 704) and sample.radar.shape[1] == 45 and (sample.depths > 0).any()
        assert len(sample.boxes) == len(sample.labels) > 40 and (sample.labels >= 0).all()
