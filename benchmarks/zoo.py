"""The table of the models in pretrained/zoo, from their cards and from what their recipes gave in other worlds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet3d.config import load_config
from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.models import build_model
from mmdet3d.zoo import read_card, zoo_file, zoo_files

__all__ = ["table"]


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown: a row per model.

    Args:
        results: by recipe what it gave; of those of the cards the scores in its worlds are shown.
    """
    lines = [
        "| name | config | reads | parameters | MB | score in its world | in the worlds of its recipe | trained by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in zoo_files():
        card = read_card(name)
        cfg = load_config(card["config"])
        model = build_model(cfg.model)
        student = getattr(model, "student", model)
        recipe = Recipe.load(card["recipe"])
        column, decimals = recipe.table_columns[0], min(recipe.decimals, 3)
        title = Path(card["recipe"]).stem
        cells = [
            f"`{name}`",
            f"`{card['config']}`",
            ", ".join(student.inputs),
            f"{sum(p.numel() for p in student.parameters()) / 1e6:.2f} M",
            f"{zoo_file(name).stat().st_size / 1e6:.2f}",
            f"{column.heading} {card['metrics'][column.key]:.{decimals}f}",
            _spread(results.get(title, {}).get("runs", {}).get(card["run"], {}), column.key, decimals),
            f"`{title}`, world {card['world']}, {card['iterations']} steps",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(runs: Mapping[str, Any], key: str, decimals: int) -> str:
    scores = [run["metrics"][key] for run in runs.values()]
    if len(scores) < 2:
        return ""
    mean, deviation = statistics.mean(scores), statistics.stdev(scores)
    return f"{mean:.{decimals}f} ± {deviation:.{decimals}f} ({len(scores)})"
