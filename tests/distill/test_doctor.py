"""What the distillation doctor says, once and with the remedy, and that it changes nothing."""

from __future__ import annotations

import copy
import json
import math
import re
import time
from pathlib import Path

import pytest
import torch
from test_distiller import LOSSES, batch, files, ready  # noqa: F401

from mmdet3d.distill.doctor import Doctor, worse_classes
from mmdet3d.io.files import file_digest


def look(doctor: Doctor, own: float, other: float, weight: float = 1.0) -> None:
    """One look at gradients of those lengths at a tap of two numbers."""
    value = torch.zeros(2, requires_grad=True) * 1.0
    measurement = doctor.measurement([own * value[0]], {"x": weight})
    if measurement:
        measurement.take("x", other * value[1], "map", value)


@pytest.mark.parametrize(
    ("own", "other", "weight", "said"),
    [
        (1.0, 0.0, 1.0, "is zero wherever it was looked at.*mask or region is empty; check that boxes lie"),
        (1.0, 5e-4, 1.0, "is 5e-04 of detection's.*multiply its weight by about 6e[+]02, or set model.balance"),
        (1.0, 1.0, 5e-4, "is 5e-04 of detection's"),
        (2.0, 8.0, 1.0, "is 4 times detection's.*multiply its weight by about 0.07, or set model.balance"),
        (1.0, 2.9, 1.0, None),
        (1.0, 1.1e-3, 1.0, None),
        (0.0, 1.0, 1.0, None),
    ],
)
def test_a_gradient_out_of_proportion_is_said_once(own: float, other: float, weight: float, said: str | None) -> None:
    doctor = Doctor(every=1)
    for epoch in range(2):
        look(doctor, own, other, weight)
        found = doctor.faults()
        assert list(found) == (["x"] if said and epoch == 0 else [])
        if found:
            assert re.search(said, found["x"])


def test_only_what_held_in_every_look_is_said() -> None:
    doctor = Doctor(every=1)
    for other in (9.0, 1.0, 9.0):
        look(doctor, 1.0, other)
    assert doctor.faults() == {}


def losses(weight: float) -> dict:
    return copy.deepcopy({"feature": LOSSES["feature"] | {"weight": weight}})


@pytest.mark.parametrize(
    ("weight", "said"), [(1e-7, "teaches nothing"), (1e6, "takes the training over"), (0.02, None)]
)
def test_a_distiller_names_the_loss(files, weight: float, said: str | None, caplog) -> None:  # noqa: F811
    distiller = ready(files, losses=losses(weight)).train()
    for epoch in range(3):
        distiller.start_epoch(epoch)
        distiller.loss(batch())
    warned = [m for m in caplog.messages if "model.losses.feature: its gradient" in m]
    assert len(warned) == (said is not None) and all(said in m for m in warned)


def test_an_empty_mask_is_said(files, caplog) -> None:  # noqa: F811
    distiller = ready(files, losses=losses(1.0)).train()
    empty = batch()
    empty.boxes = [b[:0] for b in empty.boxes]
    distiller.loss(empty)
    distiller.start_epoch(1)
    assert "model.losses.feature: its gradient is zero wherever it was looked at" in caplog.text


def test_looking_changes_neither_losses_nor_gradients(files, monkeypatch) -> None:  # noqa: F811
    def step(every: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        distiller = ready(files).train()
        distiller._doctor.every, distiller._doctor.steps = every, 1
        torch.manual_seed(6)
        sum(v for k, v in distiller.loss(batch()).items() if k.startswith("loss/")).backward()
        return {n: p.grad for n, p in distiller.named_parameters() if p.grad is not None}

    with_look, without = step(1), step(10**9)
    assert with_look.keys() == without.keys()
    assert all(torch.equal(with_look[n], without[n]) for n in without)


@pytest.mark.slow
def test_looking_costs_less_than_a_percent(files) -> None:  # noqa: F811
    """CPU time of steps that look, against that of others, over the steps between two looks."""
    distiller = ready(files).train()

    def seconds(every: int) -> float:
        distiller._doctor.every = every
        began = time.process_time()
        for _ in range(40):
            sum(v for k, v in distiller.loss(batch()).items() if k.startswith("loss/")).backward()
        return (time.process_time() - began) / 40

    seconds(1)
    plain, looking = seconds(10**9), seconds(1)
    assert (looking - plain) / plain / Doctor().every < 0.01


def test_a_class_that_the_teacher_does_worse_is_said_once(files, caplog) -> None:  # noqa: F811
    record = {f"object/{name}_ap_dist_{d}": value for name, value in (("car", 0.3), ("bus", 0.6)) for d in (0.5, 1.0)}
    side = Path(files["teacher_weights"]).with_suffix(".json")
    side.write_text(json.dumps({"metrics": record, "sha256": file_digest(files["teacher_weights"])}))
    distiller = ready(files, losses=losses(1.0))
    ours = {f"object/{name}_ap_dist_{d}": 0.4 for name in ("car", "bus") for d in (0.5, 1.0)}
    for _ in range(2):
        distiller.evaluated(ours)
    (said,) = [m for m in caplog.messages if "knows worse" in m]
    assert "model.teacher knows worse than the student: car (AP 0.300, student 0.400); take a better teacher" in said
    assert worse_classes({}, ours) == {} and math.isclose(worse_classes(record, ours)["car"][1], 0.4)
