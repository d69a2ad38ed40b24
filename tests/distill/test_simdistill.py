"""SimDistill on the config of the synthetic world, with its own distiller, on random data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mmdet3d.config import load_config
from mmdet3d.distill import Distiller
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Boxes3D, Calibration, Sample

CONFIG = "synthetic/simdistill/small.yaml"
TEACHER, STUDENT = "synthetic/camera+lidar/large_images.yaml", "synthetic/simulated/small.yaml"
TERMS = {"camera", "lidar", "fused", "prediction"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of a random teacher and a random student."""
    folder = tmp_path_factory.mktemp("weights")
    files = {}
    for role, config in (("teacher", TEACHER), ("student", STUDENT)):
        torch.manual_seed(len(role))
        files[role] = str(folder / f"{role}.safetensors")
        save_file(build_model(load_config(config).model).state_dict(), files[role])
    return files


def distiller(weights: dict[str, str], **overrides: object) -> Distiller:
    checkpoints = {f"model.{role}.checkpoint": weights[role] for role in ("teacher", "student")}
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    cfg = load_config(CONFIG, checkpoints | {"model.teacher.min_score": None} | dotted)
    torch.manual_seed(0)
    model = build_model(cfg.model)
    model.init_weights()
    model.setup_training(lambda teacher: pytest.fail("nothing asked for a score"))
    return model.train()


@pytest.fixture(scope="module")
def batch() -> Batch:
    """One sample of two cameras, LiDAR and two boxes."""
    generator = torch.Generator().manual_seed(0)
    camera = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
    intrinsics = torch.diag(torch.tensor([260.0, 260, 1, 1]))
    intrinsics[:2, 2] = torch.tensor([192.0, 64])
    eye = torch.eye(4)
    points = torch.rand(500, 5, generator=generator)
    points[:, :3] = (points[:, :3] - 0.5) * torch.tensor([70.0, 70, 4])
    turned = torch.diag(torch.tensor([-1.0, -1, 1, 1])) @ camera
    both = torch.stack([camera, turned])
    sample = Sample(
        token="random",
        calibration=Calibration(eye, eye, both, both, intrinsics.repeat(2, 1, 1), eye.repeat(2, 1, 1), eye),
        images=torch.randn(2, 3, 128, 384, generator=generator),
        depths=40 * torch.rand(2, 128, 384, generator=generator),
        clouds={"points": points},
        boxes=Boxes3D(torch.tensor([[9.0, 1, -1, 4.5, 1.9, 1.6, 0.2, 1, 0], [-12.0, 3, -1, 0.7, 0.7, 1.7, 0, 0, 0]])),
        labels=torch.tensor([0, 8]),
    )
    return Batch.collate([sample])


def total(terms: dict[str, Tensor]) -> Tensor:
    return sum(v for k, v in terms.items() if k.startswith("loss/"))


