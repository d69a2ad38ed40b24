"""The `results.json` of a recipe: what its runs reached, those of another day beside it, and the table over all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.engine.resuming import NO_PART_OF_THE_RESULT
from mmdet3d.evaluation.control import ControlTable
from mmdet3d.io.files import read_json

__all__ = ["Results", "check_steps", "control_table", "join_results", "read_results", "summary"]

# Overrides in which runs of one table may differ: where and how their data are read.
_APART = ("dataset_root", *NO_PART_OF_THE_RESULT)

Results = dict[str, dict[int, dict[str, Any]]]  # per run and seed (or world) the entry of `Node.result`


def read_results(
    files: Sequence[str | Path],
    recipe: Recipe,
    unit: str,
    seeds: Sequence[int],
    overrides: Mapping[str, Any] | None = None,
) -> list[Results]:
    """What each `results.json` of this recipe holds; its pairs must differ in `unit`, `seed` or `world`.

    Args:
        overrides: that the user gives here, of every config.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one is of another recipe, of other configs, overrides or data than here, has one of `seeds` or of
            another file, or lacks what the table needs.
    """
    found, owners = [], {seed: "" for seed in seeds}
    for file in files:
        results = _read(file, recipe, unit, overrides or {})
        own = dict.fromkeys(seed for runs in results.values() for seed in runs)
        if twice := sorted(own.keys() & owners.keys()):
            others = list(dict.fromkeys(filter(None, (owners[seed] for seed in twice))))
            remedy = f", as {' and '.join(others)} has; give one of them" if others else "; leave them out here"
            raise ValueError(f"{file} has the {unit}s {', '.join(map(str, twice))} already{remedy}")
        owners |= dict.fromkeys(own, str(file))
        found.append(results)
    return found


def _read(file: str | Path, recipe: Recipe, unit: str, overrides: Mapping[str, Any]) -> Results:
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
    _check_same(file, stored, recipe, unit, overrides)
    results = {name: {int(seed): entry for seed, entry in runs[name].items()} for name in recipe.runs}
    everywhere = {seed for entries in results.values() for seed in entries}
    for name, entries in results.items():
        missing = sorted(everywhere - entries.keys())
        if missing and not (entries and recipe.runs[name].shared and unit == "seed"):
            listed = ", ".join(map(str, missing))
            raise ValueError(f"{file} has no {name} with {unit} {listed}, so nothing pairs; run the recipe there again")
    return results


def _check_same(
    file: str | Path, stored: Mapping[str, Any], recipe: Recipe, unit: str, overrides: Mapping[str, Any]
) -> None:
    """Raises ValueError if a run there is of another config, data or overrides than here; older files name only the
    config.
    """
    remedy = "give the same there and here, or leave that file out"
    here = _described(recipe, overrides)
    there = {key: stored[key] if isinstance(stored.get(key), dict) else None for key in here}
    if there["data"] is not None and (changed := _changes(there["data"], here["data"])):
        raise ValueError(f"{file}: all runs saw a world of other data, {changed}; {remedy}")
    for name, run in recipe.runs.items():
        for seed, entry in stored["runs"][name].items():
            if entry.get("config", run.config) != run.config:
                raise ValueError(
                    f"{file}: {name} with {unit} {seed} was trained from {entry['config']}, here from {run.config}; "
                    f"{remedy}"
                )
        own = (there["overrides"] or {}).get(name)
        if isinstance(own, dict) and (changed := _changes(own, here["overrides"][name])):
            raise ValueError(f"{file}: {name} had other overrides, {changed}; {remedy}")


def _described(recipe: Recipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The world and, per run, the overrides in which all seeds agree, as a file holds them."""
    of_runs = {
        name: {key: value for key, value in run.overrides_with(overrides).items() if key not in _APART}
        for name, run in recipe.runs.items()
    }
    found: dict[str, Any] = json.loads(json.dumps({"data": recipe.data or {}, "overrides": of_runs}))
    return found


def _changes(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """`key: value there, here value` of each key that differs."""
    differing = [key for key in {**there, **here} if (key in there, there.get(key)) != (key in here, here.get(key))]
    values = {key: [repr(each[key]) if key in each else "not given" for each in (there, here)] for key in differing}
    return "; ".join(f"{key}: {before}, here {now}" for key, (before, now) in values.items())


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


def summary(recipe: Recipe, results: Results, unit: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What `results.json` holds, but for the table; of a run that all seeds share it has one of them."""
    most = max(len(runs) for runs in results.values())
    seeds = next(list(runs) for runs in results.values() if len(runs) == most)
    return {"title": recipe.title, f"{unit}s": seeds, **_described(recipe, overrides or {}), "runs": results}
