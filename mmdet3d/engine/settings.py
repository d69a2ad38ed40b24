"""The training part of a config, checked before anything is built or loaded."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import torch

from mmdet3d.blocks import ConfigKeyError, at_least, check_seed, number, positive, read_block
from mmdet3d.datasets.cache import check_cache

__all__ = ["AUTO", "Settings", "autocast_dtype"]

logger = logging.getLogger(__name__)

AUTO = "auto"


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
class DataSettings:
    """The block `data`.

    Args:
        samples_per_gpu: batch size of one process.
        workers_per_gpu: loader processes that one process asks for; the cores may allow fewer (`machine.share`), which
            changes no sample. 0 loads in the training process.
        cache: what keeps the files that were read, see `datasets.cache.open_cache`.
        cache_limit: size of the cache's folder, GB (10^9 bytes).
        on_error: `fail` ends a training at the first sample that cannot be read; `skip` takes the next one that can be,
            and the log names each.
        max_left_out: samples of one process that `skip` leaves out; one more ends the training.
        train, val, test: a data set each.
        unlabelled: frames without labels beside `train`: `share`, of each batch, and the keys in which they differ from
            `train` (`ann_file`, `part`, ...).
    """

    samples_per_gpu: int = 1
    workers_per_gpu: int = 0
    cache: str = "none"
    cache_limit: float = 8
    on_error: Literal["fail", "skip"] = "fail"
    max_left_out: int = 100
    train: Mapping[str, Any] | None = None
    val: Mapping[str, Any] | None = None
    test: Mapping[str, Any] | None = None
    unlabelled: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        at_least(1, self.samples_per_gpu, "samples_per_gpu")
        at_least(0, self.workers_per_gpu, "workers_per_gpu")
        at_least(1, self.max_left_out, "max_left_out")
        check_cache(self.cache, self.cache_limit)


@dataclass(frozen=True)
class GradClip:
    """Longer gradients are shortened.

    Args:
        max_norm: largest length; .inf shortens none.
        norm_type: of the norm, 2 for Euclid's.
    """

    max_norm: float = 35
    norm_type: float = 2

    def __post_init__(self) -> None:
        if self.max_norm != math.inf:
            positive(self.max_norm, "max_norm")  # a negative one would turn every gradient round
        if self.norm_type != math.inf:
            positive(self.norm_type, "norm_type")


@dataclass(frozen=True)
class OptimizerConfig:
    """What happens around a step of the optimiser.

    Args:
        grad_clip: null leaves gradients as long as they are.
        cumulative_iters: iterations whose gradients make one step.
        not_finite: `skip` leaves a step out whose gradients are not finite, and ends the training when that lasts for a
            log interval; `stop` ends it at the first.
    """

    grad_clip: GradClip | None = None
    cumulative_iters: int = 1
    not_finite: Literal["skip", "stop"] = "skip"

    def __post_init__(self) -> None:
        at_least(1, self.cumulative_iters, "cumulative_iters")


@dataclass(frozen=True)
class EMASettings:
    """Averaged weights, see `engine.ema.EMA`.

    Args:
        decay: share of the average that a step keeps.
        ramp: steps over which `decay` rises to its value; null for none.
    """

    decay: float = 0.999
    ramp: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= number(self.decay, "decay") < 1:
            raise ConfigKeyError("decay", f" must lie in [0, 1), got {self.decay!r}")
        if self.ramp is not None:
            positive(self.ramp, "ramp")


@dataclass(frozen=True)
class EvaluationSettings:
    """When `data.val` is predicted and scored.

    Args:
        interval: epochs from one evaluation to the next.
        start: first epoch (1-based) that is evaluated.
        save_best: metric whose best weights are kept; `auto` is the main one of the data set, null none.
        rule: which value of it is better.
    """

    interval: int = 1
    start: int = 1
    save_best: str | None = AUTO
    rule: Literal["greater", "less"] = "greater"

    def __post_init__(self) -> None:
        at_least(1, self.interval, "interval")
        at_least(0, self.start, "start")


@dataclass(frozen=True)
class CheckpointSettings:
    """What is kept of a training.

    Args:
        interval: epochs from one checkpoint to the next.
        max_keep_ckpts: the last ones stay; null or -1 keeps all.
        interval_iters: iterations from one to the next within an epoch; null for none.
    """

    interval: int = 1
    max_keep_ckpts: int | None = None
    interval_iters: int | None = None

    def __post_init__(self) -> None:
        at_least(1, self.interval, "interval")
        if self.max_keep_ckpts is not None:
            at_least(-1, self.max_keep_ckpts, "max_keep_ckpts")
        if self.interval_iters is not None:
            at_least(1, self.interval_iters, "interval_iters")


@dataclass(frozen=True)
class LogSettings:
    """What the log says.

    Args:
        interval: iterations per line.
    """

    interval: int = 50

    def __post_init__(self) -> None:
        at_least(1, self.interval, "interval")


@dataclass(frozen=True)
class Settings:
    """What the training loop reads of a config.

    Args:
        max_epochs: passes over the training set.
        optimizer: `type`, a class of `torch.optim`, its arguments, and `paramwise_cfg`.
        data: data sets and how they are loaded.
        optimizer_config: around a step.
        lr_config: `policy` and its keys, see `schedule`; null for a constant rate.
        momentum_config: likewise, of momentum or beta1; null leaves it alone.
        ema: averaged weights; null for none.
        evaluation: when, and what is best.
        checkpoint_config: what is kept.
        log_config: what is said.
        seed: of everything random.
        deterministic: the same kernels every time, which is slower on a GPU.
        precision: of automatic mixed precision; `auto` is fp16 on CUDA and fp32 on the CPU.
        load_from: checkpoint to start from.
        resume_from: checkpoint to go on from.
        find_unused_parameters: as DistributedDataParallel; false saves a graph walk per step where every parameter
            takes part in every loss.
        compile: dense stages through `torch.compile`, see `compilation`.
        activation_checkpointing: backward computes again what the stages of detectors held in between, which takes
            time and saves most of the memory.
        fully_shard: each rank holds its share of weights, gradients and optimiser state between steps (FSDP2), where
            otherwise every rank holds all.
    """

    max_epochs: int
    optimizer: Mapping[str, Any]
    data: DataSettings = field(default_factory=DataSettings)
    optimizer_config: OptimizerConfig = field(default_factory=OptimizerConfig)
    lr_config: Mapping[str, Any] | None = None
    momentum_config: Mapping[str, Any] | None = None
    ema: EMASettings | None = None
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    checkpoint_config: CheckpointSettings = field(default_factory=CheckpointSettings)
    log_config: LogSettings = field(default_factory=LogSettings)
    seed: int = 0
    deterministic: bool = False
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    load_from: str | None = None
    resume_from: str | None = None
    find_unused_parameters: bool = True
    compile: bool = False
    activation_checkpointing: bool = False
    fully_shard: bool = False

    def __post_init__(self) -> None:
        at_least(1, self.max_epochs, "max_epochs")
        check_seed(self.seed, "seed")
        for key in ("activation_checkpointing", "fully_shard"):
            if self.compile and getattr(self, key):
                raise ConfigKeyError(key, " cannot be true together with compile; set one of the two to false")

    @classmethod
    def from_config(cls, cfg: Mapping[str, Any]) -> Settings:
        """Of a whole config, whose other keys are not looked at.

        Raises:
            ConfigKeyError: a key that is missing, unknown or out of range.
        """
        names = [f.name for f in fields(cls)]
        return read_block(cls, {name: cfg[name] for name in names if cfg.get(name) is not None}, "")
