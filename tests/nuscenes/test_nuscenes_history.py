"""Earlier key frames and the ego frame: found by token, one geometry with the key frame, one augmentation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import frames
import numpy as np
import pytest
import torch
from PIL import Image
from pyquaternion import Quaternion

from mmdet3d.datasets import FrameDataset, NuScenesDataset
from mmdet3d.datasets.nuscenes import in_ego_frame
from mmdet3d.datasets.records import CameraRecord, FrameRecord, SensorRecord
from mmdet3d.datasets.transforms import (
    Compose,
    GridMask,
    ImageAug3D,
    ImageNormalize,
    LoadHistoryImages,
    LoadMultiViewImageFromFiles,
    LoadPointsFromFile,
    LoadPointsFromMultiSweeps,
    ObjectPaste,
    empty_sample,
)
from mmdet3d.datasets.transforms.paste import ObjectSource
from mmdet3d.structures import Batch, Sample, project

FIRST, SECOND = "3e8750f331d7499e9b5123e9eb70f2e2", "3950bd41f74548429c0f7700ff3d8269"
IMAGE_AUG = {"type": "ImageAug3D", "final_dim": [256, 704], "resize_lim": [0.386, 0.55], "rot_lim": [-5.4, 5.4]}
SCENE_AUG = [
    {"type": "GlobalRotScaleTrans", "resize_lim": [0.95, 1.05], "rot_lim": [-0.3927, 0.3927], "trans_lim": 0},
    {"type": "RandomFlip3D"},
]


def pipeline(offsets: list[int], *steps: dict[str, Any], missing: str = "last_valid") -> list[dict[str, Any]]:
    history = {"type": "LoadHistoryImages", "key_offsets": offsets, "missing": missing}
    return [{"type": "LoadMultiViewImageFromFiles"}, {"type": "LoadAnnotations3D"}, history, *steps]


@pytest.fixture(scope="module")
def real(created: dict[str, Path], root: Path) -> Callable[..., tuple[NuScenesDataset, Sample]]:
    def load(steps: list[dict[str, Any]], **arguments: Any) -> tuple[NuScenesDataset, Sample]:
        dataset = NuScenesDataset(str(created["val"]), str(root), steps, filter_empty_gt=False, **arguments)
        return dataset, dataset[dataset.tokens.index(SECOND)]

    return load


@pytest.mark.parametrize("frame", ["lidar", "ego"])
def test_the_history_camera_sees_places_where_they_were(frame: str, real: Any, root: Path) -> None:
    """Places that the earlier frame's own matrices put into its images, brought into the augmented key frame."""
    _, sample = real(pipeline([-1], IMAGE_AUG | {"rand_flip": True}, *SCENE_AUG), frame=frame, seed=3)
    now, then = frames.real_frame(root, SECOND), frames.real_frame(root, FIRST)
    past = sample.history[0].calibration
    assert not torch.allclose(past.image_aug, torch.eye(4)) and not torch.allclose(past.lidar_aug, torch.eye(4))
    assert torch.equal(past.image_aug, sample.calibration.image_aug)
    assert torch.equal(past.lidar_aug, sample.calibration.lidar_aug)
    key2global = now.ego2global if frame == "ego" else now.ego2global @ now.lidar2ego
    moved = past.lidar_aug.double() @ np.linalg.inv(key2global) @ then.ego2global @ then.lidar2ego
    places = torch.tensor(then.boxes[:, :3])
    augmented = places @ moved[:3, :3].T + moved[:3, 3]
    undo = torch.linalg.inv(past.lidar_aug.double())
    found, found_depth = project(augmented @ undo[:3, :3].T + undo[:3, 3], past.lidar2image.double())
    seen = 0
    for c, camera in enumerate(then.cameras.values()):
        intrinsics = torch.eye(4, dtype=torch.float64)
        intrinsics[:3, :3] = torch.tensor(camera.intrinsics)
        expected, depth = project(places, intrinsics @ torch.linalg.inv(torch.tensor(camera.sensor2lidar)))
        ahead = depth > 2
        np.testing.assert_allclose(found[c][ahead], expected[ahead], atol=0.1)
        np.testing.assert_allclose(found_depth[c], depth, atol=1e-3)
        seen += int(ahead.sum())
    # Three metres of ego motion matter: the key frame's own cameras see the places elsewhere.
    wrong, _ = project(augmented @ undo[:3, :3].T + undo[:3, 3], sample.calibration.lidar2image.double())
    assert seen > 50 and (wrong - found).abs().median() > 2


