"""The training part of a config, checked before anything is built or loaded."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmdet3d.datasets.cache import check_cache
from mmdet3d.registry import check_kind, nearest

__all__ = ["PRECISIONS", "Settings", "autocast_dtype", "take"]

logger = logging.getLogger(__name__)

_PLAIN = {
    "optimizer": Mapping[str, Any],
    "lr_config": Mapping[str, Any],
    "momentum_config": Mapping[str, Any],
    "data": Mapping[str, Any],
    "deterministic": bool,
    "find_unused_parameters": bool,
    "precision": str,
    "load_from": str,
    "resume_from": str,
}
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def take(
    cfg: Mapping[str, Any] | None, defaults: Mapping[str, Any], section: str, numbers: Collection[str] = ()
) -> dict[str, Any]:
    """`defaults` updated by `cfg`.

    Args:
        numbers: keys that are numbers although their defaults do not tell.

    Raises:
        ValueError: `cfg` is no mapping, or a key of it has no default or a value of another kind than its default.
    """
    if cfg is not None and not isinstance(cfg, Mapping):
        raise ValueError(f"config key {section} must hold a mapping or null, got {cfg!r}")
    for key in cfg or {}:
        if key not in defaults:
            known = f"known: {', '.join(defaults)}" if defaults else "no further keys are known here"
            raise ValueError(f"unknown config key {section}.{key}{nearest(key, defaults)} ({known})")
        kind = float if key in numbers else _kind(defaults[key])
        check_kind(cfg[key], kind, f"{section}.{key}")
    return {**defaults, **(cfg or {})}


def _kind(default: Any) -> Any:
    """Of a default: a whole number may be any number, and null tells nothing."""
    if isinstance(default, (bool, str)):
        return type(default)
    return float if isinstance(default, (int, float)) else Any


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of automatic mixed precision; None for full precision. `auto` is fp16 on CUDA and fp32 on the CPU.

    Says once if half precision is asked of a CPU.
    """
    if precision == "auto":
        precision = "fp16" if device.type == "cuda" else "fp32"
    if precision != "fp32" and device.type == "cpu":
        _warn_of_slow(precision)
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@functools.cache
def _warn_of_slow(precision: str) -> None:
    logger.warning(
        "precision: %s on a CPU, most of which have no fast arithmetic for it: a step may take more than ten times as "
        "long as in fp32, which precision: auto means there",
        precision,
    )


