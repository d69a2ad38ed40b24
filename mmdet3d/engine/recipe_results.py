"""The `results.json` of a recipe: what its runs reached, those of another day beside it, and the table over all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.evaluation.control import ControlTable
from mmdet3d.io.files import read_json

__all__ = ["Results", "check_steps", "control_table", "join_results", "read_results", "summary"]

Results = dict[str, dict[int, dict[str, Any]]]  # per run and seed (or world) the entry of `Node.result`


def read_results(files: Sequence[str | Path], recipe: Recipe, unit: str, seeds: Sequence[int]) -> list[Results]:
    """What each `results.json` of this recipe holds; its pairs must differ in `unit`, `seed` or `world`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one is of another recipe, has one of `seeds` or of another file, or lacks what the table needs.
    """
    found, owners = [], {seed: "" for seed in seeds}
    for file in files:
        results = _read(file, recipe, unit)
        own = dict.fromkeys(seed for runs in results.values() for seed in runs)
        if twice := sorted(own.keys() & owners.keys()):
            others = list(dict.fromkeys(filter(None, (owners[seed] for seed in twice))))
            remedy = f", as {' and '.join(others)} has; give one of them" if others else "; leave them out here"
            raise ValueError(f"{file} has the {unit}s {', '.join(map(str, twice))} already{remedy}")
        owners |= dict.fromkeys(own, str(file))
        found.append(results)
    return found


def _read(file: str | Path, recipe: Recipe, unit: str) -> Results:
    stored = read_json(file, "results")
    stored = stored if isinstance(stored, dict) else {}
    runs: Any = stored.get("runs")
    if f"{unit}s" not in stored or stored.get("title") != recipe.title or not _is_of(runs, recipe):
        raise ValueError(
            f"{file} has no {unit}s of the recipe {recipe.title!r} with the runs {', '.join(recipe.runs)}; give the "
            "results.json of this recipe, run in the same way"
        )
    keys = [column.key for column in recipe.table_columns] if recipe.table else []
    for name, entries in runs.items():
        for seed, entry in entries.items():
            if not seed.isdecimal() or not isinstance(entry, dict) or not isinstance(entry.get("metrics"), dict):
                lacks = "metrics"
            elif not _is_number(entry.get("iterations")):
                lacks = "iterations"
            else:
                lacks = next((f"metric {key}" for key in keys if not _is_number(entry["metrics"].get(key))), "")
            if lacks:
                raise ValueError(f"{file} has no {lacks} of {name} with {unit} {seed}; run the recipe there again")
    results = {name: {int(seed): entry for seed, entry in runs[name].items()} for name in recipe.runs}
    everywhere = {seed for entries in results.values() for seed in entries}
    for name, entries in results.items():
        missing = sorted(everywhere - entries.keys())
        if missing and not (entries and recipe.runs[name].shared and unit == "seed"):
            listed = ", ".join(map(str, missing))
            raise ValueError(f"{file} has no {name} with {unit} {listed}, so nothing pairs; run the recipe there again")
    return results


def _is_of(runs: Any, recipe: Recipe) -> bool:
    return isinstance(runs, dict) and set(runs) == set(recipe.runs) and all(isinstance(r, dict) for r in runs.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def check_steps(steps: Mapping[str, int], results: Results, file: str | Path, unit: str) -> None:
    """Raises ValueError if a run in `results`, read from `file`, was trained for another number of steps than here."""
    for name, entries in results.items():
        for seed, entry in entries.items():
            if entry["iterations"] != steps[name]:
                raise ValueError(
                    f"{file}: {name} was trained for {entry['iterations']} steps with {unit} {seed}, here for "
                    f"{steps[name]}; give the same overrides as there, or leave that file out"
                )


def join_results(results: Results, others: Results) -> None:
    """Add the runs of other seeds to `results`, in the order of the seeds."""
    for name, runs in others.items():
        results[name] = dict(sorted({**results[name], **runs}.items()))


def control_table(recipe: Recipe, results: Results, unit: str = "seed") -> ControlTable:
    """The table of a finished recipe; its pairs differ in `unit`, `seed` or `world`.

    Raises:
        ValueError: the runs that are compared have not the same seeds; see also `ControlTable`.
    """

    def metrics(name: str) -> list[Mapping[str, float]]:
        entries = results[name].values()  # in files NaN, of a metric that is not defined, is null
        return [{key: math.nan if v is None else v for key, v in entry["metrics"].items()} for entry in entries]

    control = recipe.table["control"]
    for name in recipe.compared:
        if list(results[name]) != list(results[control]):
            seeds = [", ".join(map(str, results[each])) or "none" for each in (control, name)]
            raise ValueError(f"{control} has the {unit}s {seeds[0]} and {name} {seeds[1]}, so they are no pairs")
    return ControlTable(
        **{role: metrics(name) for role, name in recipe.table.items()},
        title=recipe.title,
        columns=recipe.table_columns,
        decimals=recipe.decimals,
        variants={heading: metrics(name) for heading, name in recipe.variants.items()},
        controls={heading: metrics(name) for heading, name in recipe.controls.items()},
        unit=unit,
    )


def summary(recipe: Recipe, results: Results, unit: str) -> dict[str, Any]:
    """What `results.json` holds, but for the table; of a run that all seeds share it has one of them."""
    most = max(len(runs) for runs in results.values())
    seeds = next(list(runs) for runs in results.values() if len(runs) == most)
    return {"title": recipe.title, f"{unit}s": seeds, "runs": results}
