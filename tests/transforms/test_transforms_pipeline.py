"""The published pipelines from start to end, on a small frame and on the real one."""

from __future__ import annotations

from pathlib import Path

import frames
import numpy as np
import pytest
import torch

from mmdet3d.datasets.records import Transform
from mmdet3d.datasets.transforms import Compose, LoadPointsFromFile, empty_sample
from mmdet3d.structures import Batch, Sample, project


def test_empty_sample_knows_the_geometry(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    sample = empty_sample(record)
    assert sample.token == "small" and sample.points is None and sample.meta["cameras"] == ["CAM_0", "CAM_1"]
    calibration = sample.calibration
    np.testing.assert_allclose(calibration.camera2lidar[1], record.cameras["CAM_1"].sensor2lidar)
    np.testing.assert_allclose(calibration.intrinsics[0, :3, :3], record.cameras["CAM_0"].intrinsics)
    assert torch.equal(calibration.image_aug, torch.eye(4).expand(2, 4, 4))
    record.cameras = {}
    assert empty_sample(record).calibration.lidar2image.shape == (0, 4, 4)


def test_dropping_a_sample_ends_the_pipeline(tmp_path: Path) -> None:
    class Drop(Transform):
        def __call__(self, sample: Sample, context: object) -> None:
            return None

    pipeline = Compose([Drop(), LoadPointsFromFile()])
    assert pipeline.load(frames.context(frames.small_frame(tmp_path), tmp_path)) is None


def test_published_pipelines_on_a_small_frame(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    train, test = (Compose(p) for p in frames.published_pipelines())
    samples = [train.load(frames.context(record, tmp_path, seed)) for seed in (0, 0, 1)]
    for name in ("images", "points", "radar", "depths"):
        values = [getattr(s, name) for s in samples]
        assert torch.equal(values[0], values[1])
        assert values[0].shape != values[2].shape or not torch.equal(values[0], values[2])
    fixed = [test.load(frames.context(record, tmp_path, seed, training=False)) for seed in (0, 1)]
    batch = Batch.collate(fixed)
    assert torch.equal(batch.images[0], batch.images[1]) and torch.equal(batch.points[0], batch.points[1])
    assert batch.images.shape == (2, 2, 3, 256, 704) and batch.depths.shape == (2, 2, 256, 704)


@pytest.fixture(scope="module")
def root(shared: Path) -> Path:
    return shared / "data" / "nuscenes"


@pytest.fixture(scope="module")
def real(root: Path) -> Sample:
    test = Compose(frames.published_pipelines()[1])
    return test.load(frames.context(frames.real_frame(root), root, training=False))


def test_real_sample_shapes(real: Sample) -> None:
    assert real.images.shape == (6, 3, 256, 704) and real.depths.shape == (6, 256, 704)
    assert real.points.shape[1] == 5 and real.radar.shape[1] == 45 and 60 < len(real.radar) <= 125
    assert len(real.boxes) == len(real.labels) == 68
    assert all(torch.isfinite(t).all() for t in (real.images, real.points, real.radar, real.boxes.tensor))


def test_real_points_in_boxes_equal_the_published_counts(root: Path) -> None:
    record = frames.real_frame(root)
    steps = [{"type": "LoadPointsFromFile"}, {"type": "LoadAnnotations3D"}]
    sample = Compose(steps).load(frames.context(record, root))
    assert len(sample.points) == 34_688
    inside = sample.boxes.contains(sample.points).sum(dim=1).numpy()
    # Published boxes are level in the world, ours in the tilted frame of the sensor: points on the rim change sides.
    difference = np.abs(inside - record.num_lidar_pts)
    assert (difference == 0).mean() > 0.85 and (difference <= np.maximum(2, 0.12 * record.num_lidar_pts)).all()


def test_real_radar_hits_what_the_lidar_sees(real: Sample) -> None:
    """Valid detections within 30 m lie next to LiDAR points above the road; mirrored ones do not."""
    obstacles = real.points[real.points[:, 2] > -1.2][:, :2]
    valid = real.radar[(real.radar[:, 20] == 1) & (real.radar[:, 18] == 1)][:, :2]
    near = valid[valid.norm(dim=1) < 30]
    assert len(near) > 20
    share = [
        (torch.cdist(xy, obstacles).min(dim=1).values < 1).float().mean() for xy in (near, near * torch.tensor([-1, 1]))
    ]
    assert share[0] > 0.75 and share[1] < 0.25


def test_real_depth_agrees_with_projected_boxes(real: Sample) -> None:
    """In front of a box with many points there is depth between its near and its far corner."""
    checked = 0
    for box in real.boxes[real.boxes.contains(real.points).sum(dim=1) > 300].tensor[:, None]:
        corners = type(real.boxes)(box).corners()[0]
        for camera in range(6):
            pixels, depth = project(corners, real.calibration.lidar2image[camera])
            matrix = real.calibration.image_aug[camera]
            pixels = pixels @ matrix[:2, :2].T + matrix[:2, 3]
            (u0, v0), (u1, v1) = pixels.min(dim=0).values.int().tolist(), pixels.max(dim=0).values.int().tolist()
            if depth.min() > 1 and u0 >= 0 and v0 >= 0 and u1 < 704 and v1 < 256:
                window = real.depths[camera, v0 : v1 + 1, u0 : u1 + 1]
                hits = (window >= depth.min() - 0.1) & (window <= depth.max() + 0.1)
                assert hits.sum() > 0.3 * (window > 0).sum()
                checked += 1
    assert checked >= 2


def test_real_train_pipeline(root: Path) -> None:
    train = Compose(frames.published_pipelines()[0])
    sample = train.load(frames.context(frames.real_frame(root), root, seed=5))
    assert sample.images.shape == (6, 3, 256, 704) and (sample.depths > 0).sum() > 5000
    assert not torch.equal(sample.calibration.lidar_aug, torch.eye(4))
    assert len(sample.boxes) == len(sample.labels) > 40
    raw = frames.real_frame(root)
    kept = sample.boxes.contains(sample.points[sample.points[:, 4] == 0]).sum()
    assert kept > 0.9 * raw.num_lidar_pts.sum()


def test_real_truncated_files_are_named(root: Path, tmp_path: Path) -> None:
    """A frame whose scan is missing, and copies cut short."""
    record = frames.real_frame(root, "3950bd41f74548429c0f7700ff3d8269")
    with pytest.raises(FileNotFoundError, match=r"LIDAR_TOP__\d+\.pcd\.bin does not exist"):
        Compose([LoadPointsFromFile()]).load(frames.context(record, root))
