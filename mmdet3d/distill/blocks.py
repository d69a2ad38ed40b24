"""Blocks of a config that name another model, and the files in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from mmdet3d.registry import check_kinds, nearest

__all__ = ["NamedModel", "check_file", "read_block"]

Block = TypeVar("Block")


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model of a trained or to be trained detector inside another: its block, and where `composition` took it from.

    Args:
        model: its block.
        config: the file that it is described in, for messages.
        overrides: of that file, already in `model`.
        data, config_digest: see `composition`.
    """

    model: Mapping[str, Any]
    config: str = "its model block"
    overrides: Mapping[str, Any] | None = None
    data: Mapping[str, Any] | None = None
    config_digest: str | None = None


def read_block(cls: type[Block], given: Mapping[str, Any], key: str) -> Block:
    """`given` as the dataclass `cls`.

    Raises:
        ValueError: no mapping, an unknown or a missing key, or a value of another kind, in the config's words.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"{key} must hold a mapping, got {given!r}")
    known = {f.name: f for f in fields(cls)}
    for name in given:
        if name not in known:
            raise ValueError(f"unknown key {key}.{name}{nearest(name, known)} (known: {', '.join(known)})")
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [n for n in needed if not given.get(n)]
    missing = ["config" if n == "model" and issubclass(cls, NamedModel) else n for n in missing]
    if missing:
        raise ValueError(f"{key} needs {' and '.join(missing)}")
    check_kinds(cls, given, f"{key}.")
    return cls(**given)


def check_file(path: str | None, key: str) -> None:
    """Raises FileNotFoundError if `path`, the value of the config's `key`, is not None and does not exist."""
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"{key}: {path} does not exist; train or download it, or pass --{key} FILE")
