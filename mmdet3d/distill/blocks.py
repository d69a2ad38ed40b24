"""Models that blocks of a config name, and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdet3d.blocks import ConfigKeyError

__all__ = ["NamedModel", "check_file"]


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of a trained or to be trained detector inside another: its block, and where `composition` took it from.

    Args:
        config: the file that it is described in.
        overrides: of that file, already in `model`.
        model: its block; without one `config` is loaded.
        data: what that config trains on.
        config_digest: of the content of that file and of what it inherits.
    """

    config: str | None = "its model block"
    overrides: Mapping[str, Any] | None = None
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] | None = None
    config_digest: str | None = None

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigKeyError("config", " is missing: the file that describes this model")


def check_file(path: str | None, key: str) -> None:
    """Raises FileNotFoundError if `path`, the value of the config's `key`, is not None and does not exist."""
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"{key}: {path} does not exist; train or download it, or pass --{key} FILE")
