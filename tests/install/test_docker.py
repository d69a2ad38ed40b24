"""The container files: linted here, their steps run outside Docker (no engine is needed)."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


def instructions() -> list[tuple[str, str]]:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    text = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", text))
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_dockerfile_passes_the_linter() -> None:
    subprocess.run([BIN / "hadolint", ROOT / "docker" / "Dockerfile"], check=True)


def test_scripts_pass_the_linter() -> None:
    subprocess.run([BIN / "shellcheck", ROOT / "docker" / "run.sh", ROOT / ".ci" / "run"], check=True)


def test_published_build_command_finds_the_dockerfile() -> None:
    assert (ROOT / "Dockerfile").resolve() == ROOT / "docker" / "Dockerfile"


def test_it_ends_as_an_ordinary_user() -> None:
    users = [value for word, value in instructions() if word == "USER"]
    assert users and users[-1] not in ("root", "0")


def test_what_is_copied_exists() -> None:
    copied = [p for word, value in instructions() if word == "COPY" for p in value.split()[1:-1]]
    assert copied
    assert [p for p in copied if not (ROOT / p).exists()] == []


@pytest.fixture()
def fake_docker(tmp_path: Path) -> Path:
    script = tmp_path / "docker"
    script.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IEXEC)
    return tmp_path


def run_script(folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PATH": f"{folder}:/usr/bin:/bin"}
    script = shutil.copy(ROOT / "docker" / "run.sh", folder)
    return subprocess.run([script, *words], env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_run_passes_data_and_command(fake_docker: Path) -> None:
    data = fake_docker / "my data"
    data.mkdir()
    words = run_script(fake_docker, str(data), "make", "demo").stdout.splitlines()
    assert words[0] == "run" and words[-3:] == ["distill3d", "make", "demo"]
    assert f"{data}:/home/distill3d/Distill3D/data" in words
    assert "--gpus" not in words


def test_run_passes_a_gpu_if_there_is_one(fake_docker: Path) -> None:
    smi = fake_docker / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 0\n")
    smi.chmod(0o755)
    assert "--gpus" in run_script(fake_docker).stdout.splitlines()


def test_run_refuses_a_missing_folder(fake_docker: Path) -> None:
    result = run_script(fake_docker, "/no/such/folder")
    assert result.returncode == 2 and "/no/such/folder does not exist" in result.stderr


@pytest.mark.slow
def test_run_steps_in_a_fresh_clone(tmp_path: Path) -> None:
    """Every RUN step but the package manager's and the user's, in the order of the Dockerfile, then its CMD."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
    steps = [value for word, value in instructions() if word == "RUN" and not re.match(r"apt-get|useradd", value)]
    assert steps
    environment = {k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")}
    for step in steps:
        subprocess.run(step, shell=True, cwd=clone, check=True, timeout=900, env=environment)
    doctor = subprocess.run(
        [clone / ".venv" / "bin" / "python", "tools/doctor.py"], cwd=clone, capture_output=True, text=True, timeout=120
    )
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert "mmdet3d" in doctor.stdout