def test_a_step_trains_the_student_and_leaves_the_teacher_alone(weights, batch):
    """Published: the teacher's fuser is trained by two of the terms, and its statistics drift."""
    model = distiller(weights)
    before = {k: v.clone() for k, v in model.teacher.state_dict().items()}
    terms = model.loss(batch)
    assert {k.split("/")[2] for k in terms if k.startswith("loss/kd/")} == TERMS
    total(terms).backward()
    assert not [k for k, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    torch.optim.AdamW(model.parameters(), lr=0.1).step()
    assert all(torch.equal(v, before[k]) for k, v in model.teacher.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.teacher.parameters())


def test_each_term_reaches_its_part_of_the_student(weights, batch):
    model = distiller(weights)
    terms = model.loss(batch)
    watched = {
        "camera lift": model.student.encoders["camera"]["vtransform"].depthnet[0].weight,
        "simulated lift": model.student.encoders["simulated"]["vtransform"].depthnet[0].weight,
        "projection": model.losses["lidar"].projection[0].weight,
        "fuser": model.student.fuser[0].weight,
        "head": model.student.heads["object"].shared_conv.conv.weight,
    }
    reached = {
        "camera": {"camera lift"},
        "lidar": {"simulated lift", "projection"},
        "fused": {"camera lift", "simulated lift", "fuser"},
        "prediction/heatmap/task0": {"camera lift", "simulated lift", "fuser", "head"},
        "prediction/bbox/task0": {"camera lift", "simulated lift", "fuser", "head"},
    }
    for term, parts in reached.items():
        grads = torch.autograd.grad(terms[f"loss/kd/{term}"], watched.values(), retain_graph=True, allow_unused=True)
        assert {name for name, grad in zip(watched, grads, strict=True) if grad is not None and grad.any()} == parts


def test_a_term_is_switched_off_by_one_override(weights, batch):
    """All of them: tests/configs/test_simdistill_models.py."""
    model = distiller(weights, model__losses__lidar=None)
    assert {k.split("/")[2] for k in model.loss(batch) if k.startswith("loss/kd/")} == TERMS - {"lidar"}
    assert not any("projection" in k for k in model.state_dict() if k.startswith("losses."))


def test_prediction_needs_neither_lidar_nor_teacher_nor_projection(weights, batch):
    """Published: the student reads LiDAR points, and the projection runs in testing too."""
    model = distiller(weights).eval()
    model.losses["lidar"].projection.register_forward_hook(lambda *_: pytest.fail("the projection ran"))
    (full,) = model.predict(batch)
    (bare,) = model.predict(batch.without("points", "boxes", "labels"))
    plain = build_model(load_config(STUDENT).model)
    plain.load_state_dict(model.student.state_dict())
    (alone,) = plain.eval().predict(batch.without("points", "boxes", "labels"))
    for other in (bare, alone):
        assert torch.equal(full.boxes.tensor, other.boxes.tensor) and torch.equal(full.scores, other.scores)


def test_the_student_may_start_from_the_teachers_camera_branch(weights):
    model = distiller(
        weights,
        model__student__checkpoint=None,
        model__student__init_from_teacher=["encoders.camera.backbone", "encoders.camera.neck"],
    )
    for name in ("backbone", "neck"):
        student, teacher = (m.encoders["camera"][name].state_dict() for m in (model.student, model.teacher))
        assert all(torch.equal(v, teacher[k]) for k, v in student.items())


def test_a_few_steps_lower_the_distance_to_the_teacher(weights, batch):
    """The terms alone; that of the camera branch is tiny beside the others for random weights."""
    model = distiller(weights, model__losses__prediction=None, model__losses__camera=None)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history: list[dict[str, Tensor]] = []
    for _ in range(4):
        history.append({k: v for k, v in model.loss(batch).items() if k.startswith("loss/kd/")})
        optimizer.zero_grad()
        total(history[-1]).backward()
        optimizer.step()
    assert all(history[-1][term] < history[0][term] for term in history[0])


def test_a_teacher_with_a_transfusion_head(weights, batch, tmp_path: Path):
    """It teaches features; the prediction term says why not."""
    cfg = load_config(TEACHER)
    settings = {k: cfg.model.heads.object.train_cfg[k] for k in ("point_cloud_range", "voxel_size", "out_size_factor")}
    head = {"type": "TransFusionHead", "in_channels": 48, "hidden_channel": 16, "num_heads": 2, "ffn_channel": 16}
    head |= {"train_cfg": settings, "test_cfg": {"post_center_limit_range": [-42.0, -42, -10, 42, 42, 10]}}
    cfg.model.heads["object"] = head
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    teacher = build_model(cfg.model)
    save_file(teacher.state_dict(), tmp_path / "teacher.safetensors")
    files = weights | {"teacher": str(tmp_path / "teacher.safetensors")}
    config = {"model__teacher__config": str(tmp_path / "teacher.yaml")}
    with pytest.raises(ValueError, match="the teacher has a TransFusionHead; switch this loss off"):
        distiller(files, **config)
    terms = distiller(files, **config, model__losses__prediction=None).loss(batch)
    assert {k.split("/")[2] for k in terms if k.startswith("loss/kd/")} == TERMS - {"prediction"}
