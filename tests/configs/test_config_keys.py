"""The page of all keys says what the classes say."""

from __future__ import annotations

import re
from pathlib import Path

from mmdet3d.engine.config_keys import key_page

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration_keys.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == key_page(), f"python -m mmdet3d.engine.config_keys {PAGE.name}"


def test_every_key_has_a_meaning_and_every_link_a_heading() -> None:
    text = PAGE.read_text()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 400
    assert [row[0] for row in rows if len(row) != 4 or not row[3].strip()] == []
    headings = {re.sub(r"[^\w\- ]", "", line[4:].lower()).replace(" ", "-") for line in re.findall(r"### .*", text)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
