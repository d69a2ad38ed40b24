"""Info files: what is in them, whoever wrote them."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from frames import context

from mmdet3d.datasets import NuScenesDataset
from mmdet3d.datasets.nuscenes.frames import FrameReader
from mmdet3d.datasets.nuscenes.infos import read_infos, write_infos
from mmdet3d.datasets.nuscenes.published import pose_matrix, relative_path
from mmdet3d.datasets.records import FrameRecord
from mmdet3d.datasets.transforms import empty_sample
from mmdet3d.datasets.transforms.lidar import _later_sweeps
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.structures import Boxes3D

# Key frames whose LiDAR scan exists.
SCANNED = ("ca9a282c9e77460f8360f564131a8af5", "3e8750f331d7499e9b5123e9eb70f2e2", "fdc39b23ab4242eda6ec5e1e6574fe33")


@pytest.fixture(scope="session")
def frames(created: dict[str, Path]) -> dict[str, FrameRecord]:
    return {r.token: r for role in ("train", "val") for r in read_infos(created[role])[0]}


# -- our files ------------------------------------------------------------------------------------------------------


def test_every_sample_has_an_info(created: dict[str, Path], frames: dict[str, FrameRecord]) -> None:
    assert len(frames) == 82
    train, metadata = read_infos(created["train"])
    assert [r.token for r in train] == [SCANNED[0]]
    assert (metadata["format"], metadata["version"], metadata["split"]) == ("distill3d", "v1.0-mini", "mini_train")
    frame = frames[SCANNED[0]]
    assert list(frame.cameras) == [
        "CAM_FRONT",
        "CAM_FRONT_RIGHT",
        "CAM_FRONT_LEFT",
        "CAM_BACK",
        "CAM_BACK_LEFT",
        "CAM_BACK_RIGHT",
    ]
    assert [len(s) for s in frame.radars.values()] == [1]
    assert (frame.location, len(frame.boxes)) == ("singapore-onenorth", 68)


@pytest.mark.parametrize("token", SCANNED)
def test_boxes_hold_exactly_the_annotated_number_of_points(
    token: str, root: Path, frames: dict[str, FrameRecord]
) -> None:
    # The boxes stand upright in the global frame; the scanner is tilted against it by a degree or two.
    frame = frames[token]
    lidar2global = torch.from_numpy(frame.ego2global @ frame.lidar2ego)
    points = torch.from_numpy(np.fromfile(root / frame.lidar.path, dtype="<f4").reshape(-1, 5)[:, :3]).double()
    boxes = Boxes3D(torch.from_numpy(np.nan_to_num(frame.boxes)))
    inside = boxes.transform(lidar2global).contains(points @ lidar2global[:3, :3].T + lidar2global[:3, 3]).sum(dim=1)
    np.testing.assert_array_equal(inside.numpy(), frame.num_lidar_pts)
    # Seen from the tilted scanner a few points near faces change sides.
    tilted = boxes.contains(points).sum(dim=1).numpy()
    assert np.mean(tilted == frame.num_lidar_pts) > 0.85


@pytest.mark.parametrize("name", ["bevfusion_mini_val", "mmdet3d_v0_mini_val"])
def test_files_of_other_programs_hold_the_same_frames(name: str, shared: Path, frames: dict[str, FrameRecord]) -> None:
    records, metadata = read_infos(shared / "data" / "nuscenes_infos" / f"{name}.pkl")
    assert (len(records), metadata["version"]) == (81, "v1.0-mini")
    n_cameras = n_sweeps = n_velocities = 0
    for theirs in records:
        ours = frames[theirs.token]
        np.testing.assert_array_equal(theirs.names, ours.names)
        np.testing.assert_allclose(theirs.boxes[:, :7], ours.boxes[:, :7], atol=1e-9)
        # The rebuilt tables have lost the neighbours of a few annotations, which then have no velocity.
        known = np.isfinite(ours.boxes[:, 7])
        n_velocities += known.sum()
        np.testing.assert_allclose(theirs.boxes[known, 7:], ours.boxes[known, 7:], atol=1e-9)
        np.testing.assert_array_equal(theirs.num_lidar_pts, ours.num_lidar_pts)
        np.testing.assert_allclose(theirs.lidar2ego, ours.lidar2ego, atol=1e-12)
        np.testing.assert_allclose(theirs.ego2global, ours.ego2global, atol=1e-12)
        assert theirs.lidar.path == ours.lidar.path
        for channel, camera in ours.cameras.items():
            n_cameras += 1
            _assert_same_camera(theirs.cameras[channel], camera)
        their_sweeps = {s.path: s for s in theirs.sweeps}
        for sweep in ours.sweeps:
            n_sweeps += 1
            np.testing.assert_allclose(their_sweeps[sweep.path].sensor2lidar, sweep.sensor2lidar, atol=1e-7)
    assert (n_cameras, n_sweeps, n_velocities) == (12, 4, 4514 - 81)


def _assert_same_camera(first: Any, second: Any) -> None:
    assert (first.path, first.timestamp) == (second.path, second.timestamp)
    np.testing.assert_allclose(first.sensor2lidar, second.sensor2lidar, atol=1e-9)
    np.testing.assert_allclose(first.camera2ego, second.camera2ego, atol=1e-12)
    np.testing.assert_allclose(first.intrinsics, second.intrinsics, atol=1e-9)


def test_round_trip(created: dict[str, Path], tmp_path: Path) -> None:
    records, metadata = read_infos(created["train"])
    write_infos(records, metadata, tmp_path / "again.pkl")
    assert (tmp_path / "again.pkl").read_bytes() == created["train"].read_bytes()


def _foreign(k: int, **order: str) -> dict[str, Any]:
    """An info of frame `k` of three in one scene, as BEVFusion and its descendants write it."""
    none, still = [0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]
    poses = {f"{name}_translation": none for name in ("lidar2ego", "ego2global")}
    poses |= {f"{name}_rotation": still for name in ("lidar2ego", "ego2global")}
    path = f"samples/LIDAR_TOP/{k}.bin"
    return {"token": f"t{k}", "timestamp": k, "lidar_path": path, "scene_token": "s", **poses, **order}


@pytest.mark.parametrize(
    "order",
    [
        lambda before, after: {"prev": before, "next": after},  # BEVFormer
        lambda before, after: {"prev_token": before},  # CRKD
        lambda before, after: {"prev_token": before} if before else {},
    ],
)
def test_the_order_of_frames_in_files_of_other_programs(order: Any, tmp_path: Path) -> None:
    tokens = ["", "t0", "t1", "t2", ""]
    infos = [_foreign(k, **order(tokens[k], tokens[k + 2])) for k in range(3)]
    dump_pickle({"infos": infos, "metadata": {}}, tmp_path / "infos.pkl")
    dataset = NuScenesDataset("infos.pkl", str(tmp_path))
    contexts = [context(dataset.frame(k), tmp_path, find=dataset._find) for k in range(3)]
    assert contexts[2].earlier(2).token == "t0" and contexts[1].earlier(2) is None
    assert [s.path for s in _later_sweeps(contexts[1], 1)] == ["samples/LIDAR_TOP/2.bin"]
    assert _later_sweeps(replace(contexts[1], incomplete={"t2"}), 1) == []
    assert _later_sweeps(contexts[2], 1) == []


def test_a_scene_token_alone_tells_no_order(tmp_path: Path) -> None:
    dump_pickle({"infos": [_foreign(k) for k in range(3)], "metadata": {}}, tmp_path / "infos.pkl")
    history = [{"type": "LoadHistoryImages", "key_offsets": [-1]}]
    dataset = NuScenesDataset("infos.pkl", str(tmp_path), [{"type": "LoadMultiViewImageFromFiles"}, *history])
    with pytest.raises(ValueError, match=r"sample t2 needs earlier frames, but the info file does not say which"):
        dataset[2]
    with pytest.raises(ValueError, match=r"future_sweeps: 1 needs the frame after t1, but the info file does not say"):
        _later_sweeps(context(dataset.frame(1), tmp_path, find=dataset._find), 1)


# -- geometry, from a world of one sample ---------------------------------------------------------------------------


class OneCarWorld:
    """Devkit-like tables: a turned vehicle, LIDAR_TOP, CAM_FRONT, and a car that drives along global x at 2 m/s."""

    dataroot, version = "/nowhere", "v0"

    def __init__(self, ego: dict[str, list[float]]) -> None:
        sensors = {
            "LIDAR_TOP": {"translation": [0.94, 0, 1.84], "rotation": [np.sqrt(0.5), 0, 0, -np.sqrt(0.5)]},
            "CAM_FRONT": {
                "translation": [1.7, 0, 1.5],
                "rotation": [0.5, -0.5, 0.5, -0.5],
                "camera_intrinsic": [[1266, 0, 800], [0, 1266, 450], [0, 0, 1]],
            },
        }
        car = {"translation": [111, 203, 1], "size": [2, 4.5, 1.6], "rotation": [1, 0, 0, 0], "token": "car"}
        car |= {"category_name": "vehicle.car", "num_lidar_pts": 5, "num_radar_pts": 0}
        data = {c: {"token": c, "timestamp": 1, "filename": f"samples/{c}/x", "prev": ""} for c in sensors}
        for channel, row in data.items():
            row |= {"calibrated_sensor_token": channel, "ego_pose_token": "ego"}
            row["sensor_modality"] = "lidar" if channel == "LIDAR_TOP" else "camera"
        sample = {"token": "s", "timestamp": 1, "scene_token": "scene", "prev": "", "next": "", "anns": ["car"]}
        self.rows = {
            "scene": {"scene": {"first_sample_token": "s", "log_token": "log"}},
            "log": {"log": {"location": "here"}},
            "sample": {"s": {**sample, "data": {c: c for c in sensors}}},
            "sample_data": data,
            "calibrated_sensor": sensors,
            "ego_pose": {"ego": ego},
            "sample_annotation": {"car": car},
        }

    def get(self, table: str, token: str) -> dict[str, Any]:
        return self.rows[table][token]

    def box_velocity(self, token: str) -> np.ndarray:
        return np.array([2.0, 0.0, 0.0])


def frame_of(world: OneCarWorld, monkeypatch: pytest.MonkeyPatch) -> FrameRecord:
    monkeypatch.setattr(FrameReader, "_exists", lambda *_: True)
    (frame,) = FrameReader(world, 10, allow_missing=False, annotated=True).scene("scene")
    return frame


def test_box_and_velocity_in_the_lidar_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    # Golden: CRKD's converter on this scene (width, length, height; yaw clockwise from -y) gives
    # 0.601124, 9.482987, -0.84, 2, 4.5, 1.6, -2.792527 and velocity 0.68404, 1.879385.
    turn = np.deg2rad(10)  # half of 20 degrees
    ego = {"translation": [101, 200, 0], "rotation": [np.cos(turn), 0, 0, np.sin(turn)]}
    frame = frame_of(OneCarWorld(ego), monkeypatch)
    expected = [0.601124, 9.482987, -0.84, 4.5, 2, 1.6, 2.792527 - np.pi / 2, 0.68404, 1.879385]
    np.testing.assert_allclose(frame.boxes, [expected], atol=1e-6)
    assert frame.names.tolist() == ["car"]


def test_calibration_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    # Golden: CRKD's data set class on this rig.
    frame = frame_of(OneCarWorld({"translation": [3, 4, 0], "rotation": [1, 0, 0, 0]}), monkeypatch)
    camera = frame.cameras["CAM_FRONT"].sensor2lidar
    np.testing.assert_allclose(camera[:3], [[1, 0, 0, 0], [0, 0, 1, 0.76], [0, -1, 0, -0.34]], atol=1e-12)
    calibration = empty_sample(frame).calibration
    expected = [[1266, 800, 0, -608], [0, 450, -1266, -772.44], [0, 1, 0, -0.76], [0, 0, 0, 1]]
    np.testing.assert_allclose(calibration.lidar2image[0], expected, atol=1e-3)
    expected = [[0, 1, 0, 0.94], [-1, 0, 0, 0], [0, 0, 1, 1.84], [0, 0, 0, 1]]
    np.testing.assert_allclose(calibration.lidar2ego, expected, atol=1e-6)


# -- other layouts --------------------------------------------------------------------------------------------------


def new_style_entry(frame: FrameRecord, labels: dict[str, int]) -> dict[str, Any]:
    """The frame as mmdetection3d 1.x stores it."""

    def inverse(matrix: np.ndarray) -> list:
        return np.linalg.inv(matrix).tolist()

    instances = [
        {
            "bbox_3d": box[:7].tolist(),
            "velocity": box[7:].tolist(),
            "bbox_label_3d": labels.get(str(name), -1),
            "num_lidar_pts": int(lidar),
            "num_radar_pts": int(radar),
        }
        for box, name, lidar, radar in zip(
            frame.boxes, frame.names, frame.num_lidar_pts, frame.num_radar_pts, strict=True
        )
    ]
    images = {
        channel: {
            "img_path": Path(camera.path).name,
            "cam2img": camera.intrinsics.tolist(),
            "lidar2cam": inverse(camera.sensor2lidar),
            "cam2ego": camera.camera2ego.tolist(),
            "timestamp": camera.timestamp / 1e6,
            "sample_data_token": camera.token,
        }
        for channel, camera in frame.cameras.items()
    }
    sweeps = [
        {
            "timestamp": sweep.timestamp / 1e6,
            "lidar_points": {"lidar_path": f"data/{sweep.path}", "lidar2sensor": inverse(sweep.sensor2lidar)},
        }
        for sweep in frame.sweeps
    ]
    lidar = {"lidar_path": Path(frame.lidar.path).name, "lidar2ego": frame.lidar2ego.tolist()}
    entry = {"token": frame.token, "timestamp": frame.timestamp / 1e6, "ego2global": frame.ego2global.tolist()}
    return {**entry, "lidar_points": lidar, "images": images, "lidar_sweeps": sweeps, "instances": instances}


def test_layout_of_mmdetection3d_1x(frames: dict[str, FrameRecord], tmp_path: Path) -> None:
    chosen = [frames[SCANNED[0]], frames["3950bd41f74548429c0f7700ff3d8269"]]
    labels = {"car": 0, "truck": 1, "pedestrian": 7, "barrier": 9}
    entries = [new_style_entry(f, labels) for f in chosen]
    empty = {k: v for k, v in entries[0].items() if k != "instances"}  # how that program writes a frame without objects
    metainfo = {"version": "v1.0-mini", "categories": {**labels, "odd": -1}}
    dump_pickle({"metainfo": metainfo, "data_list": [*entries, empty]}, tmp_path / "new.pkl")
    records, metadata = read_infos(tmp_path / "new.pkl")
    assert metadata["version"] == "v1.0-mini"
    for theirs, ours in zip(records, chosen, strict=False):
        np.testing.assert_allclose(theirs.boxes, ours.boxes, atol=1e-9)
        assert (theirs.lidar.path, theirs.timestamp) == (ours.lidar.path, ours.timestamp)
        known = np.isin(ours.names, list(labels))
        np.testing.assert_array_equal(theirs.names[known], ours.names[known])
        assert set(theirs.names[~known]) <= {"other"}
        assert list(theirs.cameras) == list(ours.cameras)
        for channel, camera in ours.cameras.items():
            _assert_same_camera(theirs.cameras[channel], camera)
        for mine, other in zip(ours.sweeps, theirs.sweeps, strict=True):
            assert mine.path == other.path
            np.testing.assert_allclose(other.sensor2lidar, mine.sensor2lidar, atol=1e-9)
    assert records[2].boxes.shape == (0, 9)


def old_info(boxes: np.ndarray, names: list[str], **others: Any) -> dict[str, Any]:
    return {
        "token": "t",
        "timestamp": 5,
        "lidar_path": "./data/nuscenes/samples/LIDAR_TOP/a.bin",
        "lidar2ego_translation": [0, 0, 0],
        "lidar2ego_rotation": [1, 0, 0, 0],
        "ego2global_translation": [0, 0, 0],
        "ego2global_rotation": [1, 0, 0, 0],
        "gt_boxes": boxes,
        "gt_names": np.array(names),
        "gt_velocity": np.zeros((len(boxes), 2)),
        "num_lidar_pts": np.ones(len(boxes), dtype=int),
        "num_radar_pts": np.zeros(len(boxes), dtype=int),
        **others,
    }


def read_one(info: dict[str, Any], path: Path) -> FrameRecord:
    dump_pickle({"infos": [info], "metadata": {"version": "v1.0-mini"}}, path)
    return read_infos(path)[0][0]


def test_convention_is_found_from_the_cars(tmp_path: Path) -> None:
    expected = [1, 2, 3, 4.5, 2.0, 1.6, 0.3, 0, 0]
    new = read_one(old_info(np.array([[1, 2, 3, 4.5, 2.0, 1.6, 0.3]]), ["car"]), tmp_path / "new.pkl")
    np.testing.assert_allclose(new.boxes[0], expected)
    old = read_one(old_info(np.array([[1, 2, 3, 2.0, 4.5, 1.6, -0.3 - np.pi / 2]]), ["car"]), tmp_path / "old.pkl")
    np.testing.assert_allclose(old.boxes[0], expected)


def test_convention_without_cars_is_a_warned_guess(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="box convention"):
        read_one(old_info(np.array([[1, 2, 3, 0.5, 2.5, 1.0, 0]]), ["barrier"]), tmp_path / "infos.pkl")


def test_repeated_radar_sweeps_count_once(tmp_path: Path) -> None:
    def sweep(k: int) -> dict[str, Any]:
        pose = {"sensor2lidar_rotation": np.eye(3), "sensor2lidar_translation": np.zeros(3)}
        return {"data_path": f"/x/sweeps/RADAR_FRONT/{k}.pcd", "type": "RADAR_FRONT", "timestamp": k, **pose}

    radars = {"RADAR_FRONT": [sweep(9), sweep(8), sweep(8), sweep(8)]}
    record = read_one(old_info(np.zeros((0, 7)), [], radars=radars), tmp_path / "infos.pkl")
    assert [s.path for s in record.radars["RADAR_FRONT"]] == ["sweeps/RADAR_FRONT/9.pcd", "sweeps/RADAR_FRONT/8.pcd"]


def test_frames_without_annotation(tmp_path: Path) -> None:
    info = old_info(np.zeros((0, 7)), [])
    bare = {k: v for k, v in info.items() if not k.startswith(("gt_", "num_"))}
    assert read_one(bare, tmp_path / "infos.pkl").boxes is None


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./data/nuscenes/samples/CAM_FRONT/a.jpg", "samples/CAM_FRONT/a.jpg"),
        ("data/nuscenes/sweeps/LIDAR_TOP/a.bin", "sweeps/LIDAR_TOP/a.bin"),
        ("/home/x/samples/nuscenes/samples/LIDAR_TOP/a.bin", "samples/LIDAR_TOP/a.bin"),
        ("samples/LIDAR_TOP/a.bin", "samples/LIDAR_TOP/a.bin"),
        ("a.jpg", "samples/CAM_BACK/a.jpg"),
    ],
)
def test_paths_become_relative_to_the_root(path: str, expected: str) -> None:
    assert relative_path(path, "CAM_BACK") == expected


# -- bad input ------------------------------------------------------------------------------------------------------


def test_a_calibration_that_is_not_finite_is_refused(frames: dict[str, FrameRecord], tmp_path: Path) -> None:
    (bad,) = _copies([frames[SCANNED[0]]], tmp_path)
    bad.cameras["CAM_BACK"].intrinsics[0, 0] = np.nan
    write_infos([bad], {}, tmp_path / "bad.pkl")
    with pytest.raises(ValueError, match=f"CAM_BACK in sample {SCANNED[0]} is not finite"):
        read_infos(tmp_path / "bad.pkl")


def _copies(records: list[FrameRecord], folder: Path) -> list[FrameRecord]:
    write_infos(records, {}, folder / "copy.pkl")
    return read_infos(folder / "copy.pkl")[0]


def test_a_quaternion_that_is_not_finite_gives_a_matrix_that_is_not() -> None:
    assert np.isnan(pose_matrix([0, 0, 0], [1, float("nan"), 0, 0])).any()


def test_boxes_of_no_size_are_left_out_with_a_warning(tmp_path: Path) -> None:
    boxes = np.array([[1, 2, 3, 2, 4.5, 1.6, 0], [1, 2, 3, 0, 4.5, 1.6, 0], [np.nan, 2, 3, 2, 4.5, 1.6, 0]])
    with pytest.warns(UserWarning, match="sample t: 2 of 3 boxes"):
        record = read_one(old_info(boxes, ["car"] * 3), tmp_path / "infos.pkl")
    assert len(record.boxes) == len(record.names) == len(record.num_lidar_pts) == 1


class Shell:
    """What an attacker pickles."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"infos": [Shell(f"touch {trace}")]}))
    with pytest.raises(ValueError, match=r"evil\.pkl refers to (posix|nt)\.system"):
        read_infos(tmp_path / "evil.pkl")
    assert not trace.exists()
    (tmp_path / "object.pkl").write_bytes(pickle.dumps(SimpleNamespace()))
    with pytest.raises(ValueError, match=r"types\.SimpleNamespace"):
        load_pickle(tmp_path / "object.pkl")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_plain_data_of_any_pickle_protocol(protocol: int, tmp_path: Path) -> None:
    content = {
        "a": [
            np.arange(6.0).reshape(2, 3),
            np.float32(1.5),
            np.array(["x", "yy"]),
            np.array(["x", None], dtype=object),
        ],
        "b": ({1, 2}, b"raw", 3 + 4j, np.zeros((0, 7)), np.asfortranarray(np.eye(3)), np.int64(7)),
    }
    (tmp_path / "data.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    found = load_pickle(tmp_path / "data.pkl")
    for expected, value in zip(content["a"] + list(content["b"]), found["a"] + list(found["b"]), strict=True):
        assert type(value) is type(expected)
        np.testing.assert_array_equal(value, expected)


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_infos(tmp_path / "none.pkl")
    whole = pickle.dumps({"infos": list(range(1000))})
    (tmp_path / "cut.pkl").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no readable pickle"):
        read_infos(tmp_path / "cut.pkl")
    dump_pickle([1, 2], tmp_path / "list.pkl")
    with pytest.raises(ValueError, match="holds a list"):
        read_infos(tmp_path / "list.pkl")
    dump_pickle({"boxes": 1}, tmp_path / "other.pkl")
    with pytest.raises(ValueError, match="neither `infos` nor `data_list`"):
        read_infos(tmp_path / "other.pkl")
    dump_pickle({"infos": [{"token": "a"}]}, tmp_path / "keys.pkl")
    with pytest.raises(ValueError, match="an info has no key 'timestamp'"):
        read_infos(tmp_path / "keys.pkl")
