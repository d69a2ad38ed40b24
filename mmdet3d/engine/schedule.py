"""Learning rate and momentum as functions of the position in training; there is no state to save.

The policies and their keys are those of MMCV 1.x, which the published configs use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from mmdet3d.engine.settings import take
from mmdet3d.registry import check_kind

__all__ = ["LearningRate", "Momentum"]

Curve = Callable[[float, int, int], float]


class LearningRate:
    """Sets the learning rate of every parameter group before an iteration.

    Policies:
        CosineAnnealing: constant within an epoch (per iteration with `by_epoch: false`), from lr to `min_lr` or
            `min_lr_ratio * lr`.
        cyclic: per iteration, cosine-shaped, up to `target_ratio[0] * lr` during `step_ratio_up` of the training, then
            down to `target_ratio[1] * lr`; a single number a means `[a, a * 1e-5]`.
        step: times `gamma` at each epoch in `step` (0-based), or every `step` epochs.
        null: constant.

    All take `warmup: linear | constant | exp | cosine` over `warmup_iters` iterations, starting at `warmup_ratio` of
    the policy's value. With `warmup_by_epoch: true`, `warmup_iters` counts epochs and the rate is constant within each.

    Args:
        cfg: `lr_config`, or None.
        max_epochs: length of the training.
        epoch_iters: iterations per epoch.

    Raises:
        ValueError: unknown policy or key.
    """

    def __init__(self, cfg: Mapping[str, Any] | None, max_epochs: int, epoch_iters: int) -> None:
        keys = dict(cfg or {"policy": "constant"})
        self._epoch_iters = epoch_iters
        self._warmup = keys.pop("warmup", None)
        given = {key: keys.pop(key) for key in _WARMUP_KEYS if key in keys}
        warmup = take(given, _WARMUP_KEYS, "lr_config")
        self._warmup_length = warmup["warmup_iters"] if self._warmup else 0
        self._warmup_ratio, self._warmup_by_epoch = warmup["warmup_ratio"], warmup["warmup_by_epoch"]
        if self._warmup is not None and self._warmup not in _WARMUPS:
            raise ValueError(f"lr_config.warmup: {self._warmup!r} is none of {', '.join(_WARMUPS)}")
        policy = str(keys.pop("policy", None)).lower()
        if policy not in _POLICIES:
            raise ValueError(f"lr_config.policy: unknown {policy!r}; known: CosineAnnealing, cyclic, step, constant")
        self._curve = _POLICIES[policy](keys, max_epochs, max_epochs * epoch_iters)

    def at(self, lr: float, epoch: int, iteration: int) -> float:
        """The rate of a group with base rate `lr`, in 0-based `epoch`, before 0-based global `iteration`."""
        value = self._curve(lr, epoch, iteration)
        position = epoch if self._warmup_by_epoch else iteration
        if position < self._warmup_length:
            value *= _WARMUPS[self._warmup](position / self._warmup_length, self._warmup_ratio)
        return value

    def apply(self, optimizer: Optimizer, epoch: int, iteration: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.at(group.setdefault("initial_lr", group["lr"]), epoch, iteration)


class Momentum:
    """Sets momentum (SGD) or beta1 (Adam) before an iteration; `momentum_config: null` leaves it alone.

    The one policy is `cyclic`: to `target_ratio[0]` times the base during `step_ratio_up` of the training and back to
    `target_ratio[1]` times it.
    """

    def __init__(self, cfg: Mapping[str, Any] | None, max_epochs: int, epoch_iters: int) -> None:
        self._curve: Curve | None = None
        if cfg is not None:
            keys = dict(cfg)
            policy = str(keys.pop("policy", None)).lower()
            if policy != "cyclic":
                raise ValueError(f"momentum_config.policy: unknown {policy!r}; the one known policy is cyclic")
            keys.setdefault("target_ratio", [0.85 / 0.95, 1.0])
            self._curve = _cyclic(keys, max_epochs, max_epochs * epoch_iters, "momentum_config")

    def apply(self, optimizer: Optimizer, epoch: int, iteration: int) -> None:
        if self._curve is None:
            return
        for group in optimizer.param_groups:
            current = group["betas"][0] if "betas" in group else group["momentum"]
            value = self._curve(group.setdefault("initial_momentum", current), epoch, iteration)
            if "betas" in group:
                group["betas"] = (value, group["betas"][1])
            else:
                group["momentum"] = value


def _cosine(start: float, end: float, progress: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))


def _constant(keys: dict[str, Any], max_epochs: int, max_iters: int) -> Curve:
    take(keys, {}, "lr_config")
    return lambda base, epoch, iteration: base


def _cosine_annealing(keys: dict[str, Any], max_epochs: int, max_iters: int) -> Curve:
    cfg = take(keys, {"min_lr": None, "min_lr_ratio": None, "by_epoch": True}, "lr_config", ["min_lr", "min_lr_ratio"])
    if (cfg["min_lr"] is None) == (cfg["min_lr_ratio"] is None):
        raise ValueError("lr_config: CosineAnnealing needs exactly one of min_lr and min_lr_ratio")

    def curve(base: float, epoch: int, iteration: int) -> float:
        end = cfg["min_lr"] if cfg["min_lr"] is not None else base * cfg["min_lr_ratio"]
        return _cosine(base, end, epoch / max_epochs if cfg["by_epoch"] else iteration / max_iters)

    return curve


def _cyclic(keys: dict[str, Any], max_epochs: int, max_iters: int, section: str = "lr_config") -> Curve:
    cfg = take(keys, {"target_ratio": [10, 1e-4], "cyclic_times": 1, "step_ratio_up": 0.4}, section)
    ratio = cfg["target_ratio"]
    check_kind(ratio, float | Sequence[float], f"{section}.target_ratio")
    check_kind(cfg["cyclic_times"], int, f"{section}.cyclic_times")
    if not isinstance(ratio, (int, float)) and len(ratio) != 2:
        raise ValueError(f"config key {section}.target_ratio must be a number or two, got {ratio!r}")
    peak, end = (ratio, ratio * 1e-5) if isinstance(ratio, (int, float)) else ratio
    length = max(1, max_iters // cfg["cyclic_times"])
    rise = int(cfg["step_ratio_up"] * length)

    def curve(base: float, epoch: int, iteration: int) -> float:
        position = iteration % length
        if position < rise:
            return _cosine(base, base * peak, position / rise)
        return _cosine(base * peak, base * end, (position - rise) / (length - rise))

    return curve


def _step(keys: dict[str, Any], max_epochs: int, max_iters: int) -> Curve:
    cfg = take(keys, {"step": None, "gamma": 0.1, "min_lr": 0.0}, "lr_config")
    steps = cfg["step"]
    if not isinstance(steps, int) and not (isinstance(steps, list) and all(isinstance(s, int) for s in steps)):
        raise ValueError(f"lr_config.step: needs an epoch interval or a list of epochs, got {steps!r}")

    def curve(base: float, epoch: int, iteration: int) -> float:
        passed = epoch // steps if isinstance(steps, int) else sum(epoch >= s for s in steps)
        return max(base * cfg["gamma"] ** passed, cfg["min_lr"])

    return curve


_WARMUP_KEYS = {"warmup_iters": 0, "warmup_ratio": 0.1, "warmup_by_epoch": False}
_POLICIES: dict[str, Callable[[dict[str, Any], int, int], Curve]] = {
    "constant": _constant,
    "cosineannealing": _cosine_annealing,
    "cyclic": _cyclic,
    "step": _step,
}
# Progress in [0, 1) and start ratio to the factor on the policy's rate.
_WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, ratio: ratio + (1 - ratio) * progress,
    "constant": lambda progress, ratio: ratio,
    "exp": lambda progress, ratio: ratio ** (1 - progress),
    "cosine": lambda progress, ratio: _cosine(ratio, 1.0, progress),
}