def test_missing_frames(real: Any) -> None:
    """The first key frame of a scene has no past; -1 of the second is there, -2 is not."""
    for missing, tokens in (("last_valid", [FIRST, FIRST]), ("current", [FIRST, SECOND])):
        for test_mode in (False, True):
            _, sample = real(pipeline([-1, -2], missing=missing), test_mode=test_mode)
            assert [s.token for s in sample.history] == tokens
    _, sample = real(pipeline([-2, -4], IMAGE_AUG, {"type": "ImageNormalize", "mean": [0.5], "std": [0.5]}))
    for past in sample.history:
        assert past.token == SECOND and torch.equal(past.images, sample.images)
        assert torch.equal(past.calibration.camera2lidar, sample.calibration.camera2lidar)
    assert real(pipeline([]))[1].history is None


def test_a_frame_without_its_images_is_missing(real: Any) -> None:
    """Of the 40 key frames of the scene two have images here; another scene is never reached."""
    dataset, _ = real(pipeline([-1]))
    record = dataset._find(dataset._find(SECOND).next_token)
    context = frames.context(record, dataset.root, find=dataset._find)
    assert context.earlier(1).token == SECOND and context.earlier(2).token == FIRST
    assert context.earlier(3) is None
    other = next(r for r in dataset._records if r.scene_token != record.scene_token)
    assert frames.context(other, dataset.root, find=dataset._find).earlier(1) is None


def test_frames_between_samples_serve_as_history(created: dict[str, Path], root: Path) -> None:
    every_second = NuScenesDataset(str(created["val"]), str(root), load_interval=2)
    record = every_second.frame(1)
    context = frames.context(record, root, find=every_second._find)
    assert context.earlier(1).token == SECOND and SECOND not in every_second.tokens
    assert context.earlier(2).token == every_second.tokens[0]


# -- the ego frame --------------------------------------------------------------------------------------------------


def test_ego_frame_of_points_boxes_and_images(real: Any) -> None:
    """The same world: pixels of points, points in boxes, submission."""
    steps = [
        {"type": "LoadMultiViewImageFromFiles"},
        {"type": "LoadPointsFromFile"},
        {"type": "LoadPointsFromMultiSweeps", "sweeps_num": 2, "remove_close": True, "pad_empty_sweeps": True},
        {"type": "LoadAnnotations3D"},
        {"type": "ImageNormalize", "mean": [0.5], "std": [0.5]},
        {"type": "GTDepth", "keyframe_only": True},
    ]
    loaded = {}
    for frame in ("lidar", "ego"):
        dataset, _ = real([], frame=frame)
        record = dataset.frame(dataset.tokens.index(FIRST))
        loaded[frame] = dataset, record, Compose(steps).load(frames.context(record, dataset.root))
    (_, was, lidar), (_, record, ego) = loaded["lidar"], loaded["ego"]
    matrix = torch.tensor(was.lidar2ego)
    np.testing.assert_array_equal(record.lidar2ego, np.eye(4))
    assert len(lidar.points) > 30_000 and lidar.points.shape == ego.points.shape
    moved = lidar.points[:, :3].double() @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(ego.points[:, :3], moved, atol=1e-4)
    assert torch.equal(ego.points[:, 3:], lidar.points[:, 3:])
    assert ((ego.depths - lidar.depths).abs() < 1e-3).float().mean() > 0.999
    # The road is level in the ego frame, and at height 0.
    ground = ego.points[(ego.points[:, :2].norm(dim=1) < 15) & (ego.points[:, 2].abs() < 0.4)]
    assert len(ground) > 5000 and ground[:, 2].median().abs() < 0.1
    inside = [s.boxes.contains(s.points[s.points[:, 4] == 0]).sum(1) for s in (lidar, ego)]
    assert (inside[0] - inside[1]).abs().float().mean() < 0.1 * inside[0].float().mean()


