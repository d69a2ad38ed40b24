"""Classes that a teacher does not know better than the student are not taught."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from distill_inputs import GRID, batch_of, center_head, detector_on
from test_distiller import LOSSES, batch, files  # noqa: F401 - a fixture
from torch import Tensor

from mmdet3d.config import composed
from mmdet3d.distill import Distiller
from mmdet3d.distill.class_gate import ClassGate, class_precision
from mmdet3d.distill.losses import CrossHeadLoss, MaskedFeatureLoss, PseudoLabelLoss, ResponseLoss
from mmdet3d.io.files import file_digest
from mmdet3d.io.weights import metadata_path
from mmdet3d.structures import Boxes3D

CLASSES = ["car", "truck", "bus"]


def checkpoint(folder: Path, name: str, **precision: float) -> str:
    """A file with the record of an evaluation."""
    file = folder / f"{name}.safetensors"
    file.write_text(name)
    return recorded(file, **precision)


def recorded(file: str | Path, **precision: float) -> str:
    """The file, with the record of an evaluation beside it, half of it at another distance."""
    metrics = {
        f"object/{c}_ap_dist_{d}": p + shift for c, p in precision.items() for d, shift in ((1.0, 0), (4.0, 0.2))
    }
    metadata_path(file).write_text(json.dumps({"metrics": metrics, "sha256": file_digest(file)}))
    return str(file)


def test_taught_is_what_the_teacher_knows_better(tmp_path: Path) -> None:
    teacher = checkpoint(tmp_path, "teacher", car=0.6, truck=0.3, bus=0.4)
    student = checkpoint(tmp_path, "student", car=0.5, truck=0.35, bus=0.4)
    assert class_precision(teacher, CLASSES)["car"] == pytest.approx(0.7)
    assert ClassGate(student).taught(teacher, CLASSES) == ["car"]
    assert ClassGate(student, margin=-0.1).taught(teacher, CLASSES) == CLASSES
    with pytest.raises(ValueError, match=r"student\.json records no average precision of the class 'barrier'"):
        ClassGate(student).taught(checkpoint(tmp_path, "more", barrier=0.1), ["barrier"])


def maps(seed: int) -> list[dict[str, Tensor]]:
    """Outputs of `center_head()` on 8 x 8 cells that want a gradient."""
    generator = torch.Generator().manual_seed(seed)
    parts = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    return [
        {n: torch.randn(1, c, 8, 8, generator=generator).requires_grad_() for n, c in (parts | {"heatmap": k}).items()}
        for k in (1, 2)
    ]


@pytest.mark.parametrize("taught", [["car", "bus"], ["car"], []])
def test_a_class_that_is_not_taught_has_no_gradient(taught: list[str]) -> None:
    loss, student = ResponseLoss([1, 1]), maps(0)
    head = center_head()
    sides = [type("Side", (), {"heads": {"object": head}, "grid": GRID})() for _ in range(2)]
    loss.bind(*sides)
    assert loss.gate(taught)
    terms = loss(student, [{k: v.detach() for k, v in task.items()} for task in maps(1)], batch_of([Boxes3D.empty()]))
    sum(terms.values()).backward()
    pulled = [g for task in student for g in task["heatmap"].grad.abs().amax((0, 2, 3)).tolist()]
    assert [name for name, pull in zip(CLASSES, pulled, strict=True) if pull > 0] == taught
    # Boxes of a task are taught where one of its classes is.
    assert [bool(task["dim"].grad.abs().sum() > 0) for task in student] == ["car" in taught, "bus" in taught]
    assert all(torch.isfinite(task[name].grad).all() for task in student for name in task)


def test_a_distiller_gates_its_losses_before_training(files, tmp_path: Path) -> None:  # noqa: F811
    recorded(files["teacher_weights"], car=0.6, truck=0.3)
    student = checkpoint(tmp_path, "control", car=0.5, truck=0.35)
    losses = {name: LOSSES[name] for name in ("feature", "response")}

    def gated(losses, **gate) -> Distiller:
        sides = ("teacher", "student")
        spec = {side: {"config": files[side], "checkpoint": files[f"{side}_weights"]} for side in sides}
        distiller = Distiller(**composed(spec), losses=losses, class_gate={"student": student, **gate})
        distiller.setup_training(lambda _: pytest.fail("nothing asked for a score"))
        return distiller

    def pull(distiller: Distiller) -> list[bool]:
        """Whether the loss pulls at the student's heat map, by class."""
        distiller.loss(batch())["loss/kd/response/heatmap/task0"].backward()
        return [bool(row.abs().sum() > 0) for row in distiller.student.heatmap.weight.grad]

    assert pull(gated(losses)) == [True, False]
    assert pull(gated(losses, margin=-0.1)) == [True, True]
    with pytest.raises(ValueError, match=r"model\.class_gate: no loss tells classes apart"):
        gated({"feature": LOSSES["feature"]})
    recorded(files["teacher_weights"], car=0.6)
    with pytest.raises(ValueError, match="records no average precision of the class 'truck'"):
        gated(losses)


def test_losses_without_classes_say_so() -> None:
    assert not MaskedFeatureLoss().gate(["car"])
    assert CrossHeadLoss.by_class
    loss, side = PseudoLabelLoss(0.3), detector_on(GRID)
    side.heads = {"object": center_head()}
    loss.bind(side, side)
    assert loss.gate(["car"]) and loss._least == [0.3, float("inf"), float("inf")]
