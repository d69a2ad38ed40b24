"""Checking a KITTI folder, and depth completion."""

from __future__ import annotations

import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdet3d.datasets.kitti.completion import complete, project_scan
from mmdet3d.datasets.kitti.create import check_tree, make_depth
from mmdet3d.datasets.kitti.files import KittiCalibration, read_calibration, read_depth, read_scan

REPOSITORY = Path(__file__).resolve().parents[2]


def command(*words: object) -> int:
    return runpy.run_path(str(REPOSITORY / "tools" / "create_data.py"))["main"]([str(w) for w in words])


# -- completion -----------------------------------------------------------------------------------------------------


def test_the_nearest_point_of_a_pixel_counts() -> None:
    calibration = KittiCalibration(
        p2=np.array([[10.0, 0, 5, 0], [0, 10, 4, 0], [0, 0, 1, 0]]), rectification=np.eye(4), velo2camera=np.eye(4)
    )
    points = np.array([[0, 0, 20.0], [0, 0, 10], [0, 0, -5], [9, 0, 10], [0.49, 0.19, 10]], dtype=np.float32)
    sparse = project_scan(points, calibration, (8, 10))
    assert sparse[4, 5] == 10
    assert (sparse > 0).sum() == 1


def test_completion_covers_the_image_and_keeps_what_is_measured() -> None:
    """A road that is measured along a few lines: the guess in between is near the truth."""
    rng = np.random.default_rng(0)
    rows = np.arange(96)[:, None] + 0.5
    road = np.broadcast_to(np.where(rows > 44, 1.65 * 200 / np.maximum(rows - 40, 1), 0), (96, 320)).astype(np.float32)
    measured = (road > 0) & (np.arange(96)[:, None] % 4 == 0) & (rng.random(road.shape) < 0.6)
    dense = complete(np.where(measured, road, 0))
    assert dense.dtype == np.float32
    assert dense.min() > 0
    np.testing.assert_array_equal(dense[measured], road[measured])
    error = np.abs(dense / np.where(road > 0, road, 1) - 1)[55:]
    assert np.median(error) < 0.05
    assert error.max() < 0.4


@pytest.mark.parametrize("place", [(0, 0), (5, 9), (19, 39)])
def test_one_point_is_enough(place: tuple[int, int]) -> None:
    sparse = np.zeros((20, 40), dtype=np.float32)
    sparse[place] = 12.5
    np.testing.assert_allclose(complete(sparse), 12.5, atol=1e-4)


def test_no_point_is_not_enough() -> None:
    with pytest.raises(ValueError, match="no LiDAR point falls into the image"):
        complete(np.zeros((4, 4), dtype=np.float32))


@pytest.mark.parametrize("frame", ["000002", "000008"])
def test_a_real_scan_agrees_with_stereo(real: Path, frame: str) -> None:
    """Between the points, against depth from two cameras; and on points that completion did not see."""
    training = real / "training"
    reference = read_depth(training / "depth_dense" / f"{frame}.png")
    points, calibration = (
        read_scan(training / "velodyne" / f"{frame}.bin"),
        read_calibration(training / "calib" / f"{frame}.txt"),
    )
    sparse = project_scan(points, calibration, reference.shape)
    hidden = (sparse > 0) & (np.random.default_rng(0).random(sparse.shape) < 0.1)
    dense = complete(np.where(hidden, 0, sparse))
    assert np.median(np.abs(dense - sparse)[hidden]) < 0.08
    between = (sparse == 0) & (reference > 0) & (reference < 80)
    between[:150] = False
    assert np.median(np.abs(dense[between] / reference[between] - 1)) < 0.03


# -- a folder -------------------------------------------------------------------------------------------------------