def test_ego_frame_gives_the_same_submission(real: Any, tmp_path: Path) -> None:
    results = {}
    for frame in ("lidar", "ego"):
        dataset, _ = real([], frame=frame, test_mode=True)
        path = dataset.format([dataset.ground_truth(k) for k in range(len(dataset))], tmp_path / frame)
        results[frame] = json.loads(path.read_text())["results"]
    for token, boxes in results["lidar"].items():
        for one, other in zip(boxes, results["ego"][token], strict=True):
            np.testing.assert_allclose(one["translation"], other["translation"], atol=1e-3)
            np.testing.assert_allclose(one["size"], other["size"], atol=1e-4)
            np.testing.assert_allclose(one["velocity"], other["velocity"], atol=0.05)
            turn = Quaternion(one["rotation"]).inverse * Quaternion(other["rotation"])
            # A scanner's tilt: level boxes of the one frame lean in the other.
            assert abs(turn.yaw_pitch_roll[0]) < 0.01 and abs(turn.angle) < 0.06


def test_pictures_look_ahead_in_both_frames(real: Any) -> None:
    """The car's front is up; boxes and what a detector found lie on the same pixels."""
    scenes = []
    for frame in ("lidar", "ego"):
        dataset, sample = real(pipeline([-1]), frame=frame)
        scenes.append(dataset.scene(sample))
        found = sample.boxes.transform(scenes[-1].from_detections)
        torch.testing.assert_close(found.tensor, scenes[-1].boxes.tensor)
        assert torch.equal(sample.calibration.lidar_aug, torch.eye(4))
    lidar, ego = scenes
    mount = torch.tensor([0.0, 0.94, 1.84])
    # The scanner is tilted by 2.6 degrees, which shows in the height of what is far.
    shift = (ego.boxes.centers - lidar.boxes.centers - mount).abs()
    assert shift[:, :2].max() < 0.5 and (shift[:, 2] < 0.06 * ego.boxes.centers.norm(dim=1)).all()
    pixels = []
    for scene in scenes:
        undo = torch.linalg.inv(scene.calibration.lidar_aug)
        raw = scene.boxes.centers @ undo[:3, :3].T + undo[:3, 3]
        uv, depth = project(raw, scene.calibration.lidar2image)
        pixels.append(uv[depth > 2])
    torch.testing.assert_close(*pixels, atol=0.1, rtol=1e-4)


def test_augmentation_keeps_the_height_of_points_in_boxes(real: Any) -> None:
    """Scaling the scene scales z of points as it scales that of boxes."""
    steps = [{"type": "LoadPointsFromFile"}, {"type": "LoadAnnotations3D"}]
    dataset, _ = real([], frame="ego")
    record = dataset.frame(dataset.tokens.index(FIRST))
    counts = []
    for scale in (1.0, 1.05):
        scene = {"type": "GlobalRotScaleTrans", "resize_lim": [scale, scale], "rot_lim": [0.2, 0.2], "trans_lim": 0}
        sample = Compose([*steps, scene]).load(frames.context(record, dataset.root))
        counts.append(sample.boxes.contains(sample.points).sum(1))
    assert counts[0].sum() > 200 and (counts[0] - counts[1]).abs().sum() <= 5


def test_close_points_of_padded_sweeps_are_those_near_the_scanner(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path, sweeps=0)
    rows = np.zeros((3, 5), dtype="<f4")
    rows[:, 0] = [0.5, 5, 9]
    rows.tofile(tmp_path / record.lidar.path)
    record.lidar2ego = np.eye(4)
    record.lidar2ego[0, 3] = 5
    steps = [LoadPointsFromFile(), LoadPointsFromMultiSweeps(1, pad_empty_sweeps=True, remove_close=True)]
    for frame, shift in ((record, 0), (in_ego_frame(record), 5)):
        points = Compose(steps).load(frames.context(frame, tmp_path)).points
        assert (points[:, 0] - shift).tolist() == [0.5, 5, 9, 5, 9]


