"""Models that a config names by the file of another config, composed when it is loaded.

A mapping below `model` with `config: FILE.yaml`, such as a distillation's teacher and student or a label encoder's
detector, is a named model. `compose` puts beside the name what it stands for, so that the config alone says what is
built, whatever becomes of the file:

    config: FILE.yaml       # as it was written, with `overrides` of its keys
    model: {...}            # its model block, resolved
    data: {train: {...}}    # what that config trains on, for comparison (`engine.agreement`)
    config_digest: ...      # of the content of FILE.yaml and of what it inherits

A named model that has `model` already stands in full and is taken as it is.

What the student's config says about data, and its constants, hold for the distillation too where that says nothing
else (`data_part`): one image size, one class list, one augmentation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["COMPOSED", "TRAINING", "compose", "content_digest", "data_part", "is_named", "stands_in_full"]

# What is of a training, not of its data.
TRAINING = (
    "model",
    "imports",
    "seed",
    "deterministic",
    "max_epochs",
    "precision",
    "load_from",
    "resume_from",
    "optimizer",
    "optimizer_config",
    "lr_config",
    "momentum_config",
    "ema",
    "evaluation",
    "checkpoint_config",
    "log_config",
    "find_unused_parameters",
    "compile",
    "activation_checkpointing",
    "fully_shard",
)
# What `compose` adds to a named model.
COMPOSED = ("model", "data", "config_digest")


def is_named(block: Any) -> bool:
    """Whether a mapping names a config file; an unevaluated `${expression}` may become the name of one."""
    name = block.get("config") if isinstance(block, Mapping) else None
    return isinstance(name, str) and name.endswith((".yaml", ".yml", "}"))


def stands_in_full(block: Mapping[str, Any]) -> bool:
    """Whether a named model has its model beside the name."""
    return block.get("model") is not None


def compose(
    value: Any, load: Callable[[str, Mapping[str, Any]], tuple[Mapping[str, Any], str]], key: str = "model"
) -> list[str]:
    """Complete the named models in `value`, in place.

    Args:
        value: a resolved model block, or a part of one.
        load: resolved config and `content_digest` of a file with overrides.
        key: where `value` stands, for messages.

    Returns:
        Modules that the named configs import.

    Raises:
        FileNotFoundError: no such config.
        ValueError: see `load_config`, or a config without a model.
    """
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping):
        return []
    imports = []
    if key != "model" and is_named(value) and not stands_in_full(value):
        try:
            config, digest = load(value["config"], value.get("overrides") or {})
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{key}.config: {error}") from error
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error
        if not isinstance(config.get("model"), Mapping):
            raise ValueError(f"{key}: {value['config']} describes no model")
        data = type(value)(train=(config.get("data") or {}).get("train"))
        value |= dict(zip(COMPOSED, (config["model"], data, digest), strict=True))
        imports += config.get("imports", [])
    for name, part in value.items():
        imports += compose(part, load, f"{key}.{name}")
    return imports


def data_part(content: Mapping[str, Any], own: Iterable[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """What a config file says about data: data sets, pipelines, and the constants that they are made of.

    Args:
        own: files whose data sets have the last word; where one names a `type`, its arguments are not for another type.
    """
    kept = {key: value for key, value in content.items() if key not in TRAINING}
    if isinstance(kept.get("data"), Mapping):
        splits = {key: value for key, value in kept["data"].items() if key in ("train", "val", "test")}
        for data in (other["data"] for other in own if isinstance(other.get("data"), Mapping)):
            splits = {key: value for key, value in splits.items() if _same_type(value, data.get(key))}
        kept["data"] = splits
    return kept


def _same_type(block: Any, other: Any) -> bool:
    types = [b["type"] for b in (block, other) if isinstance(b, Mapping) and "type" in b]
    return len(set(types)) < 2


def content_digest(contents: Iterable[Mapping[str, Any]]) -> str:
    """Of what config files hold, in the order in which they are merged; comments and layout do not count."""
    return hashlib.sha256(json.dumps(list(contents), default=str).encode()).hexdigest()[:16]
