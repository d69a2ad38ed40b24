"""The KITTI data set: geometry on real frames, what is learnt, randomness, results, and mistakes."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from kitti_rules import dont_care, frame, row
from PIL import Image

from mmdet3d.config import load_config
from mmdet3d.datasets import KittiDataset, MixedDataset, build_dataset, build_split, check_data
from mmdet3d.datasets.kitti.create import check_tree
from mmdet3d.datasets.kitti.files import read_scan
from mmdet3d.datasets.kitti.labels import read_results, write_labels
from mmdet3d.datasets.kitti.results import image_boxes, to_objects
from mmdet3d.engine.data import TrainSampler, batches, build_loader
from mmdet3d.engine.evaluate import evaluate
from mmdet3d.structures import Batch, Boxes3D, Detections3D, Sample, project

IDS = [f"{k:06d}" for k in range(10)]
STILL = {"random_flip": 0.0, "random_crop": 0.0, "color_jitter": 0.0, "lighting": 0.0}
MIRROR = {**STILL, "random_flip": 1.0}
CLASSES = ["Car", "Pedestrian", "Cyclist"]


def real_frames(real: Path, **changes: object) -> KittiDataset:
    return KittiDataset(str(real), "trainval", ids=IDS, **changes)


def small_world(world: Path, split: str = "trainval", **changes: object) -> KittiDataset:
    return KittiDataset(str(world), split, **{"image_size": (96, 320), **changes})


def raw_to_network(sample: Sample, pixels: torch.Tensor) -> torch.Tensor:
    matrix = sample.calibration.image_aug[0]
    return pixels @ matrix[:2, :2].T + matrix[:2, 3]


def projected_centers(sample: Sample) -> torch.Tensor:
    """(M, 2) pixels of the raw image."""
    centers = torch.cat([sample.objects.centers, torch.ones(len(sample.objects), 1)], dim=1)
    u, v, depth = (centers @ sample.calibration.intrinsics[0].T)[:, :3].unbind(1)
    return torch.stack([u, v], dim=1) / depth[:, None]


def test_frames_are_indexed_as_in_a_list(world: Path) -> None:
    frames = small_world(world, test_mode=True)
    last = frames[len(frames) - 1]
    assert torch.equal(frames[-1].images, last.images) and torch.equal(frames[-1:][0].images, last.images)
    with pytest.raises(IndexError, match=f"no frame {len(frames)}; there are"):
        frames[len(frames)]


# -- real frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [STILL, MIRROR, {}], ids=["still", "mirrored", "random"])
def test_projected_centers_lie_in_their_boxes(real: Path, augment: dict) -> None:
    dataset = real_frames(real, augment=augment, class_merging=True)
    count = 0
    for sample in dataset:
        assert sample.images.shape == (1, 3, 384, 1280)
        assert sample.depths.shape == (1, 384, 1280)
        pixels, boxes = projected_centers(sample), sample.objects.boxes2d
        assert ((pixels > boxes[:, :2]) & (pixels < boxes[:, 2:])).all()
        count += len(pixels)
    assert count == 16


@pytest.mark.parametrize("augment", [STILL, MIRROR, {}], ids=["still", "mirrored", "random"])
def test_the_lidar_meets_the_depth_map(real: Path, augment: dict) -> None:
    """Raw points through calibration, mirror and crop find their own depth."""
    dataset = real_frames(real, augment=augment)
    for index in (0, 3, 5):
        sample = dataset[index]
        points = torch.from_numpy(read_scan(real / "training" / "velodyne" / f"{IDS[index]}.bin"))
        pixels, depth = project(points, sample.calibration.lidar2image[0])
        column, line = raw_to_network(sample, pixels).floor().long().unbind(1)
        seen = (depth > 2) & (depth < 60) & (column >= 0) & (column < 1280) & (line >= 0) & (line < 384)
        seen &= ((pixels > 1) & (pixels < torch.tensor(sample.meta["image_size"]) - 1)).all(1)
        found = sample.depths[0, line[seen], column[seen]]
        assert seen.sum() > 5000
        assert (found > 0).float().mean() > 0.95
        assert ((found / depth[seen] - 1).abs()[found > 0]).median() < 0.025


def test_a_mirrored_sample_is_the_mirror_of_the_sample(real: Path) -> None:
    plain, mirrored = (real_frames(real, augment=a) for a in (STILL, MIRROR))
    for index in (0, 8):
        a, b = plain[index], mirrored[index]
        assert b.meta["flipped"] and not a.meta["flipped"]
        torch.testing.assert_close(b.images.flip(-1), a.images, atol=0.03, rtol=0)
        torch.testing.assert_close(b.depths.flip(-1), a.depths, atol=0.05, rtol=0)
        width = a.meta["image_size"][0]
        back = b.objects.flip(width)
        for field in dataclasses.fields(back):
            torch.testing.assert_close(getattr(back, field.name), getattr(a.objects, field.name), atol=1e-4, rtol=0)
        expected = torch.stack([width - projected_centers(a)[:, 0], projected_centers(a)[:, 1]], dim=1)
        torch.testing.assert_close(projected_centers(b), expected, atol=1.0, rtol=0)


def test_the_published_frame_of_values(real: Path) -> None:
    """Frame 000000: one pedestrian; its observation angle is the label's to a degree."""
    sample = real_frames(real, test_mode=True)[0]
    assert sample.token == "000000"
    assert sample.meta["image_size"] == (1224, 370)
    assert sample.meta["crop_scale"] == 1
    assert sample.objects.labels.tolist() == [0]
    assert sample.objects.sizes.tolist() == [pytest.approx([1.89, 0.48, 1.20])]
    assert sample.objects.centers.tolist() == [pytest.approx([1.84, 1.47 - 1.89 / 2, 8.41])]
    assert sample.objects.alphas.item() == pytest.approx(-0.20, abs=0.02)
    assert sample.calibration.image_aug[0, 0, 0] == pytest.approx(1280 / 1224)


