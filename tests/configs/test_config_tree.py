"""Every config of the tree builds: models on the meta device, pipelines, optimiser groups, schedules."""

from __future__ import annotations

import csv
import functools
import inspect
from pathlib import Path

import pytest
import torch
import yaml

from mmdet3d.config import CONFIG_ROOT, load_config
from mmdet3d.distill.terms import build_term
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.schedule import LearningRate, Momentum
from mmdet3d.engine.settings import Settings
from mmdet3d.models import build_model
from mmdet3d.registry import DATASETS, TRANSFORMS

# Files that others inherit and that describe no model of their own.
PARTIAL = {
    "default.yaml",
    "nuscenes/default.yaml",
    "nuscenes/det/default.yaml",
    "nuscenes/det/centerhead/default.yaml",
    "nuscenes/det/centerhead/bevdepth/default.yaml",
    "nuscenes/det/centerhead/bevdepth/camera/256x704/resnet50/default.yaml",
    "nuscenes/det/centerhead/lssfpn/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera/256x704/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera+lidar/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera+lidar/resnet50/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera+lidar/resnet50_dcn/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera+lidar/swint_v0p075/default.yaml",
    "nuscenes/det/centerhead/lssfpn/camera+radar/default.yaml",
    "nuscenes/det/centerhead/lssfpn/lidar/default.yaml",
    "nuscenes/det/centerhead/lssfpn/simulated/default.yaml",
    "nuscenes/det/centerhead/lssfpn/simulated/resnet50/default.yaml",
    "nuscenes/det/centerhead/secfpn/default.yaml",
    "nuscenes/det/centerhead/secfpn/lidar/default.yaml",
    "nuscenes/det/transfusion/default.yaml",
    "nuscenes/det/transfusion/secfpn/default.yaml",
    "nuscenes/det/transfusion/secfpn/camera+lidar/default.yaml",
    "nuscenes/det/transfusion/secfpn/camera+lidar/swint_v0p075/default.yaml",
    "nuscenes/det/transfusion/secfpn/lidar/default.yaml",
    "nuscenes/distill/default.yaml",
    "nuscenes/distill/feature_response_distill/default.yaml",
    "nuscenes/distill/labeldistill/default.yaml",
    "nuscenes/distill/methods/default.yaml",
    "nuscenes/distill/simdistill/default.yaml",
    "nuscenes/distill/simdistill/resnet50/default.yaml",
    "nuscenes/seg/default.yaml",
    "kitti/default.yaml",
    "kitti/synthetic/default.yaml",
    "truckscenes/default.yaml",
    "truckscenes/synthetic/default.yaml",
    "vod/default.yaml",
    "vod/synthetic/default.yaml",
    "synthetic/default.yaml",
    "synthetic/crkd/default.yaml",
    "synthetic/label_encoder/default.yaml",
    "synthetic/labeldistill/default.yaml",
    "synthetic/methods/default.yaml",
    "synthetic/seg/default.yaml",
    "synthetic/simdistill/default.yaml",
}


def files(*folders: str) -> list[str]:
    found = [p.relative_to(CONFIG_ROOT).as_posix() for f in folders for p in (CONFIG_ROOT / f).rglob("*.yaml")]
    return sorted(f for f in found if "recipes" not in Path(f).parts)


LEAVES = [f for f in files("nuscenes", "synthetic", "kitti", "truckscenes", "vod") if f not in PARTIAL]

load = functools.cache(load_config)


