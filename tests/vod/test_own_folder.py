"""The guide to own data, as it is written: its folder, its module, its config, its commands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from mmdet3d.commands import test as test_command
from mmdet3d.commands import train, visualize
from mmdet3d.config import load_config
from mmdet3d.datasets import build_split
from mmdet3d.datasets.nuscenes.infos import read_infos
from mmdet3d.registry import DATASETS

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "own_data.md"
COMMANDS = {"visualize": visualize.main, "train": train.main, "test": test_command.main}


def block(language: str) -> str:
    (found,) = re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    return found


def plain_folder(world: Path, out: Path) -> None:
    """What the guide begins with, out of the files of a world."""
    names = {"Car": "car", "Pedestrian": "pedestrian", "Cyclist": "cyclist"}
    for folder in ("images", "points", "labels"):
        (out / folder).mkdir(parents=True)
    for split in ("train", "val"):
        records, _ = read_infos(world / f"vod_infos_{split}.pkl")
        (out / f"{split}.txt").write_text("".join(f"{r.token}\n" for r in records))
        for record in records:
            camera = record.cameras["CAMERA"]
            shutil.copy(world / camera.path, out / "images" / f"{record.token}.jpg")
            shutil.copy(world / record.lidar.path, out / "points" / f"{record.token}.bin")
            pairs = zip(record.boxes, record.names.tolist(), strict=True)
            labels = [{"class": names.get(name, name), "box": box[:7].tolist()} for box, name in pairs]
            (out / "labels" / f"{record.token}.json").write_text(json.dumps(labels))
    rig = {"intrinsics": camera.intrinsics, "camera2lidar": camera.sensor2lidar, "image_size": np.array(camera.size)}
    (out / "calibration.json").write_text(json.dumps({key: value.tolist() for key, value in rig.items()}))


@pytest.mark.slow
def test_the_guide_from_a_plain_folder_to_scores(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_folder(world, tmp_path / "recordings")
    (tmp_path / "own_frames.py").write_text(block("python"))
    (tmp_path / "own.yaml").write_text(block("yaml"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(DATASETS, "_classes", {name: DATASETS.get(name) for name in DATASETS.names()})
    lines = block("bash").splitlines()
    assert [shlex.split(line)[:2] for line in lines] == [["distill3d", name] for name in COMMANDS]
    for line in lines:
        _, name, *words = shlex.split(line)
        shorter = ["--max_epochs", "1", "--data.workers_per_gpu", "0"] if name == "train" else []
        assert not COMMANDS[name]([*words, *shorter])
    assert len(list(Path("pictures").iterdir())) >= 2
    metrics = json.loads(Path("runs/own-test/metrics.json").read_text())["metrics"]
    assert set(metrics) == {"recall", "precision"} and Path("runs/own-test/detections.json").is_file()
    dataset = build_split(load_config("own.yaml").data, "val", seed=0)
    truth = [dataset.ground_truth(k) for k in range(len(dataset))]
    assert dataset.evaluate(truth, tmp_path) == {"recall": 1.0, "precision": 1.0}
    sys.modules.pop("own_frames")
