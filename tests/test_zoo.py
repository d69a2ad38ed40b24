"""`distill3d zoo` lists the models that come along, and the commands that it prints test them."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mmdet3d.commands import create_data, test, zoo
from mmdet3d.config import load_config
from mmdet3d.datasets.synthetic import worlds
from mmdet3d.zoo import read_card, weight_path, zoo_files

ROOT = Path(__file__).resolve().parents[1]


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    zoo.main(list(words))
    return capsys.readouterr().out


def test_a_line_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    head, *lines = printed(capsys).split("\n\n")[0].splitlines()
    assert head.split() == ["name", "system", "role", "score", "in", "its", "world", "size", "config"]
    rows = {line.split()[0]: re.split(r"\s{2,}", line) for line in lines}
    assert rows.keys() == zoo_files().keys()
    assert rows["crkd-demo-distilled"][1:4] == ["CRKD", "distilled", "object/map 0.3771"]
    assert rows["synthetic-camera"][2] == "camera"  # of a recipe without a table
    assert rows["kitti-small-monoskd"][1:4] == ["MonoSKD", "distilled", "Car/3d@0.5/R40/moderate 48.75"]
    for name, row in rows.items():
        assert row[-1] == read_card(name)["config"] and float(row[-2].removesuffix(" MB")) > 0.2


@pytest.mark.parametrize("name", zoo_files())
def test_its_commands_make_the_small_world_and_test_the_model_in_it(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    card, commands = printed(capsys, name).split("\n\n")
    assert yaml.safe_load(card) == read_card(name)
    made = []
    monkeypatch.setattr("mmdet3d.datasets.synthetic.generate", lambda root, settings, _: made.append((root, settings)))
    monkeypatch.setattr("mmdet3d.datasets.synthetic.kitti.generate_kitti", lambda *a: made.append(a[:2]) or Path())
    *data, last = (shlex.split(line) for line in commands.splitlines()[1:])
    assert [words[1] for words in (*data, last)] == [*["tools/create_data.py"] * len(data), "tools/test.py"]
    assert create_data.main(data[0][2:]) in (0, None)
    ((root, settings),) = made
    assert settings in (worlds._SCENES, worlds._FRAMES)
    assert all(str(root) in words for words in data)
    args, overrides = test.parse([weight_path(word) for word in last[2:]])
    assert (args.config, args.checkpoint) == (read_card(name)["config"], str(zoo_files()[name]))
    assert load_config(args.config, overrides).dataset_root == f"{root}/"


def test_those_of_a_nuscenes_model_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """Which a slow test types from top to bottom (tests/test_readme.py)."""
    page = (ROOT / "docs" / "model_zoo.md").read_text()
    data = printed(capsys, "crkd-demo-distilled").splitlines()[-3:-1]
    assert all(line in page.splitlines() for line in data)


def test_a_name_may_have_its_prefix_and_an_unknown_one_is_met_with_the_nearest() -> None:
    """As typed: `zoo:NAME` has become a path when the command sees it."""
    run = [sys.executable, str(ROOT / "tools" / "zoo.py")]
    done = subprocess.run([*run, "zoo:crkd-demo-control"], capture_output=True, text=True)
    assert done.returncode == 0 and "run: control" in done.stdout
    done = subprocess.run([*run, "crkd-demo-destilled"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'crkd-demo-distilled'" in done.stderr


@pytest.mark.parametrize("damage", ["[1]", "{", '{"config": "a.yaml"}', None, "changed"])
def test_a_card_that_is_not_what_was_shipped_is_named(
    damage: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, card = "crkd-demo-control", tmp_path / "crkd-demo-control.json"
    (tmp_path / f"{name}.safetensors").symlink_to(zoo_files()[name])
    shipped = zoo_files()[name].with_suffix(".json").read_text()
    monkeypatch.setattr("mmdet3d.zoo.ZOO", tmp_path)
    card.write_text(shipped)
    assert read_card(name)["run"] == "control"
    card.unlink()
    if damage is not None:
        card.write_text(shipped.replace("control", "distilled") if damage == "changed" else damage)
    for words in ([], [name]):
        with pytest.raises(ValueError, match=rf"{card}, the card of zoo:{name}, is not there or not what was shipped"):
            zoo.main(words)


def test_it_is_listed_without_importing_torch() -> None:
    code = "import sys; from mmdet3d.commands.zoo import main; main([]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
