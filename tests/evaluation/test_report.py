"""The page of `evaluate.py nuscenes --report`: whole, alone, and with the official numbers."""

from __future__ import annotations

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdet3d.commands import evaluate
from mmdet3d.commands._nuscenes_report import write_report
from mmdet3d.datasets.nuscenes.submission import score_submission
from mmdet3d.evaluation.breakdown import DISTANCES, average_precision, match, objects_of
from mmdet3d.evaluation.nuscenes import CLASSES

VOID = {"meta", "img"}


class PageReader(HTMLParser):
    """Tables, pictures, and whatever would be fetched; fails where tags do not nest."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[list[str]] = []
        self.images: list[dict[str, str | None]] = []
        self.elsewhere: list[str] = []
        self.headings: list[str] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag == "img":
            self.images.append(dict(attributes))
        self.elsewhere += [v for k, v in attributes if k in ("src", "href") and not (v or "").startswith("data:")]
        assert tag not in ("script", "link", "iframe")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1].append(data)
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def place(shared: Path) -> tuple[Path, Path]:
    return shared / "data" / "nuscenes", shared / "data" / "nuscenes_results" / "results_nusc.json"


def test_all_objects_together_score_as_the_devkit_says(place: tuple[Path, Path], tmp_path: Path) -> None:
    root, results = place
    scored = score_submission(results, root, "v1.0-mini", None, tmp_path)
    truth, found = objects_of(scored.truth, CLASSES), objects_of(scored.found, CLASSES)
    for label, name in enumerate(CLASSES):
        mine, guesses = truth[truth.classes == label], found[found.classes == label]
        for reach in DISTANCES:
            hit = match(mine, guesses, reach)
            everything = np.ones(len(mine), dtype=bool), np.ones(len(guesses), dtype=bool)
            ap = average_precision(mine, guesses, hit, *everything)
            assert np.nan_to_num(ap) == pytest.approx(scored.metrics[f"object/{name}_ap_dist_{reach}"], abs=1e-9)


def test_the_page(place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, results = place
    content = json.loads(results.read_text())
    for entries in content["results"].values():  # finds no car any more
        entries[:] = [entry for entry in entries if entry["detection_name"] != "car"]
    (tmp_path / "without").mkdir()
    (tmp_path / "with").mkdir()
    other = tmp_path / "without" / "results_nusc.json"
    other.write_text(json.dumps(content))
    shutil.copyfile(results, tmp_path / "with" / "results_nusc.json")
    words = [
        "nuscenes",
        str(tmp_path / "with" / "results_nusc.json"),
        "--dataroot",
        str(root),
        "--version",
        "v1.0-mini",
    ]
    # Of two of these frames the files are there.
    frames = ["3e8750f331d7499e9b5123e9eb70f2e2", "fdc39b23ab4242eda6ec5e1e6574fe33"]
    frames += [token for token, entries in content["results"].items() if entries and token not in frames][:1]
    (tmp_path / "tokens.json").write_text(json.dumps(frames))
    words += ["--tokens", str(tmp_path / "tokens.json")]
    report = tmp_path / "report"
    assert evaluate.main([*words, "--report", str(report), "--against", str(other), "--min-score", "0.1"]) == 0
    assert f"report: {report / 'report.html'}" in capsys.readouterr().out

    page = PageReader((report / "report.html").read_text())
    assert page.elsewhere == []
    firsts = "Scores Average Average Average Average Errors Confusion: Confusion: Objects Samples"
    assert [heading.split(" ")[0] for heading in page.headings] == firsts.split()
    rows = {row[0]: row for row in page.cells if len(row) == 8 and row[0] in ("with", "without")}
    metrics = json.loads((report / "metrics_summary.json").read_text())
    assert rows["with"][1] == f"{metrics['mean_ap']:.3f}" and float(rows["without"][1]) < metrics["mean_ap"]
    car = next(row for row in page.cells if row[0] == "car" and len(row) == 12)
    assert sum(int(cell) for cell in car[1:] if cell != "·") > 10
    text = (report / "report.html").read_text()
    assert "; with alone finds " in text and ", without alone 0." in text
    assert len(page.images) == 2 and text.count("is not drawn: ") == 1
    for image in page.images:
        picture = Image.open(io.BytesIO(base64.b64decode(image["src"].split(",")[1])))
        assert picture.size == (int(image["width"]), int(image["height"])) and picture.width == 1280
        assert np.asarray(picture).std() > 10


def test_mistakes_are_explained(place: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, results = place
    words = ["nuscenes", str(results), "--dataroot", str(root), "--version", "v1.0-mini", "--out", str(tmp_path)]
    assert evaluate.main([*words, "--against", str(results)]) == 2
    assert "--against is for the report: give --report DIR, too" in capsys.readouterr().err
    assert evaluate.main([*words, "--report", str(tmp_path), "--against", str(results)]) == 2
    assert "the report needs 2 different titles, got nuscenes_results nuscenes_results; give --titles" in (
        capsys.readouterr().err
    )
    scored = score_submission(results, root, "v1.0-mini", None, tmp_path)
    token = next(iter(scored.truth))
    less = type(scored)(scored.metrics, {token: scored.truth[token]}, {token: scored.found[token]})
    with pytest.raises(ValueError, match=r"b has other samples \(1\) than the first results \(\d+\)"):
        write_report({"a": scored, "b": less}, root, "v1.0-mini", tmp_path)