def test_ground_truth_as_detections(real: Path, tmp_path: Path) -> None:
    """AP follows from the number of objects; 2-D boxes and angles that are left out follow from the 3-D boxes."""
    dataset = real_frames(real, test_mode=True, eval_classes=CLASSES)
    found = [dataset.ground_truth(k) for k in range(10)]
    metrics = dataset.evaluate(found, tmp_path)
    assert metrics["Car/3d/R40/moderate"] == metrics["Car/bbox/R40/moderate"] == pytest.approx(27.5)
    assert metrics["Car/3d@0.5/R40/easy"] == pytest.approx(12.5)
    assert metrics["Cyclist/bev/R11/hard"] == metrics["Cyclist/aos/R11/hard"]
    assert metrics["mean/3d@loose/R40/moderate"] == pytest.approx(
        (metrics["Car/3d@0.5/R40/moderate"] + metrics["Pedestrian/3d@0.25/R40/moderate"]) / 3
        + metrics["Cyclist/3d@0.25/R40/moderate"] / 3
    )
    written = json.loads((tmp_path / "kitti_metrics.json").read_text())
    assert written["Car"]["3d"]["R40"][1] == metrics["Car/3d/R40/moderate"]
    plain = [dataclasses.replace(d, boxes2d=None, alphas=None) for d in found]
    again = dataset.evaluate(plain, tmp_path)
    assert again["Car/3d/R40/moderate"] == pytest.approx(27.5)
    assert again["Car/aos/R40/moderate"] == pytest.approx(27.5, abs=0.01)


