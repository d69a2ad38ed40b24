"""tools/train_val.py: the published command trains, scores every image, names its checkpoint, writes submissions."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from kitti_world import narrow_words

from mmdet3d.commands import train_val

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "tools" / "train_val.py"
CONFIG = "configs/kitti/synthetic/rgb_baseline.yaml"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    return runpy.run_path(str(TOOL))["main"]


def test_from_training_to_submission(main, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    main(["--config", CONFIG, *narrow_words(world)])
    run = tmp_path / "runs" / "kitti" / "synthetic" / "rgb_baseline"
    trained = json.loads((run / "epoch_1.json").read_text())["metrics"]

    main(["--config", CONFIG, "-e", *narrow_words(world)])
    output = capsys.readouterr().out
    ids = (world / "ImageSets" / "val.txt").read_text().split()
    assert f"{len(ids)} frames, checkpoint: runs/kitti/synthetic/rgb_baseline/latest.safetensors (epoch 1)" in output
    columns = [f"{kind}/{d}" for kind in ("R40", "R11") for d in ("easy", "moderate", "hard")]
    values = [f"{trained[f'Car/bbox/{column}']:.2f}" for column in columns]
    assert ["Car", "bbox@0.7", *values] in [line.split() for line in output.splitlines()]
    out = run / "evaluation" / "val-latest"
    assert sorted(p.stem for p in (out / "data").glob("*.txt")) == ids
    summary = json.loads((out / "metrics.json").read_text())
    assert summary["metrics"] == trained and summary["frames"] == len(ids)

    main(
        [
            "--config",
            CONFIG,
            "-e",
            "--split",
            "test",
            "--checkpoint",
            str(run / "epoch_1.safetensors"),
            *narrow_words(world),
        ]
    )
    output = capsys.readouterr().out
    assert "1 frame, checkpoint: " in output and "epoch_1.safetensors (epoch 1)" in output
    with zipfile.ZipFile(run / "evaluation" / "test-epoch_1" / "kitti_results.zip") as archive:
        assert archive.namelist() == ["000000.txt"]

    # Results of another run's file do not replace those of this run.
    other = tmp_path / "other" / "latest.safetensors"
    other.parent.mkdir()
    other.write_bytes((run / "latest.safetensors").read_bytes())
    before = (out / "metrics.json").read_text()
    main(["--config", CONFIG, "-e", "--checkpoint", str(other), *narrow_words(world)])
    assert (out / "metrics.json").read_text() == before
    found = json.loads((other.parent / "evaluation" / "val-latest" / "metrics.json").read_text())
    assert found["checkpoint"] == str(other)

    with pytest.raises(ValueError, match="already holds a run"):
        main(["--config", CONFIG, *narrow_words(world)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", CONFIG, "--split", "test"], "--split says what to evaluate; add -e"),
        (["--config", CONFIG, "--checkpoint", "x.pth"], "--checkpoint says what to evaluate; add -e"),
        (["--config", CONFIG, "-e"], "rgb_baseline holds no checkpoint; train first"),
        (["--config", CONFIG, "-e", "--checkpoint", "x.pth"], "--checkpoint x.pth does not exist"),
        (["--config", "configs/kitti/monoskt.yaml"], "config configs/kitti/monoskt.yaml not found"),
        (["--config", CONFIG, "--epochs", "3"], "unknown config key 'epochs', did you mean 'max_epochs'"),
    ],
)
def test_mistakes_are_one_sentence(main, words: list[str], message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(words)


def test_published_configs_find_what_was_trained_before_them() -> None:
    """Where the command leaves teacher and student is where monoskd.yaml looks for them."""
    from mmdet3d.config import load_config

    place = train_val._run_dir
    for folder in ("kitti", "kitti/synthetic"):
        model = load_config(f"{folder}/monoskd.yaml").model
        for side in (model.teacher, model.student):
            assert Path(side.checkpoint).parent == place(side.config)


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["train_val.py", "train.py"])
def test_two_ranks_score_what_one_does(world: Path, tmp_path: Path, tool: str) -> None:
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    config = ["--config", str(ROOT / CONFIG)] if tool == "train_val.py" else [str(ROOT / CONFIG)]

    def call(launcher: list[str], name: str, *words: str) -> None:
        command = [*launcher, str(ROOT / "tools" / name), *words, *narrow_words(world)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]

    ranks = ["torchpack", "dist-run", "-np", "2", "python"]
    call(ranks, tool, *config, "--run-dir", "run")
    trained = json.loads((tmp_path / "run" / "epoch_1.json").read_text())["metrics"]
    score = ["--config", str(ROOT / CONFIG), "-e", "--run-dir", "run"]
    for launcher in (ranks, [sys.executable]):
        call(launcher, "train_val.py", *score)
        found = json.loads((tmp_path / "run" / "evaluation" / "val-latest" / "metrics.json").read_text())
        assert found["metrics"] == pytest.approx(trained, abs=1e-6) and found["frames"] == 4