def test_depth_is_made_once(copied: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """What an interruption left is kept, what is missing is made, and the folder is complete then."""
    root = copied("training/depth_dense")
    assert command("kitti", "--root-path", root) == 2
    assert (
        "training/depth_dense lacks all 8 files (--depth makes them from training/velodyne)" in capsys.readouterr().err
    )
    assert make_depth(root, progress=False) == 8
    maps = {p.name: p.read_bytes() for p in (root / "training" / "depth_dense").iterdir()}
    (root / "training" / "depth_dense" / "000002.png").unlink()
    assert command("kitti", "--root-path", root, "--depth") == 0
    out = capsys.readouterr().out
    assert "1 depth maps made" in out
    assert "training/depth_dense: 8 of 8 files" in out
    assert {p.name: p.read_bytes() for p in (root / "training" / "depth_dense").iterdir()} == maps


def test_made_depth_is_near_the_true_one(world: Path, copied: Callable[..., Path]) -> None:
    root = copied("training/depth_dense")
    make_depth(root, progress=False)
    errors = []
    for path in sorted((world / "training" / "depth_dense").iterdir()):
        true, made = read_depth(path), read_depth(root / "training" / "depth_dense" / path.name)
        assert (made > 0).all()
        near = (true > 0) & (true < 40)
        errors.append(np.abs(made / np.where(near, true, 1) - 1)[near])
    assert np.median(np.concatenate(errors)) < 0.05


def test_labels_are_looked_into(copied: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """Which objects are learnt; and a folder with none of them is not complete."""
    root = copied()
    assert command("kitti", "--root-path", root) == 0
    assert re.search(r"learnt: \d+ of \d+ annotated objects in 8 frames; left out: \d+ ", capsys.readouterr().out)
    for file in (root / "training" / "label_2").iterdir():
        file.write_text("")
    assert command("kitti", "--root-path", root) == 2
    assert "no object of Car, Pedestrian, Cyclist to learn in" in capsys.readouterr().err


def test_scans_of_another_layout(copied: Callable[..., Path]) -> None:
    root = copied()
    file = next((root / "training" / "velodyne").iterdir()).with_name("000000.bin")
    points = np.fromfile(file, dtype="<f4").reshape(-1, 4)
    np.hstack([points, points[:, 3:]])[: len(points) // 4 * 4].tofile(file)
    with pytest.raises(ValueError, match="it reads like 5 values per point"):
        check_tree(root)


def test_missing_files_are_named(copied: Callable[..., Path]) -> None:
    root = copied("training/velodyne", "testing/calib")
    (root / "training" / "image_2" / "000003.png").unlink()
    (root / "training" / "label_2" / "000001.txt").unlink()
    with pytest.raises(FileNotFoundError) as caught:
        check_tree(root)
    message = str(caught.value)
    assert "training/image_2 lacks 1 of 8 files: 000003.png (fetch data_object_image_2.zip)" in message
    assert "training/label_2 lacks 1 of 8 files: 000001.txt (fetch data_object_label_2.zip)" in message
    assert "testing/calib lacks all 1 files (fetch data_object_calib.zip)" in message
    assert "velodyne" not in message  # needed for depth only


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("image_2/000003.png", b"\x89PNG\r\n\x1a\n and then nothing", r"image_2/000003.png is no PNG or ends early"),
        ("image_2/000003.png", b"", r"image_2/000003.png is no PNG or ends early"),
        ("calib/000003.txt", b"P2: 1 2 3", r"calib/000003.txt, line 1: P2 needs 12 numbers, found 3"),
        ("label_2/000003.txt", b"Cat 0 0", r"label_2/000003.txt, line 1: unknown class 'Cat', did you mean 'Car'"),
        ("velodyne/000003.bin", b"123", r"velodyne/000003.bin ends early"),
    ],
)
def test_damaged_files_are_named(copied: Callable[..., Path], file: str, content: bytes, message: str) -> None:
    root = copied()
    (root / "training" / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"1 damaged files in .*{message}"):
        check_tree(root)


def test_data_like_kitti_is_complete(copied: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    """JPEG images, one camera without a LiDAR, and a class of one's own."""
    root = copied()
    for path in root.glob("t*/image_2/*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    for path in root.glob("t*/calib/*.txt"):
        path.write_text(next(line for line in path.read_text().splitlines() if line.startswith("P2:")))
    label = root / "training" / "label_2" / "000000.txt"
    label.write_text(label.read_text() + "Cone 0 0 0 1 1 2 2 1 1 1 1 1 9 0\n")
    assert command("kitti", "--root-path", root, "--class-map", "Cone=DontCare") == 0
    assert "training/image_2: 8 of 8 files" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"000000.txt names P2 alone; dense depth is made by its R0_rect"):
        shutil.rmtree(root / "training" / "depth_dense")
        make_depth(root, progress=False)
    (root / "training" / "image_2" / "000001.jpg").write_bytes(b"\xff\xd8 and then nothing")
    with pytest.raises(ValueError, match=r"000001.jpg is no JPEG or ends early"):
        check_tree(root, {"Cone": "DontCare"})


def test_an_absent_testing_folder_is_no_fault(copied: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    assert command("kitti", "--root-path", copied("testing")) == 0
    assert "testing: absent, which only submissions need" in capsys.readouterr().out


def test_without_lists_all_of_kitti_is_looked_for(real: Path, copied: Callable[..., Path]) -> None:
    root = copied("ImageSets")
    with pytest.raises(FileNotFoundError, match=r"training/calib lacks 7473 of 7481 files: 000008.txt, 000009.txt,"):
        check_tree(root)


def test_no_folder_and_no_scans(tmp_path: Path, copied: Callable[..., Path], capsys: pytest.CaptureFixture) -> None:
    assert command("kitti", "--root-path", tmp_path / "nothing") == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"has no scan of a training frame; .* fetch data_object_velodyne.zip"):
        make_depth(copied("training/velodyne"))


def test_depth_that_cannot_be_made(copied: Callable[..., Path]) -> None:
    root = copied("training/depth_dense")
    (root / "training" / "velodyne" / "000000.bin").write_bytes(np.array([-9, 0, 0, 0], dtype="<f4").tobytes())
    with pytest.raises(
        ValueError, match=r"velodyne/000000.bin: no LiDAR point falls into the image; check its calibration"
    ):
        make_depth(root, progress=False)
    Image.new("L", (4, 4)).save(root / "training" / "image_2" / "000000.png")
    (root / "training" / "image_2" / "000000.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image \S+000000.png is missing; the depth map takes its size"):
        make_depth(root, progress=False)
