"""Was distillation worth it? Teacher, student, control and distilled student over seeds, in one table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mmdet3d.registry import nearest

__all__ = ["COLUMNS", "Column", "Comparison", "ControlTable"]


class Column(NamedTuple):
    """A metric of the table: its key, its heading, and whether more is better."""

    key: str
    heading: str
    higher: bool = True


# What nuScenes reports.
COLUMNS = (
    Column("object/map", "mAP"),
    Column("object/nds", "NDS"),
    Column("object/mATE", "mATE", False),
    Column("object/mASE", "mASE", False),
    Column("object/mAOE", "mAOE", False),
    Column("object/mAVE", "mAVE", False),
    Column("object/mAAE", "mAAE", False),
)
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Comparison:
    """Distilled minus control, paired by seed.

    Args:
        differences: one per seed.
        better_is_higher: False for errors.
    """

    differences: tuple[float, ...]
    better_is_higher: bool = True

    @property
    def mean(self) -> float:
        return float(np.mean(self.differences))

    @property
    def half_width(self) -> float:
        """Half width of the two-sided 95 % interval of the mean (Student's t over seeds); infinite for one seed."""
        n = len(self.differences)
        if n < 2:
            return math.inf
        from scipy import stats  # a second

        spread = float(np.std(self.differences, ddof=1))
        return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1)) * spread / math.sqrt(n)

    @property
    def verdict(self) -> str:
        """One of "better", "worse", "within noise", "unknown (one seed)"."""
        if len(self.differences) < 2:
            return "unknown (one seed)"
        if abs(self.mean) <= self.half_width:
            return "within noise"
        return "better" if (self.mean > 0) == self.better_is_higher else "worse"


