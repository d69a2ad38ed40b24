"""Was distillation worth it? Teacher, student, control and distilled student over seeds, in one table."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from mmdet3d.blocks import nearest

__all__ = ["Column", "Comparison", "ControlTable", "holm", "verdict"]


class Column(NamedTuple):
    """A metric of the table: its key, its heading, and whether more is better."""

    key: str
    heading: str
    higher: bool = True


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
    def p_value(self) -> float:
        """Of the paired two-sided t-test of no difference; 1 for one seed, 0 for differences that are equal."""
        if len(self.differences) < 2 or not math.isfinite(self.mean):
            return 1.0
        if float(np.ptp(self.differences)) == 0.0:
            return float(self.mean == 0.0)
        from scipy import stats  # a second

        return float(stats.ttest_1samp(self.differences, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, corrected so that one false alarm among them is as likely as it was in one test.

    Holm, "A simple sequentially rejective multiple test procedure", 1979: the smallest times n, the next times n - 1,
    ..., none smaller than the one before it.
    """
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def verdict(comparison: Comparison, p_value: float) -> str:
    """One of "better", "worse", "within noise", "unknown (one seed)", by the corrected `p_value` of the comparison.

    "undefined" if a run has no such metric (NaN).
    """
    if not math.isfinite(comparison.mean):
        return "undefined"
    if len(comparison.differences) < 2:
        return "unknown (one seed)"
    if p_value >= 1 - CONFIDENCE:
        return "within noise"
    return "better" if (comparison.mean > 0) == comparison.better_is_higher else "worse"


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
        controls: further controls by name, paired likewise; each gets a row, and one with the gain of `distilled` over
            it.
        unit: in what the pairs differ: `seed`, or `world`, each with its own data and teacher.

    Raises:
        ValueError: control and distilled (or a variant) are no pairs, or a run lacks the metric of a column.
    """

    teacher: Sequence[Mapping[str, float]]
    control: Sequence[Mapping[str, float]]
    distilled: Sequence[Mapping[str, float]]
    student: Sequence[Mapping[str, float]] = ()
    title: str = "distillation"
    columns: Sequence[Column] = field(kw_only=True)
    decimals: int = 4
    variants: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    controls: Mapping[str, Sequence[Mapping[str, float]]] = field(default_factory=dict)
    unit: str = "seed"

    def __post_init__(self) -> None:
        for name, runs in {"distilled": self.distilled, **self.variants, **self.controls}.items():
            if not self.control or len(self.control) != len(runs):
                raise ValueError(
                    f"control ({len(self.control)} runs) and {name} ({len(runs)} runs) must be paired by {self.unit}"
                )
        others = [run for rows in (self.variants, self.controls) for runs in rows.values() for run in runs]
        for run in (*self.teacher, *self.student, *self.control, *self.distilled, *others):
            for key, heading, _ in self.columns:
                if key not in run:
                    raise ValueError(f"column {heading}: no metric {key!r}{nearest(key, run)}")

    def comparison(self, key: str, variant: str | None = None, control: str | None = None) -> Comparison:
        """Of `distilled`, or of a variant, with the control, or with a further one."""
        higher = next(up for k, _, up in self.columns if k == key)
        runs = self.distilled if variant is None else self.variants[variant]
        against = self.control if control is None else self.controls[control]
        return Comparison(tuple(d[key] - c[key] for d, c in zip(runs, against, strict=True)), higher)

    def comparisons(self) -> dict[tuple[str, str | None, str | None], tuple[Comparison, str]]:
        """Every comparison of the table by (key, variant, control), with its verdict, corrected for their number."""
        pairs: list[tuple[str | None, str | None]] = [(None, None)]
        pairs += [(variant, None) for variant in self.variants] + [(None, control) for control in self.controls]
        found = {(key, *pair): self.comparison(key, *pair) for pair in pairs for key, _, _ in self.columns}
        p_values = holm([c.p_value for c in found.values()])
        return {name: (c, verdict(c, p)) for (name, c), p in zip(found.items(), p_values, strict=True)}

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
        out: dict[str, Any] = {"title": self.title, f"{self.unit}s": len(self.control), "roles": {}, "comparison": {}}
        for role, runs in roles.items():
            out["roles"][role] = {name: _summary([m[key] for m in runs]) for key, name, _ in self.columns}
        found = self.comparisons()
        for key, name, _ in self.columns:
            gap = self.gap_closed(key)
            closed = {"gap_closed": None if math.isnan(gap) else gap}
            out["comparison"][name] = _gain(*found[key, None, None]) | closed
        for variant, runs in self.variants.items():
            out.setdefault("variants", {})[variant] = {
                name: _summary([m[key] for m in runs]) | _gain(*found[key, variant, None])
                for key, name, _ in self.columns
            }
        for control, runs in self.controls.items():
            out.setdefault("controls", {})[control] = {
                name: _summary([m[key] for m in runs]) | _gain(*found[key, None, control])
                for key, name, _ in self.columns
            }
        return out

    def __str__(self) -> str:
        return "\n".join([self._heading(), "", _markdown(self._rows()), "", self._verdicts()])

    def to_latex(self) -> str:
        """The same table for a paper: a `tabular` that needs the package booktabs, heading and verdicts as comments."""
        _, *rows = self._rows()
        head = ["", *(f"{name} {'↑' if up else '↓'}" for _, name, up in self.columns)]
        lines = ["\\begin{tabular}{l" + "r" * len(self.columns) + "}", "\\toprule", _latex_row(head), "\\midrule"]
        lines += [*map(_latex_row, rows), "\\bottomrule", "\\end{tabular}"]
        notes = f"{self._heading()}\n{self._verdicts()}".splitlines()
        return "\n".join([*(f"% {note}" for note in notes), *lines])

    def _rows(self) -> list[list[str]]:
        """Of the table, the headings first."""
        n, keys = self.decimals, [key for key, _, _ in self.columns]
        found = {name: comparison for name, (comparison, _) in self.comparisons().items()}
        rows = [["", *(name for _, name, _ in self.columns)]]

        def role(name: str, runs: Sequence[Mapping[str, float]]) -> None:
            rows.append([name, *(_cell([m[key] for m in runs], n) for key in keys)])

        def gain(name: str, variant: str | None = None, control: str | None = None) -> None:
            gains = [found[key, variant, control] for key in keys]
            rows.append([name, *(_change(c, n) for c in gains)])

        role("teacher", self.teacher)
        if self.student:
            role("student", self.student)
        role("control (student, trained on)" if self.student else "control (student alone)", self.control)
        role("distilled", self.distilled)
        gain("gain over control")
        gaps = [self.gap_closed(key) for key in keys]
        rows.append(["gap to the teacher closed", *("n/a" if math.isnan(g) else f"{100 * g:.0f} %" for g in gaps)])
        for control, runs in self.controls.items():
            role(f"{control} (control)", runs)
            gain("  gain of distilled over it", control=control)
        for variant, runs in self.variants.items():
            role(variant, runs)
            gain("  gain over control", variant)
        return rows

    def _heading(self) -> str:
        pairs = len(self.control)
        text = f"{self.title}: {pairs} {self.unit}{'s' if pairs > 1 else ''}"
        text += ", each with its own data and teacher" if self.unit == "world" and pairs > 1 else ""
        return text + (", mean ± standard deviation; gains with 95 % interval" if pairs > 1 else "")

    def _verdicts(self) -> str:
        if len(self.control) < 2:
            return (
                f"One {self.unit} says nothing about noise: none of these differences can be called real. "
                f"Run more {self.unit}s (--{self.unit}s 0 1 2) for a statement."
            )
        found = self.comparisons()
        count = f" ({len(found)} comparisons, corrected after Holm)" if len(found) > 1 else ""
        lines = []
        arms = [("Distilled", None, c) for c in (None, *self.controls)] + [(v, v, None) for v in self.variants]
        for arm, variant, control in arms:
            named = [(name, found[key, variant, control][1]) for key, name, _ in self.columns]
            parts = []
            for outcome in ("better", "worse", "within noise", "undefined"):
                members = [name for name, v in named if v == outcome]
                if members:
                    parts.append(f"{outcome}: {', '.join(members)}")
            against = "control" if control is None else control
            lines.append(f"{arm} against {against}, 95 % over {len(self.control)} {self.unit}s{count}: ")
            lines[-1] += "; ".join(parts) + "."
            count = ""
        return "\n".join(lines)


def _gain(comparison: Comparison, verdict: str) -> dict[str, Any]:
    gain, interval = map(_finite, (comparison.mean, comparison.half_width))
    return {"gain": gain, "interval95": interval, "p": comparison.p_value, "verdict": verdict}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _change(comparison: Comparison, decimals: int) -> str:
    if not math.isfinite(comparison.mean):
        return "n/a"
    margin = comparison.half_width
    return f"{comparison.mean:+.{decimals}f}" + (f" ± {margin:.{decimals}f}" if math.isfinite(margin) else "")


def _summary(values: Sequence[float]) -> dict[str, Any]:
    spread = _finite(float(np.std(values, ddof=1))) if len(values) > 1 else None
    return {
        "mean": _finite(float(np.mean(values))) if values else None,
        "std": spread,
        "runs": [_finite(float(v)) for v in values],
    }


def _cell(values: Sequence[float], decimals: int) -> str:
    if not values:
        return "-"
    if not np.isfinite(values).all():
        return "n/a"
    text = f"{np.mean(values):.{decimals}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.{decimals}f}"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


_SIGNS = {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}
_SIGNS |= {"^": r"\textasciicircum{}", "[": "{[}"} | {sign: rf"\{sign}" for sign in "%_&#${}"}


def _latex_row(cells: Sequence[str]) -> str:
    first, *others = ("".join(_SIGNS.get(sign, sign) for sign in cell) for cell in cells)
    if first.startswith("  "):  # a row about the one above
        first = rf"\quad {first.strip()}"
    return " & ".join([first, *(re.sub(r"^([+-])", r"$\1$", cell) for cell in others)]) + r" \\"
