"""Long work in pieces: finished pieces survive an interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.datasets.processes import in_processes
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.progress import progress_bar

__all__ = ["digest", "digest_files", "resumable_map"]

_CHUNK = 1 << 22


def digest(settings: Any) -> str:
    """A short name for a JSON-like value."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def digest_files(files: Sequence[Path]) -> str:
    """A short name for the content of files."""
    state = hashlib.sha256()
    for path in files:
        state.update(path.name.encode())
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                state.update(chunk)
    return state.hexdigest()[:16]


def resumable_map(
    function: Callable[[Any], Any], pieces: Mapping[str, Any], parts: Path, workers: int, description: str
) -> list[Any]:
    """`[function(p) for p in pieces.values()]`, each result kept in `parts` until all are done.

    Args:
        function: returns plain data; runs in forked processes, so it may hold large read-only tables.
        pieces: name (of a file) to argument.
        parts: folder for the results so far; its name must tell what they depend on. Removed at the end.
        workers: processes; 0 and 1 work in this one.
        description: of the progress bar.

    Raises:
        ValueError: a process was killed; and whatever `function` raises, with a word on the parts that are kept.
    """
    parts.mkdir(parents=True, exist_ok=True)
    todo = [(name, piece) for name, piece in pieces.items() if not (parts / f"{name}.pkl").is_file()]
    with progress_bar(total=len(pieces), initial=len(pieces) - len(todo), desc=description, unit="part") as bar:
        try:
            for name, result in _results(function, todo, workers):
                dump_pickle(result, parts / f"{name}.pkl")
                bar.update()
        except (ValueError, FileNotFoundError) as error:
            if kept := sum(1 for _ in parts.glob("*.pkl")):
                note = f"{kept} of {len(pieces)} parts are kept in {parts}, and the same command goes on from there"
                raise type(error)(f"{error} ({note})") from error
            parts.rmdir()
            raise
    results = [load_pickle(parts / f"{name}.pkl") for name in pieces]
    shutil.rmtree(parts)
    return results


def _results(function: Callable[[Any], Any], todo: list[tuple[str, Any]], workers: int) -> Iterator[tuple[str, Any]]:
    # Forked workers find the function, and the tables that it holds, here: it cannot be sent to them.
    global _function
    _function = function
    return in_processes(_call, todo, max(workers, 1), "fork")


_function: Callable[[Any], Any]


def _call(item: tuple[str, Any]) -> tuple[str, Any]:
    name, piece = item
    return name, _function(piece)