@dataclass
class ControlTable:
    """Metrics of the roles.

    Args:
        teacher, control, distilled, student: per role a list over seeds of metric dicts (the keys of `columns`).
            `control` is the student trained exactly as long as `distilled`, without distillation; `student` is where
            both start from, empty if that is no trained detector. Control and distilled are paired by position (same
            seed); the others may be shorter.
        title: first line of the report.
        columns: what is compared.
        decimals: of the report's numbers.
        variants: other distillations by name, paired with the control as `distilled` is; each gets a row, and one with
            its gain over the control.

    Raises:
        ValueError: control and distilled (or a variant) are no pairs, or a run lacks the metric of a column.
    """

    teacher: Sequence[Mapping[str, float]]
    control: Sequence[Mapping[str, float]]
    distilled: Sequence[Mapping[str, float]]
    student: Sequence[Mapping[str, float]] = ()
    title: str = "distillation"
    columns: Sequence[Column] = COLUMNS
    decimals: int = 4
    variants: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, runs in {"distilled": self.distilled, **self.variants}.items():
            if not self.control or len(self.control) != len(runs):
                raise ValueError(
                    f"control ({len(self.control)} runs) and {name} ({len(runs)} runs) must be paired by seed"
                )
        others = [run for runs in self.variants.values() for run in runs]
        for run in (*self.teacher, *self.student, *self.control, *self.distilled, *others):
            for key, heading, _ in self.columns:
                if key not in run:
                    raise ValueError(f"column {heading}: no metric {key!r}{nearest(key, run)}")

    def comparison(self, key: str, variant: str | None = None) -> Comparison:
        """Of `distilled`, or of a variant, with the control."""
        higher = next(up for k, _, up in self.columns if k == key)
        runs = self.distilled if variant is None else self.variants[variant]
        pairs = zip(runs, self.control, strict=True)
        return Comparison(tuple(d[key] - c[key] for d, c in pairs), higher)

    def gap_closed(self, key: str) -> float:
        """Share of the teacher's lead over the control that distillation recovers (1 = all); NaN without a lead."""
        teacher, control = (float(np.mean([m[key] for m in runs])) for runs in (self.teacher, self.control))
        lead = teacher - control
        higher = next(up for k, _, up in self.columns if k == key)
        if (lead if higher else -lead) <= 0:
            return math.nan
        return self.comparison(key).mean / lead

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: per role mean, standard deviation and every run; per metric the comparison."""
        roles = {role: getattr(self, role) for role in ("teacher", "student", "control", "distilled")}
        out: dict[str, Any] = {"title": self.title, "seeds": len(self.control), "roles": {}, "comparison": {}}
        for role, runs in roles.items():
            out["roles"][role] = {name: _summary([m[key] for m in runs]) for key, name, _ in self.columns}
        for key, name, _ in self.columns:
            gap = self.gap_closed(key)
            closed = {"gap_closed": None if math.isnan(gap) else gap}
            out["comparison"][name] = _gain(self.comparison(key)) | closed
        for variant, runs in self.variants.items():
            out.setdefault("variants", {})[variant] = {
                name: _summary([m[key] for m in runs]) | _gain(self.comparison(key, variant))
                for key, name, _ in self.columns
            }
        return out

    def __str__(self) -> str:
        names, n = [name for _, name, _ in self.columns], self.decimals
        rows = [["", *names]]
        control = "control (student, trained on)" if self.student else "control (student alone)"
        for role, runs in (
            ("teacher", self.teacher),
            ("student", self.student),
            (control, self.control),
            ("distilled", self.distilled),
        ):
            if runs or role != "student":
                rows.append([role, *(_cell([m[key] for m in runs], n) for key, _, _ in self.columns)])
        comparisons = [self.comparison(key) for key, _, _ in self.columns]
        rows.append(["gain over control", *(f"{c.mean:+.{n}f}" for c in comparisons)])
        rows.append(
            ["  95 % interval", *("n/a" if math.isinf(c.half_width) else f"±{c.half_width:.{n}f}" for c in comparisons)]
        )
        gaps = [self.gap_closed(key) for key, _, _ in self.columns]
        rows.append(["gap to the teacher closed", *("n/a" if math.isnan(g) else f"{100 * g:.0f} %" for g in gaps)])
        for variant, runs in self.variants.items():
            rows.append([variant, *(_cell([m[key] for m in runs], n) for key, _, _ in self.columns)])
            gains = [self.comparison(key, variant) for key, _, _ in self.columns]
            rows.append(["  gain over control", *(f"{c.mean:+.{n}f}{_margin(c, n)}" for c in gains)])
        return "\n".join([self._heading(), "", _markdown(rows), "", self._verdicts(comparisons)])

    def _heading(self) -> str:
        seeds = len(self.control)
        return f"{self.title}: {seeds} seed{'s' if seeds > 1 else ''}" + (
            ", mean ± standard deviation" if seeds > 1 else ""
        )

    def _verdicts(self, comparisons: Sequence[Comparison]) -> str:
        if len(self.control) < 2:
            return (
                "One seed says nothing about noise: none of these differences can be called real. "
                "Run more seeds (--seeds 0 1 2) for a statement."
            )
        named = [(name, c.verdict) for (_, name, _), c in zip(self.columns, comparisons, strict=True)]
        parts = []
        for verdict in ("better", "worse", "within noise"):
            members = [name for name, v in named if v == verdict]
            if members:
                parts.append(f"{verdict}: {', '.join(members)}")
        return f"Distilled against control, 95 % over {len(self.control)} seeds: " + "; ".join(parts) + "."


def _gain(comparison: Comparison) -> dict[str, Any]:
    interval = None if math.isinf(comparison.half_width) else comparison.half_width
    return {"gain": comparison.mean, "interval95": interval, "verdict": comparison.verdict}


def _margin(comparison: Comparison, decimals: int) -> str:
    return "" if math.isinf(comparison.half_width) else f" (±{comparison.half_width:.{decimals}f})"


def _summary(values: Sequence[float]) -> dict[str, Any]:
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)) if values else None, "std": spread, "runs": [float(v) for v in values]}


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    text = f"{np.mean(values):.{decimals}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])
