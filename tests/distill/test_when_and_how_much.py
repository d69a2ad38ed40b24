"""The distiller with schedules, balance, and samples that have no labels."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from test_distiller import LOSSES, batch, files, make, no_evaluation  # noqa: F401, a fixture among them

from mmdet3d.config import composed
from mmdet3d.distill import Distiller
from mmdet3d.distill.losses import DistillLoss
from mmdet3d.registry import MODELS


def ready(files, losses, **balance):  # noqa: F811
    spec = make(files, losses=losses)
    if balance:
        teacher = {"config": files["teacher"], "checkpoint": files["teacher_weights"]}
        student = {"config": files["student"], "overrides": {"model.calibrated": True}}
        spec = Distiller(losses=losses, balance=balance, **composed({"teacher": teacher, "student": student}))
    spec.setup_training(no_evaluation)
    return spec.train()


def test_a_loss_counts_when_its_schedule_says(files):  # noqa: F811
    schedule = {"begin": 0.25, "warm_up": 0.5}
    distiller = ready(files, {"response": LOSSES["response"] | {"schedule": schedule}})
    found = {}
    for progress in (0.0, 0.5, 0.9):
        torch.manual_seed(0)  # dropout
        distiller.start_step(progress)
        value = distiller.loss(batch()).get("loss/kd/response/heatmap/task0")
        found[progress] = None if value is None else value.item()
    assert found[0.0] is None
    assert found[0.5] == pytest.approx(found[0.9] / 2, rel=1e-4)


def test_balanced_losses_pull_as_hard_as_they_should(files):  # noqa: F811
    """With the factor of the first step, in which it was measured, the gradient at the tap has the wanted length."""
    distiller = ready(files, {"feature": LOSSES["feature"] | {"weight": 1.0}}, target=0.5, every=1)
    entries = distiller.loss(batch())
    factor = entries["stats/kd/factor/feature"].item()
    pull = distiller._balance.pulls["feature"]
    assert factor * pull.loss == pytest.approx(0.5 * pull.detection, rel=1e-4) and factor != 1
    assert -1 <= entries["stats/kd/cosine/feature"] <= 1
    state = distiller.training_state()
    again = ready(files, {"feature": LOSSES["feature"]}, target=0.5, every=1)
    again.load_training_state(state)
    assert again._balance == distiller._balance
    distiller.eval()
    with torch.no_grad():
        distiller.loss(batch())
    assert distiller.training_state() == state


def test_a_balance_needs_a_map_to_compare_at(files):  # noqa: F811
    distiller = ready(files, {"response": LOSSES["response"]}, at="decoder")
    with pytest.raises(ValueError, match=r"model\.balance\.at: 'decoder' is no map .*maps: .*fuser"):
        distiller.loss(batch())


@pytest.mark.parametrize("needy", [True, False])
def test_samples_without_labels_are_shown_to_losses_that_need_none(files, needy):  # noqa: F811
    seen = {}

    class Looks(DistillLoss):
        needs_labels = needy

        def forward(self, student_value, teacher_value, batch):
            seen.update(student=len(student_value), teacher=len(teacher_value), batch=len(batch), boxes=batch.boxes)
            return student_value.mean()

    distiller = ready(files, {"feature": LOSSES["feature"], "radar": LOSSES["radar"]})
    distiller.losses["feature"] = Looks()
    whole = batch()
    distiller.loss(dataclasses.replace(whole, boxes=whole.boxes[:1], unlabelled=1))
    assert (seen["student"], seen["teacher"], seen["batch"]) == ((1, 1, 1) if needy else (2, 2, 2))
    assert len(seen["boxes"]) == 1


def test_what_holds_all_through_an_epoch_is_said_once(files, caplog):  # noqa: F811
    distiller = ready(files, {"feature": LOSSES["feature"]})
    loss = distiller.losses["feature"]
    for epoch in range(3):
        distiller.start_epoch(epoch)
        loss.observe("nothing to see", torch.tensor(True))
        loss.observe("now and then", torch.tensor(epoch == 0))
        loss.observe("now and then", torch.tensor(False))
    distiller.start_epoch(3)
    assert [r.getMessage() for r in caplog.records] == ["model.losses.feature: nothing to see"]


def test_maps_that_cannot_be_compared_are_named(files):  # noqa: F811
    class Adds(DistillLoss):
        def forward(self, student_value, teacher_value, batch):
            return (student_value + teacher_value[:, :3]).mean()

    distiller = ready(files, {"feature": LOSSES["feature"]})
    distiller.losses["feature"] = Adds()
    with pytest.raises(
        ValueError, match=r"model\.losses\.feature cannot compare student fuser: \(2, 4, 8, 8\), teacher"
    ):
        distiller.loss(batch())


def test_a_tap_of_the_wrong_kind_is_named(files):  # noqa: F811
    wrong = {"type": "PearsonFeatureLoss", "student": "heads.object", "teacher": "heads.object"}
    distiller = ready(files, {"feature": wrong})
    with pytest.raises(
        ValueError, match=r"model\.losses\.feature cannot compare student heads\.object: .*no attribute 'shape'"
    ):
        distiller.loss(batch())


def test_a_weight_must_be_a_number(files):  # noqa: F811
    with pytest.raises(ValueError, match=r"config key model\.losses\.feature\.weight must be a number, got 'abc'"):
        make(files, losses={"feature": LOSSES["feature"] | {"weight": "abc"}})


def test_a_loss_that_is_written_but_not_imported_is_found():
    with pytest.raises(
        ValueError, match=r"'SampleStream': the class is in mmdet3d/datasets/views\.py, but is not registered"
    ):
        MODELS.build({"type": "SampleStream"})
