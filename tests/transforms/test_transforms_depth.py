"""Depth labels from files: published augmentation, agreement with labels from points, damaged and missing files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from torch import Tensor

from mmdet3d.datasets.records import CameraRecord, FrameRecord
from mmdet3d.datasets.transforms import (
    Compose,
    GTDepth,
    ImageAug3D,
    ImageNormalize,
    LoadDepthFromFiles,
    LoadMultiViewImageFromFiles,
    LoadPointsFromFile,
    empty_sample,
)
from mmdet3d.datasets.transforms.depth import draw_depth, read_depth_points

# SimDistill's golden input: u, v, depth in raw pixels of a 1600 x 900 image.
PUBLISHED = torch.tensor(
    [[800, 450, 10], [100, 700, 20], [1500, 600, 30], [801, 451, 11], [10, 890, 5], [700, 300, 9]], dtype=torch.float32
)
NORMALIZE = ImageNormalize([0.5] * 3, [0.5] * 3)


def image_aug(flip: bool, angle: float) -> Tensor:
    """The matrix of `ImageAug3D` for the published draw."""
    return torch.from_numpy(ImageAug3D([256, 704], [0.48, 0.48])._matrix(0.48, (32, 176), flip, angle)).float()


def drawn(points: Tensor, matrix: Tensor) -> dict[tuple[int, int], float]:
    depth = draw_depth(points[:, :2], points[:, 2], matrix, (256, 704))
    return {(row, column): depth[row, column].item() for row, column in depth.nonzero().tolist()}


@pytest.mark.parametrize(
    ("flip", "angle", "shared", "expected"),
    [
        (False, 0.0, True, {(40, 352): 11, (112, 688): 30, (160, 16): 20}),
        (True, 0.0, False, {(40, 351): 11, (40, 352): 10, (112, 16): 30, (160, 688): 20}),
        (True, 5.4, True, {(40, 343): 11, (128, 689): 20, (143, 15): 30}),
    ],
)
def test_published_augmentation(flip: bool, angle: float, shared: bool, expected: dict[tuple[int, int], float]) -> None:
    """Where the first and the fourth point share a pixel, the last one is published, the nearest is ours."""
    matrix = image_aug(flip, angle)
    assert drawn(PUBLISHED[1:] if shared else PUBLISHED, matrix) == expected
    assert drawn(PUBLISHED, matrix) == {k: 10 if shared and d == 11 else d for k, d in expected.items()}


def test_coordinates_just_outside_are_not_drawn() -> None:
    points = torch.tensor([[-0.5, 3.0, 5.0], [3.0, -0.5, 6.0], [0.0, 0.0, 7.0], [8.0, 2.0, 8.0], [1.0, 1.0, -3.0]])
    depth = draw_depth(points[:, :2], points[:, 2], torch.eye(4), (6, 8))
    assert depth.nonzero().tolist() == [[0, 0]] and depth[0, 0] == 7


def write_files(record: FrameRecord, root: Path) -> None:
    """Depth files of the scan in all cameras, one point at a time."""
    points = np.fromfile(root / record.lidar.path, dtype="<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    (root / "depth_gt").mkdir()
    for camera in record.cameras.values():
        rows = []
        for point in points:
            x, y, z = (np.linalg.inv(camera.sensor2lidar) @ [*point, 1])[:3]
            u, v, _ = camera.intrinsics @ [x / z, y / z, 1]
            if z > 0 and 1 < u < 159 and 1 < v < 89:
                rows.append([u, v, z])
        np.array(rows, dtype="<f4").tofile(root / "depth_gt" / f"{Path(camera.path).name}.bin")


@pytest.mark.parametrize("seed", range(4))
def test_files_give_what_points_give(seed: int, tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path, seed=seed)
    write_files(record, tmp_path)
    context = frames.context(record, tmp_path, seed)
    augment = ImageAug3D([60, 100], [0.6, 0.9], (0.0, 0.0), [-5.4, 5.4], rand_flip=True)
    steps = [LoadMultiViewImageFromFiles(), LoadPointsFromFile(), augment, NORMALIZE, GTDepth()]
    sample = Compose(steps).load(context)
    from_points = sample.depths
    assert (from_points > 0).sum() > 3
    sample.points = None
    from_files = LoadDepthFromFiles()(sample, context).depths
    assert from_files.dtype == torch.float32 and from_files.shape == (2, 60, 100)
    # Files leave out the outermost pixel of the raw image.
    differing = (from_files - from_points).abs() > 1e-4
    assert differing.sum() <= 1 and (from_files > 0).sum() >= (from_points > 0).sum() - 1


def loaded(folder: str, root: Path, record: FrameRecord) -> Tensor:
    steps = [LoadMultiViewImageFromFiles(), NORMALIZE, LoadDepthFromFiles(folder)]
    return Compose(steps).load(frames.context(record, root)).depths


def test_folder_is_below_the_root_or_absolute(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    write_files(record, tmp_path)
    depths = loaded("depth_gt", tmp_path, record)
    (tmp_path / "depth_gt").rename(tmp_path / "elsewhere")
    assert torch.equal(loaded("elsewhere", tmp_path, record), depths)
    assert torch.equal(loaded(str(tmp_path / "elsewhere"), tmp_path, record), depths)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    write_files(record, tmp_path)
    file = tmp_path / "depth_gt" / "camera1.png.bin"
    file.write_bytes(file.read_bytes() + b"12345")
    with pytest.raises(ValueError, match=r"camera1\.png\.bin \(\d+ bytes\) must hold rows of three"):
        loaded("depth_gt", tmp_path, record)
    np.array([1, np.nan, 3], dtype="<f4").tofile(file)
    with pytest.raises(ValueError, match="truncated or damaged"):
        loaded("depth_gt", tmp_path, record)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"camera1\.png\.bin does not exist; .*create_data\.py depth"):
        loaded("depth_gt", tmp_path, record)


def test_an_empty_file_is_an_image_without_points(tmp_path: Path) -> None:
    file = tmp_path / "none.bin"
    file.touch()
    assert read_depth_points(file).shape == (0, 3)


@pytest.mark.parametrize("transform", [LoadDepthFromFiles, GTDepth])
def test_the_final_image_size_must_be_known(transform: type, tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    steps = [LoadMultiViewImageFromFiles(), LoadPointsFromFile(), transform()]
    with pytest.raises(ValueError, match=f"{transform.__name__} needs the final image size; put ImageNormalize before"):
        Compose(steps).load(frames.context(record, tmp_path))


def test_an_image_of_another_size_is_refused(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    camera: CameraRecord = record.cameras["CAM_1"]
    record.cameras["CAM_1"] = replace(camera, intrinsics=np.diag([2.0, 2.0, 1.0]) @ camera.intrinsics + np.eye(3, k=2))
    with pytest.raises(ValueError, match=r"camera1\.png has 160 x 90 pixels, but .* principal point at \(161, 90\)"):
        LoadMultiViewImageFromFiles()(empty_sample(record), frames.context(record, tmp_path))
