"""KITTI frames in pictures: boxes meet their pixels and points, mirrored samples are brought back, tools draw."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_world import narrow_words
from PIL import Image
from safetensors.torch import save_file

from mmdet3d.config import load_config
from mmdet3d.datasets import KittiDataset, build_dataset
from mmdet3d.datasets.kitti.results import project_boxes
from mmdet3d.engine import pictures
from mmdet3d.engine.pictures import compare, draw_maps, picture_extent
from mmdet3d.models import build_model
from mmdet3d.structures import Boxes3D, Sample
from mmdet3d.structures.camera_boxes import boxes_from_kitti
from mmdet3d.visualization import Layer, box_segments, draw_bev

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
        hit += (scene.boxes.contains(scene.clouds["points"][::4]).sum(1)[near] > 5).sum()
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


@pytest.mark.parametrize("distance, reach", [(20.0, 55.0), (58.0, 60.0), (900.0, 100.0)])
def test_the_view_from_above_reaches_as_far_as_its_boxes(distance: float, reach: float) -> None:
    box = Boxes3D(torch.tensor([[0.0, distance, 0, 1.6, 3.9, 1.5, 0, 0, 0]]))
    layers = [Layer("ground truth", box, torch.zeros(1).long()), Layer("false", Boxes3D.empty(), torch.zeros(0).long())]
    assert pictures._reach(None, layers) == reach and pictures._reach(40.0, layers) == 40.0


def test_the_tool_and_columns_of_models(world: Path, tmp_path: Path) -> None:
    words = ["configs/kitti/synthetic/rgb_baseline.yaml", *narrow_words(world)]
    runpy.run_path(str(TOOLS / "visualize.py"))["main"]([*words, "--limit", "1", "--out-dir", str(tmp_path)])
    (file,) = tmp_path.glob("*.png")
    assert file.stem == (world / "ImageSets" / "val.txt").read_text().split()[0]
    assert Image.open(file).width > 1280

    main = runpy.run_path(str(TOOLS / "visualize.py"))["main"]
    cfg = load_config(words[0], words[1:])
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_file(build_model(cfg.model).state_dict(), weights)
    drawn = [*words, "--checkpoint", str(weights), "--out-dir"]
    main([*drawn, str(tmp_path / "test"), "--mode", "pred", "--split", "test", "--limit", "1"])
    assert [p.stem for p in (tmp_path / "test").iterdir()] == (world / "ImageSets" / "test.txt").read_text().split()[:1]

    # A picture of one's own, of another size, beside its calibration.
    own = tmp_path / "my street.jpg"
    Image.open(world / "testing" / "image_2" / "000000.png").resize((1920, 1080)).save(own)
    own.with_suffix(".txt").write_text("P2: 1115 0 960 0 0 1115 540 0 0 0 1 0\n")
    main([*drawn, str(tmp_path / "own"), "--image", str(own), "--bbox-score", "0"])
    assert [p.name for p in (tmp_path / "own").iterdir()] == ["my street.png"]
    for extra, message in (
        (["--image", str(own), str(own)], "two pictures are called my street"),
        (["--image", str(weights)], "must be a .png or .jpg file"),
        (
            ["--image", str(own), "--calib", "none.txt"],
            "none.txt, the calibration of .*, does not exist",
        ),
        (["--image", str(own), "--mode", "both"], "--mode both draws annotations"),
        (["--calib", "none.txt"], "--calib is the calibration of --image"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            main([*drawn, str(tmp_path / "none"), *extra])

    dataset = build_dataset(cfg.data.val, test_mode=True)
    columns = {name: (build_model(cfg.model).eval(), dataset) for name in ("student", "distilled")}
    assert picture_extent(cfg) is None
    (path,) = compare(columns, [1], tmp_path / "pictures", None)
    assert path.name == f"0001-{dataset.tokens[1]}.png" and Image.open(path).width == 1920
    assert dataset.scenes() == [list(range(len(dataset)))]
    picture, sample = draw_maps(columns, 1, picture_extent(cfg), taps=["neck"])
    assert picture.width == 1920 and sample.token == dataset.tokens[1]
    image = np.asarray(picture)[76:, : 1920 // 3]
    plain = np.asarray(Image.open(path))[76:, : 1920 // 3]
    assert (image[:100] != plain[:100]).any()  # the map lies over the image
