"""A run's folder alone, wherever it lies, says what was trained; it is trained again to the same weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from safetensors.torch import load_file, save_file

from mmdet3d import __version__
from mmdet3d.commands import reproduce
from mmdet3d.config import load_config
from mmdet3d.engine import run_record
from mmdet3d.engine.jobs import train
from mmdet3d.io.files import file_digest
from mmdet3d.registry import DATASETS, MODELS


@DATASETS.register
class FiledToyDataset(EngineToyDataset):
    def __init__(self, dataset_root: str, ann_file: str, **keys: Any) -> None:
        super().__init__(size=int((Path(dataset_root) / ann_file).read_text()), **keys)


@MODELS.register
class StartedToy(EngineToyModel):
    """Starts from the weights of its part, as a distillation from a student."""

    def __init__(self, part: dict[str, Any]) -> None:
        super().__init__(part["model"]["width"])
        self._start = part["checkpoint"]

    def init_weights(self) -> None:
        self.load_state_dict(load_file(self._start))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The moved folder of a finished run whose YAML files are gone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for split in ("train", "val"):
        (tmp_path / "data" / f"{split}.txt").write_text("6")
    torch.manual_seed(0)
    save_file(EngineToyModel(4).state_dict(), "start.safetensors")
    (tmp_path / "part.yaml").write_text("model: {type: EngineToyModel, width: 4}\n")
    part = {"config": "part.yaml", "checkpoint": "start.safetensors"}
    data = {s: {"type": "FiledToyDataset", "dataset_root": "data", "ann_file": f"{s}.txt"} for s in ("train", "val")}
    data["train"]["augment"] = True
    content = toy_config(dataset_root="data", model={"type": "StartedToy", "part": part})
    content["data"] |= data
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(content))
    folder = train("toy.yaml", load_config("toy.yaml"), "first")
    (tmp_path / "part.yaml").unlink()
    (tmp_path / "toy.yaml").unlink()
    return folder.rename(tmp_path / "elsewhere")


def change(run: Path, **keys: Any) -> None:
    file = run / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))


def test_the_folder_says_what_was_trained(run: Path) -> None:
    record = run_record.read_record(run)
    assert record["version"] == __version__ and record["packages"]["torch"] == torch.__version__
    assert record["seed"] == 3 and record["processes"] == 1 and record["command"][1:]
    assert (record["dirty"] is None) == (record["revision"] is None)
    files = {key: file["sha256"] for key, file in record["files"].items()}
    assert files == {
        "model.part.checkpoint": file_digest("start.safetensors"),
        "data.train.ann_file": file_digest("data/train.txt"),
        "data.val.ann_file": file_digest("data/val.txt"),
    }


def test_trained_again_it_has_the_same_weights(run: Path) -> None:
    reproduce.main([str(run), "--run-dir", "again", "--data.workers_per_gpu", "0"])
    first, again = (load_file(folder / "epoch_2.safetensors") for folder in (run, Path("again")))
    assert first.keys() == again.keys() and all(torch.equal(first[k], again[k]) for k in first)
    said = [line for line in next(Path("again").glob("*.log")).read_text().splitlines() if "differs from" in line]
    assert all(": dirty: " in line for line in said)


def test_files_may_lie_elsewhere(run: Path) -> None:
    Path("data").rename("moved")
    Path("start.safetensors").rename("moved.safetensors")
    with pytest.raises(ValueError, match=r"again here:\n- model\.part\.checkpoint: start.* does not exist") as caught:
        reproduce.main([str(run), "--run-dir", "again"])
    assert all(f"pass --{key}" in str(caught.value) for key in ("model.part.checkpoint FILE", "dataset_root FOLDER"))
    assert not Path("again").exists()
    places = ["--dataset_root", "moved", "--model.part.checkpoint", "moved.safetensors"]
    reproduce.main([str(run), "--run-dir", "again", *places])
    first, again = (load_file(folder / "epoch_2.safetensors") for folder in (run, Path("again")))
    assert all(torch.equal(first[k], again[k]) for k in first)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("data/train.txt", r"data\.train\.ann_file: data/train\.txt is another file .*pass --dataset_root FOLDER"),
        ("start.safetensors", r"model\.part\.checkpoint: start\.safetensors is another file"),
    ],
)
def test_other_files_are_another_training(run: Path, path: str, message: str) -> None:
    Path(path).write_bytes(b"7")
    with pytest.raises(ValueError, match=message):
        reproduce.main([str(run)])


def test_what_may_differ_is_said_and_what_may_not_is_refused(run: Path) -> None:
    Path("data/val.txt").write_text("5")
    change(run, version="0.0.1", packages={"torch": "1.0", "gone-package": "2"})
    reproduce.main([str(run), "--run-dir", "again"])
    log = next(Path("again").glob("*.log")).read_text()
    for sentence in (
        f"version: 0.0.1 then, {__version__} here",
        f"package torch: 1.0 then, {torch.__version__} here",
        "package gone-package: 2 then, missing here",
        "data.val.ann_file: data/val.txt is another file",
    ):
        assert sentence in log
    change(run, processes=8)
    with pytest.raises(ValueError, match=r"8 processes, here are 1: .*torchrun --nproc-per-node 8 -m distill3d reprod"):
        reproduce.main([str(run)])
    change(run, processes=1)
    with pytest.raises(ValueError, match=r"not be the training of .* again \(optimizer\.lr: 0\.01, now 0\.1\)"):
        reproduce.main([str(run), "--optimizer.lr", "0.1"])
    (run / "run.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        reproduce.main([str(run)])


def test_a_resumed_run_lists_when_it_went_on(run: Path) -> None:
    config = load_config(run / "configs.yaml", {"resume_from": "auto", "max_epochs": 3})
    train(run / "configs.yaml", config, run)
    record = run_record.read_record(run)
    assert len(record["resumed"]) == 1 and record["resumed"][0]["processes"] == 1
