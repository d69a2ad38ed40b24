"""Files that blocks of a config name."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_file"]


def check_file(path: str | None, key: str) -> None:
    """Raises FileNotFoundError if `path`, the value of the config's `key`, is not None and does not exist."""
    if path is not None and not Path(path).is_file():
        raise FileNotFoundError(f"{key}: {path} does not exist; train or download it, or pass --{key} FILE")
