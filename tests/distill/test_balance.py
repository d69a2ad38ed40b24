"""Schedules and gradient units of distillation losses: golden values, and the Distiller that uses them."""

from __future__ import annotations

import math

import pytest
import torch

from mmdet3d.blocks import read_block
from mmdet3d.distill.balance import Balance, BalanceSettings
from mmdet3d.distill.schedule import LossSchedule


def test_ramp_and_decay_golden():
    schedule = LossSchedule(warm_up=0.2, decay=0.2)
    assert [schedule.factor(t) for t in (0.0, 0.1, 0.2, 0.5, 0.8)] == pytest.approx([0, 0.5, 1, 1, 1])
    assert schedule.factor(0.9) == pytest.approx(0.5)
    assert LossSchedule(decay=0.2, floor=0.5).factor(0.9) == pytest.approx(0.75)


def test_a_loss_of_a_stage():
    first, second = LossSchedule(end=0.4), LossSchedule(begin=0.4)
    assert [first.factor(t) for t in (0, 0.39, 0.4)] == [1, 1, 0]
    assert [second.factor(t) for t in (0.39, 0.4, 0.999)] == [0, 1, 1]


@pytest.mark.parametrize(
    "block, message",
    [
        ({"begin": 0.5, "end": 0.5}, "0 <= begin < end <= 1"),
        ({"warm_up": 0.6, "decay": 0.6}, "longer than what lies between begin 0.0 and end 1.0"),
        ({"begin": "half"}, r"begin must be a number, got 'half'"),
        (0.5, r"model\.losses\.x\.schedule must be a mapping, got 0\.5"),
        ({"until": 0.5}, r"unknown config key model\.losses\.x\.schedule\.until"),
    ],
)
def test_schedules_that_make_no_sense(block, message):
    with pytest.raises(ValueError, match=message):
        read_block(LossSchedule, block, "model.losses.x.schedule")


def measure(balance: Balance, own: float, other: float, cosine: float = 1.0) -> None:
    """One measurement of gradients of those lengths and that cosine at a tap of two numbers."""
    tap = torch.zeros(2, requires_grad=True)
    value = tap * 1.0
    direction = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    measurement = balance.measurement([own * value[0]], ["x"])
    if measurement:
        measurement.take("x", other * (value @ direction), "map", value)


def test_factor_golden():
    balance = Balance(BalanceSettings(target=0.3, every=1, memory=0.9))
    assert balance.factor("x") == 1
    measure(balance, 2.0, 0.1)
    assert balance.factor("x") == pytest.approx(6.0)
    measure(balance, 2.2, 0.2)
    assert balance.factor("x") == pytest.approx(5.5090909)


def test_factor_has_a_maximum_and_measures_every_so_often():
    balance = Balance(BalanceSettings(every=3, maximum=7))
    measure(balance, 1.0, 0.3)
    assert balance.factor("x") == pytest.approx(1.0)
    for _ in range(2):
        measure(balance, 1.0, 0.0001)
    assert balance.factor("x") == pytest.approx(1.0)
    for _ in range(60):
        measure(balance, 1.0, 1e-6)
    assert balance.factor("x") == 7


def test_a_loss_that_begins_later_is_measured_in_its_first_step():
    balance = Balance(BalanceSettings(target=0.3, every=20))
    value = torch.zeros(2, requires_grad=True) * 1.0
    for _ in range(3):
        assert not (measurement := balance.measurement([value.sum()], ["early"])) or measurement.wanted == {"early"}
        balance.add("early", 1.0, 1.0, 1.0)
    assert balance.measurement([value.sum()], ["early", "late"]).wanted == {"late"}
    assert balance.measurement([value.sum()], ["early"]) is None


@pytest.mark.parametrize("own, other", [(1e-9, 2e-9), (1.0, 2.0), (1e3, 2e3)])
def test_gradients_in_half_precision_neither_vanish_nor_overflow(own: float, other: float):
    balance = Balance(BalanceSettings(target=0.3, every=1))
    value = torch.zeros(2, requires_grad=True) * 1.0
    half = value.half()
    balance.measurement([own * half[0].float()], ["x"]).take("x", other * half[0].float(), "map", value)
    assert balance.factor("x") == pytest.approx(0.15, rel=0.05)


def test_steps_without_a_gradient_do_not_count():
    balance = Balance(BalanceSettings(target=0.3, every=1))
    measure(balance, 1.0, 0.0)
    assert balance.factor("x") == 1 and balance.stats() == {}
    measure(balance, 1.0, 0.5)
    measure(balance, 1.0, 0.0)
    assert balance.factor("x") == pytest.approx(0.6)


def test_gate_closes_while_the_average_cosine_is_negative():
    balance = Balance(BalanceSettings(every=1, gate="cosine", memory=0.5))
    measure(balance, 1.0, 1.0, cosine=0.5)
    assert balance.factor("x") > 0
    for _ in range(3):
        measure(balance, 1.0, 1.0, cosine=-0.5)
    assert balance.factor("x") == 0 and balance.stats()["cosine/x"] < 0
    for _ in range(3):
        measure(balance, 1.0, 1.0, cosine=0.9)
    assert balance.factor("x") > 0


def test_a_loss_that_teaches_nothing_is_said_once_an_epoch():
    balance = Balance(BalanceSettings(every=1, maximum=1.0))
    measure(balance, 1.0, 1e-5)
    assert "thousandth" in balance.faults()["x"]
    assert balance.faults() == {}
    measure(balance, 1.0, 0.1)
    assert balance.faults() == {}


def test_state_comes_back():
    one, other = Balance(BalanceSettings(every=2)), Balance(BalanceSettings(every=2))
    for _ in range(3):
        measure(one, 1.0, 0.2, 0.3)
    other.load_state(one.state())
    for balance in (one, other):
        for _ in range(2):
            measure(balance, 0.7, 0.4, -0.1)
    assert one == other


def test_a_loss_that_does_not_depend_on_the_tap():
    value = torch.zeros(2, requires_grad=True) * 1.0
    measurement = Balance(BalanceSettings()).measurement([value.sum()], ["x"])
    with pytest.raises(ValueError, match=r"model\.losses\.x: the loss does not depend on map"):
        measurement.take("x", torch.ones(1, requires_grad=True).sum(), "map", value)


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="gate must be one of none, cosine"):
        BalanceSettings(gate="shut")
    for wrong in ({"target": 0}, {"maximum": -1}, {"every": 2.5}, {"memory": 1}):
        with pytest.raises(ValueError, match="needs a target and a maximum above 0"):
            BalanceSettings(**wrong)
    with pytest.raises(ValueError, match=r"model\.balance\.target must be a number, got 'high'"):
        BalanceSettings(target="high")