def test_nothing_is_pasted_in_the_ego_frame(tmp_path: Path) -> None:
    record = frames.small_frame(tmp_path)
    record.lidar2ego[0, 3] = 1
    sample = Compose([LoadPointsFromFile()]).load(frames.context(in_ego_frame(record), tmp_path))
    paste = ObjectPaste(ObjectSource("none.pkl", {"car": 1}))
    with pytest.raises(ValueError, match=r"gt_paste_stop_epoch: -1, or frame: lidar"):
        paste(sample, frames.context(in_ego_frame(record), tmp_path))


# -- a made-up scene ------------------------------------------------------------------------------------------------


def drive(folder: Path, sizes: list[tuple[int, int]] | None = None, **fields: str | None) -> list[FrameRecord]:
    """Three key frames of a car that drives 2 m ahead (+y) between them; one camera looks ahead; a cone stands still.

    The cone, at global (3, 30, 0), is white on black in every image.
    """
    records = []
    camera = np.eye(4)
    camera[:3, :3] = [[1, 0, 0], [0, 0, 1], [0, -1, 0]]
    intrinsics = np.array([[900.0, 0, 800], [0, 900, 450], [0, 0, 1]])
    for k in range(3):
        size = sizes[k] if sizes else (1600, 900)
        image = Image.new("RGB", size)
        u, v = intrinsics[:2, 0] * 3 / (30 - 2 * k) + intrinsics[:2, 2]
        image.paste("white", (round(u) - 8, round(v) - 8, round(u) + 8, round(v) + 8))
        image.save(folder / f"{k}.png")
        ego2global = np.eye(4)
        ego2global[1, 3] = 2 * k
        records.append(
            FrameRecord(
                token=f"t{k}",
                timestamp=k,
                lidar=SensorRecord("", k, np.eye(4)),
                lidar2ego=np.eye(4),
                ego2global=ego2global,
                cameras={"CAM": CameraRecord(f"{k}.png", k, camera, intrinsics=intrinsics)},
                **{"scene_token": "s", "prev_token": f"t{k - 1}" if k else "", **fields},
            )
        )
    return records


@pytest.mark.parametrize("seed", range(4))
def test_all_images_of_a_camera_are_augmented_alike(seed: int, tmp_path: Path) -> None:
    """The static cone, augmented, falls on its picture in every image through that frame's own calibration."""
    normalise = {"type": "ImageNormalize", "mean": [0.0] * 3, "std": [1.0] * 3}
    steps = pipeline([-1, -2], IMAGE_AUG | {"rand_flip": True}, *SCENE_AUG, normalise)
    dataset = FrameDataset(drive(tmp_path), tmp_path, steps, ("car",), filter_empty_gt=False, seed=seed)
    sample = dataset[2]
    assert [s.token for s in sample.frames] == ["t2", "t1", "t0"]
    aug = sample.calibration.lidar_aug
    cone = torch.tensor([3.0, 26, 0]) @ aug[:3, :3].T + aug[:3, 3]
    seen = 0
    for frame in sample.frames:
        undo = torch.linalg.inv(frame.calibration.lidar_aug)
        raw = cone @ undo[:3, :3].T + undo[:3, 3]
        uv, _ = project(raw[None], frame.calibration.lidar2image[0])
        image_aug = frame.calibration.image_aug[0]
        u, v = (uv[0] @ image_aug[:2, :2].T + image_aug[:2, 3]).tolist()
        assert frame.images.shape == (1, 3, 256, 704)
        if not (8 < u < 696 and 8 < v < 248):
            continue
        rows, columns = torch.nonzero(frame.images[0].mean(0) > 0.5, as_tuple=True)
        np.testing.assert_allclose([columns.float().mean() + 0.5, rows.float().mean() + 0.5], [u, v], atol=1.5)
        seen += 1
    assert seen == 3


def test_evaluation_matrix_is_that_of_the_published_test(tmp_path: Path) -> None:
    """0.44 of 1600 x 900 pixels, 140 rows cut off at the top."""
    steps = pipeline([-1], IMAGE_AUG | {"resize_lim": [0.44, 0.44], "is_train": False})
    sample = FrameDataset(drive(tmp_path), tmp_path, steps, ("car",), test_mode=True)[1]
    expected = np.diag([0.44, 0.44, 1, 1])
    expected[1, 3] = -140
    for frame in sample.frames:
        np.testing.assert_allclose(frame.calibration.image_aug[0], expected, atol=1e-6)


