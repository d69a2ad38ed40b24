"""`create_data ... --check`: damage of every kind, put into small worlds, is found, named and counted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mmdet3d.commands.create_data import main
from mmdet3d.datasets.synthetic.generate import generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.datasets.synthetic.settings import WorldSettings
from mmdet3d.datasets.synthetic.tables import VERSION

SMALL = WorldSettings(scenes=2, keyframes=2, lidar_sweeps=2, radar_sweeps=1, image_size=(128, 72), reach=20)


@pytest.fixture(scope="module")
def nuscenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("nuscenes")
    generate(root, SMALL, progress=False)
    return root


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = KittiSettings(frames=4, test_frames=1, image_size=(320, 96), val_fraction=0.5)
    return generate_kitti(tmp_path_factory.mktemp("kitti") / "world", settings, progress=False)


def faults(kind: str, root: Path, *words: str) -> list[dict[str, str]]:
    """What the command finds, after it agreed with its exit status."""
    status = main([kind, "--root-path", str(root), "--check", "--workers", "1", *words])
    found = json.loads((root / "check.json").read_text())
    assert status == (2 if found["faults"] else 0)
    assert sum(found["files"].values()) > 0
    return found["faults"]


def edit(root: Path, table: str, change: Callable[[list[dict[str, Any]]], None]) -> None:
    file = root / VERSION / f"{table}.json"
    rows = json.loads(file.read_text())
    change(rows)
    file.write_text(json.dumps(rows))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def test_an_intact_kitti_folder_has_no_faults(kitti: Path, capsys: pytest.CaptureFixture) -> None:
    assert faults("kitti", kitti) == []
    said = capsys.readouterr().out
    for line in ("image: 5 files read", "calibration: 5 files read", "label: 4 files read", "nothing is wrong"):
        assert line in said


@pytest.mark.slow
def test_an_intact_nuscenes_folder_has_no_faults(nuscenes: Path, capsys: pytest.CaptureFixture) -> None:
    assert faults("nuscenes", nuscenes, "--version", VERSION) == []
    said = capsys.readouterr().out
    assert "image: 24 files read" in said and "radar: " in said and "nothing is wrong" in said


def other_size(path: Path) -> None:
    with Image.open(path) as image:
        image.resize((64, 36)).save(path)


def singular(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        if row["camera_intrinsic"]:
            row["camera_intrinsic"][2] = [0.0, 0.0, 0.0]


def without_velocity(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        row["prev"] = row["next"] = ""


NUSCENES = {
    "a cut image": ("image", lambda root: cut(first(root, "samples/CAM_FRONT/*"))),
    "an image of another size": ("image", lambda root: other_size(first(root, "samples/CAM_BACK/*"))),
    "a short point file": ("points", lambda root: cut(first(root, "samples/LIDAR_TOP/*"))),
    "a cut radar file": ("radar", lambda root: cut(first(root, "samples/RADAR_FRONT/*"))),
    "a missing sweep": ("missing file", lambda root: first(root, "sweeps/LIDAR_TOP/*").unlink()),
    "a singular calibration": ("calibration", lambda root: edit(root, "calibrated_sensor", singular)),
    "no velocity": ("velocity", lambda root: edit(root, "sample_annotation", without_velocity)),
}
FAR = "Car 0 0 1.85 387.63 181.54 423.81 203.12 1.67 1.87 3.69 -16.53 2.39 1e300 1.57\n"
KITTI = {
    "a cut image": ("image", lambda root: cut(first(root, "training/image_2/*"))),
    "a short point file": ("points", lambda root: cut(first(root, "training/velodyne/*"))),
    "a cut depth map": ("depth", lambda root: cut(first(root, "training/depth_dense/*"))),
    "a depth map of another size": (
        "depth",
        lambda root: Image.fromarray(np.ones((200, 400), np.uint16)).save(first(root, "training/depth_dense/*")),
    ),
    "a missing label": ("missing file", lambda root: first(root, "training/label_2/*").unlink()),
    "a bad label": ("label", lambda root: first(root, "training/label_2/*").write_text("Car 1 2\n")),
    "an object that cannot be": ("label", lambda root: first(root, "training/label_2/*").write_text(FAR)),
    "a singular calibration": (
        "calibration",
        lambda root: first(root, "training/calib/*").write_text(f"P2: {'0 ' * 12}\n"),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "damage"), NUSCENES.values(), ids=NUSCENES)
def test_damage_to_a_nuscenes_folder_is_listed(
    kind: str, damage: Callable, nuscenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = shutil.copytree(nuscenes, tmp_path / "world")
    damage(root)
    found = faults("nuscenes", root, "--version", VERSION)
    assert {fault["kind"] for fault in found} == {kind}
    assert found[0]["place"] in found[0]["message"]
    assert f"{kind}: {len(found)} wrong: {found[0]['message']}" in capsys.readouterr().err


@pytest.mark.parametrize(("kind", "damage"), KITTI.values(), ids=KITTI)
def test_damage_to_a_kitti_folder_is_listed(kind: str, damage: Callable, kitti: Path, tmp_path: Path) -> None:
    root = shutil.copytree(kitti, tmp_path / "world")
    damage(root)
    (fault,) = faults("kitti", root)
    assert fault["kind"] == kind
    assert fault["place"] in fault["message"]