def test_projected_boxes_are_cut_at_the_border() -> None:
    p2 = np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]])
    ahead = [20.0, 0, 0, 4, 2, 1.4, 0, 0, 0]
    boxes = Boxes3D(torch.tensor([ahead, [1.0, -1, 0, 4, 2, 1.4, 0, 0, 0], [20.0, 30, 0, 4, 2, 1.4, 0, 0, 0]]))
    cut = image_boxes(boxes, p2, (1242, 375))
    np.testing.assert_allclose(cut[0], [600 - 700 / 18, 180 - 490 / 18, 600 + 700 / 18, 180 + 490 / 18], rtol=1e-6)
    assert cut[1].tolist() == pytest.approx([600, 0, 1242, 375])  # reaches behind the camera
    assert cut[2, 0] == cut[2, 2] == 0
    none = to_objects(
        Detections3D(Boxes3D.empty(), torch.zeros(0), torch.zeros(0).long()), CLASSES, lambda: (p2, (9, 9))
    )
    assert len(none) == 0


# -- what is learnt -------------------------------------------------------------------------------------------------


def labelled(copied: Callable[..., Path], *rows: dict, **changes: object) -> Sample:
    root = copied()
    write_labels(root / "training" / "label_2" / "000000.txt", frame(*rows))
    return small_world(root, test_mode=True, **changes)[0]


def high(pixels: float) -> dict:
    return {"boxes2d": [100, 20, 160, 20 + pixels]}


def test_what_is_too_hard_is_not_learnt(copied: Callable[..., Path]) -> None:
    """Heights count one pixel more than in the evaluation, as published; every other limit is inclusive."""
    usable = [
        row(**high(50), truncated=-1, occluded=-1),  # not given, as in pseudo labels
        row(**high(24)),
        row(**high(50), truncated=0.5),
        row(**high(50), occluded=2),
        row(**high(50), z=2.0),
    ]
    hard = [
        row(**high(23.9)),
        row(**high(50), truncated=0.51),
        row(**high(50), occluded=3),
        row(**high(50), z=1.99),
        row("Van", **high(50)),
        dont_care([0, 0, 50, 50]),
    ]
    sample = labelled(copied, *usable, *hard)
    assert len(sample.objects) == 5
    assert sample.objects.regressed.all()
    assert sample.objects.labels.tolist() == [1] * 5


def test_more_objects_than_slots_are_all_learnt(copied: Callable[..., Path]) -> None:
    cars = [row(**high(30 + k)) for k in range(60)]
    assert len(labelled(copied, dont_care([0, 0, 9, 9]), *cars).objects) == 60


def test_merged_classes_draw_only(copied: Callable[..., Path]) -> None:
    rows = [row(name, **high(50)) for name in ("Car", "Van", "Truck", "Pedestrian", "Tram")]
    objects = labelled(copied, *rows, class_merging=True, writelist=["Car"]).objects
    assert objects.labels.tolist() == [1, 1, 1]
    assert objects.regressed.tolist() == [True, False, False]


def test_the_list_of_learnt_classes_stays_as_it_was(world: Path) -> None:
    writelist = ["Car"]
    for split in ("train", "val"):
        small_world(world, split, writelist=writelist, class_merging=True)
    assert writelist == ["Car"]


def test_test_frames_have_neither_labels_nor_depth(world: Path) -> None:
    sample = small_world(world, "test")[0]
    assert sample.objects is None and sample.depths is None
    assert sample.meta["image_paths"] == ["testing/image_2/000000.png"]
    assert small_world(world, depth_dir=None)[0].depths is None


# -- randomness -----------------------------------------------------------------------------------------------------


def test_augmentation_depends_on_seed_epoch_and_index_alone(world: Path) -> None:
    def first(seed: int = 0, epoch: int = 0, before: int = 0) -> torch.Tensor:
        dataset = small_world(world, seed=seed)
        dataset.set_epoch(epoch)
        for k in range(before):
            dataset[k + 1]
        return dataset[0].images

    torch.testing.assert_close(first(), first(before=2), atol=0, rtol=0)
    for other in (first(seed=1), first(epoch=1)):
        assert (first() - other).abs().max() > 0.05
    assert not torch.equal(small_world(world)[0].images, small_world(world)[1].images)


