"""What the README, and the pages that it leads to first, tell a user to type is typed here."""

from __future__ import annotations

import importlib.util
import json
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
from mmdet3d.commands import curves, evaluate, run_recipe, train, view, visualize
from mmdet3d.datasets.synthetic.worlds import make_scene
from mmdet3d.engine.command import read_overrides
from mmdet3d.engine.pictures import detect
from mmdet3d.engine.shipped import load_shipped
from mmdet3d.registry import MODELS
from mmdet3d.zoo import read_card, weight_path

ROOT = Path(__file__).resolve().parents[1]
START, EXTENDING, SEEING = "docs/get_started.md", "docs/extending.md", "docs/seeing.md"
ZOO, SEGMENTATION = "docs/model_zoo.md", "docs/segmentation.md"
SYSTEMS = tuple(f"docs/systems/{file.name}" for file in sorted((ROOT / "docs" / "systems").glob("*.md")))
METHODS = "docs/methods.md"
FIRST = ("README.md", START, EXTENDING, SEEING, ZOO, METHODS, SEGMENTATION, *SYSTEMS)  # all their commands are typed
BIN = Path(sys.executable).parent


def blocks(language: str, heading: str | None = None, document: str = "README.md") -> list[str]:
    text = (ROOT / document).read_text()
    if heading is not None:
        text = re.split(r"(?m)^## ", text.split(f"## {heading}\n")[1])[0]
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(heading: str | None = None, document: str = "README.md") -> list[str]:
    lines = [line for block in blocks("bash", heading, document) for line in block.splitlines()]
    return [c for c in (line.split("#")[0].strip() for line in lines) if c]


@pytest.mark.parametrize("document", FIRST)
def test_every_command_is_covered_here_or_elsewhere(document: str) -> None:
    elsewhere = (
        r"make demo|python tools/(run_recipe|audit_distillation|curves)\.py",  # tests/test_demo.py
        r"python tools/demo\.py --film",  # tests/engine/test_shipped.py
        r"make setup|export PATH|docker build|docker/run\.sh",  # tests/install/test_docker.py
        r"python tools/doctor\.py",  # tests/install/test_docker.py
        r"python tools/create_data\.py nuscenes --root-path \./data/nuscenes",  # tests/nuscenes, on real files
        r"torchpack dist-run",  # below, and tests/launch
        r"distill3d train",  # below, and tests/install/test_package.py
        r"python tools/create_data\.py kitti",  # tests/kitti/test_create.py
        r"python tools/train_val\.py",  # below, and tests/kitti/test_train_val.py
    )
    here = {*commands("Synthetic data", START)}
    here.update(*(commands(document=page) for page in (SEEING, ZOO, SEGMENTATION)))
    left = [c for c in commands(document=document) if c not in here and not any(re.match(p, c) for p in elsewhere)]
    assert left == []


@pytest.mark.parametrize(
    "command",
    [
        c
        for c in [
            *commands(document=START),
            *commands("From zero to a table", "docs/training.md"),
            *commands(document=METHODS),
        ]
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
    _, model = blocks("python", document=EXTENDING)
    exec(compile(model, EXTENDING, "exec"), {})
    assert "encoders.radar" in capsys.readouterr().out


def test_the_loss_of_the_page_on_extending_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder of the user's own, as the command below it names it."""
    MODELS.names()  # filled before it is copied
    monkeypatch.setattr(MODELS, "_classes", dict(MODELS._classes))
    monkeypatch.setattr(plugins, "_imported", {})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    text = blocks("python", document=EXTENDING)[0]
    (tmp_path / text.split()[1]).write_text(text)
    (command,) = [c for c in commands(document=EXTENDING) if c.startswith("distill3d train")]
    args, rest = train.parse(shlex.split(command)[2:])
    config = load_config(args.config, read_overrides(rest, None, args.imports))
    assert config.imports == ["my_loss"]
    (line,) = blocks("yaml", document=EXTENDING)
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
    for command in commands("Synthetic data", START):
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        outputs.append(done.stdout)
    assert len(list((tmp_path / "runs" / "pictures").glob("*.png"))) == 2
    assert "mAP" in outputs[-1] and (tmp_path / "runs" / "student-metrics" / "metrics_summary.json").is_file()


@pytest.mark.parametrize("command", [c for d in FIRST for c in commands(document=d) if "run_recipe" in c])
def test_recipes_that_are_named_can_be_planned(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe.main([*shlex.split(command)[2:], "--dry-run"])
    assert "steps of training" in capsys.readouterr().out


@pytest.mark.slow
def test_the_model_zoo_from_top_to_bottom(tmp_path: Path) -> None:
    """The commands of docs/model_zoo.md give the numbers of the card that it names."""
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in commands(document=ZOO):
        words = [sys.executable, *shlex.split(command)[1:]]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    found = json.loads((tmp_path / "runs/zoo/metrics.json").read_text())["metrics"]
    expected = read_card("crkd-demo-distilled")["small_world"]["metrics"]
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert len(list((tmp_path / "runs/zoo/pictures").iterdir())) == 1


@pytest.mark.slow
def test_map_segmentation_from_top_to_bottom(tmp_path: Path) -> None:
    """The commands of docs/segmentation.md, but for the recipe."""
    for name in ("configs", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    for command in commands("On the synthetic world", SEGMENTATION):
        words = [sys.executable, *shlex.split(command)[1:]]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    found = json.loads((tmp_path / "runs/seg-test/metrics.json").read_text())["metrics"]
    assert {"object/map", "map/mean/iou@max", "map/walkway/iou@0.50"} <= found.keys()
    assert found["map/mean/iou@max"] > 0.05  # what an even guess has
    assert len(list((tmp_path / "runs/seg-pictures").iterdir())) == 1


@pytest.mark.slow
def test_seeing_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands of docs/seeing.md on a scene of three frames and what the small models find in it."""
    monkeypatch.chdir(tmp_path)
    for name in ("pretrained", "configs"):
        (tmp_path / name).symlink_to(ROOT / name)
    root = tmp_path / "data" / "demo-film-scene"
    make_scene(root)
    for name in ("control", "distilled"):
        model, dataset = load_shipped(f"crkd-demo-{name}", root)
        found = [detect(model, dataset[i], torch.device("cpu")) for i in range(len(dataset))]
        dataset.format(found, tmp_path / "runs" / name)
    (tmp_path / "runs" / "demo" / "student").mkdir(parents=True)
    (tmp_path / "runs/demo/student/metrics.jsonl").write_text('{"mode": "train", "iteration": 20, "loss": 1.0}\n')
    tools = {"visualize": visualize, "evaluate": evaluate, "curves": curves, "view": view}
    for command in commands(document=SEEING):
        _, tool, *words = shlex.split(command)
        if "tools/view.py" in command and importlib.util.find_spec("rerun") is None:
            continue  # the extra `viewer`; tests/visualization/test_view.py says so
        if "evaluate.py kitti" in command:
            continue  # tests/kitti/test_kitti_report.py
        if "--dataroot" in words:
            words[words.index("--dataroot") + 1] = str(root)
            words += ["--version", "v1.0-synthetic", "--split", "synthetic_train"]
        assert not tools[Path(tool).stem].main([weight_path(word) for word in words]), command
    made = {str(f.relative_to(tmp_path / "runs")) for f in (tmp_path / "runs").rglob("*") if f.is_file()}
    assert {"scene.webp", "report/report.html", "demo/curves.png"} <= made
    assert len([name for name in made if name.startswith("pictures/")]) == 2
    assert len([name for name in made if name.startswith("taps/")]) == 1
