"""LiDAR scans and sweeps, annotations, images, filters: values, randomness and damaged files."""

from __future__ import annotations

from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from PIL import Image

from mmdet3d.datasets.records import SensorRecord
from mmdet3d.datasets.transforms import (
    Compose,
    GridMask,
    ImageNormalize,
    LoadAnnotations3D,
    LoadMultiViewImageFromFiles,
    LoadPointsFromFile,
    LoadPointsFromMultiSweeps,
    ObjectNameFilter,
    ObjectRangeFilter,
    PointsRangeFilter,
    empty_sample,
    read_points,
)
from mmdet3d.datasets.transforms.lidar import keep_beams
from mmdet3d.structures import Boxes3D, Sample


def sweeps(tmp_path: Path, count: int, training: bool, seed: int = 0, **arguments: object) -> torch.Tensor:
    record = frames.small_frame(tmp_path, sweeps=count)
    pipeline = Compose([LoadPointsFromFile(), LoadPointsFromMultiSweeps(**arguments)])
    return pipeline.load(frames.context(record, tmp_path, seed, training=training)).points


def test_scan_keeps_columns_and_starts_at_lag_zero(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    points = Compose([LoadPointsFromFile()]).load(frames.context(record, tmp_path)).points
    raw = np.fromfile(tmp_path / "key.bin", dtype="<f4").reshape(-1, 5)
    assert np.array_equal(points[:, :4], raw[:, :4]) and (points[:, 4] == 0).all()
    narrow = Compose([LoadPointsFromFile(use_dim=[0, 1, 2])]).load(frames.context(record, tmp_path)).points
    assert np.array_equal(narrow, raw[:, :3])


def test_sweep_lands_in_the_key_frame_with_its_lag(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path, sweeps=1)
    matrix = np.eye(4)
    matrix[:3] = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3]]
    np.array([[5, 6, 1, 9, 30], [0.5, -0.9, 0, 1, 1], [0.5, 1.0, 0, 1, 1]], dtype="<f4").tofile(tmp_path / "old.bin")
    record.sweeps = [SensorRecord("old.bin", 10**6 - 150_000, matrix)]
    steps = [LoadPointsFromFile(), LoadPointsFromMultiSweeps(remove_close=True)]
    points = Compose(steps).load(frames.context(record, tmp_path)).points[60:]
    np.testing.assert_allclose(points, [[-5, 7, 4, 9, 0.15], [0, 2.5, 3, 1, 0.15]], atol=1e-6)


def test_sweeps_are_random_while_training_and_the_newest_otherwise(tmp_path: Path) -> None:
    lags = [torch.unique(sweeps(tmp_path, 6, False, seed, sweeps_num=3)[:, 4]).tolist() for seed in (0, 1)]
    assert lags[0] == lags[1] == pytest.approx([0, 0.05, 0.1, 0.15])
    chosen = [sweeps(tmp_path, 6, True, seed, sweeps_num=3)[60::60, 4].tolist() for seed in (0, 0, 1)]
    assert chosen[0] == chosen[1] != chosen[2]
    expected = (np.random.RandomState(0).choice(6, 3, replace=False) + 1) * 0.05
    assert chosen[0] == pytest.approx(expected)


def test_frame_without_sweeps_is_padded_only_on_request(tmp_path: Path) -> None:
    assert len(sweeps(tmp_path, 0, True, sweeps_num=3)) == 60
    padded = sweeps(tmp_path, 0, True, sweeps_num=3, pad_empty_sweeps=True)
    assert len(padded) == 240 and torch.equal(padded[:60], padded[180:]) and (padded[:, 4] == 0).all()


@pytest.mark.parametrize(("beams", "kept"), [(16, range(1, 32, 2)), (4, [7, 9, 11, 13]), (1, [9])])
def test_fewer_beams(beams: int, kept: list[int]) -> None:
    borders = np.array([*(0.1862 - 0.023275 * np.arange(31)), -0.5353])
    elevation = (borders[1:] + borders[:-1]) / 2 - 0.012
    points = np.stack([np.cos(elevation), 0 * elevation, np.sin(elevation), elevation, np.arange(1, 32)], axis=1)
    assert keep_beams(points * 1.0, beams)[:, 4].tolist() == list(kept)


