"""Maps under the boxes, differences between models, films."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import frames
import numpy as np
import pytest
import torch
from PIL import Image

from mmdet3d.datasets.transforms import empty_sample
from mmdet3d.engine.heat_maps import TapMap, difference, tap_map
from mmdet3d.models.detectors.base import Detector
from mmdet3d.structures import Batch, BEVGrid, Boxes3D
from mmdet3d.visualization import Heat, Layer, check_film, draw_bev, write_film

GRID = BEVGrid((-40.0, -40.0), (10.0, 10.0), (8, 8))


class Mapped(Detector):
    """Taps of several kinds with one strong cell each."""

    grid = GRID

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))  # which tells its device
        bev = torch.full((1, 3, 16, 16), 0.001)
        bev[0, :, 15, 2] = 10.0  # 5 m cells: x 35..40 m, y -30..-25 m
        image = torch.zeros(2, 5, 9, 16)
        image[1, 0, 4, 12] = 3.0
        heatmap = torch.full((1, 2, 8, 8), -20.0)
        heatmap[0, 1, 0, 0] = 20.0
        self.add_stage("fuser", lambda batch: bev)
        self.add_stage("levels", lambda batch: [image[..., ::2, ::2], image])
        self.add_stage("cameras", lambda batch: image.unflatten(0, (len(batch), -1)))
        self.add_stage("one camera", lambda batch: image[1:])
        self.add_stage("heads.object", lambda batch: [{"heatmap": heatmap}])
        self.add_stage("names", lambda batch: batch.tokens)

    def losses(self, features, batch):
        return {}

    def predictions(self, features, batch):
        return []


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    sample = empty_sample(frames.small_frame(tmp_path))
    return Batch.collate([replace(sample, images=torch.zeros(2, 3, 36, 64))])


def test_taps_become_maps(batch: Batch) -> None:
    bev = tap_map(Mapped(), batch, "fuser")
    assert bev.grid == BEVGrid((-40.0, -40.0), (5.0, 5.0), (16, 16))
    assert bev.values[15, 2] == 1 and bev.values.sum() < 1.5
    image = tap_map(Mapped(), batch, "levels")
    assert image.grid is None and image.values.shape == (2, 9, 16) and image.values[1, 4, 12] == 1
    assert torch.equal(tap_map(Mapped(), batch, "cameras").values, image.values)
    one = replace(batch, images=batch.images[:, :1])
    assert tap_map(Mapped(), one, "one camera").grid is None
    heads = tap_map(Mapped(), batch, "heads.object")
    assert heads.values[0, 0] > 0.999 and heads.values.sum() < 1.001  # probabilities stay as they are
    with pytest.raises(
        ValueError, match=r"tap names of Mapped is no map that can be drawn; its taps: fuser, levels, cameras"
    ):
        tap_map(Mapped(), batch, "names")
    with pytest.raises(ValueError, match="has no tap 'fusr', did you mean 'fuser'"):
        tap_map(Mapped(), batch, "fusr")


def test_a_map_of_the_ground_lies_where_its_cells_are() -> None:
    values = torch.zeros(8, 8)
    values[6, 1] = 1.0  # x 20..30 m, y -30..-20 m
    for to_scene, place in ((torch.eye(4), (25, -25)), (torch.diag(torch.tensor([1.0, -1, 1, 1])), (25, 25))):
        picture = np.asarray(draw_bev([], [], extent=50, size=500, heat=Heat("x", values, GRID, to_scene)))
        dark = (picture[..., 2] < 60) & (picture[..., 0] > 80)
        rows, columns = np.nonzero(dark)
        assert abs(columns.mean() - 5 * (place[0] + 50)) < 4 and abs(rows.mean() - 5 * (50 - place[1])) < 4
        assert 0.7 * 50 * 50 < dark.sum() <= 50 * 50  # the ring of 30 m and its label lie on it


def test_a_map_over_an_image_follows_its_augmentation(batch: Batch) -> None:
    image_aug = torch.eye(4).repeat(2, 1, 1)
    image_aug[:, :2, :2] *= 0.4  # 160 x 90 raw pixels to 64 x 36
    image_aug[:, 0, 3], image_aug[:, 0, 0] = 64.0, -0.4  # and mirrored
    values = torch.zeros(2, 9, 16)
    values[1, 4, 12] = 1.0  # input pixels 48..52 and 16..20
    heat = Heat("x", values, None, None, replace(batch.calibration[0], image_aug=image_aug), (36, 64))
    grey = Image.new("RGB", (160, 90), (128, 128, 128))
    assert np.asarray(heat.over(grey, 0)).std() == 0
    rows, columns = np.nonzero((np.asarray(heat.over(grey, 1)) != 128).any(-1))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (30, 39, 40, 49)


def test_differences() -> None:
    teacher = TapMap(torch.eye(4), GRID, None)
    student = TapMap(torch.zeros(4, 4), GRID, None)
    assert torch.equal(difference(teacher, student).values, -torch.eye(4))
    fine = TapMap(torch.ones(8, 8), GRID, None)
    assert torch.equal(difference(teacher, fine).values, 1 - torch.eye(4))
    with pytest.raises(ValueError, match="one is a map of the ground, the other of the images"):
        difference(teacher, TapMap(torch.zeros(2, 4, 4), None, (4, 4)))
    less = np.asarray(Heat("x", -torch.ones(8, 8), GRID, torch.eye(4), signed=True).ground(40, 8))
    more = np.asarray(Heat("x", torch.ones(8, 8), GRID, torch.eye(4), signed=True).ground(40, 8))
    assert (less[..., 2] > less[..., 0] + 80).all() and (more[..., 0] > more[..., 2] + 80).all()


def test_moving_boxes_have_arrow_heads() -> None:
    fast = Boxes3D(torch.tensor([[0.0, 0, 0, 2, 4, 2, 0, 20, 0]]))
    picture = np.asarray(draw_bev([Layer("x", fast, torch.tensor([0]))], ["car"], extent=50, size=500))
    column = (picture[:, 346] != 255).any(-1)  # just before the tip, 20 m to the right
    assert 3 <= column[240:260].sum() <= 8


@pytest.mark.parametrize("ending", ["gif", "webp"])
def test_films_play_all_pictures(tmp_path: Path, ending: str) -> None:
    pictures = [
        Image.new("RGB", (40, 30 + i), color) for i, color in enumerate([(250, 0, 0), (0, 250, 0), (0, 0, 250)])
    ]
    path = write_film(pictures, tmp_path / "films" / f"film.{ending}", fps=4)
    with Image.open(path) as film:
        assert film.n_frames == 3 and film.size == (40, 32) and film.info["loop"] == 0
        for index in range(3):
            film.seek(index)
            film.load()
            assert film.info["duration"] == 250
            assert np.asarray(film.convert("RGB"))[10, 10].argmax() == index


def test_a_film_as_mp4(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="the extra `video` is not installed")
    path = write_film([Image.new("RGB", (64, 33), "red")] * 5, tmp_path / "film.mp4", fps=5)
    assert path.read_bytes()[4:8] == b"ftyp"


def test_films_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"film.avi must end in one of .gif, .webp, .mp4"):
        check_film(tmp_path / "film.avi")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ValueError, match=r"pip install 'distill3d\[video\]', or end the name in .gif or .webp"):
        check_film(tmp_path / "film.mp4")
    with pytest.raises(ValueError, match="there is no picture to write"):
        write_film([], tmp_path / "film.gif", 4)