def test_one_grid_mask_for_all_times(tmp_path: Path) -> None:
    record = drive(tmp_path)[0]
    sample = empty_sample(record)
    sample.images = torch.ones(1, 3, 32, 64)
    sample.history = [Sample("past", sample.calibration, images=torch.ones(1, 3, 32, 64))]
    GridMask(offset=True)(sample, frames.context(record, tmp_path))
    assert torch.equal(sample.images, sample.history[0].images) and not (sample.images == 1).all()


def test_channel_order(tmp_path: Path) -> None:
    record = drive(tmp_path)[0]
    sample = empty_sample(record)
    sample.images = [Image.new("RGB", (4, 4), (255, 0, 51))]
    ImageNormalize([0.0, 0.5, 0.0], [1.0, 0.5, 2.0], channel_order="bgr")(sample, frames.context(record, tmp_path))
    np.testing.assert_allclose(sample.images[0, :, 0, 0], [0.2, -1, 0.5])
    with pytest.raises(ValueError, match="channel_order must be rgb or bgr, got 'gbr'"):
        ImageNormalize([0.0] * 3, [1.0] * 3, channel_order="gbr")


def test_batches_of_histories(tmp_path: Path) -> None:
    steps = pipeline([-1, -2], {"type": "ImageNormalize", "mean": [0.5], "std": [0.5]})
    dataset = FrameDataset(drive(tmp_path), tmp_path, steps, ("car",), test_mode=True)
    batch = Batch.collate([dataset[k] for k in range(3)])
    assert [past.tokens for past in batch.history] == [["t0", "t0", "t1"], ["t0", "t0", "t0"]]
    assert batch.history[1].images.shape == (3, 1, 3, 900, 1600)
    moved = batch.to("meta")
    assert {past.images.device.type for past in moved.history} == {"meta"}
    assert {past.device.type for past in moved.history} == {"meta"}
    without = batch.without("images")
    assert without.images is None and all(past.images is None for past in without.history)
    assert batch.without("history").history is None and batch.without("points").history[0].images is not None
    short = dataset[1]
    short.history = short.history[:1]
    with pytest.raises(ValueError, match=r"histories have \[2, 1\] frames"):
        Batch.collate([dataset[0], short])
    short.history = None
    with pytest.raises(ValueError, match="sample t1 has no history, others do"):
        Batch.collate([dataset[0], short])


def test_mistakes(tmp_path: Path, created: dict[str, Path], root: Path) -> None:
    with pytest.raises(ValueError, match=r"must be negative whole numbers, got \[-1, 0\]"):
        LoadHistoryImages([-1, 0])
    with pytest.raises(ValueError, match="must be last_valid or current, got 'first'"):
        LoadHistoryImages([-1], missing="first")
    with pytest.raises(ValueError, match="unknown, use lidar or ego"):
        NuScenesDataset(str(created["val"]), str(root), frame="global")
    records = drive(tmp_path)
    with pytest.raises(ValueError, match="needs images; put LoadMultiViewImageFromFiles before it"):
        Compose([LoadHistoryImages([-1])]).load(frames.context(records[1], tmp_path))
    late = [LoadMultiViewImageFromFiles(), ImageAug3D([256, 704], [0.5, 0.5]), LoadHistoryImages([-1])]
    with pytest.raises(ValueError, match="put it before ImageAug3D"):
        Compose(late).load(frames.context(records[1], tmp_path))
    unordered = FrameDataset(drive(tmp_path, prev_token=None), tmp_path, pipeline([-1]), ("car",))
    with pytest.raises(ValueError, match=r"sample t1 needs earlier frames.*tools/create_data.py"):
        unordered[1]
    sizes = [(1600, 900), (1500, 900), (1600, 900)]
    uneven = FrameDataset(drive(tmp_path, sizes), tmp_path, pipeline([-1]), ("car",))
    with pytest.raises(ValueError, match=r"1.png has 1500 x 900 pixels, but that of the same camera in sample t2"):
        uneven[2]