def test_fixed_views_come_back_whatever_the_seed(world: Path) -> None:
    def first(seed: int, epoch: int) -> Sample:
        dataset = small_world(world, seed=seed, views=2)
        dataset.set_epoch(epoch)
        return dataset[0]

    ours, theirs = first(0, 1), first(5, 3)
    assert torch.equal(ours.images, theirs.images) and ours.view == theirs.view
    assert ours.view.endswith(f"/{ours.token}.0.1") and not torch.equal(ours.images, first(0, 0).images)
    assert small_world(world)[0].view is None
    assert small_world(world, test_mode=True)[0].view.endswith(f"/{ours.token}")


def test_workers_see_the_same_samples_and_every_epoch_differs(world: Path) -> None:
    """Jitter does not repeat over workers and epochs."""

    def load(workers: int) -> list[Batch]:
        dataset, sampler = small_world(world), TrainSampler(8, 4, seed=0)
        loader = build_loader(dataset, sampler, workers)
        found = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            found += list(batches(loader))
        return found

    alone, shared = load(0), load(2)
    for a, b in zip(alone, shared, strict=True):
        assert a.tokens == b.tokens
        torch.testing.assert_close(a.images, b.images, atol=0, rtol=0)
    by_token = [{t: b.images[k] for b in half for k, t in enumerate(b.tokens)} for half in (alone[:2], alone[2:])]
    assert all(not torch.equal(by_token[0][t], by_token[1][t]) for t in by_token[0])


# -- results --------------------------------------------------------------------------------------------------------


class Oracle(torch.nn.Module):
    """Predicts the labels."""

    def __init__(self, dataset: KittiDataset) -> None:
        super().__init__()
        self.dataset = dataset

    tasks = ("object",)

    def predict_tasks(self, batch: Batch, tasks: Collection[str]) -> dict[str, list[Detections3D]]:
        return {"object": [self.dataset.ground_truth(self.dataset.tokens.index(token)) for token in batch.tokens]}


def test_every_image_is_scored(world: Path, tmp_path: Path) -> None:
    """Also those of a last batch that is not full."""
    dataset = small_world(world, test_mode=True, depth_dir=None)
    metrics = evaluate(Oracle(dataset), dataset, tmp_path, torch.device("cpu"), batch_size=3)
    assert len(list((tmp_path / "data").glob("*.txt"))) == 8
    count = sum(int(_is_moderate(dataset.labels(k)).sum()) for k in range(8))
    assert count > 1
    assert metrics["Car/3d/R40/moderate"] == pytest.approx(100 * (min(count, 41) - 1) / 40)


def _is_moderate(labels) -> np.ndarray:
    tall = labels.boxes2d[:, 3] - labels.boxes2d[:, 1] > 25
    return (labels.names == "Car") & tall & (labels.truncated <= 0.3) & (labels.occluded <= 1)


def test_a_submission_of_the_test_split(world: Path, tmp_path: Path) -> None:
    dataset = small_world(world, "test", test_mode=True)
    box = torch.tensor([[12.0, 1, -1, 4, 2, 1.5, 0.1, 0, 0]])
    found = [Detections3D(Boxes3D(box), torch.tensor([0.123456]), torch.tensor([1]))]
    archive = dataset.format(found, tmp_path)
    with zipfile.ZipFile(archive) as file:
        assert file.namelist() == ["000000.txt"]
    result = read_results(tmp_path / "data" / "000000.txt")
    assert result.names.tolist() == ["Car"]
    assert result.scores[0] == 0.1235
    with pytest.raises(ValueError, match="has no labels to score by"):
        dataset.evaluate(found, tmp_path)
    with pytest.raises(ValueError, match="2 results for 1 frames"):
        dataset.format(found * 2, tmp_path)
    with pytest.raises(ValueError, match=r"000000.txt: object 0 \(Car\) has a number that is not finite"):
        dataset.format([dataclasses.replace(found[0], scores=torch.tensor([torch.nan]))], tmp_path)


