"""Config files that a model block names: the run's config has their names, its meaning depends on their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet3d.config import CONFIG_ROOT, config_chain, load_config, read_mapping

__all__ = ["file_digests", "refuse_changed_files"]


def file_digests(model: Any) -> dict[str, str]:
    """SHA-256 of the content of every config file behind a model block, by its path (below `configs`, if it is there).

    Those are the files named by a `config` key, those that they inherit from, and those that their own model blocks
    name. Comments and layout do not count. A file that does not exist is left out: whoever needs it says so.
    """
    found: dict[str, str] = {}
    if isinstance(model, Mapping):
        if isinstance(model.get("config"), str):
            with contextlib.suppress(FileNotFoundError):
                for file in config_chain(model["config"]):
                    inside = file.is_relative_to(CONFIG_ROOT)
                    found[str(file.relative_to(CONFIG_ROOT) if inside else file)] = _digest(file)
                found |= file_digests(load_config(model["config"], model.get("overrides") or {}).get("model"))
        model = list(model.values())
    if isinstance(model, (list, tuple)):
        for value in model:
            found |= file_digests(value)
    return found


def refuse_changed_files(recorded: Mapping[str, str] | None, model: Any, source: str | Path, remedy: str) -> None:
    """Compare the config files behind a model block with those that a checkpoint was trained with.

    Args:
        recorded: its `config_files`; None if it has none. Where a file lies does not matter.
        source: the checkpoint.
        remedy: for the message, besides bringing the content back.

    Raises:
        ValueError: a file has another content; names it.
    """
    for file, digest in file_digests(model).items():
        if recorded and digest not in recorded.values():
            raise ValueError(
                f"the config file {file}, which this model is built from, is not what it was when {source} was "
                "trained; "
                f"bring that content back, or {remedy}"
            )


def _digest(file: Path) -> str:
    return hashlib.sha256(json.dumps(read_mapping(file), default=str).encode()).hexdigest()
