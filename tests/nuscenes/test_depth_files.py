"""Depth files: geometry against the tables, agreement with labels from points, continuing, missing files."""

from __future__ import annotations

import json
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from nuscenes import NuScenes
from PIL import Image
from pyquaternion import Quaternion

from mmdet3d.commands import create_data
from mmdet3d.datasets.nuscenes.depth_files import create_depth
from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.tables import load_tables
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.datasets.transforms import (
    Compose,
    GTDepth,
    ImageAug3D,
    ImageNormalize,
    LoadDepthFromFiles,
    LoadMultiViewImageFromFiles,
    LoadPointsFromFile,
)
from mmdet3d.datasets.transforms.depth import read_depth_points

SMALL = WorldSettings(scenes=2, keyframes=2, lidar_sweeps=1, radar_sweeps=1, image_size=(160, 90), val_fraction=0.5)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = generate(tmp_path_factory.mktemp("synthetic") / "world", SMALL, progress=False)
    create_depth(root, VERSION, workers=2)
    return root


@pytest.fixture(scope="module")
def real(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The depth files of the real frames."""
    return create_depth(root, "v1.0-mini", tmp_path_factory.mktemp("real"), workers=1, allow_missing=True)


def devkit_points(nusc: NuScenes, sample: dict, channel: str, root: Path) -> np.ndarray:
    """(N, 3): LiDAR to ego to global to the ego at camera time to camera to pixels, one frame after the other."""
    scan, image = (nusc.get("sample_data", sample["data"][name]) for name in ("LIDAR_TOP", channel))
    points = np.fromfile(root / scan["filename"], dtype="<f4").reshape(-1, 5)[:, :3].astype(np.float64)
    for data, forward in ((scan, True), (image, False)):
        sensor = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        ego = nusc.get("ego_pose", data["ego_pose_token"])
        for pose in (sensor, ego) if forward else (ego, sensor):
            rotation, shift = Quaternion(pose["rotation"]).rotation_matrix, np.array(pose["translation"])
            points = points @ rotation.T + shift if forward else (points - shift) @ rotation
    depth = points[:, 2]
    u, v = (points @ np.array(sensor["camera_intrinsic"]).T / depth[:, None])[:, :2].T
    width, height = Image.open(root / image["filename"]).size
    keep = (depth > 0) & (u > 1) & (u < width - 1) & (v > 1) & (v < height - 1)
    return np.stack([u, v, depth], axis=1)[keep]


def check_sample(nusc: NuScenes, sample: dict, root: Path, folder: Path) -> int:
    count = 0
    for channel in (c for c in sample["data"] if c.startswith("CAM")):
        name = Path(nusc.get("sample_data", sample["data"][channel])["filename"]).name
        found, expected = read_depth_points(folder / f"{name}.bin").numpy(), devkit_points(nusc, sample, channel, root)
        assert abs(len(found) - len(expected)) <= 1
        if len(found) == len(expected):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
            count += 1
    return count


def test_real_frames_have_the_points_of_the_tables(root: Path, real: Path) -> None:
    assert len(list(real.glob("*.bin"))) == 12 and not list(real.parent.glob(".*.parts"))
    nusc = load_tables(root, "v1.0-mini")
    assert check_sample(nusc, nusc.get("sample", frames.REAL_TOKEN), root, real) >= 5
    record = frames.real_frame(root)
    sizes = [len(read_depth_points(real / f"{Path(c.path).name}.bin")) for c in record.cameras.values()]
    assert all(2000 < size < 5000 for size in sizes)


def test_real_frame_files_and_points_give_the_same_labels(root: Path, real: Path) -> None:
    context = frames.context(frames.real_frame(root), root)
    steps = [
        LoadMultiViewImageFromFiles(),
        LoadPointsFromFile(),
        ImageAug3D([256, 704], [0.38, 0.55], (0.0, 0.0), [-5.4, 5.4], rand_flip=True),
        ImageNormalize([0.5] * 3, [0.5] * 3),
        GTDepth(keyframe_only=True),
    ]
    sample = Compose(steps).load(context)
    from_points = sample.depths
    from_files = LoadDepthFromFiles(str(real))(sample, context).depths
    differing = ~torch.isclose(from_points, from_files, atol=1e-3)
    matrix = sample.calibration.image_aug[differing.nonzero()[:, 0]].double()
    pixels = differing.nonzero()[:, [2, 1]].double() + 0.5
    raw = torch.linalg.solve(matrix[:, :2, :2], (pixels - matrix[:, :2, 3])[..., None])[..., 0]
    # Files leave out the outermost pixels of the raw image.
    outermost = (raw < 3).any(dim=1) | (raw > torch.tensor([1597.0, 897.0])).any(dim=1)
    # A point on the border of two pixels may fall into either: files are written in double precision.
    assert (~outermost).sum() <= 6 and (from_files > 0).sum() > 15_000


def test_synthetic_world(world: Path) -> None:
    nusc = load_tables(world, VERSION)
    exact = sum(check_sample(nusc, sample, world, world / "depth_gt") for sample in nusc.sample)
    assert exact >= 22
    assert len(list((world / "depth_gt").glob("*.bin"))) == 24
    reader = FrameReader(nusc, 0, allow_missing=False, annotated=False, radar=False)
    (record, _) = reader.scene(nusc.scene[0]["token"])
    assert not record.radars
    steps = [
        LoadMultiViewImageFromFiles(),
        LoadPointsFromFile(),
        ImageNormalize([0.5] * 3, [0.5] * 3),
        GTDepth(keyframe_only=True),
    ]
    context = frames.context(record, world)
    sample = Compose(steps).load(context)
    inside = (slice(None), slice(2, -2), slice(2, -2))
    from_points = sample.depths[inside]
    from_files = LoadDepthFromFiles()(sample, context).depths[inside]
    assert torch.isclose(from_points, from_files, atol=1e-3).float().mean() > 0.999 and (from_files > 0).any()


def test_finished_files_are_kept_until_the_tables_change(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def create() -> str:
        create_depth(world, VERSION, tmp_path, workers=1)
        return capsys.readouterr().out

    assert "24 images, 24 written now" in create()
    assert "24 images, 0 written now" in create()
    lost = sorted((tmp_path / "depth_gt").glob("*.bin"))[:5]
    contents = [file.read_bytes() for file in lost]
    for file in lost:
        file.unlink()
    assert "5 written now" in create()
    assert [file.read_bytes() for file in lost] == contents
    note = tmp_path / "depth_gt" / f".{VERSION}.json"
    note.write_text(json.dumps({"tables": "of another day"}))
    assert "24 written now" in create()


def test_files_of_another_origin_are_not_overwritten(world: Path, tmp_path: Path) -> None:
    (tmp_path / "depth_gt").mkdir()
    (tmp_path / "depth_gt" / "own.jpg.bin").touch()
    with pytest.raises(ValueError, match="holds depth files of another origin"):
        create_depth(world, VERSION, tmp_path, workers=1)


def test_command_line(world: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["depth", "--root-path", str(world), "--out-dir", str(tmp_path), "--version", VERSION, "--workers", "1"]
    assert create_data.main(words) == 0
    assert "24 written now" in capsys.readouterr().out
    assert (
        create_data.main(["depth", "--root-path", str(root), "--version", "v1.0-mini", "--out-dir", str(tmp_path)]) == 2
    )
    assert "LIDAR_TOP" in (error := capsys.readouterr().err) and "is missing" in error
    assert create_data.main(["depth", "--root-path", str(tmp_path), "--version", VERSION]) == 2
    assert capsys.readouterr().err.startswith("error: ")
