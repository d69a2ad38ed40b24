"""Pieces of work in items, one after the other, each in a process that may break, within a budget of seconds.

What an item found is written down before the next one begins, so a second call goes on where the first one ended.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.framework import write_json
from mmdet3d.io.files import read_json
from mmdet3d.machine import die_with_parent

__all__ = ["FAILURES", "Piece", "Progress", "Row", "Setup", "Worker", "attempt", "run_pieces"]

Row = dict[str, Any]
FAILURES = ("failed", "unfinished")
_ATTEMPTS = 2  # of an item that took the whole program with it


@dataclass(frozen=True)
class Setup:
    """What is the same for all items.

    Attributes:
        device: "cuda", or "cpu" in a dry run.
        dry: the CUDA sources as plain C++ on the CPU, small sizes, no figure worth keeping.
        work: folder for data and trainings.
    """

    device: str
    dry: bool
    work: Path


@dataclass(frozen=True)
class Piece:
    """A group of items of one kind.

    Attributes:
        about: one line for `--list`.
        items: their names.
        run: does one item, given the seconds that it may take; returns what was found, with a `status` if it is not
            "ok" ("skipped" with a `cause`, "failed" with a `cause`, "unfinished": the next call goes on with it).
        seconds: the most an item takes; it is ended after that.
        table: Markdown lines from the rows of all items.
        stretches: an item takes whatever time is left and ends in time by itself.
    """

    about: str
    items: Callable[[Setup], Sequence[str]]
    run: Callable[[Setup, str, float], Row]
    seconds: float
    table: Callable[[Mapping[str, Row]], list[str]]
    stretches: bool = False


class Progress:
    """What is known so far: `gpu.json` in a folder, and `tracebacks.txt` beside it.

    Raises:
        ValueError: the folder holds the results of another kind of run.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        self.path, self._tracebacks = folder / "gpu.json", folder / "tracebacks.txt"
        kind = {"device": setup.device, "dry run": setup.dry}
        self.report: dict[str, Any] = {**kind, "pieces": {}}
        if self.path.is_file():
            self.report = read_json(self.path, "report")
            if not _is_report(self.report):
                raise ValueError(f"{self.path} is no report of this program; choose another --out or remove it")
            if found := {k: self.report.get(k) for k in kind if self.report.get(k) != kind[k]}:
                raise ValueError(f"{self.path} is of another run ({found}); choose another --out or remove it")

    def rows(self, piece: str) -> dict[str, Row]:
        return self.report["pieces"].setdefault(piece, {})

    def waiting(self, piece: str, items: Iterable[str], again: bool) -> list[str]:
        """Items without a result; with `again` also those that failed."""
        open_states = ("begun", "unfinished", *(["failed", "OOM"] if again else []))
        return [i for i in items if self.rows(piece).get(i, {}).get("status", "begun") in open_states]

    def begin(self, piece: str, item: str) -> bool:
        """Note that an item begins; False if it never came back from earlier attempts, which is its result then."""
        before = self.rows(piece).get(item, {})
        attempts = before.get("attempts", 0) if before.get("status") == "begun" else 0
        if attempts >= _ATTEMPTS:
            self.finish(piece, item, {"status": "failed", "cause": f"did not come back from {attempts} attempts"})
            return False
        self.finish(piece, item, {"status": "begun", "attempts": attempts + 1})
        return True

    def finish(self, piece: str, item: str, row: Row) -> None:
        text = row.pop("traceback", None)
        if text:
            row["traceback"] = self._tracebacks.name
            with self._tracebacks.open("a") as file:
                file.write(f"== {piece}/{item}\n{text}\n")
        self.rows(piece)[item] = row
        scratch = self.path.with_suffix(".new")
        write_json(scratch, self.report)
        scratch.replace(self.path)


