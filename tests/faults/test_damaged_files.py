"""Flipped bits and lost ends of files that this project writes: what would be read wrongly is noticed and named."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mmdet3d.datasets.cache import ReadCache
from mmdet3d.datasets.transforms.images import read_images
from mmdet3d.distill.answers import Answers
from mmdet3d.engine.checkpoint import RunCheckpoints, read_training_state
from mmdet3d.io.pickles import dump_pickle, load_pickle
from mmdet3d.io.weights import read_weights
from mmdet3d.structures import Batch, Calibration, Sample

DAMAGES = 100
Prepared = tuple[Path, Callable[[], object]]


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One bit flipped, or the end cut off."""
    place = draw.randrange(len(content))
    if draw.random() < 0.25:
        return content[:place]
    changed = bytearray(content)
    changed[place] ^= 1 << draw.randrange(8)
    return bytes(changed)


def same(a: Any, b: Any) -> bool:
    """Whether `b` holds what `a` holds; a dict may have more entries."""
    if isinstance(a, dict):
        return isinstance(b, dict) and all(key in b and same(value, b[key]) for key, value in a.items())
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, (np.ndarray, torch.Tensor)):
        return type(a) is type(b) and a.dtype == b.dtype and a.tolist() == b.tolist()
    return a == b


def checkpoint(suffix: str) -> Callable[[Path], Prepared]:
    def prepare(folder: Path) -> Prepared:
        values = {"a": torch.randn(4, 5), "b": torch.zeros(3)}
        metadata = {"epoch": 1, "iteration": 4, "metrics": {"object/map": 0.25}}
        path = RunCheckpoints(folder).save("epoch_1", values, {"epoch": 1, "optimizer": [values]}, metadata)
        return path.with_suffix(suffix), lambda: (read_training_state(path), read_weights(path))

    return prepare


def info_file(folder: Path) -> Prepared:
    content = {"infos": [{"token": f"t{k}", "pose": np.eye(4) * k} for k in range(20)], "metadata": {"format": "x"}}
    dump_pickle(content, folder / "infos.pkl")
    return folder / "infos.pkl", lambda: load_pickle(folder / "infos.pkl")


@pytest.mark.parametrize(
    "prepare",
    [checkpoint(".state.pt"), checkpoint(".safetensors"), checkpoint(".json"), info_file],
    ids=["training state", "weights", "metadata", "info file"],
)
def test_damage_is_named(prepare: Callable[[Path], Prepared], tmp_path: Path) -> None:
    path, read = prepare(tmp_path)
    content, honest, unnoticed = path.read_bytes(), read(), 0
    for k in range(DAMAGES):
        path.write_bytes(damaged(content, random.Random(k)))
        try:
            found = read()
        except (ValueError, FileNotFoundError) as error:
            assert path.name in str(error), f"damage {k}: {error}"
        else:
            unnoticed += 1
            assert same(honest, found), f"damage {k} is not noticed"
    assert unnoticed < DAMAGES // 5  # in the blanks of a JSON, and in the digest itself


def stored_answers(folder: Path) -> Prepared:
    eye = torch.eye(4)
    calibration = Calibration(eye, eye, eye[None], eye[None], eye[None], eye[None], eye)
    clouds = {"points": torch.randn(9, 5)}
    batch = Batch.collate([Sample(token="a", calibration=calibration, clouds=clouds, view="data/a.0.0")])
    given = {"fuser": torch.randn(1, 3, 4), "heads": [torch.ones(2), torch.arange(5)]}
    Answers(folder, {"digest": "x"}).write(batch, given)
    # Anew each time, as each tensor is looked at once.
    return folder / "data" / "a.0.0.safetensors", lambda: Answers(folder, {}).read(batch, list(given))


def cache_entry(folder: Path) -> Prepared:
    from PIL import Image

    Image.fromarray(np.random.RandomState(0).randint(0, 255, (9, 12, 3), dtype=np.uint8)).save(folder / "a.png")

    def read() -> object:
        return [np.asarray(image) for image in ReadCache(folder / "cache", 1)(read_images, [folder / "a.png"])]

    read()
    (entry,) = (folder / "cache").iterdir()
    return entry, read


@pytest.mark.parametrize("prepare", [stored_answers, cache_entry])
def test_damage_is_named_and_mended(
    prepare: Callable[[Path], Prepared], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both can be made anew, so that a damaged file is no error: nothing is read of it, and a warning names it."""
    path, read = prepare(tmp_path)
    content, honest = path.read_bytes(), read()
    assert honest and not caplog.messages
    unnoticed = 0
    for k in range(DAMAGES):
        path.write_bytes(damaged(content, random.Random(k)))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "mmdet3d"):
            found = read()
        if caplog.messages:
            assert path.name in caplog.text, f"damage {k}: {caplog.text}"
            assert not found or same(honest, found)
        else:
            unnoticed += 1
            assert same(honest, found), f"damage {k} is not noticed"
    assert unnoticed < DAMAGES // 5
