"""The parts are found by name, and a student learns with them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmdet3d import load_config
from mmdet3d.engine.command import read_overrides
from mmdet3d.engine.jobs import train
from mmdet3d.registry import MODELS

PLUGIN = Path(__file__).resolve().parents[1]


def test_loss_is_quadratic_near_and_linear_far() -> None:
    loss = MODELS.build({"type": "distill3d_example.HuberFeatureLoss", "delta": 1.0})
    student = torch.zeros(1, 2, 1, 1, requires_grad=True)
    value = loss(student, torch.tensor([0.5, 3.0]).view(1, 2, 1, 1), SimpleNamespace(device=torch.device("cpu")))
    assert value.item() == pytest.approx((0.5 * 0.5**2 + (3 - 0.5)) / 2)
    value.backward()
    assert student.grad.flatten().tolist() == pytest.approx([-0.25, -0.5])


def test_teacher_and_student_on_three_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    steps = ["--max_epochs", "2", "--evaluation.start", "2"]
    overrides = read_overrides(steps, str(PLUGIN / "teacher.yaml"), "distill3d_example")
    train("teacher", load_config("synthetic/lidar/demo.yaml", overrides), "runs/teacher")
    folder = train("student", load_config(PLUGIN / "distill.yaml", steps), tmp_path / "runs" / "student")
    log = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert any("loss/kd/features" in line for line in map(str, log))
    assert load_config(folder / "configs.yaml").imports == ["distill3d_example"]
    boxes = next(folder.rglob("boxes.json"))
    assert json.loads(boxes.read_text()).keys() == {"frame-0", "frame-1", "frame-2"}
