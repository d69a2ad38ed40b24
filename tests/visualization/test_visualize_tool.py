"""tools/visualize.py on a small data set: files written, modes, and mistakes explained."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import frames
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from test_heat import Mapped

from mmdet3d.datasets import FrameDataset
from mmdet3d.datasets.nuscenes import write_infos
from mmdet3d.engine import pictures as engine
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.structures import Batch, Detections3D, by_sensor
from mmdet3d.visualization import PALETTE
from mmdet3d.visualization.layers import TRUTH

TOOL = Path(__file__).resolve().parents[2] / "tools" / "visualize.py"


@pytest.fixture
def tool() -> ModuleType:
    return importlib.import_module("mmdet3d.commands.visualize")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A data set of two small frames and its config."""
    record = frames.small_frame(tmp_path)
    write_infos([record], {"version": "v1.0-mini"}, tmp_path / "infos.pkl")
    train, test = frames.published_pipelines()
    block = {"type": "NuScenesDataset", "dataset_root": str(tmp_path), "ann_file": "infos.pkl"}
    content = {
        "point_cloud_range": frames.RANGE,
        "model": {"type": "Absent"},
        "data": {
            "val": block | {"pipeline": test, "test_mode": True},
            "train": {"type": "CBGSDataset", "dataset": block | {"pipeline": train}},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class Oracle(Trainable):
    """Detects the ground truth, the second object with a low score."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def loss(self, batch: Batch) -> dict:
        return {}

    def predict(self, batch: Batch) -> list[Detections3D]:
        return [
            Detections3D(boxes, torch.tensor([0.9, 0.05])[: len(boxes)], labels)
            for boxes, labels in zip(batch.boxes, batch.labels, strict=True)
        ]


def pictures(tool: ModuleType, config: Path, *words: str) -> list[Path]:
    out = config.parent / "pictures"
    tool.main([str(config), "--out-dir", str(out), *words])
    return sorted(out.glob("*.png"))


def test_command_line_draws_ground_truth(config: Path) -> None:
    out = config.parent / "pictures"
    command = [sys.executable, str(TOOL), str(config), "--mode", "gt", "--out-dir", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in out.iterdir()] == ["1000000-small.png"] and "1 picture: " in done.stdout
    assert Image.open(out / "1000000-small.png").width <= 1920
    assert "ground truth: 2 of 3 annotated objects in 1 frame; left out: 1 animal of no class here" in done.stdout


@pytest.mark.parametrize("mode", ["pred", "both"])
def test_detections(tool: ModuleType, config: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "load_model", lambda cfg, checkpoint: Oracle())
    drawn = {}
    for score in ("0.1", "0.01"):
        (file,) = pictures(tool, config, "--mode", mode, "--checkpoint", "weights.pth", "--bbox-score", score)
        pixels = np.asarray(Image.open(file).convert("RGB"))
        drawn[score] = {c: int((pixels == np.array(PALETTE[c])).all(-1).sum()) for c in ("car", "pedestrian")}
        truth = (pixels == np.array(TRUTH)).all(-1).sum()
        assert (truth > 0) == (mode == "both")
    assert drawn["0.1"]["car"] > 100 and drawn["0.1"]["pedestrian"] < drawn["0.01"]["pedestrian"]
    # Below the threshold the second object is missed, which is drawn where there is ground truth.
    assert (drawn["0.1"]["pedestrian"] > 0) == (mode == "both")


@pytest.mark.parametrize("inputs", [("camera",), ("camera", "radar"), ("lidar",)])
def test_points_are_those_that_the_model_reads(
    tool: ModuleType, config: Path, inputs: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Oracle, "inputs", inputs)
    monkeypatch.setattr(tool, "load_model", lambda cfg, checkpoint: Oracle())
    given: dict[str, Any] = {}
    monkeypatch.setattr(engine, "draw_frame", lambda *_, **seen: given.update(seen) or Image.new("RGB", (8, 8)))
    pictures(tool, config, "--mode", "both", "--checkpoint", "weights.pth")
    assert {sensor.name for sensor, _ in by_sensor(given["clouds"])} == {"lidar", "radar"} & set(inputs)


def test_training_split_is_drawn_without_resampling(tool: ModuleType, config: Path) -> None:
    assert len(pictures(tool, config, "--split", "train", "--bbox-classes", "0", "--limit", "5")) == 1


def test_mistakes_are_explained(tool: ModuleType, config: Path) -> None:
    with pytest.raises(ValueError, match="--mode both draws detections; give --checkpoint FILE"):
        pictures(tool, config, "--mode", "both")
    with pytest.raises(ValueError, match=r"--bbox-classes 10: no such class.*labels go from 0 to 9"):
        pictures(tool, config, "--bbox-classes", "10")
    with pytest.raises(ValueError, match=r"--bbox-classes pedestrain: no such class, did you mean 'pedestrian'"):
        pictures(tool, config, "--bbox-classes", "car", "pedestrain")


def test_classes_by_name(tool: ModuleType, config: Path) -> None:
    assert tool.label_of("pedestrian", ["car", "pedestrian"]) == tool.label_of("1", ["car", "pedestrian"]) == 1
    assert len(pictures(tool, config, "--bbox-classes", "car", "8")) == 1


def test_the_best_score_is_said_where_nothing_is_drawn(
    tool: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(tool, "load_model", lambda cfg, checkpoint: Oracle())
    words = ["--mode", "pred", "--checkpoint", "weights.pth", "--bbox-classes", "pedestrian"]
    pictures(tool, config, *words)
    assert (
        "no detection reaches --bbox-score 0.1: the best score is 0.05, so give a lower one" in capsys.readouterr().out
    )
    pictures(tool, config, *words, "--bbox-score", "0.02")
    assert "no detection" not in capsys.readouterr().out


def test_models_side_by_side(tool: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "load_model", lambda cfg, checkpoint: Oracle())
    words = [
        "--checkpoint",
        "a.pth",
        "--title",
        "teacher",
        "--also",
        "student",
        str(config),
        "b.pth",
        "--camera",
        "CAM_0",
    ]
    (file,) = pictures(tool, config, *words, "--truth-column", "--width", "900")
    with pytest.raises(ValueError, match=r"--camera CAM_TOP: no such camera \(cameras: CAM_0"):
        pictures(tool, config, *words[:-1], "CAM_TOP")
    picture = np.asarray(Image.open(file))
    assert picture.shape[1] == 900
    blue = [
        (np.abs(picture[:, 300 * i : 300 * i + 290].astype(int) - PALETTE["car"]).sum(-1) < 40).sum() for i in range(3)
    ]
    assert min(blue) > 20  # the car in every column
    with pytest.raises(ValueError, match="--also model: two models have this title"):
        pictures(tool, config, "--checkpoint", "a.pth", "--also", "model", str(config), "b.pth")
    with pytest.raises(ValueError, match="--mode pred draws one model; leave out --also or --mode"):
        pictures(tool, config, "--checkpoint", "a.pth", "--also", "b", str(config), "b.pth", "--mode", "pred")


def test_a_film_of_a_scene(tool: ModuleType, config: Path) -> None:
    film = config.parent / "film.webp"
    tool.main([str(config), "--video", str(film), "--width", "600"])
    assert Image.open(film).width == 600
    with pytest.raises(ValueError, match=r"--scene 1: the val split has scenes 0 to 0"):
        tool.main([str(config), "--video", str(film), "--scene", "1"])
    with pytest.raises(ValueError, match=r"film.avi must end in one of"):
        tool.main([str(config), "--video", "film.avi"])


def test_scenes_in_the_order_of_time() -> None:
    class Frames(FrameDataset):
        def __init__(self) -> None:
            self.tokens = ["a2", "b1", "a1", "b2"]

        def __len__(self) -> int:
            return 4

        def frame(self, index: int) -> SimpleNamespace:
            scene, time = self.tokens[index]
            return SimpleNamespace(scene_token=scene, timestamp=int(time))

    assert Frames().scenes() == [[2, 0], [1, 3]]


def test_where_models_differ(tool: ModuleType, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = iter([Mapped(), Mapped(), Mapped()])
    monkeypatch.setattr(tool, "load_model", lambda cfg, checkpoint: next(models))
    words = ["--checkpoint", "a.pth", "--also", "student", str(config), "b.pth"]
    (file,) = pictures(tool, config, *words, "--tap", "fuser:heads.object")
    assert Image.open(file).width == 1920
    with pytest.raises(ValueError, match="--tap and --loss look into a model; give --checkpoint FILE"):
        pictures(tool, config, "--tap", "fuser")
    with pytest.raises(ValueError, match=r"--loss: .*describes no distillation"):
        pictures(tool, config, "--checkpoint", "a.pth", "--loss", "response")
