"""The package outside of its checkout: what the wheel holds, and OpenMMLab's package of the same name beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import distill3d

ROOT = Path(__file__).resolve().parents[2]
SENTENCE = "Distill3D and OpenMMLab's MMDetection3D both install a package mmdet3d"


def run(*words: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(("ours", "said"), [(False, "is OpenMMLab's"), (True, "holds both, mixed")])
def test_openmmlabs_package_of_the_same_name(ours: bool, said: str, tmp_path: Path) -> None:
    package = tmp_path / "site" / "mmdet3d"
    (package / "apis").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('it is not imported to find out')")
    if ours:
        (package / "plugins.py").touch()
    shutil.copy(ROOT / "distill3d.py", tmp_path)
    done = run(sys.executable, "distill3d.py", "doctor", cwd=tmp_path, PYTHONPATH=str(package.parent))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {SENTENCE}, and {package} {said}; ") and len(done.stderr.splitlines()) == 1
    assert "pip uninstall mmdet3d distill3d" in done.stderr


def test_every_tool_is_a_command() -> None:
    modules = {module for module, _ in distill3d.COMMANDS.values()}
    assert modules == {path.stem for path in (ROOT / "mmdet3d" / "commands").glob("[!_]*.py")}
    assert modules == {path.stem for path in (ROOT / "tools").glob("*.py")} - {"ship_weights"}


def test_commands_explain_themselves(tmp_path: Path) -> None:
    start = [sys.executable, "-m", "distill3d"]
    helped = run(*start, "--help", cwd=ROOT)
    assert helped.returncode == 0 and all(f"  {name} " in helped.stdout for name in distill3d.COMMANDS)
    assert run(*start, "recipe", "--help", cwd=ROOT).stdout.startswith("usage: distill3d recipe ")
    wrong = run(*start, "trian", cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: unknown command 'trian', did you mean 'train'?")
    wrong = run(*start, "evaluate", "kitti", tmp_path / "absent", cwd=ROOT)
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")


def test_a_mixture_is_not_imported(tmp_path: Path) -> None:
    package = tmp_path / "mmdet3d"
    (package / "apis").mkdir(parents=True)
    shutil.copy(ROOT / "mmdet3d" / "__init__.py", package)
    done = run(sys.executable, "-c", "import mmdet3d", cwd=tmp_path)
    assert done.returncode == 1 and f"ImportError: {SENTENCE}" in done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools builds inside the folder it is given. Kernels are left to first use."""
    source, dist = (tmp_path_factory.mktemp(name) for name in ("source", "dist"))
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name, follow_symlinks=False)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", dist, source]
    done = run(*pip, cwd=dist, CXX="/no/compiler")
    assert done.returncode == 0, done.stderr
    (file,) = dist.glob("distill3d-*.whl")
    return file


@pytest.mark.slow
def test_the_wheel_is_whole(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.check_output(["git", "ls-files", "mmdet3d", "configs", "pretrained/zoo"], cwd=ROOT, text=True)
    missing = [
        name for name in listed.splitlines() if not {name, f"mmdet3d/{name}"} & held and not name.endswith(".gitignore")
    ]
    assert missing == []
    assert any(name.endswith("licenses/LICENSE") for name in held)
    assert {name.split("/")[0] for name in held if "dist-info" not in name} == {"mmdet3d", "distill3d.py"}


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip puts the commands of an environment that has the wheel, and borrows everything else from this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (own,) = folder.glob("lib/python*/site-packages")
    borrowed = [path for path in sys.path if path.endswith("site-packages")]
    # Plain lines: files in those folders that point to this checkout are not followed.
    (own / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel]
    done = run(*pip, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


LOSS = """
import torch.nn.functional as F

from mmdet3d.distill.losses.base import DistillLoss, full_precision
from mmdet3d.registry import MODELS


@MODELS.register
class MyLoss(DistillLoss):
    @full_precision
    def forward(self, student_value, teacher_value, batch):
        return (1 - F.cosine_similarity(student_value, teacher_value, dim=1)).mean()
"""


@pytest.mark.slow
def test_the_way_of_a_stranger(commands: Path, tmp_path: Path) -> None:
    """A folder with nothing but a loss of one's own: data, a distillation, its metrics, the same again elsewhere."""

    def distill3d(*words: object) -> str:
        done = run(commands / "distill3d", *words, cwd=tmp_path)
        assert done.returncode == 0, f"{words}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    where = run(commands / "python", "-c", "import mmdet3d; print(mmdet3d.__file__)", cwd=tmp_path).stdout.strip()
    assert where.startswith(str(commands.parent))
    config = "nuscenes/det/centerhead/lssfpn/camera+radar/swint/default.yaml"
    code = f"import mmdet3d; print(mmdet3d.load_config({config!r}).model.type)"
    assert run(commands / "python", "-c", code, cwd=tmp_path).stdout == "BEVFusion\n"

    world = ["--out-dir", "data/synthetic"]
    tiny = ["--scenes", 3, "--keyframes", 2, "--lidar-sweeps", 1, "--radar-sweeps", 1, "--val-fraction", 0.34]
    distill3d("create-data", "synthetic", *world, *tiny, "--workers", 1)
    tables = ["--root-path", "data/synthetic", "--version", "v1.0-synthetic", "--extra-tag", "synthetic"]
    distill3d("create-data", "nuscenes", *world, *tables, "--workers", 1)
    (tmp_path / "my_loss.py").write_text(LOSS)
    student = "configs/synthetic/crkd/demo.yaml"  # the published spelling of the path, with no such folder here
    teacher = ["--model.teacher.checkpoint", "zoo:crkd-demo-teacher"]
    mine = ["--imports", "my_loss", "--model.losses.mine", "{type: MyLoss, student: fuser, teacher: fuser}"]
    distill3d("train", student, "--run-dir", "runs/a", *teacher, *mine, "--max_epochs", 1, "--data.workers_per_gpu", 0)
    # The run's own config knows the loss.
    distilled = ["runs/a/configs.yaml", "runs/a/epoch_1.safetensors"]
    assert "mAP" in distill3d("test", *distilled, "--eval", "bbox", "--run-dir", "runs/b")
    assert (tmp_path / "runs" / "b" / "metrics.json").is_file()

    (tmp_path / "runs" / "a").rename(tmp_path / "moved")
    distill3d("reproduce", "moved", "--run-dir", "runs/again", *teacher)
    first, again = (
        load_file(folder / "epoch_1.safetensors") for folder in (tmp_path / "moved", tmp_path / "runs/again")
    )
    assert first.keys() == again.keys() and all(torch.equal(first[name], again[name]) for name in first)
