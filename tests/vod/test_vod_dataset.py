"""The View-of-Delft data set on its synthetic world: samples, scores of the ground truth, training and testing."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmdet3d.commands import evaluate
from mmdet3d.config import load_config
from mmdet3d.datasets import VodDataset, benchmark_of, build_split, check_data
from mmdet3d.datasets.vod.labels import evaluate_folder, read_truth
from mmdet3d.evaluation import vod
from mmdet3d.models import build_model
from mmdet3d.structures import Batch, Boxes3D, Detections3D

REPOSITORY = Path(__file__).resolve().parents[2]
LOADERS = [
    {"type": "LoadMultiViewImageFromFiles"},
    {"type": "LoadPointsFromFile", "load_dim": 4, "use_dim": 4},
    {"type": "LoadRadarPoints4D"},
    {"type": "LoadAnnotations3D"},
]
SMALLER = {"augment2d.resize": [[0.32, 0.36], [0.332, 0.332]], "data.workers_per_gpu": 0, "data.cache": "none"}


@pytest.fixture(scope="module")
def dataset(world: Path) -> VodDataset:
    return VodDataset("vod_infos_val.pkl", str(world), LOADERS, test_mode=True)


def test_a_sample(dataset: VodDataset) -> None:
    sample = dataset[0]
    assert sample.points.shape[1] == 4 and len(sample.points) > 5000 and sample.points[:, 3].max() > 1
    assert sample.radar.shape[1] == 9 and len(sample.radar) > 100
    assert len(sample.images) == 1 and len(sample.boxes) == len(sample.labels) > 0
    ground = sample.points[(sample.points[:, 0] > 5) & (sample.points[:, 2] < -1.5)]
    assert ground[:, 2].median().item() == pytest.approx(-1.9, abs=0.1)  # the LiDAR's height above the road
    inside = sample.boxes.contains(sample.points[:, :3]).any(dim=1)
    assert inside.float().mean() > 0.5


def test_radar_sees_objects_and_still_ones_stand(dataset: VodDataset) -> None:
    """Returns of one scan near objects, and over ground most of them stand although the car moves."""
    still = near = total = 0
    for sample in dataset:
        newest = sample.radar[sample.radar[:, 6] == 0]
        grown = sample.boxes.tensor.clone()
        grown[:, 3:6] += 1.0
        near += int(Boxes3D(grown).contains(newest[:, :3]).any(0).sum())
        total += len(newest)
        still += int((newest[:, 8].abs() < 0.5).sum())
        assert newest[:, 4:6].norm(dim=1).max() <= newest[:, 8].abs().max() + 1e-4
        assert set((sample.radar[:, 6] * 13).round().int().tolist()) == {0, 1, 2, 3, 4}
    assert near > 0.05 * total and still > 0.5 * total


def test_relative_velocity_is_that_over_ground_minus_the_sensors(world: Path) -> None:
    """v_compensated = v_r + u . v_sensor: one velocity of the sensor explains all returns of a scan."""
    moving = []
    for token in ("00000", "00010", "00020", "00030"):
        rows = np.fromfile(world / "radar/training/velodyne" / f"{token}.bin", dtype="<f4").reshape(-1, 7)
        ray = rows[:, :3] / np.linalg.norm(rows[:, :3], axis=1, keepdims=True)
        own, *_ = np.linalg.lstsq(ray, rows[:, 5] - rows[:, 4], rcond=None)
        assert ray @ own == pytest.approx(rows[:, 5] - rows[:, 4], abs=0.01)
        moving.append(own[0])
    assert max(moving) > 2  # forward


def test_points_out_of_the_image_go(world: Path) -> None:
    steps = [*LOADERS[:3], {"type": "PointsInView"}]
    sample = VodDataset("vod_infos_val.pkl", str(world), steps, test_mode=True)[0]
    whole = VodDataset("vod_infos_val.pkl", str(world), LOADERS[:3], test_mode=True)[0]
    assert 100 < len(sample.points) < 0.4 * len(whole.points) and 0 < len(sample.radar) < len(whole.radar)
    bearing = torch.atan2(sample.points[:, 1], sample.points[:, 0] - 0.96).rad2deg().abs()
    assert bearing.max() < 35 and (sample.points[:, 0] > 0.9).all()
    with pytest.raises(ValueError, match="put LoadMultiViewImageFromFiles before it"):
        VodDataset("vod_infos_val.pkl", str(world), LOADERS[1:3] + steps[3:], test_mode=True)[0]


def test_the_ground_truth_scores_as_high_as_so_few_objects_can(
    dataset: VodDataset, world: Path, tmp_path: Path
) -> None:
    metrics = dataset.evaluate([dataset.ground_truth(k) for k in range(len(dataset))], tmp_path)
    labels = world / "lidar/training/label_2"
    copies = evaluate_folder(labels, labels, dataset.tokens)
    assert metrics == pytest.approx(copies)
    assert metrics["entire_area/Car/objects"] > 0 and metrics["entire_area/mAP"] > 0
    assert set(metrics) == set(benchmark_of({"type": "VodDataset"}).metrics)
    words = ["vod", str(tmp_path / "detections"), "--dataroot", str(world), "--out", str(tmp_path / "scores")]
    assert evaluate.main(words) == 0
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text()) == metrics
    shifted = [dataset.ground_truth(k) for k in range(len(dataset))]
    shifted = [Detections3D(Boxes3D(d.boxes.tensor + torch.eye(9)[0] * 8), d.scores, d.labels) for d in shifted]
    assert dataset.evaluate(shifted, tmp_path)["entire_area/mAP"] < 0.5 * metrics["entire_area/mAP"]


def test_the_documented_command_scores_what_testing_left(
    dataset: VodDataset, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    guide = (REPOSITORY / "docs" / "radar_data.md").read_text()
    lines = re.findall(r"python tools/evaluate\.py (vod [^`\n]+)", guide)
    assert len(lines) == 2
    (tmp_path / "data").mkdir()
    for name in ("view_of_delft", "synthetic-vod"):
        (tmp_path / "data" / name).symlink_to(world)
    monkeypatch.chdir(tmp_path)
    dataset.format([dataset.ground_truth(k) for k in range(len(dataset))], "runs/vod-test")
    Path("runs/vod-test/metrics.json").write_text("{}")
    for line in lines:
        assert evaluate.main(shlex.split(line)) == 0
        assert "4 frames scored, metrics written to runs/vod-scores/metrics.json" in capsys.readouterr().out
    assert Path("runs/vod-test/metrics.json").read_text() == "{}"


def test_classes_of_which_there_is_none_have_a_dash() -> None:
    """They count 0 in the mean, as in the authors' evaluator."""
    metrics = dict.fromkeys(vod.benchmark().metrics, 0.0)
    metrics |= {"roi/Car/3d": 90.0, "roi/Car/objects": 50.0, "roi/mAP": 30.0}
    table = vod.format_metrics(metrics).splitlines()
    car = next(line.split() for line in table if line.startswith("Car"))
    assert car == ["Car", "-", "-", "-", "0", "90.00", "0.00", "0.00", "50"]
    assert next(line.split() for line in table if line.startswith("mAP")) == ["mAP", "0.00", "30.00"]
    assert any(line.startswith("- nothing to find: counts 0 in the mean") for line in table)


