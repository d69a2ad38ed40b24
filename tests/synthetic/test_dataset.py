"""The written data set as the stock devkit sees it."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from nuscenes import NuScenes
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.evaluate import DetectionEval
from nuscenes.utils.data_classes import LidarPointCloud, RadarPointCloud
from nuscenes.utils.geometry_utils import points_in_box
from PIL import Image
from pyquaternion import Quaternion

from mmdet3d.datasets.processes import in_processes
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.datasets.synthetic.road import CURB, EDGE, EXTENT, SIDEWALK, Road
from mmdet3d.datasets.synthetic.vector_map import place

SMALL = WorldSettings(scenes=2, keyframes=3, lidar_sweeps=1, radar_sweeps=1, image_size=(160, 90), val_fraction=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("synthetic") / "world", SMALL, progress=False)


@pytest.fixture(scope="module")
def nusc(root: Path) -> NuScenes:
    return NuScenes(VERSION, str(root), verbose=False)


def _digest(root: Path) -> dict[str, str]:
    files = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_files_and_chains_are_complete(nusc: NuScenes, root: Path):
    assert len(nusc.sample) == 6
    for sample in nusc.sample:
        assert len(sample["data"]) == 12
    for data in nusc.sample_data:
        assert (root / data["filename"]).stat().st_size > 0
        if data["next"]:
            after = nusc.get("sample_data", data["next"])
            assert after["prev"] == data["token"] and after["timestamp"] > data["timestamp"]
            assert after["channel"] == data["channel"]
        if data["channel"].startswith("CAM"):
            assert (data["width"], data["height"]) == (160, 90)
            assert Image.open(root / data["filename"]).size == (160, 90)
    sweeps = [d for d in nusc.sample_data if not d["is_key_frame"]]
    assert len(sweeps) == 6 * (1 + 5)


def test_tables_have_the_fields_of_the_real_ones(shared: Path, root: Path):
    real = shared / "data" / "nuscenes" / "v1.0-mini"
    for path in sorted((root / VERSION).glob("*.json")):
        if path.name != "splits.json":
            ours, theirs = (json.loads(p.read_text())[0] for p in (path, real / path.name))
            assert set(theirs) <= set(ours), path.name
            for key in theirs:
                assert type(ours[key]) is type(theirs[key]), f"{path.name}: {key}"


def test_points_in_boxes_are_as_many_as_annotated(nusc: NuScenes):
    checked = 0
    for sample in nusc.sample:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            count = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert points_in_box(box, points).sum() == count
            checked += count > 0
    assert checked > 40


def test_radar_points_on_footprints_are_as_many_as_annotated(nusc: NuScenes):
    total = 0
    for sample in nusc.sample:
        clouds = []
        for channel in [c for c in sample["data"] if c.startswith("RADAR")]:
            data = nusc.get("sample_data", sample["data"][channel])
            path = nusc.get_sample_data_path(data["token"])
            cloud = RadarPointCloud.from_file(path, list(range(18)), list(range(8)), list(range(5)))
            for table in ("calibrated_sensor", "ego_pose"):
                record = nusc.get(table, data[f"{table}_token"])
                cloud.rotate(Quaternion(record["rotation"]).rotation_matrix)
                cloud.translate(np.array(record["translation"]))
            clouds.append(cloud.points[:3])
        points = np.concatenate(clouds, 1)
        for token in sample["anns"]:
            box, annotation = nusc.get_box(token), nusc.get("sample_annotation", token)
            flat = np.vstack([points[:2], np.full(points.shape[1], box.center[2])])
            assert points_in_box(box, flat).sum() == annotation["num_radar_pts"]
            total += annotation["num_radar_pts"]
    assert total > 30


def test_box_velocity_fits_attributes(nusc: NuScenes):
    names = {a["token"]: a["name"] for a in nusc.attribute}
    moving = 0
    for annotation in nusc.sample_annotation:
        velocity = nusc.box_velocity(annotation["token"])[:2]
        if np.isnan(velocity).any() or not annotation["attribute_tokens"]:
            continue
        name = names[annotation["attribute_tokens"][0]]
        if name.endswith(("parked", "standing", "sitting_lying_down", "without_rider")):
            assert np.hypot(*velocity) < 0.01
        elif name in ("pedestrian.moving", "cycle.with_rider"):
            moving += np.hypot(*velocity) > 0.3
    assert moving > 5


def test_ego_stands_on_the_road(nusc: NuScenes):
    for sample in nusc.sample:
        log = nusc.get("log", nusc.get("scene", sample["scene_token"])["log_token"])
        mask = nusc.get("map", log["map_token"])["mask"]
        data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        # The raster is that of the scene's square.
        x, y = (v % EXTENT for v in nusc.get("ego_pose", data["ego_pose_token"])["translation"][:2])
        on_road = mask.is_on_mask(np.array([x, x + 60]), np.array([y, y + 60]))
        assert on_road[0]
    assert mask.mask().mean() < 0.3 * 255


def test_the_devkit_opens_the_map_and_it_shows_the_road(nusc: NuScenes):
    from nuscenes.map_expansion.map_api import NuScenesMap

    layers = ["drivable_area", "walkway", "carpark_area", "ped_crossing", "stop_line", "lane_divider"]
    api = NuScenesMap(nusc.dataroot, nusc.log[0]["location"])
    for index, scene in enumerate(nusc.scene):
        sample = nusc.get("sample", scene["first_sample_token"])
        data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", data["ego_pose_token"])["translation"]
        masks = api.get_map_mask((x, y, 80.0, 80.0), 0.0, layers, (320, 320)).astype(bool)
        fragment = json.loads((Path(nusc.dataroot) / ".scenes" / f"{scene['name']}.json").read_text())
        road = Road.from_dict(fragment["road"][0])
        # Pixel k stands for the line k cells above the border.
        steps = np.arange(320) * 0.25 - 40
        places = np.stack(np.meshgrid(x + steps, y + steps), -1) - place(index, len(nusc.scene))
        s, d = road.from_global(places)
        across = np.abs(d)
        along = np.inf if road.crossing is None else np.abs(s - road.crossing)
        street = along < 5
        expected = [
            (across < CURB) | (street & (across < 60)),
            (across > CURB) & (across < SIDEWALK) & ~street,
            (across > EDGE) & (across < CURB) & (along > 9),
            (along > 5.5) & (along < 8.5) & (across < EDGE),
            (along > 9) & (along < 10) & (d * (s - (road.crossing or 0)) > 0) & (across < EDGE),
            (np.abs(across - EDGE / 2) < 0.3) & ~street,
        ]
        for layer, found, wanted in zip(layers, masks, expected, strict=True):
            union = (found | wanted).sum()
            # A border of one pixel is much of what is four wide.
            least = {"stop_line": 0.7, "lane_divider": 0.6}.get(layer, 0.85)
            assert not union or (found & wanted).sum() / union > least, layer
        assert masks[0, 160, 160] and masks[:3].any((1, 2)).all()


@pytest.mark.parametrize("split", ["synthetic_train", "synthetic_val"])
def test_truth_as_prediction_scores_one(nusc: NuScenes, tmp_path: Path, split: str):
    from nuscenes.eval.detection.utils import category_to_detection_name

    names = {a["token"]: a["name"] for a in nusc.attribute}
    results: dict[str, list] = {}
    for sample in nusc.sample:
        results[sample["token"]] = [
            {
                "sample_token": sample["token"],
                "translation": a["translation"],
                "size": a["size"],
                "rotation": a["rotation"],
                "velocity": [float(v) for v in np.nan_to_num(nusc.box_velocity(a["token"])[:2])],
                "detection_name": category_to_detection_name(a["category_name"]),
                "detection_score": 0.9,
                "attribute_name": names[a["attribute_tokens"][0]] if a["attribute_tokens"] else "",
            }
            for a in (nusc.get("sample_annotation", t) for t in sample["anns"])
            if a["num_lidar_pts"] + a["num_radar_pts"] > 0  # the evaluation drops the others from the truth only
        ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"meta": {}, "results": results}))
    evaluation = DetectionEval(
        nusc, config_factory("detection_cvpr_2019"), str(path), split, str(tmp_path), verbose=False
    )
    metrics, _ = evaluation.evaluate()
    present = {b.detection_name for boxes in evaluation.gt_boxes.boxes.values() for b in boxes}
    assert len(present) >= 6
    for name in present:
        assert metrics.mean_dist_aps[name] == pytest.approx(1.0), name
        assert metrics.get_label_tp(name, "trans_err") < 1e-6


def test_more_workers_and_an_interruption_give_the_same_bytes(root: Path, tmp_path: Path):
    again = tmp_path / "again"
    generate(again, SMALL, workers=2, progress=False)
    assert _digest(again) == _digest(root)
    (again / ".scenes" / "synthetic-0001.json").unlink()
    kept = next(again.glob("samples/LIDAR_TOP/synthetic-0000*")).stat().st_mtime_ns
    for path in again.glob("samples/CAM_FRONT/synthetic-0001*"):
        path.write_bytes(b"cut off")
    generate(again, SMALL, progress=False)
    assert _digest(again) == _digest(root)
    assert next(again.glob("samples/LIDAR_TOP/synthetic-0000*")).stat().st_mtime_ns == kept


TINY = WorldSettings(scenes=1, keyframes=1, lidar_sweeps=0, radar_sweeps=0, image_size=(32, 18), reach=20)


def test_a_finished_world_is_not_written_again(tmp_path: Path):
    """Another recipe may be reading it."""

    def times() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}

    generate(tmp_path, TINY, progress=False)
    before = times()
    generate(tmp_path, TINY, progress=False)
    assert times() == before


def _complete(root: Path, _: int) -> None:
    for _ in range(40):
        (root / VERSION / "category.json").write_text("[]")
        generate(root, TINY, progress=False)


def test_two_processes_complete_one_world(tmp_path: Path):
    generate(tmp_path, TINY, progress=False)
    list(in_processes(partial(_complete, tmp_path), [0, 1], 2, "fork"))
    assert json.loads((tmp_path / VERSION / "category.json").read_text())
    assert not list((tmp_path / VERSION).glob(".*"))


def test_other_seeds_give_other_worlds(root: Path, tmp_path: Path):
    other = WorldSettings(**{**SMALL.__dict__, "seed": 1, "scenes": 1, "keyframes": 1})
    generate(tmp_path / "other", other, progress=False)
    first = "samples/LIDAR_TOP/synthetic-0000*"
    assert next((tmp_path / "other").glob(first)).read_bytes() != min(root.glob(first)).read_bytes()


def test_folders_of_something_else_are_refused(root: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"seed 0 instead of 5.*another folder"):
        generate(root, WorldSettings(**{**SMALL.__dict__, "seed": 5}))
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        generate(tmp_path, SMALL)
    with pytest.raises(ValueError, match="workers"):
        generate(root, SMALL, workers=0)


@pytest.fixture(scope="module")
def tool():
    from mmdet3d.commands import create_data

    return create_data


def test_command_line(tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = ["synthetic", "--out-dir", str(tmp_path / "world"), "--scenes", "1", "--keyframes", "1"]
    small = ["--lidar-sweeps", "0", "--radar-sweeps", "0", "--image-size", "64", "36"]
    assert tool.main(common + small) == 0
    assert (tmp_path / "world" / VERSION / "splits.json").is_file()
    capsys.readouterr()
    assert tool.main([*common, *small, "--seed", "9"]) == 2
    assert "another folder" in capsys.readouterr().err


def test_command_line_refuses_unknown_data_sets(tool, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stop:
        tool.main(["nuscense"])
    assert stop.value.code == 2
    assert "nuscense" in capsys.readouterr().err


def test_command_line_explains_what_the_system_refuses(tool, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "file").touch()
    assert tool.main(["synthetic", "--out-dir", str(tmp_path / "file" / "world"), "--scenes", "1"]) == 2
    assert "a file lies where a folder is needed" in capsys.readouterr().err


def test_command_line_makes_info_files(tool, root: Path, tmp_path: Path):
    code = tool.main(
        ["nuscenes", "--root-path", str(root), "--out-dir", str(tmp_path), "--version", VERSION, "--workers", "1"]
    )
    assert code == 0
    names = {p.name for p in tmp_path.iterdir()}
    assert {"nuscenes_infos_train.pkl", "nuscenes_infos_val.pkl", "nuscenes_dbinfos_train.pkl"} <= names