# -- mistakes -------------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def garble(path: Path) -> None:
    """A PNG whose second piece of data has another name."""
    noise = np.random.default_rng(0).integers(0, 256, (192, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    before, _, after = path.read_bytes().rpartition(b"IDAT")
    path.write_bytes(before + b"b\xc3S\xf1" + after)


def spoil(old: str, new: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(path.read_text().replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("image_2/000000.png", remove, r"image file \S+image_2/000000.png does not exist; check dataset_root"),
        ("image_2/000000.png", cut, r"image file \S+000000.png cannot be decoded \(.*\); fetch it again"),
        ("image_2/000000.png", lambda p: p.write_text("text"), r"cannot be decoded \(it begins like no known"),
        ("image_2/000000.png", garble, r"image file \S+000000.png cannot be decoded \(broken PNG file"),
        ("calib/000000.txt", remove, r"calibration \S+calib/000000.txt is missing"),
        ("label_2/000000.txt", remove, r"label file \S+label_2/000000.txt is missing"),
        (
            "label_2/000000.txt",
            spoil("Car ", "Cat "),
            r"label_2/000000.txt, line \d+: unknown class 'Cat', did you mean 'Car'",
        ),
        ("depth_dense/000000.png", remove, r"depth map \S+000000.png is missing; .* --depth` makes it from the LiDAR"),
        ("depth_dense/000000.png", cut, r"depth_dense/000000.png is no readable PNG"),
    ],
)
def test_damaged_files(copied: Callable[..., Path], file: str, damage: Callable, message: str) -> None:
    """One sentence that names the file and what to do."""
    root = copied()
    write_labels(root / "training" / "label_2" / "000000.txt", frame(row()))
    damage(root / "training" / file)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        small_world(root)[0]
    assert "\n" not in str(caught.value)
    assert "create_data.py kitti --root-path" in str(caught.value)


def test_a_calibration_that_is_not_finite(copied: Callable[..., Path]) -> None:
    root = copied()
    path = root / "training" / "calib" / "000000.txt"
    lines = path.read_text().splitlines()
    lines[0] = " ".join(["P2: nan", *lines[0].split()[2:]])
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"000000.txt, line 1: P2 holds a number that is not finite"):
        small_world(root)[0]


def test_a_depth_map_of_another_image(copied: Callable[..., Path], real: Path) -> None:
    root = copied()
    content = (real / "training" / "depth_dense" / "000001.png").read_bytes()
    (root / "training" / "depth_dense" / "000000.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"the depth map \(375, 1242\) is larger than the image \(96, 320\)"):
        small_world(root)[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["Pedestrian", "Carr"]}, r"unknown class 'Carr' in classes, did you mean 'Car'"),
        ({"classes": ["Car", "Car"]}, "classes names a class twice"),
        ({"writelist": ["Van"]}, r"unknown class 'Van' in writelist.*known: Pedestrian, Car, Cyclist"),
        ({"writelist": "Car"}, "writelist must be a list of classes, got 'Car'"),
        ({"eval_classes": ["Truck"]}, r"unknown class 'Truck' in eval_classes.*known: Car, Pedestrian, Cyclist"),
        ({"image_size": (375, 1242)}, r"image_size must be a height and a width that are multiples of 32, got \[375"),
        ({"split": "vall"}, r"KITTI has no split 'vall', did you mean 'val'"),
        ({"ids": ["000099"]}, "frame '000099' in ids is not in the split trainval"),
        ({"ids": [8]}, r"ids must be a list of texts such as \['000010'\] \(in quotes\), got \[8\]"),
        ({"augment": {"flip": 1}}, "unknown config key augment.flip"),
    ],
)
def test_mistakes_in_the_config(world: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_world(world, **changes)


def test_a_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"training/image_2 does not exist; set dataset_root .* synthetic-kitti"
    ):
        KittiDataset(str(tmp_path), "train")
    root = tmp_path / "synthetic-kitti"
    with pytest.raises(FileNotFoundError, match=rf"synthetic one: .*create_data\.py synthetic-kitti --out-dir {root}$"):
        KittiDataset(str(root), "train")


