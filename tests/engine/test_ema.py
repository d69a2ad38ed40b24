"""The averaged model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from mmdet3d.engine.ema import EMA


def test_recurrence_over_parameters_and_buffers() -> None:
    """LabelDistill: decay 0.999 from the first step on."""
    model = nn.BatchNorm1d(2).double()
    ema = EMA(model, decay=0.999)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.train()(torch.randn(5, 2, dtype=torch.float64))
    nn.init.constant_(model.weight, 3.0)
    ema.update()
    after = model.state_dict()
    for key in ("weight", "running_mean", "running_var"):
        torch.testing.assert_close(ema.state[key], 0.999 * before[key] + 0.001 * after[key])
    assert ema.state["num_batches_tracked"] == 1


def test_ramp() -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9, ramp=10)
    nn.init.ones_(model.weight)
    ema.update()
    assert ema.state["weight"].item() == pytest.approx(1 - 0.9 * (1 - math.exp(-0.1)))


def test_applied_gives_the_weights_back() -> None:
    model = nn.Linear(1, 1)
    ema = EMA(model, decay=0.5)
    nn.init.constant_(model.weight, 7.0)
    with pytest.raises(RuntimeError), ema.applied():
        assert model.weight.item() != 7.0
        raise RuntimeError
    assert model.weight.item() == 7.0
