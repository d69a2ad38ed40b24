"""Settings that mean the same thing twice: one sentence for each pair that disagrees, before anything runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from mmdet3d.config import load_config
from mmdet3d.engine.agreement import check_agreement, disagreements

sys.path.insert(0, str(Path(__file__).parents[1] / "configs"))
from test_config_tree import LEAVES

TEN = load_config("default.yaml").object_classes
RADAR, LIDAR, CAMERA = (f"synthetic/{name}/demo.yaml" for name in ("camera+radar", "lidar", "camera"))
CRKD, TEMPORAL = "synthetic/crkd/demo.yaml", "synthetic/temporal/demo.yaml"
VOXELS, FUSED = (
    f"nuscenes/det/transfusion/secfpn/{name}"
    for name in ("lidar/voxelnet_0p075.yaml", "camera+lidar/swint_v0p075/convfuser.yaml")
)
DEPTH = {"type": "MaskedFeatureLoss", "student": "encoders.camera.depth", "teacher": "encoders.camera.depth"}
KITTI, MONOSKD = "kitti/synthetic/rgb_baseline.yaml", "kitti/synthetic/monoskd.yaml"


@pytest.mark.parametrize("name", LEAVES)
def test_every_shipped_config_agrees_with_itself(name: str) -> None:
    assert disagreements(load_config(name)) == []


SWAPPED = ["pedestrian", *TEN[1:8], "car", TEN[9]]
REFUSED = [
    (RADAR, {"object_classes": SWAPPED}, "model.heads.object.tasks names car, .*object_classes of data.train, data.val "
     "and data.test is pedestrian, .*names would be swapped; give both the same classes in the same order"),
    (RADAR, {"object_classes": ["car", "pedestrian"]}, "tasks names car, truck.*is car, pedestrian: a label"),
    (CRKD, {"object_classes": SWAPPED}, r"model.heads.object.tasks of synthetic/\S+ \(model.student\) names car"),
    (VOXELS, {"object_classes": TEN[:3]}, "num_classes is 10, but object_classes of .* names 3 classes"),
    (KITTI, {"model.classes": ["Car", "Pedestrian", "Cyclist"]}, "model.classes names Car, .* but classes of data"),
    (MONOSKD, {"classes": ["Car", "Pedestrian", "Cyclist"]}, r"model.classes of \S+ \(model.teacher\) names Pedest"),
    (RADAR, {"data.val.object_classes": SWAPPED}, "object_classes of data.train is .* of data.val and data.test is "),
    (RADAR, {"bev_heads.object.test_cfg.nms_type": ["circle"]}, "nms_type has 1 entries, but .*tasks has 6 tasks"),
    (RADAR, {"bev_heads.object.test_cfg.min_radius": [4, 12]}, "min_radius has 2 entries, but .*tasks has 6 tasks"),
    (RADAR, {"camera_encoder.vtransform.image_size": [64, 256]},
     r"model.encoders.camera.vtransform.image_size is \[64, 256\], but ImageAug3D.final_dim of data.train, data.val "
     r"and data.test is \[64, 192\]: .*image_size"),
    (RADAR, {"test_pipeline.6.final_dim": [64, 256]}, "ImageAug3D.final_dim of data.train is .* of data.val and"),
    (RADAR, {"data.val.frame": "ego"}, "frame of data.train is lidar, but frame of data.val and data.test is ego"),
    (RADAR, {"test_pipeline.8.mean": [0, 0, 0]}, "ImageNormalize.mean .*other colours"),
    (TEMPORAL, {"history.key_offsets": [-1, -2, -3]}, "model.history is 2, but .*names 3 earlier frames.*their number"),
    (TEMPORAL, {"test_pipeline.1.key_offsets": [-1, -4]}, "key_offsets of data.train is .*look back by other times"),
    (LIDAR, {"train_pipeline.0.use_dim": 4}, "use_dim of data.train is 4, but LoadPointsFromMultiSweeps.use_dim of"),
    (RADAR, {"radar_use_dims": [0, 1, 2, 5, 8, 9, 18]},
     "radar.backbone.pts_voxel_encoder.in_channels is 45, but LoadRadarPointsMultiSweeps.use_dim of .*keeps 7 columns"),
    (LIDAR, {"model.encoders.lidar.backbone.pts_voxel_encoder.voxel_size": [0.6, 0.6, 8]},
     r"voxelize.voxel_size is \[1.2, 1.2, 8\], but .*pts_voxel_encoder.voxel_size is \[0.6, 0.6, 8\]: .*same"),
    (LIDAR, {"model.encoders.lidar.voxelize.point_cloud_range": [-40.8, -38.4, -5, 36, 38.4, 3]},
     "voxelize.point_cloud_range is .* but .*pts_voxel_encoder.point_cloud_range"),
    (VOXELS, {"model.encoders.lidar.backbone.sparse_shape": [1440, 1440, 31]},
     r"sparse_shape is \[1440, 1440, 31\], but point_cloud_range and voxel_size of model.encoders.lidar.voxelize make "
     r"\[1440, 1440, 40\] voxels; make it \[1440, 1440, 41\]"),
    (CRKD, {"reference_frame": "ego"}, r"frame of data.* is ego, but frame of data.train of \S+ \(model.teach"),
    (RADAR, {"evaluation.save_best": "object/mAP"}, "save_best is object/mAP, but data.val reports no such metric,"),
    (KITTI, {"evaluation.save_best": "object/nds"}, "no such metric; take one of Car/bbox/R40/easy, "),
    (CRKD, {"model.teacher.metric": "map", "model.teacher.min_score": 0.3}, "model.teacher.metric is map, but"),
    (CRKD, {"model.losses.depth": DEPTH, "model.student.overrides": {"depth_bins": [1.0, 41.0, 1.0]}},
     r"encoders.camera.vtransform.dbound of \S+ \(model.student\) is \[1, 41, 1\], but .* \(model.teacher\) is "
     r"\[1, 41, 1.25\]: model.losses.depth compares their depth bin by bin"),
    (RADAR, {"data.unlabelled": {"share": 0.5, "frame": "ego"}}, "but frame of data.unlabelled is ego"),
    (FUSED, {"image_size": [256, 640], "model.encoders.camera.vtransform.image_size": [256, 704]}, "image_size is"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "overrides", "message"), REFUSED)
def test_contradictions_are_refused_in_one_sentence(name: str, overrides: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_agreement(load_config(name, overrides))


SAID = [
    (RADAR, {"test_pipeline.4.sweeps_num": 1}, "LoadRadarPointsMultiSweeps.sweeps_num of data.train is 4"),
    (RADAR, {"bev_heads.object.test_cfg.post_center_limit_range": [-30, -30, -10, 30, 30, 10]}, "thrown away"),
    (RADAR, {"point_cloud_range": [-57.6, -57.6, -5, 57.6, 57.6, 3]}, "PointsRangeFilter.radar_range"),
    (LIDAR, {"train_pipeline.5.point_cloud_range": [-20, -20, -5, 20, 20, 3]}, "dropped before the network sees it"),
    (CRKD, {"radar_sweeps": 1}, r"sweeps_num of data.train, .* of \S+ \(model.teacher\) is 4; .*what you study"),
]


@pytest.mark.parametrize(("name", "overrides", "message"), SAID)
def test_what_may_be_meant_is_said(name: str, overrides: dict, message: str) -> None:
    said = check_agreement(load_config(name, overrides))
    assert any(re.search(message, sentence) for sentence in said), said


def test_fewer_classes_everywhere_are_fine() -> None:
    assert disagreements(load_config(RADAR, FEWER)) == []


FEWER = {
    "object_classes": ["car", "pedestrian"],
    "bev_heads.object.tasks": [["car"], ["pedestrian"]],
    "bev_heads.object.test_cfg.nms_type": ["circle", "rotate"],
    "bev_heads.object.test_cfg.min_radius": [4, 0.175],
    "bev_heads.object.test_cfg.nms_scale": [[1.0], [2.5]],
}


@pytest.mark.parametrize("several", [False, True])
def test_a_teachers_classes_are_matched_by_name_and_all_else_must_agree(several: bool) -> None:
    teacher = {"config": load_config(CRKD).model.teacher.config, "checkpoint": "t.pth", "overrides": FEWER}
    teachers = {"model.teacher": None, "model.teachers": {"lidar": teacher}} if several else {"model.teacher": teacher}
    assert disagreements(load_config(CRKD, teachers)) == []
    with pytest.raises(ValueError, match=r"frame of data.* is ego, but frame of data.train of \S+ \(model.teach"):
        check_agreement(load_config(CRKD, teachers | {"reference_frame": "ego"}))


def test_several_contradictions_come_in_a_list() -> None:
    with pytest.raises(ValueError, match=r"2 pairs of settings disagree:\n- .*frame.*\n- .*mean"):
        check_agreement(load_config(RADAR, {"data.val.frame": "ego", "test_pipeline.8.mean": [0, 0, 0]}))


def test_a_checkpoint_is_tested_on_the_classes_it_was_trained_with(tmp_path: Path) -> None:
    """TransFusion's head only knows their number."""
    (tmp_path / "configs.yaml").write_text(load_config(VOXELS).dump())
    swapped = load_config(VOXELS, {"object_classes": SWAPPED})
    assert disagreements(swapped) == []
    with pytest.raises(ValueError, match=r"object_classes of data.*configs.yaml is \[car.*place in this list"):
        check_agreement(swapped, tmp_path / "latest.safetensors")
    assert check_agreement(load_config(VOXELS), tmp_path / "latest.safetensors") == []