@pytest.mark.parametrize("name", ["kitti/default.yaml", "kitti/synthetic/default.yaml"])
def test_configs_build(name: str, world: Path) -> None:
    data = load_config(name, {"dataset_root": str(world), "image_size": [96, 320]}).data
    for key, size, augmented in (("train", 4, True), ("val", 4, False), ("test", 4, False)):
        dataset = build_dataset(data[key], **({} if augmented else {"test_mode": True}))
        assert len(dataset) == size
        assert bool(dataset.augment) == augmented
        assert (dataset[0].depths is None) != augmented


def test_frames_without_their_labels(world: Path) -> None:
    whole = small_world(world)
    some, rest = (small_world(world, part=part) for part in ([0, 0.4], [0.4, 1]))
    assert sorted([*some.tokens, *rest.tokens]) == sorted(whole.tokens) and 0 < len(some) < len(whole)
    sample = small_world(world, labelled=False)[0]
    assert sample.unlabelled and sample.objects is None and sample.depths is not None
    assert not whole[0].unlabelled


def test_frames_without_labels_are_others_and_have_depth_maps(copied: Callable[..., Path]) -> None:
    root = copied()
    train = {"type": "KittiDataset", "dataset_root": str(root), "split": "train", "image_size": [96, 320]}

    def build(**unlabelled: object) -> MixedDataset:
        return build_split({"train": train, "unlabelled": {"share": 0.5, **unlabelled}}, "train")

    with pytest.raises(ValueError, match="unlabelled has 4 of the 4 frames of"):
        build(split="trainval")
    with pytest.raises(ValueError, match="the split test of KITTI has no depth maps, which depth_dir asks for"):
        build(split="test")
    train["depth_dir"] = None
    mixed = build(split="test")  # the same numbers are other frames in the folder testing
    assert set(mixed.unlabelled.tokens) & set(mixed.labelled.tokens)


def test_frames_with_names(copied: Callable[..., Path]) -> None:
    root = copied()
    for folder in ("image_2", "label_2", "calib", "depth_dense", "velodyne"):
        for file in (root / "training" / folder).iterdir():
            file.rename(file.with_name(f"n008-2018.a_{file.name}"))
    for split in ("train", "val", "trainval"):
        listed = root / "ImageSets" / f"{split}.txt"
        listed.write_text("".join(f"n008-2018.a_{frame}\n" for frame in listed.read_text().split()))
    assert any(line.startswith("learnt: ") for line in check_tree(root))
    dataset = small_world(root, "val", test_mode=True)
    assert dataset[0].token == dataset.tokens[0] and dataset.tokens[0].startswith("n008-2018.a_00000")
    truth = [dataset.ground_truth(k) for k in range(len(dataset))]
    dataset.evaluate(truth, root / "out")
    assert {file.stem for file in (root / "out" / "data").iterdir()} == set(dataset.tokens)


# -- before a training ----------------------------------------------------------------------------------------------


def relabelled(copied: Callable[..., Path], *rows: dict) -> Path:
    root = copied()
    for file in (root / "training" / "label_2").iterdir():
        write_labels(file, frame(*rows))
    return root


