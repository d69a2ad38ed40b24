"""Pages that commands write, opened in Chromium at the width of a desk and of a phone. Skipped where there is none."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import PHONE, Browser, browser
from nuscenes.eval.detection.utils import category_to_detection_name

from mmdet3d.commands import curves, evaluate
from mmdet3d.datasets.nuscenes.tables import load_tables
from mmdet3d.datasets.synthetic import VERSION, WorldSettings, generate
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.visualization.page import Page

WORLD = WorldSettings(scenes=1, keyframes=2, lidar_sweeps=0, radar_sweeps=0, image_size=(160, 90))
FRAMES = KittiSettings(frames=2, test_frames=1, image_size=(1242, 375), val_fraction=0.5)
pytestmark = pytest.mark.slow
WIDTHS = pytest.mark.parametrize("width", [1280, PHONE])
# A picture of 40 x 40 pixels, as markup.
PICTURE = "<svg xmlns='http://www.w3.org/2000/svg' width='40' height='40'><rect width='40' height='40'/></svg>"
PICTURE = f'<img alt="square" src="data:image/svg+xml,{PICTURE}"'


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as running:
        yield running


@pytest.fixture(scope="module")
def nuscenes_page(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of results that find everything half a metre beside its place, against results without cars."""
    root = generate(tmp_path_factory.mktemp("nuscenes") / "world", WORLD, progress=False)
    tables = load_tables(root, VERSION)
    for title, without in {"whole": "", "without cars": "car"}.items():
        found: dict[str, list[dict]] = {row["token"]: [] for row in tables.sample}
        for row in tables.sample_annotation:
            name = category_to_detection_name(
                tables.get("category", tables.get("instance", row["instance_token"])["category_token"])["name"]
            )
            if name not in (None, without):
                x, y, z = row["translation"]
                box = {"sample_token": row["sample_token"], "translation": [x + 0.5, y, z], "velocity": [0.0, 0.0]}
                box |= {"size": row["size"], "rotation": row["rotation"], "attribute_name": ""}
                found[row["sample_token"]].append(box | {"detection_name": name, "detection_score": 0.9})
        uses = {f"use_{sensor}": False for sensor in ("camera", "lidar", "radar", "map", "external")}
        (root / title).mkdir()
        (root / title / "results_nusc.json").write_text(json.dumps({"meta": uses, "results": found}))
    words = ["nuscenes", root / "without cars" / "results_nusc.json", "--against", root / "whole" / "results_nusc.json"]
    words += ["--dataroot", root, "--version", VERSION, "--split", "synthetic_train", "--report", root / "report"]
    assert evaluate.main(list(map(str, words))) == 0
    return root / "report" / "report.html"


@pytest.fixture(scope="module")
def kitti_page(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of results that are right but for the cars, against right ones."""
    root = generate_kitti(tmp_path_factory.mktemp("kitti") / "world", FRAMES, progress=False)
    labels = root / "training" / "label_2"
    for title, without in {"whole": (), "without cars": ("Car",)}.items():
        (root / title).mkdir()
        for file in labels.iterdir():
            lines = [line for line in file.read_text().splitlines() if line.split()[0] not in ("DontCare", *without)]
            (root / title / file.name).write_text("".join(f"{line} 0.90\n" for line in lines))
    (root / "ids.txt").write_text("\n".join(sorted(file.stem for file in labels.iterdir())))
    words = ["kitti", root / "without cars", "--against", root / "whole", "--titles", "without cars", "whole"]
    words += ["--labels", labels, "--ids", root / "ids.txt", "--report", root / "report"]
    assert evaluate.main(list(map(str, words))) == 0
    return root / "report" / "report.html"


@WIDTHS
def test_the_page_on_nuscenes(nuscenes_page: Path, chromium: Browser, width: int) -> None:
    sight = chromium.look(nuscenes_page, width)
    assert sight.wrong(nuscenes_page, images=2) == []
    assert "Objects won and lost: without cars against whole" in sight.text and "missed" in sight.text


@WIDTHS
def test_the_page_on_kitti(kitti_page: Path, chromium: Browser, width: int) -> None:
    sight = chromium.look(kitti_page, width)
    assert sight.wrong(kitti_page, images=2) == []
    assert "Objects won and lost: without cars against whole" in sight.text


@WIDTHS
def test_curves(chromium: Browser, tmp_path: Path, width: int) -> None:
    for name, factor in {"control": 1.0, "distilled": 0.5}.items():
        (tmp_path / name).mkdir()
        lines = [{"mode": "train", "iteration": k, "loss": factor / k, "loss/object/box": factor} for k in (20, 40, 60)]
        (tmp_path / name / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    file = tmp_path / "curves.html"
    curves.main([str(tmp_path), "--out", str(file)])
    sight = chromium.look(file, width)
    assert sight.wrong(file, images=0) == [] and "Last values" in sight.text


@pytest.mark.parametrize(
    ("markup", "wrong"),
    [
        (f"{PICTURE}>", ""),
        ('<img alt="cut off" src="data:image/png;base64,iVBORw0KGgo=">', "cut off is not shown"),
        ('<img alt="far" src="http://distill3d.invalid/far.png">', "asks for http://distill3d.invalid/far.png"),
        ('<img alt="near" src="near.png">', "/near.png"),
        (f'{PICTURE} style="width: 80px; height: 20px">', "square is distorted: 80 x 20"),
        ('<link rel="stylesheet" href="https://distill3d.invalid/a.css">', "asks for https://distill3d.invalid/a.css"),
        ("<script>nowhere.to.be.found()</script>", "nowhere is not defined"),
        ('<script>console.error("said aloud")</script>', "said aloud"),
        ('<div style="width: 2000px">wide</div>', "pixels wide where "),
    ],
)
def test_what_is_wrong_with_a_page_is_seen(markup: str, wrong: str, chromium: Browser, tmp_path: Path) -> None:
    page = Page("Page")
    page.add(markup)
    file = page.write(tmp_path / "page.html")
    seen = chromium.look(file).wrong(file, images=markup.count("<img"))
    assert wrong in "\n".join(seen) if wrong else not seen


def test_a_page_that_does_not_suit_phones_is_seen(chromium: Browser, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<!DOCTYPE html><title>Page</title><p>Small on a phone</p>")
    assert chromium.look(file).wrong(file, images=0) == []
    assert chromium.look(file, PHONE).wrong(file, images=0) == ["is laid out for 980 pixels in a window of 400"]