def _is_report(content: Any) -> bool:
    pieces = content.get("pieces") if isinstance(content, dict) else None
    rows = list(pieces.values()) if isinstance(pieces, dict) else [None]
    return all(isinstance(r, dict) and all(isinstance(i, dict) and "status" in i for i in r.values()) for r in rows)


class Worker:
    """A process that does items; replaced after one that hangs, kills it, or leaves its GPU context unusable.

    Args:
        pieces: "module:name" of the mapping from names to pieces, which the process imports.
    """

    def __init__(self, pieces: str) -> None:
        self._pieces = pieces
        self._process: Any = None

    def run(self, piece: str, item: str, setup: Setup, seconds: float) -> Row:
        """What the item found, or how it failed."""
        if self._process is not None and not self._process.is_alive():  # killed between two items
            self.close()
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._pipe, other = context.Pipe()
            self._process = context.Process(target=_serve, args=(other, self._pieces, os.getpid()), daemon=False)
            self._process.start()
            other.close()
        try:
            self._pipe.send((piece, item, setup, seconds))
            if not self._pipe.poll(seconds):
                self.close()
                return {"status": "failed", "cause": f"no end within {seconds:.0f} s", "seconds": seconds}
            row = self._pipe.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            code = self._process.exitcode
            self.close()
            return {"status": "failed", "cause": f"its process died with exit code {code} (below 0: a signal)"}
        if row.pop("unusable", False):
            self.close()
        return row

    def close(self) -> None:
        if self._process is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(pipe: Any, place: str, parent: int) -> None:
    die_with_parent(parent)
    module, name = place.split(":")
    pieces = getattr(__import__(module, fromlist=[name]), name)
    while True:
        try:
            piece, item, setup, seconds = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(pieces[piece], item, setup, seconds))


def attempt(piece: Piece, item: str, setup: Setup, seconds: float) -> Row:
    """Do one item; what is raised becomes a row. After a CUDA error nothing more can be done in the same process."""
    began = time.perf_counter()
    torch.manual_seed(0)
    try:
        row = {"status": "ok", **piece.run(setup, item, seconds)}
    except Exception as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        full = isinstance(error, torch.OutOfMemoryError)
        row = {"status": "OOM" if full else "failed", "cause": lines[0][:300], "traceback": traceback.format_exc()}
        row["unusable"] = not full and "CUDA" in str(error)
    if setup.device == "cuda":
        torch.cuda.empty_cache() if not row.get("unusable") else None
    return row | {"seconds": round(time.perf_counter() - began, 1)}


def run_pieces(
    pieces: Mapping[str, Piece],
    chosen: Mapping[str, Sequence[str]],
    setup: Setup,
    progress: Progress,
    worker: Worker,
    deadline: float,
    again: bool = False,
) -> bool:
    """Do what has no result yet, in the order of `chosen`; an item is begun only if it can end before the deadline.

    Returns:
        Whether every chosen item has a result.
    """
    for name, items in chosen.items():
        piece = pieces[name]
        for item in progress.waiting(name, items, again):
            left = deadline - time.monotonic()
            if left < _needed(piece, progress.rows(name).values()):
                return False
            if not progress.begin(name, item):
                continue
            limit = left if piece.stretches else min(left, piece.seconds)
            row = worker.run(name, item, setup, limit)
            if row["status"] == "failed" and row.get("seconds", 0.0) >= limit < piece.seconds:
                row["status"] = "unfinished"  # the budget ended it
            progress.finish(name, item, row)
            print(f"{name}/{item}: {row['status']}", row.get("cause") or row.get("note") or "", flush=True)
    return not any(progress.waiting(n, i, False) for n, i in chosen.items())


def _needed(piece: Piece, rows: Iterable[Row]) -> float:
    """Seconds without which an item is not begun: the most it may take, or what those that are done let expect."""
    taken = [row["seconds"] for row in rows if "seconds" in row]
    return piece.seconds if piece.stretches or len(taken) < 3 else min(piece.seconds, 2 * max(taken) + 10)
