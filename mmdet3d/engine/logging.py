"""Console and file log, JSON lines, TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import torch
from torch import Tensor
from tqdm import tqdm

from mmdet3d.engine import distributed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["Window", "Writer", "finite", "get_logger", "hold_log", "log_to_folder"]


def get_logger() -> logging.Logger:
    return logging.getLogger("mmdet3d")


def hold_log() -> None:
    """Keep the project's log back until `log_to_folder` says where it goes; who fails before says why alone."""
    _replace_handlers([_Held()])


def log_to_folder(folder: Path | None, console: bool = True) -> None:
    """Send the project's log to the console of rank 0 (if `console`) and to a file in `folder` (none for None).

    What was held back comes first. The other ranks write a file of their own only when they have a warning or an error,
    because launchers hide their console.
    """
    held = [record for handler in get_logger().handlers if isinstance(handler, _Held) for record in handler.records]
    form = logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s")
    handlers: list[logging.Handler] = [_Console()] if console and distributed.is_main() else []
    if folder is not None:
        stamp = time.strftime("%Y%m%d_%H%M%S")
        name = f"{stamp}.log" if distributed.is_main() else f"{stamp}_rank{distributed.rank()}.log"
        handlers.append(logging.FileHandler(folder / name, delay=True))
    for handler in handlers:
        handler.setLevel(logging.INFO if distributed.is_main() else logging.WARNING)
        handler.setFormatter(form)
    _replace_handlers(handlers)
    for record in held:
        get_logger().handle(record)


def _replace_handlers(handlers: Sequence[logging.Handler]) -> None:
    logger = get_logger()
    logger.setLevel(logging.INFO)
    logger.propagate = False
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    for handler in handlers:
        logger.addHandler(handler)


class _Held(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class _Console(logging.StreamHandler[TextIO]):
    """Writes lines above the progress bar, if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


class Window:
    """Loss terms and times of the iterations since the last log line."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor]] = {}
        self._times: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, Tensor], times: Mapping[str, float]) -> None:
        """`values` are detached scalars; they stay on their device until `mean`."""
        for key, value in values.items():
            self._values.setdefault(key, []).append(value)
        for key, seconds in times.items():
            self._times.setdefault(key, []).append(seconds)

    def mean(self) -> dict[str, float] | None:
        """Means over iterations and ranks, and forget them; None on other ranks than 0. Every rank must call."""
        own = {k: torch.stack(v).float().mean().item() for k, v in self._values.items()}
        own |= {k: sum(v) / len(v) for k, v in self._times.items()}
        self._values, self._times = {}, {}
        gathered = distributed.gather_objects(own)
        if gathered is None:
            return None
        keys = list(dict.fromkeys(k for ranks in gathered for k in ranks))
        present = {k: [r[k] for r in gathered if k in r] for k in keys}
        return {k: sum(v) / len(v) for k, v in present.items()}

    def never_finite(self, key: str) -> bool:
        """Whether no value of `key` since the last log line is finite."""
        return not torch.stack(self._values[key]).isfinite().any().item()


class Writer:
    """Rank 0's log: lines on the console, `metrics.jsonl` and TensorBoard events in the run folder.

    Args:
        run_dir: the folder.
        start: global iteration at which this process begins; TensorBoard hides what an interrupted run wrote beyond it.
    """

    def __init__(self, run_dir: Path, start: int = 0) -> None:
        self._board: SummaryWriter | None = None
        self._lines: TextIO | None = None
        if distributed.is_main():
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(run_dir / "tf_logs", purge_step=start or None)
            self._lines = (run_dir / "metrics.jsonl").open("a", buffering=1)

    def train(self, position: Mapping[str, int], of: int, eta: float, values: Mapping[str, float]) -> None:
        """One line of training; its console shows losses summed by what they belong to, the files hold each.

        Args:
            position: `epoch` (1-based), `iter` within it (1-based), global `iteration`.
            of: iterations per epoch.
            eta: seconds left.
            values: lr, time, data_time, memory, losses, ...
        """
        terms = [k for k in values if k.startswith(("loss/", "stats/"))]
        shown = [f"lr: {values['lr']:.3e}", f"eta: {timedelta(seconds=int(eta))}"]
        shown += [_show(k, v) for k, v in values.items() if k != "lr" and k not in terms]
        shown += _grouped({k: values[k] for k in terms})
        self._write("train", position, values)
        get_logger().info("Epoch [%d][%d/%d]\t%s", position["epoch"], position["iter"], of, ", ".join(shown))

    def evaluation(self, position: Mapping[str, int], metrics: Mapping[str, float], table: str) -> None:
        """The metrics after an epoch; `table` is what the console shows of them."""
        self._write("val", position, metrics)
        get_logger().info("Epoch(val) [%d]\n%s", position["epoch"], table)

    def close(self) -> None:
        for file in (self._board, self._lines):
            if file is not None:
                file.close()

    def _write(self, mode: str, position: Mapping[str, int], values: Mapping[str, Any]) -> None:
        if self._board is None or self._lines is None:
            return
        self._lines.write(json.dumps({"mode": mode, **position, **finite(values)}) + "\n")
        for key, value in values.items():
            self._board.add_scalar(f"{mode}/{key}", value, position["iteration"])


def finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """JSON knows neither NaN (a metric that is not defined) nor infinity: both become null."""
    return {k: v if math.isfinite(v) else None for k, v in values.items()}


def _show(key: str, value: float) -> str:
    return (
        f"{key}: {value:.0f}" if key == "memory" else f"{key}: {value:.3f}" if "time" in key else f"{key}: {value:.4f}"
    )


def _grouped(terms: Mapping[str, float]) -> list[str]:
    """`loss/object: 22.1 (heatmap 15.7, bbox 6.4)`, with sums over tasks, levels and the like; stats as they are."""
    groups: dict[str, dict[str, float]] = {}
    for key, value in terms.items():
        kind, group, *rest = key.split("/")
        inner = "/".join(rest) if kind == "stats" else "".join(rest[:1])
        parts = groups.setdefault(f"{kind}/{group}", {})
        parts[inner] = parts.get(inner, 0.0) + value
    shown = []
    for group, parts in groups.items():
        total = f" {sum(parts.values()):.4f}" if group.startswith("loss/") or "" in parts else ""
        named = ", ".join(f"{part} {value:.4f}" for part, value in parts.items() if part)
        shown.append(f"{group}:{total}{f' ({named})' if named else ''}")
    return shown