@functools.cache
def meta_model(name: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(load(name).model)


def test_every_published_path_exists(shared):
    with (shared / "specs" / "crkd_resolved" / "per_file_keys.tsv").open() as file:
        names = {row["file"].removeprefix("configs/") for row in csv.DictReader(file, delimiter="\t")}
    assert len(names) == 45
    assert names <= {*files("nuscenes"), "default.yaml"}


def test_partial_files_exist():
    assert all((CONFIG_ROOT / name).is_file() for name in PARTIAL)


@pytest.mark.parametrize("name", LEAVES, ids=str)
def test_model_optimiser_and_schedule_build(name):
    cfg = load(name)
    settings = Settings.from_config(cfg)
    model = meta_model(name)
    groups = build_optimizer(model, settings.optimizer).param_groups
    assert sum(len(g["params"]) for g in groups) == sum(p.requires_grad for p in model.parameters())
    LearningRate(settings.lr_config, settings.max_epochs, 100)
    Momentum(settings.momentum_config, settings.max_epochs, 100)


def takes(block):
    """Raises TypeError for keys that the data set does not know, and for those that it lacks."""
    inspect.signature(DATASETS.get(block["type"])).bind(**{k: v for k, v in block.items() if k != "type"})


@pytest.mark.parametrize("name", LEAVES, ids=str)
def test_pipelines_build_and_datasets_take_their_keys(name):
    data = load(name).data
    for split in ("train", "val", "test"):
        block = data[split]
        while "dataset" in block:
            takes(block)
            block = block["dataset"]
        takes(block)
        for transform in block.get("pipeline", ()):
            TRANSFORMS.build(transform)


# Those of KITTI compare weights when they are bound; tests/mono does that.
BEV_DISTILLATIONS = [f for f in LEAVES if load(f).model.type == "Distiller" and not f.startswith("kitti/")]


@pytest.mark.parametrize("name", BEV_DISTILLATIONS, ids=str)
def test_teacher_and_student_of_a_distillation_fit(name):
    cfg = load(name)
    distiller = meta_model(name)
    with torch.device("meta"):
        teacher = build_model(load_config(cfg.model.teacher.config).model)
    assert teacher.grid.matches(distiller.grid)
    for name, loss in cfg.model.losses.items():
        if loss is not None:
            assert set(build_term(name, loss, [""])[0].asked) <= set(teacher.taps)
    for loss in distiller.losses.values():
        loss.bind(teacher, distiller.student)
    assert not any(k.startswith("encoders.lidar") for k in distiller.student.state_dict())


INHERITING = [f for f in LEAVES if load(f).model.type == "Distiller" and load(f).model.student.get("init_from_teacher")]


def shapes(model, module):
    return {name: value.shape for name, value in model.get_submodule(module).state_dict().items()}


@pytest.mark.parametrize("name", INHERITING, ids=str)
def test_what_a_student_inherits_has_the_teachers_shapes(name):
    cfg = load(name)
    with torch.device("meta"):
        teacher = build_model(load_config(cfg.model.teacher.config).model)
    inherited = cfg.model.student.init_from_teacher
    for module in inherited:
        source = inherited[module] if isinstance(inherited, dict) else module
        assert shapes(meta_model(name).student, module) == shapes(teacher, source)


@pytest.mark.parametrize("name", LEAVES, ids=str)
def test_no_object_is_pasted_where_only_lidar_would_show_it(name):
    if "nuscenes" in name and "camera+lidar" not in name and "/lidar/" not in name:
        assert load(name).gt_paste_stop_epoch == -1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("model.encoders.camera.backbone.embed_dim", "embed_dims"),
        ("model.fuser.in_channel", "in_channels"),
        ("model.heads.object.test_cfg.nms_typ", "nms_type"),
        ("model.encodres", "encoders"),
        ("model.encoders.radar.voxelize.max_voxel", "max_voxels"),
    ],
)
def test_unknown_keys_of_a_model_are_refused(key, message):
    cfg = load_config("nuscenes/det/centerhead/lssfpn/camera+radar/swint/default.yaml", {key: 1})
    with pytest.raises(ValueError, match=f"{key.rpartition('.')[2]}.*{message}"), torch.device("meta"):
        build_model(cfg.model)


def test_a_term_is_switched_off_by_one_override():
    name = next(f for f in LEAVES if "feature_response_distill" in f)
    cfg = load_config(name, ["--model.losses.relation", "null"])
    with torch.device("meta"):
        distiller = build_model(cfg.model)
    assert "relation" not in distiller.losses
    assert not any("adapt" in k for k in distiller.state_dict())


def test_yaml_has_no_duplicate_keys():
    """YAML keeps the last of two equal keys without a word."""

    class Strict(yaml.SafeLoader):
        pass

    def mapping(loader, node):
        keys = [loader.construct_object(k) for k, _ in node.value]
        assert len(keys) == len(set(map(str, keys))), f"{node.start_mark}: {keys}"
        return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}

    Strict.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    for name in files("."):
        yaml.load((CONFIG_ROOT / name).read_text(), Loader=Strict)
