"""The trained models in the repository: complete, small, and still finding what their cards say."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mmdet3d.config import find_config
from mmdet3d.datasets.synthetic.worlds import make_scene
from mmdet3d.engine.recipe import Recipe
from mmdet3d.engine.shipped import (
    NAMES,
    SHIPPED,
    draw_film,
    draw_first,
    first_scores,
    load_shipped,
    read_card,
)
from mmdet3d.io.files import file_digest


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("first-scene")
    make_scene(root)
    return root


def test_they_are_small_and_nothing_else_is_there() -> None:
    files = list(SHIPPED.iterdir())
    assert {f.name for f in files} == {f"{name}{end}" for name in NAMES for end in (".safetensors", ".json")}
    assert sum(f.stat().st_size for f in files) < 4e6


@pytest.mark.parametrize("name", NAMES)
def test_cards_belong_to_files_and_recipe(name: str) -> None:
    card = read_card(name)
    assert card["sha256"] == file_digest(SHIPPED / f"{name}.safetensors")
    recipe = Recipe.load(card["recipe"])
    assert recipe.runs[card["run"]].config == card["config"] and find_config(card["config"]).is_file()
    assert card["recipe"] in card["command"] and len(card["revision"]) == 40
    assert card["metrics"]["object/map"] > 0.1
    assert card["versions"]["mmdet3d"]  # or loading them would warn of another program


@pytest.mark.parametrize("name", NAMES)
def test_they_find_what_their_cards_say(name: str, scene: Path) -> None:
    scores = first_scores(*load_shipped(name, scene))
    assert scores == pytest.approx(read_card(name)["first_scores"], abs=0.02)


def test_film(scene: Path, tmp_path: Path) -> None:
    """Of the three frames of the first scene."""
    still, film = draw_film(scene, tmp_path / "pictures", keyframes=3)
    with Image.open(still) as picture, Image.open(film) as frames:
        assert picture.width == 1280 and frames.width == 1000 and frames.n_frames == 3


def test_first_picture(scene: Path, tmp_path: Path) -> None:
    picture = draw_first(scene, tmp_path)
    assert picture.parent == tmp_path and picture.read_bytes().startswith(b"\x89PNG")
