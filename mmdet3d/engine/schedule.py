"""Learning rate and momentum as functions of the position in training; there is no state to save.

The policies and their keys are those of MMCV 1.x, which the published configs use.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer

from mmdet3d.blocks import ConfigKeyError, at_least, nearest, read_block

__all__ = ["MOMENTUM_POLICIES", "POLICIES", "LearningRate", "Momentum"]

Curve = Callable[[float, int, int], float]


@dataclass(frozen=True, kw_only=True)
class Constant:
    """`constant`: as the optimiser says.

    Args:
        warmup: how the rate rises to the policy's at first; null for no warm-up.
        warmup_iters: over how many iterations.
        warmup_ratio: share of the policy's rate at the start.
        warmup_by_epoch: `warmup_iters` counts epochs, and the rate is constant within each.
    """

    warmup: Literal["linear", "constant", "exp", "cosine"] | None = None
    warmup_iters: float = 0
    warmup_ratio: float = 0.1
    warmup_by_epoch: bool = False

    def curve(self, max_epochs: int, max_iters: int) -> Curve:
        """The rate of a group with base rate `base`, in 0-based `epoch`, before 0-based global `iteration`."""
        return lambda base, epoch, iteration: base


@dataclass(frozen=True, kw_only=True)
class CosineAnnealing(Constant):
    """`CosineAnnealing`: half a cosine over the training.

    Args:
        min_lr: rate at the end; this or `min_lr_ratio`.
        min_lr_ratio: the same over the base rate.
        by_epoch: constant within an epoch; false changes the rate with every iteration.
    """

    min_lr: float | None = None
    min_lr_ratio: float | None = None
    by_epoch: bool = True

    def __post_init__(self) -> None:
        if (self.min_lr is None) == (self.min_lr_ratio is None):
            raise ConfigKeyError("min_lr", " or min_lr_ratio: CosineAnnealing needs exactly one of the two")

    def curve(self, max_epochs: int, max_iters: int) -> Curve:
        def curve(base: float, epoch: int, iteration: int) -> float:
            end = (self.min_lr or 0.0) if self.min_lr_ratio is None else base * self.min_lr_ratio
            return _cosine(base, end, epoch / max_epochs if self.by_epoch else iteration / max_iters)

        return curve


@dataclass(frozen=True, kw_only=True)
class _Cyclic:
    target_ratio: float | Sequence[float] = (10, 1e-4)
    cyclic_times: int = 1
    step_ratio_up: float = 0.4

    def __post_init__(self) -> None:
        if not isinstance(self.target_ratio, (int, float)) and len(self.target_ratio) != 2:
            raise ConfigKeyError("target_ratio", f" must be a number or two, got {self.target_ratio!r}")
        at_least(1, self.cyclic_times, "cyclic_times")
        if not 0 <= self.step_ratio_up <= 1:
            raise ConfigKeyError("step_ratio_up", f" must lie in [0, 1], got {self.step_ratio_up!r}")

    def curve(self, max_epochs: int, max_iters: int) -> Curve:
        ratio = self.target_ratio
        peak, end = (ratio, ratio * 1e-5) if isinstance(ratio, (int, float)) else ratio
        length = max(1, max_iters // self.cyclic_times)
        rise = int(self.step_ratio_up * length)

        def curve(base: float, epoch: int, iteration: int) -> float:
            position = iteration % length
            if position < rise:
                return _cosine(base, base * peak, position / rise)
            return _cosine(base * peak, base * end, (position - rise) / (length - rise))

        return curve


@dataclass(frozen=True, kw_only=True)
class Cyclic(_Cyclic, Constant):
    """`cyclic`: per iteration, half a cosine up and half a cosine down.

    Args:
        target_ratio: peak and end over the base rate; a single number a means `[a, a * 1e-5]`.
        cyclic_times: cycles in the training.
        step_ratio_up: share of a cycle that rises.
    """


@dataclass(frozen=True, kw_only=True)
class CyclicMomentum(_Cyclic):
    """`cyclic`, the one policy of `momentum_config`: momentum (SGD) or beta1 (Adam), down and up again.

    Args:
        target_ratio: turn and end over the base value; a single number a means `[a, a * 1e-5]`.
        cyclic_times: cycles in the training.
        step_ratio_up: share of a cycle before the turn.
    """

    target_ratio: float | Sequence[float] = (0.85 / 0.95, 1.0)


@dataclass(frozen=True, kw_only=True)
class Step(Constant):
    """`step`: lower after some epochs.

    Args:
        step: 0-based epochs before which the rate falls, or one number: every so many epochs.
        gamma: factor of a fall.
        min_lr: the rate does not fall below.
    """

    step: int | Sequence[int]
    gamma: float = 0.1
    min_lr: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.step, (int, float)):
            at_least(1, self.step, "step")

    def curve(self, max_epochs: int, max_iters: int) -> Curve:
        steps = self.step

        def curve(base: float, epoch: int, iteration: int) -> float:
            passed = epoch // steps if isinstance(steps, int) else sum(epoch >= s for s in steps)
            return max(base * self.gamma**passed, self.min_lr)

        return curve


POLICIES: dict[str, type[Constant]] = {
    "constant": Constant,
    "CosineAnnealing": CosineAnnealing,
    "cyclic": Cyclic,
    "step": Step,
}
MOMENTUM_POLICIES = {"cyclic": CyclicMomentum}
# Progress in [0, 1) and start ratio to the factor on the policy's rate.
_WARMUPS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda progress, ratio: ratio + (1 - ratio) * progress,
    "constant": lambda progress, ratio: ratio,
    "exp": lambda progress, ratio: ratio ** (1 - progress),
    "cosine": lambda progress, ratio: _cosine(ratio, 1.0, progress),
}


class LearningRate:
    """Sets the learning rate of every parameter group before an iteration.

    Args:
        cfg: `lr_config`: `policy`, one of `POLICIES` in any case, and its keys; None for a constant rate.
        max_epochs: length of the training.
        epoch_iters: iterations per epoch.

    Raises:
        ConfigKeyError: unknown policy or key, or a value out of range.
    """

    def __init__(self, cfg: Mapping[str, Any] | None, max_epochs: int, epoch_iters: int) -> None:
        self._epoch_iters = epoch_iters
        self._policy = _read_policy(cfg or {"policy": "constant"}, POLICIES, "lr_config")
        for key in ("warmup_iters", "warmup_ratio"):
            if getattr(self._policy, key) < 0:
                raise ConfigKeyError(f"lr_config.{key}", f" must not be negative, got {getattr(self._policy, key)}")
        self._curve = self._policy.curve(max_epochs, max_epochs * epoch_iters)

    def at(self, lr: float, epoch: int, iteration: int) -> float:
        """The rate of a group with base rate `lr`, in 0-based `epoch`, before 0-based global `iteration`."""
        value = self._curve(lr, epoch, iteration)
        policy = self._policy
        position = epoch if policy.warmup_by_epoch else iteration
        if policy.warmup is not None and position < policy.warmup_iters:
            value *= _WARMUPS[policy.warmup](position / policy.warmup_iters, policy.warmup_ratio)
        return float(value)

    def apply(self, optimizer: Optimizer, epoch: int, iteration: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.at(group.setdefault("initial_lr", group["lr"]), epoch, iteration)


class Momentum:
    """Sets momentum (SGD) or beta1 (Adam) before an iteration; `momentum_config: null` leaves it alone.

    Args:
        cfg: `momentum_config`: `policy`, one of `MOMENTUM_POLICIES`, and its keys; or None.
        max_epochs, epoch_iters: see `LearningRate`.

    Raises:
        ConfigKeyError: unknown policy or key, or a value out of range.
    """

    def __init__(self, cfg: Mapping[str, Any] | None, max_epochs: int, epoch_iters: int) -> None:
        self._curve: Curve | None = None
        if cfg is not None:
            policy = _read_policy(cfg, MOMENTUM_POLICIES, "momentum_config")
            self._curve = policy.curve(max_epochs, max_epochs * epoch_iters)

    def apply(self, optimizer: Optimizer, epoch: int, iteration: int) -> None:
        """Raises ConfigKeyError if the optimiser has neither."""
        if self._curve is None:
            return
        for group in optimizer.param_groups:
            if "betas" not in group and "momentum" not in group:
                name = type(optimizer).__name__
                raise ConfigKeyError("momentum_config", f": {name} has neither momentum nor betas; set it to null")
            current = group["betas"][0] if "betas" in group else group["momentum"]
            value = self._curve(group.setdefault("initial_momentum", current), epoch, iteration)
            if "betas" in group:
                group["betas"] = (value, group["betas"][1])
            else:
                group["momentum"] = value


def _read_policy(cfg: Mapping[str, Any], policies: Mapping[str, type[Any]], key: str) -> Any:
    name = str(cfg.get("policy"))
    chosen = next((known for known in policies if known.lower() == name.lower()), None)
    if chosen is None:
        allowed = f"one of {', '.join(policies)}"
        raise ConfigKeyError(f"{key}.policy", f" must be {allowed}, got {name!r}{nearest(name, policies)}")
    return read_block(policies[chosen], {k: v for k, v in cfg.items() if k != "policy"}, key)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * progress))
