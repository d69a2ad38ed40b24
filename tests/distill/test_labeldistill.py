"""LabelDistill put together: labels, a LiDAR detector and a camera student that looks back, at toy size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from mmdet3d.config import composed
from mmdet3d.distill import Distiller, LabelEncoderDetector
from mmdet3d.engine.ema import EMA
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.models import build_model

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
import bev_models
import test_temporal

LEVELS = {"student_channels": [18, 8], "teacher_channels": [8, 12], "frames": 3}
FEATURES = {"type": "PartitionedFeatureLoss", "student": "decoder.backbone", "weight": 0.3, **LEVELS}
LOSSES = {
    "label": {**FEATURES, "part": "label", "teacher": "label_encoder", "mask": "binary"},
    "lidar": {**FEATURES, "part": "lidar", "teacher": "decoder.backbone", "mask": "soft"},
    "response": {"type": "CenterResponseLoss", "student": "heads.object", "teacher": "heads.object"},
}


def lidar_config() -> dict:
    config = bev_models.model_config("lidar", fuser=None)
    config["decoder"]["backbone"]["blocks"] = [[1, 8, 1], [1, 12, 2]]
    config["decoder"]["neck"]["scale_factor"] = 1
    return config


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Configs and checkpoints of the label encoder (with its LiDAR detector) and the student."""
    folder = tmp_path_factory.mktemp("stages") / "configs"
    folder.mkdir()
    torch.manual_seed(0)

    def write(name: str, model: dict) -> str:
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"model": json.loads(json.dumps(model))}))
        save_file(build_model(composed(model)).state_dict(), folder / f"{name}.safetensors")
        return str(path)

    detector = {"config": write("lidar", lidar_config()), "checkpoint": str(folder / "lidar.safetensors")}
    encoder = {"channels": [8, 12], "hidden": 8, "norm": "channel"}
    made = {"folder": str(folder)}
    made["teacher"] = write("teacher", {"type": "LabelEncoderDetector", "detector": detector, "label_encoder": encoder})
    made["student"] = write("student", test_temporal.config())
    return made


def make(files: dict[str, str], losses: dict) -> Distiller:
    folder = files["folder"]
    parts = {r: {"config": files[r], "checkpoint": f"{folder}/{r}.safetensors"} for r in ("teacher", "student")}
    distiller = Distiller(losses=losses, **composed(parts))
    distiller.init_weights()
    distiller.setup_training(lambda model: {})
    return distiller


def test_a_step_trains_the_student_and_leaves_labels_and_lidar_alone(files):
    distiller, batch = make(files, LOSSES), test_temporal.make_batch()
    assert isinstance(distiller.teacher, LabelEncoderDetector)
    before = {k: v.clone() for k, v in distiller.teacher.state_dict().items()}
    average = EMA(distiller, decay=0.999)
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        terms = distiller.train().loss(batch)
        sum(v for k, v in terms.items() if k.startswith("loss/")).backward()
        optimizer.step()
        average.update()
    kinds = {k.removeprefix("loss/kd/").partition("/")[0] for k in terms if k.startswith("loss/kd/")}
    assert kinds == {"label", "lidar", "response"} and all(v.isfinite() for v in terms.values())
    assert not [k for k, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert all(torch.equal(v, before[k]) for k, v in distiller.teacher.state_dict().items())
    assert {k.partition(".")[0] for k in average.state} == {"student", "losses"}


def test_the_student_alone_is_loaded_and_predicts_from_images(files, tmp_path):
    distiller, batch = make(files, LOSSES), test_temporal.make_batch()
    save_file(distiller.state_dict(), tmp_path / "distilled.safetensors")
    student = build_model(test_temporal.config())
    load_checkpoint(student, tmp_path / "distilled.safetensors")
    expected = distiller.eval().predict(batch)
    found = student.eval().predict(batch.without("points", "radar", "boxes", "labels", "depths"))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.boxes.tensor, theirs.boxes.tensor) and torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize(("partition", "learns"), [("contiguous_thirds", False), ("per_frame_thirds", True)])
def test_the_lidar_loss_of_the_first_level_and_the_image_branch(files, partition, learns):
    first = {**LOSSES["lidar"], "partition": partition, "student_channels": [18], "teacher_channels": [8]}
    distiller, batch = make(files, {"lidar": first}), test_temporal.make_batch()
    distiller.train().loss(batch)["loss/kd/lidar"].backward()
    gradients = [p.grad for p in distiller.student.encoders["camera"]["backbone"].parameters() if p.requires_grad]
    assert any(g is not None and bool(g.any()) for g in gradients) == learns


def test_switching_a_term_off_leaves_the_others_as_they_were(files):
    def values(*names: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(1)
        chosen = {k: v if k in names else None for k, v in LOSSES.items()}
        terms = make(files, chosen).eval().loss(test_temporal.make_batch())
        return {k: v for k, v in terms.items() if k.startswith("loss/kd/response")}

    every, alone = values("label", "lidar", "response"), values("response")
    assert len(every) == 6
    torch.testing.assert_close(every, alone)
    assert not values("label", "lidar")
