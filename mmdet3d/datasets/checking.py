"""What is wrong with the files of a data set: every one is read once, and nothing is changed."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mmdet3d.datasets.processes import in_processes
from mmdet3d.io.files import atomic_write
from mmdet3d.progress import progress_bar
from mmdet3d.shell import number_of

__all__ = ["REPORT", "Fault", "Looked", "check_all", "is_singular"]

REPORT = "check.json"
_NAMED = 5  # faults that the summary shows of each kind


@dataclass(frozen=True)
class Fault:
    """Something wrong.

    Args:
        kind: `image`, `points`, `radar`, `missing file`, `calibration`, `velocity`, ...
        place: the file, relative to the data set, or the sample.
        message: what is wrong, in a sentence.
    """

    kind: str
    place: str
    message: str


@dataclass(frozen=True)
class Looked:
    """What was found in a part of a data set: how many files of each kind were read, and what is wrong."""

    files: dict[str, int]
    faults: list[Fault]


def check_all(look: Callable[[Any], Looked], parts: Sequence[Any], workers: int, report: Path) -> list[str]:
    """Look at all parts; write `report`, a JSON object of `files` by kind and a list of `faults`.

    Args:
        look: can be pickled.
        parts: its arguments.
        workers: processes.

    Returns:
        The summary, line by line, if nothing is wrong.

    Raises:
        ValueError: something is; the message counts the faults by kind and shows the first.
    """
    files: Counter[str] = Counter()
    faults: list[Fault] = []
    with progress_bar(total=len(parts), desc="check", unit="part") as bar:
        for found in in_processes(look, parts, workers):
            files.update(found.files)
            faults += found.faults
            bar.update()
    faults.sort(key=lambda fault: (fault.kind, fault.place))
    with atomic_write(report) as file:
        json.dump({"files": dict(files), "faults": [asdict(fault) for fault in faults]}, file, indent=1)
    lines = [f"{kind}: {number_of(number, 'file')} read" for kind, number in sorted(files.items())]
    if not faults:
        return [*lines, f"nothing is wrong ({report})"]
    for kind, number in Counter(fault.kind for fault in faults).items():
        shown = [fault.message for fault in faults if fault.kind == kind][:_NAMED]
        lines.append(f"{kind}: {number} wrong: {'; '.join(shown)}{'; ...' if number > _NAMED else ''}")
    summary = "\n  ".join(lines)
    raise ValueError(f"{len(faults)} things are wrong with the data set, all of them in {report}:\n  {summary}")


def is_singular(matrix: np.ndarray) -> bool:
    """Whether a matrix cannot be inverted with any precision, or is not finite; of a pose its rotation tells."""
    if matrix.shape == (4, 4) and np.isfinite(matrix).all():
        matrix = matrix[:3, :3]  # beside coordinates of a map, in millions of metres, any rotation looks small
    return not np.isfinite(matrix).all() or np.linalg.cond(matrix) > 1e12
