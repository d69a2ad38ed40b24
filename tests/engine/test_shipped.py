"""The trained models in the repository: complete, small, and still finding what their cards say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from mmdet3d.commands import test
from mmdet3d.config import find_config, load_config
from mmdet3d.datasets.synthetic.worlds import make_scene
from mmdet3d.engine.recipe import Recipe
from mmdet3d.engine.shipped import NAMES, draw_film, draw_first, first_scores, load_shipped, make_small_world
from mmdet3d.io.files import file_digest
from mmdet3d.zoo import ZOO, read_card, weight_path, zoo_file, zoo_files

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the small world by which a model is checked."""
    made: dict[str, Path] = {}

    def world(name: str) -> Path:
        layout = str(Recipe.load(read_card(name)["recipe"]).data.get("layout"))
        if layout not in made:
            made[layout] = tmp_path_factory.mktemp("small-world")
            make_small_world(name, made[layout])
        return made[layout]

    return world


def test_they_are_small_and_nothing_else_is_there() -> None:
    files = list(ZOO.iterdir())
    assert {f.name for f in files} == {f"{name}{end}" for name in zoo_files() for end in (".safetensors", ".json")}
    assert sum(f.stat().st_size for f in files) < 15e6
    assert sum(zoo_file(name).stat().st_size for name in NAMES) < 4e6


@pytest.mark.parametrize("name", zoo_files())
def test_cards_belong_to_files_and_recipe(name: str) -> None:
    card = read_card(name)
    assert card["sha256"] == file_digest(zoo_file(name))
    recipe = Recipe.load(card["recipe"])
    assert recipe.runs[card["run"]].config == card["config"] and find_config(card["config"]).is_file()
    assert card["recipe"] in card["command"] and len(card["revision"]) == 40
    assert next(iter(card["metrics"].values())) > 0.03  # which an untrained one has not
    assert card["versions"]["mmdet3d"]  # or loading them would warn of another program


@pytest.mark.parametrize("name", zoo_files())
def test_they_find_what_their_cards_say(name: str, worlds: Callable[[str], Path]) -> None:
    scores = first_scores(*load_shipped(name, worlds(name)))
    assert scores == pytest.approx(read_card(name)["small_world"]["first_scores"], abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo_files())
def test_the_test_command_gives_the_numbers_of_the_card(
    name: str, worlds: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card, out = read_card(name), tmp_path / "out"
    words = [card["config"], f"zoo:{name}", "--eval", "bbox", "--run-dir", out, "--dataset_root", f"{worlds(name)}/"]
    monkeypatch.chdir(ROOT)
    test.main([weight_path(str(word)) for word in words])
    found = json.loads((out / "metrics.json").read_text())["metrics"]
    for key, value in card["small_world"]["metrics"].items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


def test_names_of_models_stand_for_files() -> None:
    path = zoo_file("crkd-demo-teacher")
    assert weight_path("zoo:crkd-demo-teacher") == str(path)
    assert weight_path("--checkpoint=zoo:crkd-demo-teacher") == f"--checkpoint={path}"
    assert weight_path("data/zoo:crkd-demo-teacher") == "data/zoo:crkd-demo-teacher"
    config = load_config("synthetic/crkd/demo.yaml", {"model.teacher.checkpoint": "zoo:crkd-demo-teacher"})
    assert config.model.teacher.checkpoint == str(path)
    with pytest.raises(ValueError, match="no model zoo:crkd-demo-techer, did you mean 'crkd-demo-teacher'"):
        weight_path("zoo:crkd-demo-techer")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first-scene")
    make_scene(root)
    return root


def test_film(scene: Path, tmp_path: Path) -> None:
    """Of the three frames of the first scene."""
    still, film = draw_film(scene, tmp_path / "pictures", keyframes=3)
    with Image.open(still) as picture, Image.open(film) as frames:
        assert picture.width == 1280 and frames.width == 1000 and frames.n_frames == 3


def test_first_picture(scene: Path, tmp_path: Path) -> None:
    picture = draw_first(scene, tmp_path)
    assert picture.parent == tmp_path and picture.read_bytes().startswith(b"\x89PNG")
