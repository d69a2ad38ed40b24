"""What the published CRKD programs hold: values of their losses and geometry, names and shapes of their tensors."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parent / "golden"


def crkd_values() -> dict[str, Any]:
    """Conformance values of CRKD's targets, losses, masks, geometry."""
    return json.loads((GOLDEN / "crkd.json").read_text())


def tensors(model: str, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """Names, without `prefix`, and shapes of the model's tensors below it, in order."""
    with (GOLDEN / "state_dicts" / f"{model}.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = [(row["key"], row["shape"]) for row in rows if row["key"].startswith(prefix)]
    return {key.removeprefix(prefix): ast.literal_eval(shape) for key, shape in found}
