"""KITTI frames in pictures: boxes meet their pixels and points, mirrored samples are brought back, tools draw."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_world import narrow_words
from PIL import Image

from mmdet3d.config import load_config
from mmdet3d.datasets import KittiDataset, build_dataset
from mmdet3d.datasets.kitti.results import project_boxes
from mmdet3d.engine.pictures import compare, draw_maps, picture_extent, scenes
from mmdet3d.models import build_model
from mmdet3d.structures import Sample
from mmdet3d.structures.camera_boxes import boxes_from_kitti
from mmdet3d.visualization import box_segments, draw_bev

TOOLS = Path(__file__).resolve().parents[2] / "tools"
MIRROR = {"random_flip": 1.0, "random_crop": 0.0}


def as_detections(sample: Sample):
    """The boxes that a perfect detector gives for a sample."""
    o = sample.objects
    bottoms = o.centers + o.sizes[:, :1] * torch.tensor([0, 0.5, 0])
    return boxes_from_kitti(torch.column_stack([o.sizes, bottoms, o.yaws]))


@pytest.mark.parametrize("name", ["real", "world"])
def test_boxes_meet_pixels_and_points(name: str, request: pytest.FixtureRequest) -> None:
    ids = [f"{k:06d}" for k in (0, 2, 7)]
    dataset = KittiDataset(str(request.getfixturevalue(name)), "trainval", test_mode=True, ids=ids)
    hit = 0
    for index in range(len(dataset)):
        scene, truth = dataset.scene(dataset[index]), dataset.ground_truth(index)
        size = scene.images[0].size
        segments, owner, _ = box_segments(scene.boxes, scene.calibration, 0, size)
        wanted = project_boxes(truth.boxes, dataset.calibration(index).p2)
        for i in range(len(truth)):
            ends = segments[owner == i].reshape(-1, 2)
            if len(ends) == 26:  # 13 whole edges: nothing is cut off
                found = torch.cat([ends.min(0).values, ends.max(0).values])
                np.testing.assert_allclose(found, wanted[i], atol=0.5)
        near = scene.boxes.centers.norm(dim=1) < 30
        hit += (scene.boxes.contains(scene.points[::4]).sum(1)[near] > 5).sum()
        assert (scene.boxes.centers[:, 1] > 0).all()
    assert hit >= 2


def test_a_mirrored_sample_is_brought_back(world: Path) -> None:
    plain, mirrored = (KittiDataset(str(world), "trainval", image_size=(96, 320), augment=MIRROR) for _ in range(2))
    plain.augment = None
    checked = 0
    for a, b in zip(plain, mirrored, strict=True):
        assert b.meta["flipped"]
        scenes = plain.scene(a), mirrored.scene(b)
        boxes = [as_detections(s).transform(scene.from_detections) for s, scene in zip((a, b), scenes, strict=True)]
        torch.testing.assert_close(boxes[0].corners(), boxes[1].corners(), atol=1e-3, rtol=0)
        assert scenes[0].images[0].tobytes() == scenes[1].images[0].tobytes()
        checked += len(a.objects)
    assert checked > 5


def test_what_lies_behind_is_cut_off() -> None:
    assert draw_bev([], [], extent=50, size=500).size == (500, 500)
    whole, cut = draw_bev([], [], extent=50, size=500), draw_bev([], [], extent=50, size=500, behind=10)
    assert cut.size == (500, 300)
    bar = 40  # rows at the lower end of each that hold the scale bar
    assert np.array_equal(np.asarray(whole)[: 300 - bar], np.asarray(cut)[:-bar])


def test_the_tool_and_columns_of_models(world: Path, tmp_path: Path) -> None:
    words = ["configs/kitti/synthetic/rgb_baseline.yaml", *narrow_words(world)]
    runpy.run_path(str(TOOLS / "visualize.py"))["main"]([*words, "--limit", "1", "--out-dir", str(tmp_path)])
    (file,) = tmp_path.glob("*.png")
    assert file.stem == (world / "ImageSets" / "val.txt").read_text().split()[0]
    assert Image.open(file).width > 1280

    cfg = load_config(words[0], words[1:])
    dataset = build_dataset(cfg.data.val, test_mode=True)
    columns = {name: (build_model(cfg.model).eval(), dataset) for name in ("student", "distilled")}
    (path,) = compare(columns, [1], tmp_path / "pictures", picture_extent(cfg))
    assert path.name == f"0001-{dataset.tokens[1]}.png" and Image.open(path).width == 1920
    assert scenes(dataset) == [list(range(len(dataset)))]
    picture, sample = draw_maps(columns, 1, picture_extent(cfg), taps=["neck"])
    assert picture.width == 1920 and sample.token == dataset.tokens[1]
    image = np.asarray(picture)[76:, : 1920 // 3]
    plain = np.asarray(Image.open(path))[76:, : 1920 // 3]
    assert (image[:100] != plain[:100]).any()  # the map lies over the image
