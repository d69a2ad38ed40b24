"""What the README tells a user to type is typed here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from mmdet3d import load_config, plugins
from mmdet3d.commands import train
from mmdet3d.engine.command import read_overrides
from mmdet3d.registry import MODELS

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent


def blocks(language: str, heading: str | None = None, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text()
    if heading is not None:
        text = re.split(r"(?m)^## ", text.split(f"## {heading}\n")[1])[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(heading: str | None = None, document: str = "README.md") -> list[str]:
    lines = [line for block in blocks("bash", heading, document) for line in block.splitlines()]
    return [c for c in (line.split("#")[0].strip() for line in lines) if c]


def test_every_command_is_covered_here_or_elsewhere() -> None:
    elsewhere = (
        r"make demo|python tools/(run_recipe|audit_distillation)\.py",  # tests/test_demo.py
        r"make setup|export PATH|docker build|docker/run\.sh",  # tests/install/test_docker.py
        r"python tools/doctor\.py",  # tests/install/test_docker.py
        r"python tools/create_data\.py nuscenes --root-path \./data/nuscenes",  # tests/nuscenes, on real files
        r"torchpack dist-run",  # below, and tests/launch
        r"distill3d train",  # below, and tests/install/test_package.py
        r"python tools/create_data\.py kitti",  # tests/kitti/test_create.py
        r"python tools/train_val\.py",  # below, and tests/kitti/test_train_val.py
    )
    here = set(commands("Synthetic data"))
    left = [c for c in commands() if c not in here and not any(re.match(p, c) for p in elsewhere)]
    assert left == []


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in [*commands(), *commands("From zero to a table", "docs/training.md")]
        if re.match("torchpack dist-run|python tools/train_val", c)
    ],
)
def test_published_commands_name_configs_that_resolve(command: str) -> None:
    words = shlex.split(command)
    place = next(i for i, w in enumerate(words) if w.endswith(".yaml"))
    pairs = zip(words[place + 1 :: 2], words[place + 2 :: 2], strict=False)
    overrides = [w for key, value in pairs if key.startswith("--model.") for w in (key, value)]
    model = load_config(ROOT / words[place], overrides).model
    assert model.type in ("BEVFusion", "Distiller", "LabelEncoderDetector", "MonoDetector")
    tool = next(w for w in words if w.startswith("tools/"))
    assert (ROOT / tool).is_file()


def test_python_blocks_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    _, model = blocks("python")
    exec(compile(model, "README.md", "exec"), {})
    assert "encoders.radar" in capsys.readouterr().out


def test_the_loss_of_the_readme_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of the user's own, as the command below it names it."""
    MODELS.names()  # filled before it is copied
    monkeypatch.setattr(MODELS, "_classes", dict(MODELS._classes))
    monkeypatch.setattr(plugins, "_imported", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    text = blocks("python")[0]
    (tmp_path / text.split()[1]).write_text(text)
    (command,) = [c for c in commands("Build the next paper on it") if c.startswith("distill3d train")]
    args, rest = train.parse(shlex.split(command)[2:])
    config = load_config(args.config, read_overrides(rest, None, args.imports))
    assert config.imports == ["my_loss"]
    (line,) = blocks("yaml")
    assert yaml.safe_load(line) == {"cosine": config.model.losses["cosine"]}
    loss = MODELS.build({"type": config.model.losses["cosine"]["type"]})
    monkeypatch.delitem(sys.modules, "my_loss")
    student, batch = torch.randn(2, 8, 4, 4, requires_grad=True), SimpleNamespace(device=torch.device("cpu"))
    assert loss(student, 3 * student.detach(), batch) < 1e-6
    loss(student, torch.randn(2, 8, 4, 4), batch).backward()
    assert student.grad.abs().sum() > 0


@pytest.mark.slow
def test_synthetic_data_section_from_top_to_bottom(tmp_path: Path) -> None:
    for name in ("mmdet3d", "configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    outputs = []
    for command in commands("Synthetic data"):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        outputs.append(done.stdout)
    assert len(list((tmp_path / "runs" / "pictures").glob("*.png"))) == 2
    assert "mAP" in outputs[-1] and (tmp_path / "runs" / "student-metrics" / "metrics_summary.json").is_file()