@dataclass(frozen=True)
class Settings:
    """What the training loop reads of a config; see `docs/architecture.md`, Config keys.

    Args:
        max_epochs: passes over the training set.
        samples_per_gpu: batch size of one process.
        workers_per_gpu: loader processes that one process asks for; the cores may allow fewer (`machine.share`), which
            changes no sample. 0 loads in the training process.
        optimizer: `{type, lr, ..., paramwise_cfg}`.
        grad_clip: `{max_norm, norm_type}` or None.
        cumulative_iters: iterations whose gradients make one optimiser step.
        lr_config, momentum_config: see `schedule`.
        ema: `{decay, ramp}` or None.
        evaluation: `{interval, start, save_best, rule}`; start is the first epoch (1-based) evaluated, save_best a
            metric's name or None, rule `greater` or `less`.
        checkpoint: `{interval, max_keep_ckpts, interval_iters}`; interval in epochs, max_keep_ckpts None or -1 keeps
            all, interval_iters additionally saves within an epoch.
        log_interval: iterations per log line.
        find_unused_parameters: as DistributedDataParallel; false saves a graph walk per step where every parameter
            takes part in every loss.
        compile: dense stages through `torch.compile`, see `compilation`.
    """

    max_epochs: int
    samples_per_gpu: int
    workers_per_gpu: int
    optimizer: dict[str, Any]
    grad_clip: dict[str, Any] | None
    cumulative_iters: int
    lr_config: dict[str, Any] | None
    momentum_config: dict[str, Any] | None
    ema: dict[str, Any] | None
    evaluation: dict[str, Any]
    checkpoint: dict[str, Any]
    log_interval: int
    seed: int
    deterministic: bool
    precision: str
    load_from: str | None
    resume_from: str | None
    find_unused_parameters: bool
    compile: bool

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> Settings:
        """Raises ValueError naming the key that is missing, unknown or out of range."""
        for key in ("max_epochs", "optimizer"):
            if cfg.get(key) is None:
                raise ValueError(f"the config has no {key!r}, which training needs")
        for key, kind in _PLAIN.items():
            check_kind(cfg.get(key), kind, key)
        data = cfg.get("data") or {}
        check_cache(data.get("cache", "none"), data.get("cache_limit", 8))
        grad = take(cfg.get("optimizer_config"), {"grad_clip": None, "cumulative_iters": 1}, "optimizer_config")
        clip, ema = grad["grad_clip"], cfg.get("ema")
        settings = cls(
            max_epochs=_positive(cfg["max_epochs"], "max_epochs"),
            samples_per_gpu=_positive(data.get("samples_per_gpu", 1), "data.samples_per_gpu"),
            workers_per_gpu=_positive(data.get("workers_per_gpu", 0), "data.workers_per_gpu", least=0),
            optimizer=dict(cfg["optimizer"]),
            grad_clip=take(clip, {"max_norm": 35, "norm_type": 2}, "optimizer_config.grad_clip") if clip else None,
            cumulative_iters=_positive(grad["cumulative_iters"], "optimizer_config.cumulative_iters"),
            lr_config=cfg.get("lr_config"),
            momentum_config=cfg.get("momentum_config"),
            ema=take(ema, {"decay": 0.999, "ramp": None}, "ema", ["ramp"]) if ema else None,
            evaluation=_evaluation(cfg.get("evaluation")),
            checkpoint=_checkpoint(cfg.get("checkpoint_config")),
            log_interval=_positive(
                take(cfg.get("log_config"), {"interval": 50}, "log_config")["interval"], "log_config.interval"
            ),
            seed=_positive(cfg.get("seed") or 0, "seed", least=0),
            deterministic=bool(cfg.get("deterministic", False)),
            precision=cfg.get("precision") or "auto",
            load_from=cfg.get("load_from"),
            resume_from=cfg.get("resume_from"),
            find_unused_parameters=bool(cfg.get("find_unused_parameters", True)),
            compile=cfg.get("compile") or False,
        )
        if not isinstance(settings.compile, bool):
            raise ValueError(f"config key compile must be true or false, got {settings.compile!r}")
        if settings.precision not in PRECISIONS:
            raise ValueError(f"config key precision: {settings.precision!r} is none of {', '.join(PRECISIONS)}")
        return settings


def _positive(value: Any, key: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"config key {key} must be an integer of at least {least}, got {value!r}")
    return value


def _evaluation(cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    defaults = {"interval": 1, "start": 1, "save_best": "object/nds", "rule": "greater"}
    keys = take(cfg, defaults, "evaluation")
    _positive(keys["interval"], "evaluation.interval")
    _positive(keys["start"], "evaluation.start", least=0)
    if keys["rule"] not in ("greater", "less"):
        raise ValueError(f"config key evaluation.rule: {keys['rule']!r} is neither greater nor less")
    return keys


def _checkpoint(cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    keys = take(cfg, {"interval": 1, "max_keep_ckpts": None, "interval_iters": None}, "checkpoint_config")
    _positive(keys["interval"], "checkpoint_config.interval")
    if keys["max_keep_ckpts"] is not None:
        _positive(keys["max_keep_ckpts"], "checkpoint_config.max_keep_ckpts", least=-1)
    if keys["interval_iters"] is not None:
        _positive(keys["interval_iters"], "checkpoint_config.interval_iters")
    return keys
