"""What a resumed training may change of the config that it was begun with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmdet3d.config import parse_yaml
from mmdet3d.shell import command

__all__ = ["MAY_CHANGE", "refuse_changes"]

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
    old, new = dict(_flat(before)), dict(_flat(config))
    changed = [key for key in (*old, *(k for k in new if k not in old)) if old.get(key) != new.get(key)]
    refused = [key for key in changed if not _may_change(key)]
    if refused:
        shown = "; ".join(f"{key}: {old.get(key)!r}, now {new.get(key)!r}" for key in refused[:_SHOWN])
        more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
        raise ValueError(
            f"{run} was begun with another config ({shown}{more}); to go on as it was: {command('train')} --resume "
            f"{run}; to train with the new config from its weights: {command('train')} {config_path} --load_from "
            f"{run / 'latest.safetensors'}"
        )


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
