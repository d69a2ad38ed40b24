"""Files of View-of-Delft: layout, labels in both frames, info files, and what is said about bad ones."""

from __future__ import annotations

import json
import re
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdet3d.datasets.kitti.files import read_calibration
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.datasets.synthetic.vod import VodSettings, generate_vod, rig
from mmdet3d.datasets.synthetic.worlds import read_world
from mmdet3d.datasets.transforms.radar4d import read_vod_radar
from mmdet3d.datasets.vod.create import create_vod
from mmdet3d.datasets.vod.files import frame_files, read_matrices, read_pose
from mmdet3d.datasets.vod.labels import boxes_of, objects_of, read_truth, write_objects
from mmdet3d.evaluation.kitti_overlap import pair_up
from mmdet3d.structures import Boxes3D

REPOSITORY = Path(__file__).resolve().parents[2]
SIZE = (484, 304)


def command(*words: object) -> int:
    return runpy.run_path(str(REPOSITORY / "tools" / "create_data.py"))["main"]([str(w) for w in words])


@pytest.fixture
def copied(world: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "copy"))


def files(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


# -- the world ------------------------------------------------------------------------------------------------------


def test_equal_settings_give_equal_bytes_after_an_interruption(world: Path, copied: Path) -> None:
    for lost in ("lidar/training/pose/00011.json", "lidar/training/velodyne/00011.bin"):
        (copied / lost).unlink()
    settings = VodSettings(frames=8, image_size=SIZE, val_fraction=0.5)
    generate_vod(copied, settings, progress=False)
    assert files(copied) == files(world)
    with pytest.raises(ValueError, match="holds a synthetic data set with seed 0 instead of 1"):
        generate_vod(copied, VodSettings(frames=8, image_size=SIZE, val_fraction=0.5, seed=1), progress=False)


@pytest.mark.parametrize(
    "block",
    [
        {"layout": "vod", "frames": 4, "image_size": [121, 76], "val_fraction": 0.5},
        {"layout": "truckscenes", "scenes": 2, "keyframes": 1, "lidar_sweeps": 0, "radar_sweeps": 0},
    ],
)
def test_a_recipe_makes_it(block: dict, tmp_path: Path) -> None:
    world = read_world(block, 3, "data")
    assert not world.is_made(tmp_path / "world")
    world.make(tmp_path / "world", workers=1)
    assert world.is_made(tmp_path / "world") and world.training_samples in (1, 2)


# -- labels ---------------------------------------------------------------------------------------------------------


def test_a_label_by_hand(tmp_path: Path) -> None:
    """The bottom's centre goes through the calibration, the height stands on the LiDAR's z axis, yaw is minus rotation
    minus a quarter turn."""
    line = "Cyclist 1 0 0.2 100 100 200 200 1.7 0.8 1.9 2.0 1.5 10.0 -4.64 1\n"
    (tmp_path / "a.txt").write_text(line)
    objects = read_truth(tmp_path / "a.txt")
    camera2lidar = np.linalg.inv(rig(SIZE).lidar2camera)
    (box,) = boxes_of(objects, camera2lidar)
    bottom = camera2lidar @ [2.0, 1.5, 10.0, 1]
    assert box[:3] == pytest.approx([*bottom[:2], bottom[2] + 0.85])
    assert box[3:6] == pytest.approx([1.9, 0.8, 1.7])
    assert box[6] == pytest.approx(4.64 - np.pi / 2)
    assert np.isnan(box[7:]).all() and objects.truncated[0] == 1


def test_boxes_survive_the_way_to_a_file_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    count = 50
    tensor = np.zeros((count, 9))
    tensor[:, :3] = rng.uniform([4, -15, -2], [50, 15, 0], (count, 3))
    tensor[:, 3:6] = rng.uniform(0.5, 5, (count, 3))
    tensor[:, 6] = rng.uniform(-np.pi, np.pi, count)
    calibration = rig(SIZE)
    boxes = Boxes3D(torch.from_numpy(tensor))
    objects = objects_of(boxes, ["Car"] * count, rng.random(count), calibration, SIZE)
    write_objects(tmp_path / "a.txt", objects)
    read = read_truth(tmp_path / "a.txt")
    again = boxes_of(read, np.linalg.inv(calibration.lidar2camera))
    assert again[:, :7] == pytest.approx(tensor[:, :7], abs=1e-5)
    pairs = pair_up([objects], [read])
    assert pairs.overlaps["3d"][pairs.label == pairs.result] == pytest.approx(1, abs=1e-4)
    x, _, z = objects.locations.T
    turn = objects.rotation_y - np.arctan2(x, z) - objects.alpha
    assert np.cos(turn) == pytest.approx(1)
    assert (objects.boxes2d >= 0).all() and (objects.boxes2d[:, 2:] <= SIZE).all()


def test_the_projection_is_that_of_the_inclined_box() -> None:
    """A box ahead: the outermost pixels of its eight corners, each through the LiDAR's calibration."""
    calibration = rig(SIZE)
    boxes = Boxes3D(torch.tensor([[20.0, 1, -1, 4, 2, 1.5, 0.3, 0, 0]], dtype=torch.float64))
    corners = np.concatenate([boxes.corners()[0].numpy(), np.ones((8, 1))], axis=1)
    u, v, w = calibration.intrinsics @ (calibration.lidar2camera @ corners.T)[:3]
    (box,) = objects_of(boxes, ["Car"], np.ones(1), calibration, SIZE).boxes2d
    assert box == pytest.approx([(u / w).min(), (v / w).min(), (u / w).max(), (v / w).max()])


def test_other_classes_are_read_and_unknown_ones_named(tmp_path: Path) -> None:
    rest = " 0 0 0 1 1 2 2 1 1 1 0 0 9 0 1\n"
    (tmp_path / "a.txt").write_text(f"rider{rest}moped_scooter{rest}")
    assert read_truth(tmp_path / "a.txt").names.tolist() == ["rider", "moped_scooter"]
    (tmp_path / "a.txt").write_text(f"ridr{rest}")
    with pytest.raises(ValueError, match=r"a\.txt, line 1: unknown class 'ridr', did you mean 'rider'"):
        read_truth(tmp_path / "a.txt")


# -- calibration, pose, radar ---------------------------------------------------------------------------------------


def test_a_calibration_line_without_a_value(world: Path) -> None:
    path = world / "radar/training/calib/00000.txt"
    assert path.read_text().endswith("Tr_imu_to_velo:\n")
    assert read_calibration(path).imu2velo is None
    matrices = read_matrices(world, frame_files(world, "00000", "radar_5_scans"))
    expected = rig(SIZE)
    assert matrices.radar2camera == pytest.approx(expected.radar2camera, abs=1e-9)
    radar2lidar = np.linalg.inv(matrices.lidar2camera) @ matrices.radar2camera
    assert radar2lidar[:3, 3] == pytest.approx([2.514, 0.061, -1.153], abs=1e-6)
    # The camera's axis rises by 6.81 degrees.
    axis = np.linalg.inv(matrices.lidar2camera)[:3, 2]
    assert np.degrees(np.arcsin(axis[2])) == pytest.approx(6.81, abs=1e-6)


ZERO = json.dumps({"mapToCamera": [0.0] * 16})


@pytest.mark.parametrize("text", ["", "no json", '{"mapToCamera": [1, 2]}', '{"odomToCamera": [1]}', "[1]", ZERO])
def test_a_pose_file_without_the_matrix(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"pose file .*a\.json"):
        read_pose(tmp_path / "a.json")


def test_radar_files(tmp_path: Path) -> None:
    rows = np.array([[10, 0, 1, 5, -3, 0.5, 0], [np.nan, 0, 0, 0, 0, 0, 0], [3, 4, 0, -20, 2, 2, -3]], dtype="<f4")
    rows.tofile(tmp_path / "a.bin")
    found = read_vod_radar(tmp_path / "a.bin")
    assert found.xyz.tolist() == [[10, 0, 1], [3, 4, 0]] and found.lag == pytest.approx([0, 3 / 13])
    assert found.relative.tolist() == [-3, 2] and found.over_ground.tolist() == [0.5, 2]
    (tmp_path / "a.bin").write_bytes(b"")
    assert len(read_vod_radar(tmp_path / "a.bin").xyz) == 0
    (tmp_path / "a.bin").write_bytes(b"1" * 30)
    with pytest.raises(ValueError, match="30 bytes, expected a multiple of 28"):
        read_vod_radar(tmp_path / "a.bin")


# -- info files -----------------------------------------------------------------------------------------------------


def test_info_files_of_consecutive_clips(world: Path) -> None:
    records, metadata = read_infos(world / "vod_infos_train.pkl")
    assert metadata["radar"] == "radar_5_scans" and [r.token for r in records] == ["00000", "00001", "00010", "00011"]
    assert [r.prev_token for r in records] == ["", "00000", "", "00010"]
    assert [r.next_token for r in records] == ["00001", "", "00011", ""]
    assert [r.scene_token for r in records] == ["clip-00000", "clip-00000", "clip-00010", "clip-00010"]
    assert records[1].timestamp - records[0].timestamp == 100_000
    first = records[0]
    truth = read_truth(world / "lidar/training/label_2/00000.txt")
    assert first.names.tolist() == truth.names.tolist() and len(truth) > 0
    pose = read_pose(world / first.lidar.path.replace("velodyne", "pose").replace(".bin", ".json"))
    assert first.ego2global == pytest.approx(pose @ np.linalg.inv(first.cameras["CAMERA"].sensor2lidar))


def test_the_command_writes_and_checks(copied: Path, capsys: pytest.CaptureFixture) -> None:
    words = ["vod", "--root-path", copied, "--workers", 1]
    assert command(*words, "--radar", "radar", "--extra-tag", "one") == 0
    assert "one_infos_val.pkl: 4 frames; " in capsys.readouterr().out
    assert read_infos(copied / "one_infos_val.pkl")[0][0].radars["RADAR"][0].path.startswith("radar/training/velodyne")
    assert command(*words, "--check") == 0
    assert "label: 8 files read" in capsys.readouterr().out
    (copied / "radar_5_scans/training/velodyne/00001.bin").write_bytes(b"123")
    (copied / "lidar/training/image_2/00010.jpg").write_text("../../lidar/training/image_2/00010.jpg")
    (copied / "lidar/training/pose/00011.json").unlink()
    assert command(*words, "--check") == 2
    error = capsys.readouterr().err
    assert "3 things are wrong" in error and "pose" in error
    kinds = {fault["kind"] for fault in json.loads((copied / "check.json").read_text())["faults"]}
    assert kinds == {"radar", "image", "missing file"}
    assert command(*words) == 2
    assert "a link that became a text file, take the one in the folder lidar" in capsys.readouterr().err


def zero(path: Path, key: str) -> None:
    lines = path.read_text().splitlines()
    changed = [f"{key}: {'0 ' * (len(line.split()) - 1)}" if line.startswith(f"{key}:") else line for line in lines]
    path.write_text("\n".join(changed) + "\n")


def cut_image(root: Path) -> None:
    file = root / "lidar/training/image_2/00000.jpg"
    file.write_bytes(file.read_bytes()[:100])


def label(**columns: float) -> Callable[[Path], None]:
    """Columns of the first object, by number."""

    def change(root: Path) -> None:
        file = root / "lidar/training/label_2/00000.txt"
        first, *others = file.read_text().splitlines()
        words = first.split()
        for column, value in columns.items():
            words[int(column[1:])] = str(value)
        file.write_text("\n".join([" ".join(words), *others]) + "\n")

    return change


DAMAGE = {
    "a cut image": ("image", cut_image, r"image_2/00000\.jpg cannot be decoded"),
    "no LiDAR": (
        "calibration",
        lambda root: zero(root / "lidar/training/calib/00000.txt", "Tr_velo_to_cam"),
        r"lidar/training/calib/00000\.txt: R0_rect or Tr_velo_to_cam cannot be inverted",
    ),
    "no radar": (
        "calibration",
        lambda root: zero(root / "radar_5_scans/training/calib/00000.txt", "Tr_velo_to_cam"),
        r"radar_5_scans/training/calib/00000\.txt: R0_rect or Tr_velo_to_cam cannot be inverted",
    ),
    "no camera": (
        "calibration",
        lambda root: zero(root / "lidar/training/calib/00000.txt", "P2"),
        r"lidar/training/calib/00000\.txt: P2 cannot be inverted",
    ),
    "no pose": (
        "pose",
        lambda root: (root / "lidar/training/pose/00000.json").write_text(ZERO),
        r"pose/00000\.json has no finite mapToCamera that can be inverted",
    ),
}


@pytest.mark.parametrize(("kind", "damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_named(
    kind: str, damage: Callable, message: str, copied: Path, capsys: pytest.CaptureFixture
) -> None:
    damage(copied)
    words = ["vod", "--root-path", copied, "--workers", 1]
    assert command(*words) == 2
    said = capsys.readouterr().err
    assert re.search(rf"^error: .*{message}", said, re.MULTILINE) and "again" in said
    assert command(*words, "--check") == 2
    (fault,) = json.loads((copied / "check.json").read_text())["faults"]
    assert fault["kind"] == kind and re.search(message, fault["message"])


@pytest.mark.parametrize("change", [label(_8=1e300), label(_10=0), label(_11=1e300), label(_13=-1e300)])
def test_the_check_finds_objects_that_cannot_be(change: Callable, copied: Path, capsys: pytest.CaptureFixture) -> None:
    change(copied)
    assert command("vod", "--root-path", copied, "--workers", 1, "--check") == 2
    assert re.search(r"label: 1 wrong: label file .*00000\.txt: object 0 .* cannot be", capsys.readouterr().err)


def test_places_and_names_that_are_wrong(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no folder lidar; name the one with lidar, radar"):
        create_vod(tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"--radar 'radar_5frames' is unknown, did you mean"):
        create_vod(copied, copied, radar="radar_5frames")
    (copied / "lidar/training/velodyne/00000.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"velodyne/00000\.bin is missing; complete the data set"):
        create_vod(copied, copied)
