"""The three stages of LabelDistill: published sizes, schedules and data."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from mmdet3d.config import Config, load_config
from mmdet3d.models import build_model

FOLDER = "nuscenes/distill/labeldistill"
TEACHER, ENCODER = f"{FOLDER}/teacher_centerpoint_voxel01.yaml", f"{FOLDER}/label_encoder.yaml"
STUDENTS = {f"{FOLDER}/r50_2key.yaml": 3, f"{FOLDER}/r50_4key.yaml": 5}


@cache
def config(name: str, *words: str) -> Config:
    return load_config(name, words)


@cache
def model(name: str, *words: str) -> torch.nn.Module:
    with torch.device("meta"):
        return build_model(config(name, *words).model)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_published_teacher():
    teacher = model(TEACHER)
    parts = (teacher.encoders["lidar"]["backbone"], *teacher.decoder.values(), teacher.heads["object"])
    assert [count(part) for part in parts] == [2_694_352, 4_280_832, 295_936, 1_667_142]
    assert count(teacher) == 8_938_262
    assert teacher.grid.shape == (128, 128) and teacher.grid.cell == pytest.approx((0.8, 0.8))
    assert teacher.heads["object"].train_cfg.code_weights == [1.0] * 8 + [0.5, 0.5]
    assert teacher.heads["object"].test_cfg.nms_type == ["circle"] * 6


def test_published_label_encoder_learns_alone():
    encoder = model(ENCODER)
    assert count(encoder.label_encoder) == 8_626_304
    assert sum(p.numel() for p in encoder.parameters() if p.requires_grad) == 8_626_304


@pytest.mark.parametrize(("name", "adapters"), list(zip(STUDENTS, (3_760_896, 3_991_296), strict=True)))
def test_published_students_and_adapters(name, adapters):
    distiller = model(name, "--partition", "contiguous_thirds")
    assert count(distiller.losses) == adapters
    total = {3: 149_285_642, 5: 153_945_242}[STUDENTS[name]]
    assert count(distiller) + count(model(TEACHER)) + count(model(ENCODER).label_encoder) == total


@pytest.mark.parametrize(
    ("name", "lr", "decay", "epochs", "steps"),
    [
        (TEACHER, 1e-4, 1e-2, 20, [16, 19]),
        (ENCODER, 1e-3, 1e-7, 12, [10, 11]),
        (f"{FOLDER}/r50_2key.yaml", 4e-4, 1e-2, 24, [19, 23]),
        (f"{FOLDER}/r50_4key.yaml", 4e-4, 1e-2, 30, [19, 23]),
    ],
)
def test_published_schedules(name, lr, decay, epochs, steps):
    cfg = config(name)
    assert (cfg.optimizer.type, cfg.optimizer.lr, cfg.optimizer.weight_decay) == ("AdamW", lr, decay)
    assert (cfg.max_epochs, cfg.lr_config.step, cfg.lr_config.gamma) == (epochs, steps, 0.1)
    assert cfg.optimizer_config.grad_clip.max_norm == 5 and cfg.ema.decay == 0.999
    assert cfg.data.train.type == "NuScenesDataset" and cfg.data.samples_per_gpu == 4


@pytest.mark.parametrize("name", [TEACHER, ENCODER, *STUDENTS])
def test_every_stage_sees_the_vehicles_frame_with_one_augmentation(name):
    cfg = config(name)
    assert cfg.data.train.frame == cfg.data.val.frame == "ego"
    (moved,) = (t for t in cfg.data.train.pipeline if t["type"] == "GlobalRotScaleTrans")
    assert moved["rot_lim"] == pytest.approx([-0.3927, 0.3927], abs=1e-4)
    assert moved["resize_lim"] == [0.95, 1.05] and moved["trans_lim"] == 0
    assert "RandomFlip3D" in [t["type"] for t in cfg.data.train.pipeline]


def types(name: str, split: str) -> set[str]:
    return {t["type"] for t in config(name).data[split].pipeline}


def test_a_stage_loads_what_it_needs():
    points, images = {"LoadPointsFromFile", "LoadPointsFromMultiSweeps"}, {"LoadMultiViewImageFromFiles"}
    for split in ("train", "val"):
        assert points <= types(TEACHER, split) and not images & types(TEACHER, split)
        assert not (points | images) & types(ENCODER, split) and "LoadAnnotations3D" in types(ENCODER, split)
    for name in STUDENTS:
        assert points | images | {"LoadHistoryImages", "GTDepth"} <= types(name, "train")
        assert not points & types(name, "val") and {"LoadHistoryImages"} <= types(name, "val")


@pytest.mark.parametrize("name", STUDENTS)
def test_distillation_sees_the_images_of_the_student_and_the_points_of_the_teacher(name):
    """Each stage lies in its own folder, so what they share is stated twice."""

    def steps(cfg: Config, split: str, *kinds: str) -> list[Config]:
        return [t for t in cfg.data[split].pipeline if t["type"] in kinds]

    cfg = config(name)
    student = config(cfg.model.student.config)
    images = ("LoadHistoryImages", "ImageAug3D", "ImageNormalize", "GlobalRotScaleTrans")
    points = ("LoadPointsFromFile", "LoadPointsFromMultiSweeps", "GlobalRotScaleTrans", "PointsRangeFilter")
    assert steps(cfg, "train", *images) == steps(student, "train", *images)
    assert steps(cfg, "val", *images) == steps(student, "val", *images)
    assert steps(cfg, "train", *points) == steps(config(TEACHER), "train", *points)
    for key in ("optimizer", "lr_config", "max_epochs", "ema"):
        assert cfg[key] == student[key], key
    assert cfg.data.train.type == student.data.train.type


def test_the_published_sweeps_are_two_overrides():
    cfg = config(TEACHER, "--sweeps.past", "5", "--sweeps.future", "3")
    (sweeps,) = (t for t in cfg.data.train.pipeline if t["type"] == "LoadPointsFromMultiSweeps")
    assert (sweeps["sweeps_num"], sweeps["future_sweeps"], sweeps["max_distance"]) == (5, 3, 58.0)


@pytest.mark.parametrize("name", [*STUDENTS, "synthetic/labeldistill/small.yaml"])
@pytest.mark.parametrize("term", ["label", "lidar", "response"])
def test_a_term_of_labeldistill_is_switched_off_by_one_override(name, term):
    assert set(model(name).losses) == {"label", "lidar", "response"}
    assert set(model(name, f"--model.losses.{term}", "null").losses) == {"label", "lidar", "response"} - {term}


@pytest.mark.parametrize("name", [*STUDENTS, "synthetic/labeldistill/small.yaml"])
@pytest.mark.parametrize(("source", "terms"), [("labels", {"label"}), ("lidar", {"lidar", "response"})])
def test_labels_alone_and_lidar_alone_are_one_override_each(name, source, terms):
    assert set(model(name, "--learn_from", source).losses) == terms


@pytest.mark.parametrize(("name", "frames"), [*STUDENTS.items(), ("synthetic/labeldistill/small.yaml", 3)])
def test_the_partition_is_one_override(name, frames):
    default, published = model(name), model(name, "--partition", "contiguous_thirds")
    for term in ("label", "lidar"):
        ours, theirs = (m.losses[term].slices for m in (default, published))
        assert theirs[0].stop == pytest.approx(frames * ours[0].stop, abs=frames)
        assert theirs[1] == ours[1]
    assert default.losses["lidar"].slices[0].stop <= default.losses["lidar"].student_channels[0] // frames
