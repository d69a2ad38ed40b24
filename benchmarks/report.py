"""Write tables of documents from the JSON files of benchmarks/results: python -m benchmarks.report

Those of speed go to docs/performance.md, control tables of recipes to docs/results.md, their heads to README.md, the
models of pretrained/zoo to docs/model_zoo.md, what is counted and predicted for many GPUs to docs/scaling.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import everyday, loading, ops, scaling, shipping, train_step, where, zoo
from benchmarks.peers import compare
from mmdet3d.evaluation.control import Comparison, holm, verdict

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = ROOT / "docs" / "performance.md"
CONTROL_TABLES = ROOT / "docs" / "results.md"
README = ROOT / "README.md"
ZOO = ROOT / "docs" / "model_zoo.md"
SCALING = ROOT / "docs" / "scaling.md"
RESULTS = ROOT / "benchmarks" / "results"
RECIPES = (
    "crkd_taught",
    "crkd_taught_short",
    "crkd_labels",
    "crkd_small",
    "simdistill_pretrained",
    "simdistill_taught",
    "simdistill_small",
    "labeldistill_pretrained",
    "labeldistill_small",
    "monoskd_taught",
    "monommkd_taught",
    "monoskd_small",
    "monommkd_small",
)
PARTS = ("labeldistill_parts", "seg_small")  # whose heads are not in the README
BY_CLASS = ("crkd_labels", "crkd_taught", "crkd_taught_short")
WHERE = ("crkd_taught",)
# What was aimed at on the CPU: case, other implementation, least ratio of its time (or memory) to ours.
TARGETS = [
    ("bev_pool forward + backward", "twin", "median_ms", 5.0),
    ("bev_pool forward + backward", "twin", "peak_bytes", 10.0),
    ("voxelize hard", "mmcv", "median_ms", 5.0),
    ("rotated_nms", "mmcv", "median_ms", 1.0),
    ("sparse_conv encoder forward", "spconv", "median_ms", 1.0),
    ("sparse_conv encoder forward + backward", "spconv", "median_ms", 1.0),
    ("spearman term forward + backward", "torchsort", "median_ms", 50.0),
]


def main() -> None:
    """Replace what stands between the markers of the documents; a missing results file leaves its part as it is."""
    parts = {}
    renderers = {
        "ops": _ops,
        "targets": _targets,
        "train_step": _with_facts(train_step.table),
        "everyday": _with_facts(everyday.table),
        "loading": _with_facts(loading.table),
        "shipping": _with_facts(shipping.table),
        "shipping_compiled": _with_facts(shipping.table),
    }
    for name, render in renderers.items():
        for device in ("cpu", "cuda"):
            file = RESULTS / f"{'ops' if name == 'targets' else name}_{device}.json"
            if file.is_file():
                parts[f"{name}_{device}"] = render(json.loads(file.read_text()))
    peer = RESULTS / "peer_mmdet3d.json"
    if peer.is_file():
        parts["peer_mmdet3d"] = _with_facts(compare.table)(json.loads(peer.read_text()))
    _update(DOCUMENT, parts)
    counted = RESULTS / "scaling_cpu.json"
    if counted.is_file():
        report = json.loads(counted.read_text())
        _update(SCALING, {**scaling.tables(report), "scaling_facts": f"{_facts(report)}."})
    tables = _control_tables(RECIPES)
    _update(CONTROL_TABLES, _without_repeats({n: t["text"] for n, t in (tables | _control_tables(PARTS)).items()}))
    _update(CONTROL_TABLES, {f"{name}_classes": _by_class(tables[name]) for name in BY_CLASS if name in tables})
    places = {n: RESULTS / f"{n}_where.json" for n in WHERE}
    found = {f"{n}_where": where.table(json.loads(file.read_text())) for n, file in places.items() if file.is_file()}
    _update(CONTROL_TABLES, found)
    if tables:
        _update(README, {"distillation": _heads(tables)})
    _update(ZOO, {"zoo": zoo.table(tables)})


def _control_tables(recipes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Results of the recipes that were run."""
    return {name: json.loads(file.read_text()) for name in recipes if (file := RESULTS / f"{name}.json").is_file()}


def _without_repeats(texts: Mapping[str, str]) -> dict[str, str]:
    """Tables by name, without the rows that an earlier one of the same columns has; a sentence says where those are.

    Runs that recipes share are trained once, so the rows are the same to the digit.
    """
    shown: dict[tuple[str, ...], str] = {}  # columns and a row's cells to the title of the table that has it
    found = {}
    for name, text in texts.items():
        lines = text.splitlines()
        title = lines[0].partition(":")[0]
        columns = next((_cells(line) for line in lines if line.startswith("|")), ())
        kept, repeated = [], {}
        for line in lines:
            cells = _cells(line)
            is_row = line.startswith("|") and cells != columns and not set(line) <= set("|-: ")
            if is_row and (home := shown.setdefault((*columns, *cells), title)) != title:
                repeated.setdefault(home, []).append(cells[0])
            else:
                kept.append(line)
        notes = [f"As in the table of {other}: {', '.join(rows)}." for other, rows in repeated.items()]
        found[name] = "\n".join([*kept, *(["", *notes] if notes else [])])
    return found


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip("|").split("|"))


def _update(document: Path, parts: Mapping[str, str]) -> None:
    text = document.read_text()
    for name, content in parts.items():
        text = _replace(text, name, content)
    document.write_text(text)


def _replace(text: str, marker: str, content: str) -> str:
    begin, end = f"<!-- {marker} -->", f"<!-- end of {marker} -->"
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{content}\n{end}", text, flags=re.DOTALL
    )