def test_nothing_to_learn_or_to_score_is_said_at_once(copied: Callable[..., Path], world: Path) -> None:
    check_data(small_world(world), ("camera",), "data.train")
    check_data(small_world(world, test_mode=True), ("camera",), "data.val", scored=True)
    root = relabelled(copied, row(**high(5)), row("Van", **high(50)), dont_care([0, 0, 9, 9]))
    with pytest.raises(
        ValueError, match=r"data\.train: there is no object of Pedestrian, Car, Cyclist to learn in .*"
    ) as e:
        check_data(small_world(root), ("camera",), "data.train")
    message = "0 of 16 annotated objects in 8 frames; left out: 8 Van of no class here, 8 Car less than 25 pixels high"
    assert str(e.value).endswith(message)
    check_data(small_world(root, test_mode=True), ("camera",), "data.val", scored=True)  # too small, but labelled
    for file in (root / "training" / "label_2").iterdir():
        file.write_text("")
    for arguments, text in (
        ({}, "to learn in .*: 8 annotated frames without an object"),
        ({"test_mode": True}, "to score"),
    ):
        with pytest.raises(ValueError, match=text):
            check_data(small_world(root, **arguments), ("camera",), "data.x", scored=bool(arguments))
    check_data(small_world(root, labelled=False), ("camera",), "data.unlabelled")
    with pytest.raises(ValueError, match="the split test of KITTI has no labels"):
        check_data(small_world(root, "test", test_mode=True), ("camera",), "data.val", scored=True)


def test_images_of_another_size_than_their_labels(copied: Callable[..., Path]) -> None:
    root = copied()
    for file in (root / "training" / "image_2").iterdir():
        image = Image.open(file).convert("RGB")
        image.resize((image.width // 2, image.height // 2)).save(file)
    with pytest.raises(ValueError, match=r"has 160 x 48 pixels, but .* belong to another size: take the original"):
        check_data(small_world(root), ("camera",), "data.train")


def test_what_pictures_show_is_counted(world: Path) -> None:
    dataset = small_world(world, classes=("Car",), test_mode=True)
    tally = dataset.annotations(range(len(dataset)))
    assert tally.counting.total() == sum(len(dataset.ground_truth(k)) for k in range(len(dataset)))
    assert tally.left_out["Pedestrian of no class here"] > 0


# -- data that is like KITTI ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("augment", [STILL, MIRROR], ids=["still", "mirrored"])
def test_one_camera_without_a_lidar(copied: Callable[..., Path], augment: dict) -> None:
    root = copied("training/velodyne")
    whole = small_world(root, augment=augment)[0]
    for path in (root / "training" / "calib").glob("*.txt"):
        path.write_text(next(line for line in path.read_text().splitlines() if line.startswith("P2:")))
    dataset = small_world(root, augment=augment)
    sample = dataset[0]
    assert torch.equal(sample.calibration.intrinsics, whole.calibration.intrinsics)
    assert torch.equal(sample.objects.centers, whole.objects.centers)
    assert not dataset.scene(sample).clouds


def test_jpeg_images(copied: Callable[..., Path]) -> None:
    root = copied()
    for path in (root / "training" / "image_2").glob("*.png"):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"), quality=95)
        path.unlink()
    sample = small_world(root, augment=STILL)[0]
    assert sample.images.shape == (1, 3, 96, 320)
    assert sample.meta["image_paths"] == ["training/image_2/000000.jpg"]


def test_own_classes_count_as_those_of_kitti(copied: Callable[..., Path], tmp_path: Path) -> None:
    root = copied()
    before = [small_world(root, classes=CLASSES, augment=STILL)[k].objects.labels.tolist() for k in range(8)]
    for path in (root / "training" / "label_2").glob("*.txt"):
        path.write_text(path.read_text().replace("Car ", "Sedan "))
    with pytest.raises(ValueError, match=r"unknown class 'Sedan'.*by class_map: \{Sedan: ...\}"):
        [small_world(root)[k] for k in range(8)]
    mapped = small_world(root, classes=CLASSES, augment=STILL, class_map={"Sedan": "Car"})
    assert [mapped[k].objects.labels.tolist() for k in range(8)] == before
    assert sum(labels.count(0) for labels in before) > 0
    metrics = mapped.evaluate([mapped.ground_truth(k) for k in range(len(mapped))], tmp_path / "out")
    assert metrics["Car/3d/R40/moderate"] > 0
    with pytest.raises(ValueError, match="class_map maps 'Sedan' to 'Cra', did you mean 'Car'"):
        small_world(root, class_map={"Sedan": "Cra"})[0]
