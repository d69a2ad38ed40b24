"""Parameter groups by name, and the optimisers behind a config."""

from __future__ import annotations

import pytest
import torch
from engine_toy import EngineToyModel

from mmdet3d.engine.optimizer import build_optimizer, parameter_groups


def test_longest_substring_wins_and_frozen_parameters_stay_out() -> None:
    model = EngineToyModel()
    model.unused.requires_grad_(False)
    keys = {"backbone": {"lr_mult": 0.1}, "backbone.1": {"decay_mult": 0.0}, "bias": {"decay_mult": 0.5}}
    groups = parameter_groups(model, 1.0, 0.2, {"custom_keys": keys})
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert found == {
        "backbone.0.weight": (0.1, 0.2),
        "backbone.0.bias": (0.1, 0.2),
        "backbone.1.weight": (1.0, 0.0),
        "backbone.1.bias": (1.0, 0.0),
        "head.weight": (1.0, 0.2),
        "head.bias": (1.0, 0.1),
    }


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"type": "AdamW", "lr": 1, "paramwise_cfg": {"custom_keys": {"neck": {}}}}, "'neck' matches no parameter"),
        ({"type": "AdamW", "lr": 1, "paramwise_cfg": {"custom_keys": {"head": {"lr": 1}}}}, r"head.lr .known: lr_mult"),
        ({"type": "AdamW", "lr": 1, "weight_decy": 1}, "did you mean 'weight_decay'"),
        ({"type": "AdmW", "lr": 1}, "did you mean 'AdamW'"),
        ({"type": "AdamW"}, "optimizer.lr"),
        ({"type": "AdamW", "lr": "abc"}, r"optimizer\.lr must be a number, got 'abc'"),
        ({"type": "AdamW", "lr": 0.1, "betas": 3}, r"config key optimizer: AdamW refuses"),
    ],
)
def test_mistakes(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_optimizer(EngineToyModel(), cfg)


def test_a_null_key_is_switched_off() -> None:
    optimizer = build_optimizer(
        EngineToyModel(), {"type": "SGD", "lr": 0.1, "momentum": 0.9, "paramwise_cfg": {"custom_keys": {"neck": None}}}
    )
    assert isinstance(optimizer, torch.optim.SGD)
    assert len(optimizer.param_groups) == 1


def test_nothing_to_train() -> None:
    with pytest.raises(ValueError, match="no trainable parameter"):
        parameter_groups(EngineToyModel().requires_grad_(False), 1.0, 0.0)