def _ops(report: Mapping[str, Any]) -> str:
    copy, matmul = (rate / 1e9 for rate in report["floors"].values())
    return f"{_facts(report)}. Copy bandwidth {copy:.1f} GB/s, matrix rate {matmul:.0f} GFLOP/s.\n" + ops.table(
        report["cases"]
    )


def _with_facts(table: Callable[[Mapping[str, Any]], str]) -> Callable[[Mapping[str, Any]], str]:
    return lambda report: f"{_facts(report)}.\n\n{table(report)}"


def _heads(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: the first two metrics of every control table, of which more is better; corrected after Holm.

    A further control and a further distillation of a table have rows of their own.
    """
    lines = [
        "| recipe | pairs | metrics | teacher | control | distilled | gain, 95 % interval | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = []
    for recipe, result in tables.items():
        table = result["table"]
        teacher, control, distilled = (table["roles"][role] for role in ("teacher", "control", "distilled"))
        arms = {recipe: (control, distilled)}
        arms |= {f"{recipe}, {name}": (control, runs) for name, runs in table.get("variants", {}).items()}
        arms |= {f"{recipe}, control {name}": (runs, distilled) for name, runs in table.get("controls", {}).items()}
        for name, (without, taught) in arms.items():
            # A variant may have a teacher of its own.
            columns = (None if name.partition(", ")[2] in table.get("variants", {}) else teacher, without, taught)
            rows.append((name, list(table["comparison"])[:2], columns))
    gains = [
        [_gain(without[metric], taught[metric]) for metric in metrics] for _, metrics, (_, without, taught) in rows
    ]
    p_values = iter(holm([gain.p_value for both in gains for gain in both]))
    for (name, metrics, columns), both in zip(rows, gains, strict=True):
        scale = 1 if any(column[metric]["mean"] > 1 for column in columns if column for metric in metrics) else 3
        means = [
            "" if column is None else ", ".join(f"{column[metric]['mean']:.{scale}f}" for metric in metrics)
            for column in columns
        ]
        change = ", ".join(f"{gain.mean:+.{scale}f} ± {gain.half_width:.{scale}f}" for gain in both)
        verdicts = list(dict.fromkeys(verdict(gain, next(p_values)) for gain in both))
        cells = [name, str(len(both[0].differences)), ", ".join(metrics), *means, change, ", ".join(verdicts)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _gain(without: Mapping[str, Any], taught: Mapping[str, Any]) -> Comparison:
    return Comparison(tuple(b - a for a, b in zip(without["runs"], taught["runs"], strict=True)))


def _by_class(result: Mapping[str, Any]) -> str:
    """Markdown: the average precision of every nuScenes class, with the paired gain, corrected after Holm."""
    roles = ("teacher", "control", "distilled")
    runs = {role: [run["metrics"] for run in result["runs"][role].values()] for role in roles}
    suffix = "_ap_dist_1.0"
    classes = [key.removesuffix(suffix).split("/")[1] for key in runs["control"][0] if key.endswith(suffix)]
    lines = ["| class | teacher | control | distilled | gain, 95 % interval | verdict |", "|---|---|---|---|---|---|"]
    ap = {
        role: {name: [_class_ap(metrics, name) for metrics in found] for name in classes}
        for role, found in runs.items()
    }
    gains = {
        name: Comparison(tuple(d - c for d, c in zip(ap["distilled"][name], ap["control"][name], strict=True)))
        for name in classes
    }
    p_values = holm([gain.p_value for gain in gains.values()])
    for (name, gain), p_value in zip(gains.items(), p_values, strict=True):
        means = [f"{sum(ap[role][name]) / len(ap[role][name]):.3f}" for role in roles]
        change = f"{gain.mean:+.3f} ± {gain.half_width:.3f}"
        lines.append("| " + " | ".join([name, *means, change, verdict(gain, p_value)]) + " |")
    return "\n".join(lines)


def _class_ap(metrics: Mapping[str, float], name: str) -> float:
    """Mean over the distances of matching, as nuScenes defines the precision of a class."""
    values = [value for key, value in metrics.items() if key.startswith(f"object/{name}_ap_dist_")]
    return sum(values) / len(values)


def _facts(report: Mapping[str, Any]) -> str:
    facts = {k: v for k, v in report["machine"].items() if k not in ("peers", "ops", "system") and v is not None}
    peers = [f"{name} {version}" for name, version in report["machine"]["peers"].items()]
    return f"{report['date']}; " + ", ".join([*(f"{k} {v}" for k, v in facts.items()), *peers])


def _targets(report: Mapping[str, Any]) -> str:
    """Markdown: each target, the ratio found, and whether it is reached."""
    lines = ["| case | against | what | aimed at | found | |", "|---|---|---|---|---|---|"]
    for name, other, field, least in TARGETS:
        ratio = _ratio(report, name, other, field)
        verdict = "not measured" if ratio is None else "reached" if ratio >= least else "**missed**"
        found = "-" if ratio is None else f"{ratio:.1f}"
        what = "time" if field == "median_ms" else "peak extra memory"
        lines.append(f"| {name} | {other} | {what} | {least:g} times ours | {found} | {verdict} |")
    return "\n".join(lines)


def _ratio(report: Mapping[str, Any], name: str, other: str, field: str) -> float | None:
    for case in report["cases"]:
        rows = {row["implementation"]: row for row in case["results"]}
        if case["name"] == name and rows.get(other, {}).get(field) and rows["ours"].get(field):
            return rows[other][field] / rows["ours"][field]
    return None


if __name__ == "__main__":
    main()
