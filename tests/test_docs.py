"""The documents name things that exist."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import runpy
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from mmdet3d.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("*.md", "docs/*.md", "docs/*/*.md", "*/README.md", "examples/*/*.md")
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


def test_every_promise_names_a_fault_and_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| ")]
    rows = [row for row in rows if row[0].strip() != "promise"]
    assert len(rows) > 30
    wrong = [f"no four cells: {row}" for row in rows if len(row) != 4]
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row[2])
        if not named:
            wrong.append(f"no test: {row[0]}")
        wrong += [f"{file}::{name}" for file, name in named if name not in functions(ROOT / file)]
    assert not wrong, "\n".join(wrong)


def test_every_test_of_faults_is_a_promise() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text()
    files = [*(ROOT / "tests" / "faults").glob("test_*.py"), ROOT / "tests" / "engine" / "test_checkpoint_faults.py"]
    tests = {name for file in files for name in functions(file) if name.startswith("test_")}
    assert sorted(name for name in tests if name not in text) == []


def functions(file: Path) -> set[str]:
    return {n.name for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert [link for link in links if not (document.parent / link).exists()] == []


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub and the site write them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_headings(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", document.read_text())
    places = [(document.parent / file if file else document, anchor) for file, anchor in links]
    assert [f"{p.name}#{anchor}" for p, anchor in places if p.suffix == ".md" and anchor not in anchors(p)] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_configs_exist(document: Path) -> None:
    named = set(re.findall(r"configs/[\w./+-]+\.yaml", document.read_text()))
    assert [name for name in named if not (ROOT / name).is_file()] == []


SYSTEMS = ("crkd", "simdistill", "labeldistill", "monoskd", "monommkd")


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_has_a_page_that_names_its_losses(system: str) -> None:
    text = (ROOT / "docs" / "systems" / f"{system}.md").read_text()
    for part in (f"]({system}.svg)", "configs/", "```bash", "../deviations.md#", "../results.md#"):
        assert part in text, part
    named = re.findall(r"\[`(\w+Loss)`\]\(([^)]+)\)", text)
    assert named
    for name, file in named:
        assert name in MODELS.names() and f"class {name}" in (ROOT / "docs" / "systems" / file).read_text()


def test_drawings_are_what_their_program_draws() -> None:
    program = runpy.run_path(str(ROOT / "docs" / "systems" / "draw.py"))
    drawn = {name: program["draw"](system) for name, system in program["systems"]().items()}
    assert set(drawn) == set(SYSTEMS)
    for name, svg in drawn.items():
        assert (ROOT / "docs" / "systems" / f"{name}.svg").read_text() == svg
        ElementTree.fromstring(svg)


def test_errors_of_the_troubleshooting_page_are_raised() -> None:
    """Every piece of a quoted message is somewhere in the program."""
    sources = "\n".join(f.read_text() for f in [*(ROOT / "mmdet3d").rglob("*.py"), ROOT / "distill3d.py"])
    sources = re.sub(r'"\s*\n\s*f?"', "", sources)  # literals that go on in the next line
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(rows) > 15
    pieces = [piece.strip(" .,;:()-") for row in rows for piece in row.split("…")]
    assert [piece for piece in pieces if piece not in sources] == []


def test_pictures_of_the_readme_are_small() -> None:
    readme = (ROOT / "README.md").read_text()
    assert readme.count("\n") <= 150
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", readme)
    still, film = (Image.open(ROOT / name) for name in pictures)
    assert still.width == 1280 and film.n_frames >= 20
    assert sum((ROOT / name).stat().st_size for name in pictures) < 3e6
    assert sum(f.stat().st_size for f in (ROOT / "docs" / "pictures").iterdir()) < 3.5e6


class Fetched(HTMLParser):
    """What a page fetches when it is opened; links that are followed by hand do not count."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elsewhere: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        fetched = [value for key, value in attributes if key == "src" or (tag == "link" and key == "href")]
        self.elsewhere += [value for value in fetched if (value or "").startswith(("http", "//"))]


@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings") is None, reason="the extra `docs` is not installed")
def test_the_site_builds_without_network_and_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    offline = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    crkd = (tmp_path / "systems" / "crkd.html").read_text()
    assert "../source/mmdet3d/distill/losses/response.py.html" in crkd and "crkd.svg" in crkd
    assert "quality_focal" in (tmp_path / "source/mmdet3d/distill/losses/response.py.html").read_text()
    assert "side_by_side" in (tmp_path / "api.html").read_text()
    for page in tmp_path.rglob("*.html"):
        assert Fetched(page.read_text()).elsewhere == [], page
