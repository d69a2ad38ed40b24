"""Optimisers with per-name parameter groups."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mmdet3d.blocks import ConfigKeyError, check_keys, nearest, number, read_block

__all__ = ["build_optimizer", "parameter_groups"]


@dataclass(frozen=True)
class ParamwiseSettings:
    """The block `optimizer.paramwise_cfg`.

    Args:
        custom_keys: by a part of the parameters' names, their `Multipliers`; one that is null is switched off.
    """

    custom_keys: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Multipliers:
    """What differs for some parameters.

    Args:
        lr_mult: factor of the learning rate.
        decay_mult: factor of the weight decay.
    """

    lr_mult: float = 1.0
    decay_mult: float = 1.0


def build_optimizer(model: nn.Module, cfg: Mapping[str, Any]) -> Optimizer:
    """The optimiser of a config over the model's trainable parameters.

    Args:
        model: frozen parameters (`requires_grad` False) are left out.
        cfg: `{type: AdamW, lr, weight_decay, ..., paramwise_cfg: {custom_keys: {name: {lr_mult, decay_mult}}}}`; type
            is a class of `torch.optim`.

    Raises:
        ValueError: unknown type or key, a custom key that no parameter's name contains, or nothing to train.
    """
    keys = dict(cfg)
    name = keys.pop("type", None)
    paramwise = keys.pop("paramwise_cfg", None)
    known = [n for n, c in vars(torch.optim).items() if inspect.isclass(c) and issubclass(c, Optimizer)]
    if name is None:
        raise ConfigKeyError("optimizer.type", " is missing; name an optimiser of torch.optim, such as AdamW")
    if name not in known:
        raise ConfigKeyError(
            "optimizer.type", f" must be an optimiser of torch.optim, got {name!r}{nearest(str(name), known)}"
        )
    cls = getattr(torch.optim, name)
    accepted = list(inspect.signature(cls).parameters)[1:]
    check_keys(keys, accepted, "optimizer", ["lr"])
    for key in ("lr", "weight_decay", "momentum", "eps"):
        if key in keys:
            number(keys[key], f"optimizer.{key}")
    if "fused" in accepted:
        keys.setdefault("fused", True)  # one pass over all parameters instead of a dozen for each
    groups = parameter_groups(model, keys["lr"], keys.get("weight_decay", 0.0), paramwise)
    try:
        made: Optimizer = cls(groups, **keys)
        return made
    except (TypeError, ValueError) as error:
        raise ValueError(f"config key optimizer: {name} refuses {keys} ({error})") from error


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, paramwise_cfg: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Trainable parameters grouped by learning rate and weight decay.

    The longest custom key that is a substring of a parameter's name decides (ties: alphabetically first). A key whose
    value is null is switched off.
    """
    section = "optimizer.paramwise_cfg.custom_keys"
    custom = read_block(ParamwiseSettings, paramwise_cfg or {}, "optimizer.paramwise_cfg").custom_keys or {}
    rules = {k: read_block(Multipliers, v, f"{section}.{k}") for k, v in custom.items() if v is not None}
    order = sorted(sorted(rules), key=len, reverse=True)
    names = [n for n, _ in model.named_parameters()]
    for key in order:
        if not any(key in n for n in names):
            raise ValueError(
                f"{section}: {key!r} matches no parameter of {type(model).__name__}; remove it (set it to null) "
                "or write it as part of a parameter's name"
            )
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = next((rules[k] for k in order if k in name), Multipliers())
            values = (lr * rule.lr_mult, weight_decay * rule.decay_mult)
            groups.setdefault(values, {"params": [], "lr": values[0], "weight_decay": values[1]})
            groups[values]["params"].append(parameter)
    if not groups:
        raise ValueError(f"{type(model).__name__} has no trainable parameter")
    return list(groups.values())
