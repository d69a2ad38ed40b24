"""Learning rates and momenta of the published schedules (values resolved from CRKD's and MonoSKD's runs)."""

from __future__ import annotations

import pytest
import torch

from mmdet3d.engine.schedule import LearningRate, Momentum

CRKD = {
    "policy": "CosineAnnealing",
    "warmup": "linear",
    "warmup_iters": 500,
    "warmup_ratio": 1 / 3,
    "min_lr_ratio": 1e-3,
}


@pytest.mark.parametrize(("epoch", "expected"), [(1, 1.98770e-4), (10, 1.0010e-4), (19, 1.42993e-6)])
def test_crkd_cosine_per_epoch(epoch: int, expected: float) -> None:
    rate = LearningRate(CRKD, max_epochs=20, epoch_iters=7000)
    assert rate.at(2e-4, epoch, 7000 * epoch) == pytest.approx(expected, rel=1e-5)
    assert rate.at(2e-4, epoch, 7000 * epoch + 6999) == rate.at(2e-4, epoch, 7000 * epoch)


def test_crkd_warm_up() -> None:
    rate = LearningRate(CRKD, max_epochs=20, epoch_iters=7000)
    assert rate.at(2e-4, 0, 0) == pytest.approx(2e-4 / 3)
    assert rate.at(2e-4, 0, 250) == pytest.approx(2e-4 * (1 - 0.5 * 2 / 3))
    assert rate.at(2e-4, 0, 500) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("ratio", "iteration", "factor"),
    [
        (None, 0, 1.0),
        (None, 200, 5.5),
        (None, 400, 10.0),
        (None, 1000 - 1, 1e-4),
        (5.0, 400, 5.0),
        (5.0, 999, 5e-5),
        ([10, 1e-4], 400, 10),
    ],
)
def test_cyclic(ratio: object, iteration: int, factor: float) -> None:
    cfg = {"policy": "cyclic"} | ({} if ratio is None else {"target_ratio": ratio})
    rate = LearningRate(cfg, max_epochs=10, epoch_iters=100)
    assert rate.at(2e-4, iteration // 100, iteration) == pytest.approx(2e-4 * factor, abs=2e-4 * 2e-4)


def test_cyclic_momentum() -> None:
    cycle = Momentum({"policy": "cyclic"}, max_epochs=10, epoch_iters=100)
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, 0.99))
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1, momentum=0.95)
    for iteration, ratio in ((0, 1.0), (400, 0.85 / 0.95), (700, (1 + 0.85 / 0.95) / 2)):
        cycle.apply(adam, 0, iteration)
        cycle.apply(sgd, 0, iteration)
        assert adam.param_groups[0]["betas"] == (pytest.approx(0.9 * ratio), 0.99)
        assert sgd.param_groups[0]["momentum"] == pytest.approx(0.95 * ratio)


def test_an_optimizer_without_momentum_has_none_to_change() -> None:
    rprop = torch.optim.Rprop([torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match="momentum_config: Rprop has neither momentum nor betas; set it to null"):
        Momentum({"policy": "cyclic"}, max_epochs=1, epoch_iters=1).apply(rprop, 0, 0)


def test_monoskd_warm_up_and_steps() -> None:
    """Five epochs of cosine warm-up, constant within an epoch, then two decays."""
    cfg = {"policy": "step", "step": [95, 125], "warmup": "cosine", "warmup_iters": 5, "warmup_ratio": 0.01}
    rate = LearningRate(cfg | {"warmup_by_epoch": True}, max_epochs=150, epoch_iters=232)
    rates = [rate.at(1e-3, e, e * 232 + 100) for e in range(6)]
    assert rates == pytest.approx([1e-5, 1.045e-4, 3.52e-4, 6.58e-4, 9.055e-4, 1e-3], rel=1e-3)
    assert [rate.at(1e-3, e, e * 232) for e in (94, 95, 125)] == pytest.approx([1e-3, 1e-4, 1e-5])


def test_groups_keep_their_ratio_and_null_is_constant() -> None:
    a, b = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 0.1}], lr=1.0)
    schedule = LearningRate({"policy": "step", "step": 2}, 10, 5)
    for epoch in (0, 3):
        schedule.apply(optimizer, epoch, epoch * 5)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1, 0.01])
    assert LearningRate(None, 10, 5).at(0.3, 7, 35) == 0.3


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"policy": "Cosine"}, "lr_config.policy must be one of constant, .*got 'Cosine', did you mean"),
        ({"policy": "step", "steps": [1]}, "did you mean 'step'"),
        ({"policy": "step"}, "lr_config.step"),
        ({"policy": "CosineAnnealing"}, "min_lr"),
        ({"policy": "cyclic", "warmup": "slow"}, "lr_config.warmup"),
        ({"policy": "cyclic", "cyclic_times": 0}, "lr_config.cyclic_times must be an integer of at least 1, got 0"),
        ({"policy": "cyclic", "step_ratio_up": 40}, r"lr_config.step_ratio_up must lie in \[0, 1\], got 40"),
        ({"policy": "step", "step": 0}, "lr_config.step must be an integer of at least 1, got 0"),
    ],
)
def test_mistakes(cfg: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRate(cfg, 10, 5)
