"""SimDistill's configs: what the published configs resolve to, full-size shapes, what starts and trains how."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from mmdet3d.config import Config, load_config
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.models import build_model

DISTILL = "nuscenes/distill/simdistill"
LSSFPN = "nuscenes/det/centerhead/lssfpn"
SIZES = ("256x704", "512x896", "512x1408", "896x1600")
CONFIGS = {
    "distill_swint_convfuser": f"{DISTILL}/swint/convfuser.yaml",
    "distill_vitaev2_convfuser": f"{DISTILL}/vitaev2/convfuser.yaml",
    **{f"distill_resnet50_{size}": f"{DISTILL}/resnet50/convfuser-{size}.yaml" for size in SIZES},
}
PLAIN = {
    "teacher_upstream_bevfusion_det": "nuscenes/det/transfusion/secfpn/camera+lidar/swint_v0p075/convfuser.yaml",
    "baseline_upstream_bevfusion_c": f"{LSSFPN}/camera/256x704/swint/default.yaml",
}
TERMS = ("camera", "lidar", "fused", "prediction")

# What our configs say otherwise than the published ones, and why.
OTHERWISE = {
    "encoders.camera.vtransform.type": "the student reads no LiDAR",
    "encoders.camera.backbone.init_cfg.checkpoint": "private or ambiguous file names",
}
# Published keys that ours leave out: switches off, defaults, keys that nothing reads. See test_published_models.py.
LEFT_OUT = (
    "heads.map", "qk_scale", "with_cp", "drop_rate", "use_checkpoint", "backbone.order", "dense_reg", "max_objs",
    "max_pool_nms", "grid_size", "test_cfg.voxel_size", "test_cfg.out_size_factor", "loss_cls.reduction",
    "loss_bbox.reduction", "encoders.lidar", "norm_cfg.type", "norm_cfg.eps", "norm_cfg.momentum", "dataset",
    "loss_heatmap.reduction", "upsample_cfg.type", "upsample_cfg.bias", "conv_cfg.type", "conv_cfg.bias", "pc_range",
    "assigner.type", "iou_calculator.type", "iou_calculator.coordinate", "cost.type", "pos_weight", "point_cloud_range",
    "loss_cls.use_sigmoid", "activation", "nms_type",
)  # fmt: skip


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from leaves(child, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def resolved(shared: Path, name: str) -> dict[str, Any]:
    return yaml.safe_load((shared / "specs" / "simdistill_resolved" / f"{name}.yaml").read_text())


def student_of(cfg: Config) -> Config:
    return load_config(cfg.model.student.config)


def on_meta(cfg: Config) -> nn.Module:
    with torch.device("meta"):
        return build_model(cfg.model)


# -- published values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_training_equals_the_published_one(shared, name):
    theirs, ours = resolved(shared, name), load_config(CONFIGS[name])
    keys = ["max_epochs", "seed", "optimizer_config", "momentum_config", "augment3d", "point_cloud_range", "voxel_size"]
    for key in [*keys, "image_size", "object_classes", "gt_paste_stop_epoch", "lr_config"]:
        assert ours[key] == theirs[key], key
    for key in ("samples_per_gpu", "workers_per_gpu"):
        assert ours.data[key] == theirs["data"][key]
    assert (ours.optimizer.type, ours.optimizer.weight_decay) == ("AdamW", theirs["optimizer"]["weight_decay"])
    assert ours.optimizer.lr == load_config(CONFIGS["distill_swint_convfuser"]).optimizer.lr == 2e-4
    assert ours.checkpoint_config.max_keep_ckpts == theirs["checkpoint_config"]["max_keep_ckpts"]


@pytest.mark.parametrize("name", CONFIGS)
def test_students_are_the_published_ones_but_for_the_depth_of_lidar(shared, name):
    published = resolved(shared, name)["model"]
    theirs = {k: v for k, v in leaves(published) if k.startswith(("encoders.camera.", "decoder.", "heads.object."))}
    theirs |= dict(leaves(published["fuser_student"], "fuser"))
    ours = dict(leaves(student_of(load_config(CONFIGS[name])).to_dict()["model"]))
    assert {k for k, v in ours.items() if k in theirs and v != theirs[k]} <= set(OTHERWISE)
    missing = [k for k in theirs if k not in ours and "bbox_coder" not in k and not k.endswith(LEFT_OUT)]
    assert not missing
    losses = load_config(CONFIGS[name]).model.losses
    assert losses.lidar.projection == [
        *published["trans_student"]["in_channels"],
        published["trans_student"]["out_channels"],
    ]


@pytest.mark.parametrize("name", PLAIN)
def test_published_teacher_and_camera_baseline(shared, name):
    theirs, ours = resolved(shared, name), load_config(PLAIN[name]).to_dict()
    mine, published = dict(leaves(ours["model"])), dict(leaves(theirs["model"]))
    assert not {k: (v, published[k]) for k, v in mine.items() if k in published and v != published[k]}
    assert not [k for k in published if k not in mine and "bbox_coder" not in k and not k.endswith(LEFT_OUT)]
    for key in ("max_epochs", "augment2d", "augment3d", "point_cloud_range", "image_size"):
        assert ours[key] == theirs[key], key


@pytest.mark.parametrize("size", SIZES)
def test_larger_images_are_enlarged_not_padded(size):
    """Published: the range of 256 x 704 for all sizes, so that most of a large image is black."""
    cfg = load_config(f"{DISTILL}/resnet50/convfuser-{size}.yaml")
    height, width = cfg.image_size
    (low, high), (test, _) = cfg.augment2d.resize
    assert [low * 1600 / width, high * 1600 / width] == pytest.approx([0.38 * 1600 / 704, 0.55 * 1600 / 704])
    assert 900 * test >= height and 1600 * test >= width
    for config in (cfg.model.teacher.config, cfg.model.student.config):
        part = load_config(config)
        assert (part.image_size, part.augment2d.resize) == (cfg.image_size, cfg.augment2d.resize)


# -- what runs ----------------------------------------------------------------------------------------------------


def test_full_size_shapes():
    """Part by part of the pipeline, without computing anything."""
    model = on_meta(load_config(f"{LSSFPN}/simulated/swint.yaml")).eval()
    lift, simulated = model.encoders["camera"]["vtransform"], model.encoders["simulated"]
    with torch.device("meta"):
        features = model.encoders["camera"]["neck"](model.encoders["camera"]["backbone"](torch.empty(6, 3, 256, 704)))
        assert features.shape == (6, 256, 32, 88)
        depth, context = lift.lift(features, None)
        assert (depth.shape, context.shape) == ((6, 118, 32, 88), (6, 80, 32, 88))
        assert lift.cells == (360, 360, 1)
        assert (simulated["vtransform"].compensation.size, simulated["compensation"].size) == ((32, 88), (180, 180))
        bev = lift.downsample(torch.empty(1, 80, 360, 360))
        assert bev.shape == (1, 80, 180, 180)
        fused, _ = model.fuser([bev, bev])
        assert fused.shape == (1, 256, 180, 180)
        levels = model.decoder["backbone"](fused)
        assert [tuple(f.shape[1:]) for f in levels] == [(128, 90, 90), (256, 45, 45), (512, 45, 45)]
        raw = model.heads["object"](model.decoder["neck"](levels))
        assert [task["heatmap"].shape[1:] for task in raw] == [(n, 180, 180) for n in (1, 2, 2, 1, 2, 2)]


def test_the_compensation_has_no_dead_tables():
    """Published: 2.66 M and 0.93 M parameters, of which 66,400 and 209,000 are used."""
    simulated = on_meta(load_config(f"{LSSFPN}/simulated/swint.yaml")).encoders["simulated"]
    counts = [
        sum(p.numel() for p in m.parameters())
        for m in (simulated["compensation"], simulated["vtransform"].compensation)
    ]
    assert counts == [80 * 320 + 320 + 80 * 160 + 160 + 2 * (80 * 80 + 80) + 2 * 180 * 40,
                      256 * 160 + 160 + 256 * 80 + 80 + 2 * (256 * 256 + 256) + 120 * 128]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_the_image_backbone_of_the_student_learns_slowly(name):
    """Published: the key matches the frozen teacher's backbone alone."""
    cfg = load_config(CONFIGS[name])
    model = on_meta(cfg)
    rates = {
        id(p): group["lr"] for group in build_optimizer(model, cfg.optimizer).param_groups for p in group["params"]
    }
    for key, parameter in model.named_parameters():
        # The key of Swin's tables is the longer one and decides, as published.
        slow = key.startswith("student.encoders.camera.backbone.") and "relative_position_bias_table" not in key
        assert rates[id(parameter)] == pytest.approx(2e-5 if slow else 2e-4), key
    assert any(key.startswith("losses.lidar.projection") for key, _ in model.named_parameters())


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize(
    "name", ["nuscenes/distill/simdistill/swint/convfuser.yaml", "synthetic/simdistill/small.yaml"]
)
def test_each_term_is_switched_off_by_one_override(name, term):
    model = on_meta(load_config(name, [f"--model.losses.{term}", "null"]))
    assert set(model.losses) == set(TERMS) - {term}


def test_the_published_teacher_teaches_features():
    """BEVFusion's teacher has a TransFusion head."""
    name = CONFIGS["distill_swint_convfuser"]
    teacher_config = PLAIN["teacher_upstream_bevfusion_det"]
    distiller = on_meta(load_config(name, {"model.teacher.config": teacher_config}))
    teacher = on_meta(load_config(teacher_config))
    assert teacher.grid.matches(distiller.grid)
    with pytest.raises(ValueError, match="the teacher has a TransFusionHead; switch this loss off"):
        distiller.losses["prediction"].bind(teacher, distiller.student)
    for term in ("camera", "lidar", "fused"):
        distiller.losses[term].bind(teacher, distiller.student)
