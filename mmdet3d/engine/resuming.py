"""What a resumed training may change of the config that it was begun with."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from mmdet3d.config import composed
from mmdet3d.io.yaml_text import parse_yaml
from mmdet3d.shell import command, quote

__all__ = [
    "MAY_CHANGE",
    "NO_PART_OF_THE_RESULT",
    "config_changes",
    "model_changes",
    "refuse_another_training",
    "refuse_changes",
]

# Keys, with all below them. What they decide is taken up anew at the next step, or is no part of the result.
MAY_CHANGE = (
    "max_epochs",
    "optimizer",
    "optimizer_config.grad_clip",
    "optimizer_config.not_finite",
    "lr_config",
    "momentum_config",
    "evaluation",
    "checkpoint_config",
    "log_config",
    "data.workers_per_gpu",
    "data.cache",
    "data.cache_limit",
    "data.on_error",
    "data.max_left_out",
    "compile",
    "activation_checkpointing",
    "fully_shard",
    "find_unused_parameters",
    "imports",
    "load_from",
    "resume_from",
)
NO_PART_OF_THE_RESULT = ("data.workers_per_gpu", "data.cache", "data.cache_limit", "imports", "resume_from")
# Where files lie, wherever the key stands: a run may be moved.
_PLACES = ("dataset_root", "checkpoint", "answers")
# Of a model that stands in full: where it was taken from.
_ORIGINS = ("config", "overrides", "data", "config_digest")
_SHOWN = 6


def refuse_changes(run: Path, config: Mapping[str, Any], config_path: str | Path) -> None:
    """Compare a config with the one that the training in folder `run` was begun with, if that is there.

    Raises:
        ValueError: it differs in more than `MAY_CHANGE` and places of files; names each key, and the commands for what
            may have been meant.
    """
    saved = run / "configs.yaml"
    try:
        before = parse_yaml(saved.read_bytes()) if saved.is_file() else None
    except yaml.YAMLError as error:
        raise ValueError(f"{saved}, the config of the run, is damaged ({error}); bring it back or remove it") from error
    if not isinstance(before, Mapping):
        return
    if isinstance(before.get("model"), Mapping):  # of a run of old, whose config only names teacher and student
        before = {**before, "model": composed(before["model"])}
    changes = (each for each in _differences(before, config) if not _may_change(each[0]))
    if changed := _listed(changes):
        raise ValueError(
            f"{run} was begun with another config ({changed}); to go on as it was: {command('train')} --resume "
            f"{quote(run)}; to train with the new config from its weights: {command('train')} {quote(config_path)} "
            f"--load_from {quote(run / 'latest.safetensors')}"
        )


def refuse_another_training(before: Mapping[str, Any], config: Mapping[str, Any], run: Path) -> None:
    """Raises ValueError if a config differs from that of `run` in more than where files lie and how they are read."""
    changes = (each for each in _differences(before, config) if each[0] not in NO_PART_OF_THE_RESULT)
    if changed := _listed(changes):
        raise ValueError(
            f"this would not be the training of {run} again ({changed}); leave these out, or train it as another one: "
            f"{command('train')} {quote(run / 'configs.yaml')}"
        )


def config_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two configs, places of files included: `key: value of then, now value`, the first few."""
    return _listed(_differences(before, now, places=()))


def model_changes(trained: Mapping[str, Any] | None, model: Mapping[str, Any] | None) -> str:
    """What differs between the model block that a checkpoint was trained with and another one, key by key.

    Args:
        trained: `model_config` of the checkpoint's metadata; None if it has none, which differs from nothing.

    Returns:
        `key: value of then, now value`, the first few; empty if none that matters differs.
    """
    # Through JSON, as the metadata went, where keys are text.
    return _listed(_differences(trained, json.loads(json.dumps(model)), "model")) if trained else ""


def _differences(
    old: Any, new: Any, key: str = "", places: Collection[str] = _PLACES
) -> Iterator[tuple[str, Any, Any]]:
    """Key and both values, at the innermost place that both have, but for `places` of files."""
    last = key.rpartition(".")[2]
    if last in places or (key.startswith("model.") and last in _ORIGINS):
        return
    if not key.startswith("model."):  # where a block that is not there is a part that is off
        old, new = ({} if a is None and isinstance(b, Mapping) else a for a, b in ((old, new), (new, old)))
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in (*old, *(k for k in new if k not in old)):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else str(name), places)
    elif all(isinstance(each, (list, tuple)) for each in (old, new)) and len(old) == len(new):
        if any(isinstance(item, Mapping) for item in (*old, *new)):
            for place, pair in enumerate(zip(old, new, strict=True)):
                yield from _differences(*pair, f"{key}.{place}", places)
        elif list(old) != list(new):
            yield key, old, new
    elif old != new:
        yield key, old, new


def _listed(differences: Iterable[tuple[str, Any, Any]]) -> str:
    found = [f"{key}: {_short(old)}, now {_short(new)}" for key, old, new in differences]
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return "; ".join(found[:_SHOWN]) + more


def _may_change(key: str) -> bool:
    return any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE)


def _short(value: Any, most: int = 100) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."
