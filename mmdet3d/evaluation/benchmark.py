"""What a data set's evaluation reports, as far as it is known before a data set is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mmdet3d.evaluation.control import Column

__all__ = ["Benchmark", "combined"]


def _lines(metrics: Mapping[str, float]) -> str:
    return "\n".join(f"{name}: {value:.4f}" for name, value in metrics.items())


@dataclass(frozen=True)
class Benchmark:
    """What those who train and compare ask of a data set, whose static `benchmark(block)` gives one.

    Args:
        metrics: the names that `evaluate` reports; empty if they are not known.
        main: the one whose best weights are kept unless a config names another; None keeps none.
        columns: of a table of runs, the most telling metric first.
        table: metrics as text; a line `name: value` each if the benchmark has no table of its own.
    """

    metrics: Sequence[str] = ()
    main: str | None = None
    columns: Sequence[Column] = ()
    table: Callable[[Mapping[str, float]], str] = _lines


def combined(parts: Sequence[Benchmark]) -> Benchmark:
    """Several tasks of one data set, each with a main metric; the first counts most."""

    def table(metrics: Mapping[str, float]) -> str:
        return "\n\n".join(part.table(metrics) for part in parts if part.main in metrics)

    return Benchmark(
        [name for part in parts for name in part.metrics],
        parts[0].main,
        [column for part in parts for column in part.columns],
        table,
    )
