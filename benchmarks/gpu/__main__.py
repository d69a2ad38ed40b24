"""Try everything that needs a GPU, in pieces that fit a time limit; the same command again goes on where it ended.

python -m benchmarks.gpu [--only PIECE[/ITEM] ...] [--budget SECONDS] [--out FOLDER] [--dry-run]

Results: FOLDER/gpu.json, FOLDER/gpu.md, and FOLDER/tracebacks.txt of what failed. The exit code is 0 if all is done and
well (too little memory is a result), 1 if something failed, 2 if the time was up first.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu.environment import ENVIRONMENT
from benchmarks.gpu.operators import BUILD, EQUAL, SANITIZE, TIME
from benchmarks.gpu.recipe import RECIPE
from benchmarks.gpu.runner import FAILURES, Piece, Progress, Setup, Worker, run_pieces
from benchmarks.gpu.steps import STEPS
from mmdet3d.io.files import in_words

__all__ = ["PIECES", "chosen_items", "main", "markdown"]

PIECES: dict[str, Piece] = {
    "environment": ENVIRONMENT,
    "build": BUILD,
    "ops-equal": EQUAL,
    "ops-sanitize": SANITIZE,
    "ops-time": TIME,
    "steps": STEPS,
    "recipe": RECIPE,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for and not done yet; returns the exit code."""
    options = _parse(arguments)
    began = time.monotonic()
    if not options.dry_run and not options.list and not torch.cuda.is_available() and options.only != ["build"]:
        raise SystemExit("there is no GPU here (torch.cuda.is_available() is False); --dry-run tries all on the CPU")
    work = options.work or options.out / "work"
    setup = Setup("cpu" if options.dry_run else "cuda", options.dry_run, work.absolute())
    chosen = chosen_items(options.only, setup)
    if options.list:
        for name, items in chosen.items():
            print(f"{name}: {PIECES[name].about}", *(f"  {name}/{item}" for item in items), sep="\n")
        return 0
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        progress, worker = Progress(options.out, setup), Worker("benchmarks.gpu.__main__:PIECES")
    except (ValueError, OSError) as error:
        raise SystemExit(in_words(error)) from None
    try:
        done = run_pieces(PIECES, chosen, setup, progress, worker, began + options.budget, options.again)
    finally:
        worker.close()
        (options.out / "gpu.md").write_text(markdown(progress))
    print(f"\n{options.out / 'gpu.md'}: {count(progress)}")
    if not done:
        print("not all is done: the time was up; the same command goes on")
        return 2
    return int(any(progress.rows(n)[i]["status"] in FAILURES for n, items in chosen.items() for i in items))


def chosen_items(only: Sequence[str] | None, setup: Setup) -> dict[str, list[str]]:
    """Items by piece: all, or those whose `PIECE/ITEM` begins with one of the words.

    Raises:
        SystemExit: a word that fits nothing.
    """
    every = {name: list(piece.items(setup)) for name, piece in PIECES.items()}
    if not only:
        return every
    for word in only:
        if word not in PIECES and not any(f"{n}/{i}".startswith(word) for n, items in every.items() for i in items):
            raise SystemExit(f"--only {word} fits no item; pieces are {', '.join(PIECES)}, items are shown by --list")
    found = {
        name: [i for i in items if any(name == w or ("/" in w and f"{name}/{i}".startswith(w)) for w in only)]
        for name, items in every.items()
    }
    return {name: items for name, items in found.items() if items}


def markdown(progress: Progress) -> str:
    """All tables."""
    kind = "dry run on the CPU: no figure means anything" if progress.report["dry run"] else progress.report["device"]
    lines = [f"# GPU check ({kind})", "", count(progress)]
    for name, piece in PIECES.items():
        if rows := {item: row for item, row in progress.rows(name).items() if row["status"] != "begun"}:
            lines += ["", f"## {name}", "", piece.about, "", *piece.table(rows)]
    return "\n".join(lines) + "\n"


def count(progress: Progress) -> str:
    """How many items ended how, in one line."""
    states = [row["status"] for rows in progress.report["pieces"].values() for row in rows.values()]
    return ", ".join(f"{states.count(s)} {s}" for s in dict.fromkeys(states)) or "nothing done"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="show pieces and items, run nothing")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="pieces, or what PIECE/ITEM begins with")
    parser.add_argument("--budget", type=float, default=540, help="seconds of this call (default: 540)")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-check"), metavar="FOLDER", help="of the results")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="data and trainings (default: FOLDER/work)")
    parser.add_argument("--again", action="store_true", help="repeat what failed")
    parser.add_argument("--dry-run", action="store_true", help="the CUDA sources as plain C++ on the CPU, small sizes")
    options = parser.parse_args(arguments)
    if not math.isfinite(options.budget):
        parser.error("argument --budget: must be a number of seconds")
    return options


if __name__ == "__main__":
    sys.exit(main())
