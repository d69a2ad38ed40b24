"""Which folder a training may write into, and what it resumes there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mmdet3d.config import Config
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.run_dir import open_run_dir


def hold_run(folder: Path, epochs: int) -> Path:
    folder.mkdir()
    for epoch in range(1, epochs + 1):
        RunCheckpoints(folder).save(f"epoch_{epoch}", {"w": torch.zeros(1)}, {}, {"iteration": epoch})
    (folder / "configs.yaml").write_text("what was trained\n")
    return folder


def test_a_folder_with_a_run_goes_on_from_its_latest_checkpoint_only(tmp_path: Path) -> None:
    run, other = hold_run(tmp_path / "run", 2), hold_run(tmp_path / "other", 3)
    refused = [(run, run / "epoch_1.safetensors"), (None, run / "epoch_1.safetensors")]
    refused += [(run, other / "latest.safetensors"), (other, run / "epoch_2.safetensors")]
    for folder, source in refused:
        message = r"already holds a run up to epoch_[23]\.safetensors.* or another --run-dir"
        with pytest.raises(ValueError, match=message):
            open_run_dir(folder, "x.yaml", Config(resume_from=str(source)))
    assert (run / "configs.yaml").read_text() == (other / "configs.yaml").read_text() == "what was trained\n"


@pytest.mark.parametrize("name", ["auto", "epoch_2.safetensors", "latest.safetensors"])
def test_the_latest_checkpoint_by_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hold_run(tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path)
    config = Config(resume_from=name if name == "auto" else f"run/{name}")
    assert open_run_dir(run, "x.yaml", config) == run
    assert Path(config.resume_from).resolve() == run / "epoch_2.safetensors"


def test_an_earlier_checkpoint_goes_on_in_another_folder(tmp_path: Path) -> None:
    source = str(hold_run(tmp_path / "run", 2) / "epoch_1.safetensors")
    config = Config(resume_from=source)
    assert open_run_dir(tmp_path / "new", "x.yaml", config) == tmp_path / "new"
    assert config.resume_from == source