def test_damaged_point_files(tmp_path: Path) -> None:
    file = tmp_path / "scan.bin"
    with pytest.raises(FileNotFoundError, match=r"scan\.bin does not exist; check dataset_root"):
        read_points(file)
    for size in (0, 30):
        file.write_bytes(b"\0" * size)
        with pytest.raises(ValueError, match=rf"scan\.bin holds {size} bytes, expected a positive multiple of 20"):
            read_points(file)
    points = np.full((3, 5), np.nan, dtype="<f4")
    points.tofile(file)
    with pytest.raises(ValueError, match="not one finite point"):
        read_points(file)
    points[1] = 1
    points.tofile(file)
    assert read_points(file).tolist() == [[1] * 5]


def test_point_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="reduce_beams: 8 is not supported"):
        LoadPointsFromFile(reduce_beams=8)
    with pytest.raises(ValueError, match="use_dim: 5 asks for columns"):
        LoadPointsFromFile(load_dim=4, use_dim=5)


def annotated(tmp_path: Path, training: bool, *more: object) -> tuple[list[int], Boxes3D]:
    record = frames.small_frame(tmp_path)
    sample = Compose([LoadAnnotations3D(), *more]).load(frames.context(record, tmp_path, training=training))
    return sample.labels.tolist(), sample.boxes


def test_annotations(tmp_path: Path) -> None:
    labels, boxes = annotated(tmp_path, True)
    assert labels == [0, 8, -1]
    assert boxes.velocity.tolist() == [[1, 2], [0, 0], [0, 0]]
    assert annotated(tmp_path, False)[0] == [0, 8]
    labels, boxes = annotated(tmp_path, True, ObjectNameFilter(frames.CLASSES))
    assert labels == [0, 8] and len(boxes) == 2
    with pytest.raises(ValueError, match="give both the same list"):
        annotated(tmp_path, True, ObjectNameFilter(["car"]))


def test_object_range_is_strict_and_wraps_yaw(tmp_path: Path) -> None:
    labels, _ = annotated(tmp_path, True, ObjectRangeFilter([-4, -54, -5, 54, 54, 3]))
    assert labels == [0, -1]
    record = frames.small_frame(tmp_path)
    record.boxes[0, 6] = 3 * np.pi + 0.1
    steps = [LoadAnnotations3D(), ObjectRangeFilter(frames.RANGE)]
    boxes = Compose(steps).load(frames.context(record, tmp_path)).boxes
    assert boxes.yaw[0].item() == pytest.approx(-np.pi + 0.1, abs=1e-5)


