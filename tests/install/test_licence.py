"""Whoever builds on this project can find out whether and how."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


def test_licence_is_whole_and_named_everywhere() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert 'license = "Apache-2.0"' in (ROOT / "pyproject.toml").read_text()
    assert "[Apache-2.0](LICENSE)" in (ROOT / "README.md").read_text()


def test_citation_names_the_paper_of_every_system() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors", "license"} <= citation.keys()
    assert all({"type", "title", "authors"} <= paper.keys() for paper in citation["references"])
    numbers = {i["value"] for paper in citation["references"] for i in paper.get("identifiers", [])}
    linked = re.findall(r"arxiv\.org/abs/([\d.]+)", (ROOT / "README.md").read_text())
    assert numbers == {f"arXiv:{number}" for number in linked}
    assert len(citation["references"]) == 5
