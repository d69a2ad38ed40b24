"""Hierarchical task learning: published weights, by name, resumable."""

from __future__ import annotations

import json
import math

import pytest
import torch
from mono_inputs import make_batch, small_model

from mmdet3d.models.heads.mono.losses import TASKS
from mmdet3d.models.heads.mono.task_schedule import TaskSchedule

PUBLISHED = {6: (0.00741, 0.00741), 7: (0.01545, 0.01490), 8: (0.02547, 0.02297), 9: (0.03829, 0.03235),
             10: (0.05453, 0.04372), 11: (0.07463, 0.05769)}  # fmt: skip


def losses_of(epoch: int, reverse: bool = False) -> dict[str, torch.Tensor]:
    terms = {n: torch.tensor((i + 1) * math.exp(-0.1 * epoch * (1 + 0.1 * i))) for i, n in enumerate(TASKS)}
    return dict(reversed(terms.items())) if reverse else terms


@pytest.mark.parametrize("reverse", [False, True])
def test_published_weights_whatever_the_order_of_the_terms(reverse):
    schedule = TaskSchedule()
    for epoch in range(12):
        schedule.start_epoch(epoch)
        weights = schedule.weights
        if epoch < 6:
            assert set(weights.values()) == {0.0}
        else:
            rest, depth = PUBLISHED[epoch]
            for name in ("heading", "offset_3d", "size_3d"):
                assert weights[name] == pytest.approx(rest, abs=6e-6)
            assert weights["depth"] == pytest.approx(depth, abs=6e-6)
        for _ in range(3):
            schedule.add(losses_of(epoch, reverse) | {"other": torch.tensor(1.0)})


def test_all_tasks_count_in_full_in_the_end():
    schedule = TaskSchedule(epochs=10)
    for epoch in range(11):
        schedule.start_epoch(epoch)
        schedule.add(losses_of(epoch))
    assert set(schedule.weights.values()) == {1.0}


def test_losses_that_never_move_are_settled():
    schedule = TaskSchedule(epochs=20)
    for epoch in range(8):
        schedule.start_epoch(epoch)
        schedule.add({name: torch.tensor(2.0) for name in TASKS})
    assert set(schedule.weights.values()) == {1.0}


def test_a_student_that_was_trained_before_gets_weights_between_none_and_full():
    """Its losses hardly fall, so that their falls are noise of either sign."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        schedule = TaskSchedule(epochs=30)
        for epoch in range(30):
            schedule.start_epoch(epoch)
            noise = 1 + 0.01 * torch.randn(len(TASKS), generator=generator)
            schedule.add({name: x * 0.998**epoch for name, x in zip(TASKS, noise, strict=True)})
            assert all(0 <= weight <= 1 for weight in schedule.weights.values())


def test_a_step_that_is_not_finite_does_not_count():
    schedule = TaskSchedule()
    for epoch in range(9):
        schedule.start_epoch(epoch)
        schedule.add(losses_of(epoch))
        if epoch == 2:
            schedule.add(losses_of(epoch) | {"depth": torch.tensor(float("inf"))})
    whole = TaskSchedule()
    for epoch in range(9):
        whole.start_epoch(epoch)
        whole.add(losses_of(epoch))
    assert schedule.weights == whole.weights and schedule.weights["depth"] > 0


def test_states_that_hold_the_number_of_steps_beside_the_sums_are_read():
    schedule, other = TaskSchedule(), TaskSchedule()
    schedule.add(losses_of(0))
    *sums, count = schedule.state()["sums"]
    other.load_state(schedule.state() | {"sums": sums, "count": count})
    assert other.state() == schedule.state()


def test_late_epochs_count_in_full_without_a_past():
    schedule = TaskSchedule(epochs=10)
    schedule.start_epoch(12)
    assert set(schedule.weights.values()) == {1.0}


@pytest.mark.parametrize("saved_at", [(7, 1), (7, 3), (0, 2)])
def test_a_resumed_schedule_continues_the_same(saved_at):
    def run(schedule, first, step, stop=None):
        for epoch in range(first, 12):
            if step == 0:
                schedule.start_epoch(epoch)
            for s in range(step, 3):
                schedule.add({n: v * (1 + 0.1 * s) for n, v in losses_of(epoch).items()})
                if stop == (epoch, s + 1):
                    return schedule
            step = 0
        return schedule

    whole = run(TaskSchedule(), 0, 0)
    part = run(TaskSchedule(), 0, 0, stop=saved_at)
    resumed = TaskSchedule()
    resumed.load_state(json.loads(json.dumps(part.state())))
    epoch, step = saved_at
    run(resumed, *((epoch + 1, 0) if step == 3 else (epoch, step)))
    assert resumed.weights == pytest.approx(whole.weights)
    assert resumed.state()["past"] == whole.state()["past"]


def test_the_detector_weighs_its_losses_and_notes_them_while_training():
    batch = make_batch()
    plain, weighed = small_model(), small_model(htl={"epochs": 20, "window": 5})
    assert weighed.state_dict().keys() == plain.state_dict().keys()
    weighed.start_epoch(0)
    want, got = plain.loss(batch), weighed.loss(batch)
    assert got["loss/object/depth"] == 0 and got["loss/object/depth"].requires_grad
    assert torch.equal(got["stats/object/depth"], want["loss/object/depth"])
    assert torch.equal(got["loss/object/size_2d"], want["loss/object/size_2d"])
    assert got["stats/htl/heading"] == 0
    with torch.no_grad():
        weighed.loss(batch)
    state = weighed.training_state()
    assert state["htl"]["sums"][-1] == 1
    other = small_model(htl={"epochs": 20, "window": 5})
    other.load_training_state(state)
    assert other.training_state() == state
    assert plain.training_state() == {}


@pytest.mark.parametrize("htl, message", [({"epochs": 5}, "3 <= window < epochs"), ({"epoch": 9}, "model.htl.epoch")])
def test_wrong_settings_are_refused(htl, message):
    with pytest.raises(ValueError, match=message):
        small_model(htl=htl)