def test_the_format_of_results(dataset: VodDataset, tmp_path: Path) -> None:
    """A file per frame, an empty one too; what the image does not show is left out."""
    behind = Boxes3D(torch.tensor([[-10.0, 0, -1, 4, 2, 1.5, 0, 0, 0]]))
    nothing = Detections3D(Boxes3D.empty(), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    found = [Detections3D(behind, torch.ones(1), torch.zeros(1, dtype=torch.int64)), *[nothing] * (len(dataset) - 1)]
    folder = dataset.format(found, tmp_path)
    assert sorted(p.stem for p in folder.iterdir()) == dataset.tokens
    assert all(p.read_text() == "" for p in folder.iterdir())
    with pytest.raises(ValueError, match="1 results for 4 samples"):
        dataset.format([nothing], tmp_path)
    bad = Detections3D(Boxes3D(torch.full((1, 9), float("nan"))), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="not finite"):
        dataset.format([bad] * len(dataset), tmp_path)


def test_what_a_config_may_get_wrong(world: Path) -> None:
    with pytest.raises(ValueError, match="unknown class 'car' in object_classes, did you mean 'Car'"):
        VodDataset("vod_infos_val.pkl", str(world), object_classes=["car"])
    with pytest.raises(FileNotFoundError, match=r"own_infos_val.pkl does not exist.*vod --root-path"):
        VodDataset("own_infos_val.pkl", str(world))
    make = r"make the synthetic world, .*synthetic-vod --out-dir data/synthetic-vod, and then .* vod --root-path"
    with pytest.raises(FileNotFoundError, match=make):
        VodDataset("vod_infos_val.pkl", "data/synthetic-vod")


def test_pictures_look_ahead(dataset: VodDataset) -> None:
    """x ahead becomes y ahead, and the boxes stay on their points."""
    sample = dataset[0]
    scene = dataset.scene(sample)
    assert isinstance(scene.images[0], Image.Image)
    points = scene.clouds["points"]
    assert points[:, 1] == pytest.approx(sample.points[:, 0]) and scene.boxes.contains(points[:, :3]).any()
    assert scene.from_detections @ torch.tensor([1.0, 0, 0, 1]) == pytest.approx([0, 1, 0, 1])


# -- models -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["camera+radar", "camera+lidar"])
def test_a_training_step_on_the_synthetic_world(name: str, world: Path) -> None:
    cfg = load_config(f"vod/synthetic/{name}.yaml", {"dataset_root": f"{world}/", **SMALLER})
    train = build_split(cfg.data, "train", seed=0)
    torch.manual_seed(0)
    model = build_model(cfg.model)
    check_data(train, set(model.inputs), "data.train")
    batch = Batch.collate([train[0], train[2]])
    terms = model.train().loss(batch)
    total = sum(v for k, v in terms.items() if k.startswith("loss/"))
    total.backward()
    assert total.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    # Nobody labels velocities: the branch learns nothing.
    for task in model.heads["object"].task_heads:
        for key, parameter in task.named_parameters():
            if key.startswith("vel."):
                assert not parameter.grad.any()


@pytest.mark.slow
def test_teacher_student_and_distillation_train_and_are_scored(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    tools = {t: runpy.run_path(str(REPOSITORY / "tools" / f"{t}.py"))["main"] for t in ("train", "test")}
    words = ["--dataset_root", f"{world}/", "--max_epochs", "1"]
    words += [word for key, value in SMALLER.items() for word in (f"--{key}", str(value))]
    runs = {name: tmp_path / name for name in ("camera+lidar", "camera+radar", "crkd")}
    checkpoints = {
        "--model.teacher.checkpoint": runs["camera+lidar"] / "latest.safetensors",
        "--model.student.checkpoint": runs["camera+radar"] / "latest.safetensors",
    }
    for name, run in runs.items():
        more = [str(w) for pair in checkpoints.items() for w in pair] if name == "crkd" else []
        assert not tools["train"]([f"vod/synthetic/{name}.yaml", "--run-dir", str(run), *words, *more])
    metrics = [json.loads(line) for line in (runs["crkd"] / "metrics.jsonl").read_text().splitlines()]
    assert any("entire_area/mAP" in str(line) for line in metrics)
    out = tmp_path / "test"
    words = ["vod/synthetic/camera+radar.yaml", str(checkpoints["--model.student.checkpoint"]), "--eval", "bbox"]
    words += ["--run-dir", str(out), "--dataset_root", f"{world}/"]
    words += [word for key, value in SMALLER.items() for word in (f"--{key}", str(value))]
    assert not tools["test"](words)
    assert "roi/mAP" in json.loads((out / "metrics.json").read_text())["metrics"]
    assert read_truth(out / "detections" / "00020.txt") is not None