def test_frame_without_annotation(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    record.boxes = record.names = None
    sample = Compose([LoadAnnotations3D()]).load(frames.context(record, tmp_path))
    assert sample.boxes is None and sample.labels is None


def test_point_range_is_strict(tmp_path: Path) -> None:
    sample = empty_sample(frames.small_frame(tmp_path))
    sample.points = torch.tensor([[1.0, 1, 1], [2, 0, 0], [0, 0, -3], [1.9, -1.9, 2.9]])
    sample.radar = torch.tensor([[3.0, 0, 99], [54.9, -54.9, 0], [55, 0, 0], [0, -56, 0]])
    filtered = PointsRangeFilter([-2, -2, -3, 2, 2, 3])(sample, None)
    assert filtered.points[:, 0].tolist() == pytest.approx([1, 1.9])
    assert filtered.radar[:, 0].tolist() == pytest.approx([3, 54.9])
    assert len(PointsRangeFilter(frames.RANGE, radar_range=[-10, -10, 10, 10])(sample, None).radar) == 1


def test_image_golden_and_order(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    Image.new("RGB", (160, 90), (10, 20, 30)).save(tmp_path / "camera1.png")
    normalize = ImageNormalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    sample = Compose([LoadMultiViewImageFromFiles(), normalize]).load(frames.context(record, tmp_path))
    assert sample.images.shape == (2, 3, 90, 160) and sample.meta["image_sizes"] == [(160, 90)] * 2
    np.testing.assert_allclose(sample.images[1, :, 5, 7], [-1.9467, -1.6856, -1.2816], atol=1e-4)
    raw = np.asarray(Image.open(tmp_path / "camera0.png"))
    np.testing.assert_allclose(sample.images[0, 1, 3, 4] * 0.224 + 0.456, raw[3, 4, 1] / 255, atol=1e-6)


def test_damaged_images(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    record.cameras["CAM_0"].path = "camera0.jpg"
    pixels = np.random.RandomState(0).randint(0, 256, (90, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.jpg")
    context = frames.context(record, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"camera0\.jpg does not exist"):
        Compose([LoadMultiViewImageFromFiles()]).load(context)
    for content in ((tmp_path / "whole.jpg").read_bytes()[:4000], b"", b"no image"):
        (tmp_path / "camera0.jpg").write_bytes(content)
        with pytest.raises(ValueError, match=r"camera0\.jpg cannot be decoded .*fetch it again"):
            Compose([LoadMultiViewImageFromFiles()]).load(context)


def test_images_of_different_size_need_a_crop(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    Image.new("RGB", (80, 90)).save(tmp_path / "camera1.png")
    with pytest.raises(ValueError, match=r"differ in size .*add ImageAug3D"):
        Compose([LoadMultiViewImageFromFiles(), ImageNormalize([0] * 3, [1] * 3)]).load(
            frames.context(record, tmp_path)
        )


def masked(seed: int = 0, epoch: int = 0, size: tuple[int, int] = (48, 64), **arguments: object) -> torch.Tensor:
    """(H, W): what GridMask makes of two images of ones."""
    context = frames.context(None, Path("."), seed, epoch=epoch)
    sample = Sample("ones", calibration=None, images=torch.ones(2, 3, *size))
    images = GridMask(**arguments)(sample, context).images
    assert torch.equal(images, images[:1, :1].expand_as(images))
    return images[0, 0]


def test_grid_mask_blanks_a_grid_of_squares() -> None:
    for seed in range(8):
        mask = masked(seed)
        assert set(mask.unique().tolist()) <= {0, 1}
        rows, columns = (mask.min(dim=1).values == 1), (mask.min(dim=0).values == 1)
        # A pixel survives if it lies on a horizontal or on a vertical band.
        assert torch.equal(mask.bool(), rows[:, None] | columns[None])
    shares = torch.tensor([masked(seed, size=(96, 128)).mean() for seed in range(40)])
    assert 0.65 < shares.mean() < 0.85
    assert torch.equal(masked(3, mode=0), 1 - masked(3))


def test_grid_mask_probability() -> None:
    assert all((masked(s, prob=0.0) == 1).all() for s in range(10))
    growing = {"prob": 1.0, "fixed_prob": False, "max_epoch": 10}
    hit = [sum((masked(s, epoch=e, **growing) == 0).any().item() for s in range(40)) for e in (0, 5, 10)]
    assert hit[0] == 0 and 10 < hit[1] < 30 and hit[2] == 40


def test_order_of_transforms_is_explained(tmp_path: Path) -> None:
    context = frames.context(frames.small_frame(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="LoadPointsFromMultiSweeps needs points; put LoadPointsFromFile before it"):
        Compose([{"type": "LoadPointsFromMultiSweeps"}]).load(context)
    with pytest.raises(ValueError, match="GridMask works on normalised images"):
        Compose([LoadMultiViewImageFromFiles(), GridMask()]).load(context)
    with pytest.raises(ValueError, match="unknown transform type 'LoadPointsFromFiles', did you mean"):
        Compose([{"type": "LoadPointsFromFiles"}])
    with pytest.raises(ValueError, match=r"unknown config key pipeline\.0\.sweep_num, did you mean .sweeps_num"):
        Compose([{"type": "LoadPointsFromMultiSweeps", "sweep_num": 3}])
