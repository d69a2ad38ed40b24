"""The documents name things that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "docs/*.md", "*/README.md", "examples/*/*.md")
DOCUMENTS = sorted({file for place in PLACES for file in ROOT.glob(place)})


def deviation_rows() -> list[list[str]]:
    lines = (ROOT / "docs" / "deviations.md").read_text().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("|") and not line.startswith("|--")]
    return [[cell.strip() for cell in row] for row in rows if row[0].strip() != "upstream"]


def test_every_deviation_has_a_reason_and_a_test_that_exists() -> None:
    rows = deviation_rows()
    assert len(rows) > 50
    wrong = []
    for row in rows:
        if len(row) != 4 or not all(row):
            wrong.append(f"not four cells: {row}")
            continue
        for test in re.findall(r"tests/[\w/]+\.py(?:::\w+)?", row[3]) or ["(no test named)"]:
            file, _, name = test.partition("::")
            if not (ROOT / file).is_file() or (name and name not in functions(ROOT / file)):
                wrong.append(f"{test}: {row[0][:60]}")
    assert not wrong, "\n".join(wrong)


def functions(file: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_configs_exist(document: Path) -> None:
    named = set(re.findall(r"configs/[\w./+-]+\.yaml", document.read_text()))
    assert [name for name in named if not (ROOT / name).is_file()] == []
