"""What the trained models in `pretrained/zoo` find in scenes that are made in seconds, and the pictures of it."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mmdet3d.config import Config, load_config
from mmdet3d.datasets import benchmark_of
from mmdet3d.datasets.synthetic.worlds import make_scene
from mmdet3d.engine.data import PictureDataset
from mmdet3d.engine.evaluate import evaluate
from mmdet3d.engine.pictures import compare, detect, open_model, picture_extent, side_by_side
from mmdet3d.engine.recipe_file import Recipe
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.visualization import write_film
from mmdet3d.zoo import read_card, zoo_file

__all__ = ["NAMES", "draw_film", "draw_first", "first_scores", "load_shipped", "make_small_world", "small_metrics"]

NAMES = ("crkd-demo-teacher", "crkd-demo-control", "crkd-demo-distilled")  # that are drawn
_FRAME = 1  # the one that is drawn; the first has no earlier radar sweeps
_MIN_SCORE = 0.3
_SCORES = 5  # kept in a card
_TITLES = ("teacher", "student alone", "distilled student")  # of NAMES in the film
_FILM_FRAMES, _FPS = 24, 4  # twice as fast as it was
_STILL_WIDTH, _FILM_WIDTH = 1280, 1000  # pixels


def make_small_world(name: str, root: Path) -> None:
    """The world of a few frames by which a model is checked, in the layout of the one that it was trained in."""
    card = read_card(name)
    Recipe.load(card["recipe"]).world(card["world"]).layout.small(root)


def load_shipped(name: str, root: Path) -> tuple[Trainable, PictureDataset]:
    """A shipped model, and the validation frames in `root` as it reads them."""
    return open_model(_config(name, root), zoo_file(name))


def _config(name: str, root: Path) -> Config:
    return load_config(read_card(name)["config"], {"dataset_root": f"{root}/", "data.cache": "none"})


def first_scores(model: Trainable, dataset: PictureDataset) -> list[float]:
    """The highest scores in the first frame, descending."""
    scores = detect(model, dataset[0], torch.device("cpu")).scores
    return scores.sort(descending=True).values[:_SCORES].tolist()


def small_metrics(name: str, root: Path, scratch: Path) -> dict[str, float]:
    """What a shipped model scores on the validation frames in `root`, as far as its table shows it."""
    model, dataset = load_shipped(name, root)
    metrics = evaluate(model, dataset, scratch, torch.device("cpu"), batch_size=2)
    return {column.key: metrics[column.key] for column in Recipe.load(read_card(name)["recipe"]).table_columns}


def draw_first(root: Path, out_dir: Path) -> Path:
    """Make the first scene in `root` and draw what the shipped models find in it; returns the picture."""
    make_scene(root)
    columns = {_title(name): load_shipped(name, root) for name in NAMES}
    (path,) = compare(columns, [_FRAME], out_dir, picture_extent(_config(NAMES[0], root)), _MIN_SCORE)
    return path


def draw_film(root: Path, out_dir: Path, keyframes: int = _FILM_FRAMES) -> tuple[Path, Path]:
    """Make a longer scene in `root` and show what the shipped models find in it, beside the ground truth.

    Returns:
        `models.webp`, a picture of the frame in the middle, and `scene.webp`, all frames one after another.
    """
    make_scene(root, keyframes)
    columns = {title: load_shipped(name, root) for name, title in zip(NAMES, _TITLES, strict=True)}
    _, dataset = columns[_TITLES[0]]
    extent = picture_extent(_config(NAMES[0], root))
    pictures = []
    for index in progress_bar(dataset.scenes()[0], desc="draw", unit="frame"):
        picture, _ = side_by_side(columns, index, extent, _MIN_SCORE, truth_column=True, camera="CAM_FRONT")
        pictures.append(picture)
    out_dir.mkdir(parents=True, exist_ok=True)
    still, film = out_dir / "models.webp", out_dir / "scene.webp"
    _shrunk(pictures[len(pictures) // 2], _STILL_WIDTH).save(still, quality=85)
    return still, write_film((_shrunk(picture, _FILM_WIDTH) for picture in pictures), film, _FPS)


def _shrunk(picture: Image.Image, width: int) -> Image.Image:
    return picture.resize((width, round(picture.height * width / picture.width)), Image.Resampling.LANCZOS)


def _title(name: str) -> str:
    card = read_card(name)
    column = benchmark_of(load_config(card["config"]).data.val).columns[0]
    return f"{card['run']} ({column.heading} {card['metrics'][column.key]:.3f} in its own world)"
