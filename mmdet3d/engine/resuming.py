"""What a resumed training may change of the config that it was begun with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.config import parse_yaml

__all__ = ["MAY_CHANGE", "changed_keys", "refuse_changes", "shown_changes"]

# Keys, with all below them. What they decide is taken up anew at the next step, or is no part of the result.
MAY_CHANGE = (
    "max_epochs",
    "optimizer",
    "optimizer_config.grad_clip",
    "lr_config",
    "momentum_config",
    "evaluation",
    "checkpoint_config",
    "log_config",
    "data.workers_per_gpu",
    "data.cache",
    "data.cache_limit",
    "compile",
    "find_unused_parameters",
    "imports",
    "load_from",
    "resume_from",
)
# Where files lie, wherever the key stands: a run may be moved.
_PLACES = ("dataset_root", "checkpoint", "answers", "config")
_SHOWN = 6


def refuse_changes(run: Path, config: Mapping[str, Any], config_path: str | Path) -> None:
    """Compare a config with the one that the training in folder `run` was begun with, if that is there.

    Raises:
        ValueError: it differs in more than `MAY_CHANGE` and places of files; names each key, and the commands for what
            may have been meant.
    """
    saved = run / "configs.yaml"
    before = parse_yaml(saved.read_text()) if saved.is_file() else None
    if not isinstance(before, Mapping):
        return
    refused = [key for key in changed_keys(before, config) if not _may_change(key)]
    if refused:
        shown = shown_changes(before, config, refused)
        raise ValueError(
            f"{run} was begun with another config ({shown}); to go on as it was: python tools/train.py --resume "
            f"{run}; to train with the new config from its weights: python tools/train.py {config_path} --load_from "
            f"{run / 'latest.safetensors'}"
        )


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The dotted keys of two configs whose values differ, or that only one of them has."""
    old, new = dict(_flat(before)), dict(_flat(now))
    return [key for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]


def shown_changes(before: Mapping[str, Any], now: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The first few of the keys with both values, for a message."""
    old, new = dict(_flat(before)), dict(_flat(now))
    listed = "; ".join(f"{key}: {old.get(key)!r}, now {new.get(key)!r}" for key in keys[:_SHOWN])
    return listed + (f"; and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted key."""
    if isinstance(value, Mapping) and value:
        for name, item in value.items():
            yield from _flat(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)) and any(isinstance(item, Mapping) for item in value):
        for place, item in enumerate(value):
            yield from _flat(item, f"{key}.{place}")
    else:
        yield key, list(value) if isinstance(value, tuple) else value


def _may_change(key: str) -> bool:
    return key.rpartition(".")[2] in _PLACES or any(key == k or key.startswith(f"{k}.") for k in MAY_CHANGE)
