"""Curves out of metrics.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from mmdet3d.commands import curves as command
from mmdet3d.engine.curves import draw_curves, find_runs, read_curves


def write_run(folder: Path, *entries: tuple) -> Path:
    folder.mkdir(parents=True)
    lines = [json.dumps({"mode": mode, "epoch": 1, "iteration": at, **values}) for mode, at, values in entries]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name, scale in (("control", 1.0), ("distilled", 2.0)):
        terms = [{"loss/object/heatmap/task0": scale, "loss/object/heatmap/task1": 3.0 / k, "lr": 0.1} for k in (1, 2)]
        write_run(
            tmp_path / "recipe" / name,
            ("train", 20, terms[0]),
            ("train", 40, terms[1]),
            ("val", 40, {"object/map": 0.1 * scale, "object/mAVE": None, "object/car_ap_dist_0.5": 0.3}),
        )
    return tmp_path / "recipe"


def test_tasks_are_added_and_undefined_values_left_out(runs: Path) -> None:
    curves = read_curves(runs / "distilled" / "metrics.jsonl")
    assert curves["loss/object/heatmap"] == [(20, 5.0), (40, 3.5)]
    assert curves["object/map"] == [(40, 0.2)] and "object/mAVE" not in curves and "epoch" not in curves


def test_what_was_done_again_after_an_interruption_counts_once(tmp_path: Path) -> None:
    steps = [(20, 1.0), (40, 2.0), (60, 3.0), (40, 4.0), (60, 5.0)]
    folder = write_run(tmp_path / "run", *(("train", at, {"loss": value}) for at, value in steps))
    assert read_curves(folder / "metrics.jsonl")["loss"] == [(20, 1.0), (40, 4.0), (60, 5.0)]


def test_the_command_draws_all_runs_of_a_folder(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command.main([str(runs)])
    assert "2 runs, loss/object/heatmap, lr, object/map: " in capsys.readouterr().out
    with Image.open(runs / "curves.png") as picture:
        assert picture.width > 1000
    command.main([str(runs / "control"), "--out", str(runs / "own.svg"), "--keys", "object/car*"])
    svg = (runs / "own.svg").read_text()
    assert svg.startswith("<?xml") and "object/car_ap_dist_0.5" in svg.replace("&#45;", "-")
    command.main([str(runs), "--out", str(runs / "both.html")])
    page = (runs / "both.html").read_text()
    assert "<?xml" not in page and "</svg></figure>" in page.replace("\n", "")
    assert "<tr><td>object/map</td><td>0.100</td><td>0.200</td></tr>" in page


def test_runs_of_one_name_are_told_apart(runs: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other" / "control", ("train", 20, {"loss": 1.0}))
    assert set(find_runs([runs, other])) == {str(runs / "control"), str(other), "distilled"}


def test_mistakes_are_explained(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere holds no metrics.jsonl, nor does a folder in it"):
        find_runs([tmp_path / "nowhere"])
    with pytest.raises(ValueError, match=r"no run has a value named los \(there are: loss/object/heatmap, lr"):
        draw_curves(find_runs([runs]), tmp_path / "x.png", ["los"])
    (tmp_path / "young").mkdir()
    (tmp_path / "young" / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=r"metrics\.jsonl: no value is in it yet; train at least"):
        draw_curves(find_runs([tmp_path / "young"]), tmp_path / "x.png")
    with pytest.raises(ValueError, match=r"x.jpg must end in .png, .svg, .pdf or .html"):
        draw_curves(find_runs([runs]), tmp_path / "x.jpg")
    (runs / "control" / "metrics.jsonl").write_text('{"mode": "train", "iter')
    with pytest.raises(ValueError, match=r"line 1: not valid JSON .*; remove the line"):
        read_curves(runs / "control" / "metrics.jsonl")