def test_weights_that_were_copied_out_of_their_run_say_their_classes(tmp_path: Path) -> None:
    swapped = load_config(VOXELS, {"object_classes": SWAPPED})
    record = tmp_path / "copied.json"
    record.write_text(json.dumps({"classes": load_config(VOXELS).object_classes}))
    with pytest.raises(ValueError, match=r"object_classes of data.*, but .*copied\.json says .* with \[car, "):
        check_agreement(swapped, tmp_path / "copied.safetensors")
    assert check_agreement(load_config(VOXELS), tmp_path / "copied.safetensors") == []
    record.write_text("{}")  # of before
    assert check_agreement(swapped, tmp_path / "copied.safetensors") == []


def test_metrics_that_only_training_asks_for_do_not_matter_in_a_test(tmp_path: Path) -> None:
    pedestrians = load_config(KITTI, {"eval_classes": ["Pedestrian"], "evaluation.save_best": "Car/3d/R40/moderate"})
    with pytest.raises(ValueError, match=r"save_best is Car/3d/R40/moderate, .*, did you mean 'Pedestrian/3d/R40/mod"):
        check_agreement(pedestrians)
    assert check_agreement(pedestrians, tmp_path / "latest.safetensors") == []


def test_a_class_list_that_is_a_text_is_left_to_the_data_set() -> None:
    check_agreement(load_config(VOXELS, {"object_classes": "car"}))


def test_what_is_of_the_wrong_type_is_left_to_its_part() -> None:
    cfg = load_config(RADAR)
    cfg["model"]["heads"]["object"]["tasks"] = 3
    cfg["data"]["val"]["pipeline"] = "none"
    check_agreement(cfg)
