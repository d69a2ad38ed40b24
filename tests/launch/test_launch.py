"""The tools as users start them: alone, under torchrun, and under `torchpack dist-run` with a real MPI."""

from __future__ import annotations

import contextlib
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import yaml
from engine_toy import EngineToyModel
from safetensors.torch import load_file, save_file

TOOL = [str(Path(__file__).with_name("toy_tool.py"))]
TOOLS = Path(__file__).resolve().parents[2] / "tools"
VENV = Path(sys.executable).parent
PLAIN = [sys.executable]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
DIST_RUN = ["torchpack", "dist-run", "-np", "2", "python"]

CONFIG = """
seed: 1
max_epochs: 2
data:
  samples_per_gpu: 2
  workers_per_gpu: 1
  train: {type: EngineToyDataset, size: 10, augment: true}
  val: {type: EngineToyDataset, size: 5, seed: 9}
  test: {type: EngineToyDataset, size: 5, seed: 9}
model: {type: EngineToyModel}
optimizer: {type: AdamW, lr: 0.01}
lr_config: null
load_from: null
resume_from: null
checkpoint_config: {interval: 1, interval_iters: 1}
log_config: {interval: 1}
"""


@pytest.fixture()
def config(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(CONFIG)
    return path


def environment(**extra: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "PMI", "PRTE", "MASTER_"))}
    path = f"{VENV}{os.pathsep}{env['PATH']}"
    # Two cores, of which one loads, however many test processes share the machine.
    return env | {"PATH": path, "OMP_NUM_THREADS": "1", "DISTILL3D_CPUS": "2", "CUDA_VISIBLE_DEVICES": ""} | extra


def call(launcher: list[str], *words: object, code: int = 0, cwd: Path | None = None) -> str:
    command = [*launcher, *TOOL, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment(), cwd=cwd)
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    return output


@pytest.mark.slow
def test_alone_from_training_to_submission(config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    output = call(PLAIN, "train.py", config, "--run-dir", run)
    assert "launcher': 'none'" in output
    assert "Epoch [1][1/5]\tlr: 1.000e-02, eta: 0:00:0" in output
    assert yaml.safe_load((run / "configs.yaml").read_text())["model"] == {"type": "EngineToyModel"}
    again = call(PLAIN, "train.py", config, "--run-dir", run, code=2)
    assert "error: " in again and "already holds a run" in again
    hint = again.partition("continue it with python tools/")[2].partition(",")[0]
    assert "nothing left to train" in call(PLAIN, *hint.split())
    refused = call(PLAIN, "train.py", "--resume", run, "--data.samples_per_gpu", "3", "--optimizer.lr", "0.1", code=2)
    assert "data.samples_per_gpu: 2, now 3)" in refused

    weights = run / "epoch_2.safetensors"
    output = call(PLAIN, "test.py", config, weights, "--eval", "bbox", "--run-dir", tmp_path / "t")
    metrics = json.loads((run / "epoch_2.json").read_text())["metrics"]
    assert f"object/nds: {metrics['object/nds']:.4f}" in output
    assert json.loads((tmp_path / "t" / "metrics.json").read_text())["metrics"] == metrics
    resolved = (run / "configs.yaml").read_text()
    call(PLAIN, "test.py", config, weights, "--eval", "bbox", "--run-dir", run, "--data.test.note", "tested")
    assert (run / "configs.yaml").read_text() == resolved
    assert yaml.safe_load((run / "test_configs.yaml").read_text())["data"]["test"]["note"] == "tested"
    out = tmp_path / "d" / "detections.pkl"
    call(
        PLAIN,
        "test.py",
        config,
        weights,
        "--format-only",
        "--out",
        out,
        "--eval-options",
        f"jsonfile_prefix={tmp_path}/f",
    )
    assert (tmp_path / "f" / "results_toy.json").is_file()
    assert out.is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.py", "nowhere.yaml"], "config nowhere.yaml not found"),
        (["train.py", "CONFIG", "--max_epoch", "3"], "unknown config key 'max_epoch', did you mean 'max_epochs'"),
        (["train.py", "CONFIG", "--optimizer.type", "Adm"], "got 'Adm', did you mean 'Adam'"),
        (["train.py", "CONFIG", "--model.widht", "3"], "unknown config key model.widht"),
        (["train.py", "CONFIG", "--run-dir", "CONFIG/x"], "cannot write into"),
        (["train.py", "CONFIG", "--resume_from", "auto"], "resume_from auto needs --run-dir"),
        (["train.py", "CONFIG", "--resume_from", "auto", "--run-dir", "RUN"], "holds no checkpoint"),
        (["train.py", "CONFIG", "--run-dir", "RUN", "--load_from", "CONFIG"], "toy.yaml is damaged or holds more"),
        (["test.py", "CONFIG", "nothing.pth", "--eval", "bbox"], "checkpoint nothing.pth does not exist"),
        (["train.py", "CONFIG", "--load_from", "nothing.pth"], "nothing.pth does not exist"),
        (["train.py", "CONFIG", "--data.train.sise", "3"], "config key data.train.sise"),
        (["train.py", "CONFIG", "--data.train.size", "2", "--data.train.broken", "1"], "sample 1: points.bin is cut"),
        (["train.py", "CONFIG", "--data.val.broken", "0"], "sample 0: points.bin is cut short; copy it again"),
        (
            ["test.py", "CONFIG", "weights.safetensors", "--eval", "bbox", "--data.test.broken", "0"],
            "sample 0: points.bin is cut",
        ),
        (["test.py", "CONFIG", "nothing.pth"], "nothing to do"),
        (["test.py", "CONFIG", "CONFIG", "--eval", "bbox", "--out", "OUT.pkl"], "toy.yaml is damaged or holds more"),
        (
            ["test.py", "CONFIG", "CONFIG", "--eval", "bbox", "--data.test.sise", "3"],
            "config key data.test.sise",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    words: list[str],
    message: str,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(EngineToyModel().state_dict(), "weights.safetensors")
    tool, *filled = [w.replace("CONFIG", str(config)).replace("RUN", str(tmp_path / "run")) for w in words]
    main = runpy.run_path(str(TOOLS / tool))["main"]
    before = set(tmp_path.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main(filled)
    assert set(tmp_path.rglob("*")) == before and capsys.readouterr() == ("", "")


def test_a_mistake_is_an_error_line_and_code_2(config: Path) -> None:
    output = call(PLAIN, "train.py", config, "--max_epoch", "3", code=2)
    assert output.splitlines() == [
        "error: unknown config key 'max_epoch', did you mean 'max_epochs'? (toy.yaml) (--debug shows where)"
    ]


def start(launcher: list[str], config: Path, run: Path) -> subprocess.Popen:
    """A long training in a process group of its own, with loader workers, that has taken its first steps."""
    slow = [
        "--max_epochs",
        "4000",
        "--checkpoint_config.interval_iters",
        "null",
        "--checkpoint_config.interval",
        "5000",
    ]
    with config.open("a") as file:
        file.write("evaluation: {interval: 5000, start: 5000}\n")
    command = [*launcher, *TOOL, "train.py", str(config), "--run-dir", str(run), *slow]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    process = subprocess.Popen(command, env=environment(), start_new_session=True, **pipes)
    lines = run / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (lines.is_file() and lines.read_text()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def alive(session: int) -> list[int]:
    """Processes of a session that still run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def gone(session: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while alive(session) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not alive(session)


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [False, True], ids=["process", "group"])
def test_sigterm_saves(whole_group: bool, config: Path, tmp_path: Path) -> None:
    process = start(PLAIN, config, tmp_path / "run")
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, output
    assert f"continue with: python tools/train.py --resume {tmp_path / 'run'}" in output
    assert (tmp_path / "run" / "latest.safetensors").is_file()
    assert gone(process.pid, 10.0)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(config: Path, tmp_path: Path) -> None:
    """torchrun hands the signal on to the process group of each rank, loader workers included; one process goes on."""
    process = start(TORCHRUN, config, tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=90)
    assert f"continue with: python tools/train.py --resume {tmp_path / 'run'}" in output
    latest = (tmp_path / "run" / "latest.safetensors").resolve()
    assert latest.is_file(), output
    epochs = int(latest.stem.split("_")[1]) + 1
    call(PLAIN, "train.py", "--resume", tmp_path / "run", "--max_epochs", epochs, "--checkpoint_config.interval", "1")
    assert (tmp_path / "run" / f"epoch_{epochs}.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_training_leaves_no_worker(config: Path, tmp_path: Path) -> None:
    process = start(PLAIN, config, tmp_path / "run")
    deadline = time.monotonic() + 60
    while len(alive(process.pid)) < 2:  # between two of its short epochs it has no worker
        assert time.monotonic() < deadline
    process.kill()
    process.wait(timeout=60)
    assert gone(process.pid, 10.0)


@pytest.mark.slow
def test_a_killed_worker_ends_the_training_and_is_named(config: Path, tmp_path: Path) -> None:
    process = start(PLAIN, config, tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (workers := [pid for pid in alive(process.pid) if pid != process.pid]):
        assert time.monotonic() < deadline
    os.kill(workers[0], signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and gone(process.pid, 10.0)
    *_, last = output.splitlines()  # which of the ways to notice it comes first is the machine's choice
    assert re.match(r"error: DataLoader worker .*(signal: Killed|exited unexpectedly|has ended)", last), output
    assert "; if that was for lack of memory, lower data.workers_per_gpu; --resume goes on" in last


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [DIST_RUN], ids=["dist-run"])  # torchrun's are in test_ranks.py
def test_two_ranks(launcher: list[str], config: Path, tmp_path: Path) -> None:
    """Training resumes exactly on two ranks, and an odd number of samples is evaluated as by one process."""
    straight, parts = tmp_path / "straight", tmp_path / "parts"
    output = call(launcher, "train.py", config, "--run-dir", straight)
    assert "'processes': 2, 'backend': 'gloo'" in output
    assert output.count("Epoch [1][1/3]") == 1
    call(launcher, "train.py", config, "--run-dir", parts, "--max_epochs", "1")
    call(launcher, "train.py", config, "--run-dir", parts, "--resume_from", "auto")
    wanted, found = (load_file(d / "epoch_2.safetensors") for d in (straight, parts))
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)

    weights = straight / "epoch_2.safetensors"
    for name, how in (("one", PLAIN), ("two", launcher)):
        call(how, "test.py", config, weights, "--eval", "bbox", "--run-dir", tmp_path / name)
    one, two = (json.loads((tmp_path / n / "metrics.json").read_text())["metrics"] for n in ("one", "two"))
    assert two == pytest.approx(one, abs=1e-9)
    assert two == json.loads((straight / "epoch_2.json").read_text())["metrics"]


@pytest.mark.slow
def test_dist_run_keeps_values_whole(config: Path, tmp_path: Path) -> None:
    """Through the second shell of dist-run: words and lists as they are, quotes and metacharacters from a file."""
    overrides = tmp_path / "more.yaml"
    overrides.write_text("data.test.note: \"it's; $HOME & (more) 'quotes' *\"\n")
    notes = ["--data.val.note", "[1, 2.5, 'x y']", "--data.test.note", "two words"]
    words = ["--run-dir", tmp_path / "a", *notes, "--max_epochs", "1"]
    call(DIST_RUN, "train.py", config, *words)
    resolved = yaml.safe_load((tmp_path / "a" / "configs.yaml").read_text())
    notes = [resolved["data"][split]["note"] for split in ("val", "test")]
    assert (notes, resolved["max_epochs"]) == ([[1, 2.5, "x y"], "two words"], 1)
    call(DIST_RUN, "train.py", config, "--run-dir", tmp_path / "b", "--overrides-file", overrides, "--max_epochs=1")
    resolved = yaml.safe_load((tmp_path / "b" / "configs.yaml").read_text())
    assert resolved["data"]["test"]["note"] == "it's; $HOME & (more) 'quotes' *"


@pytest.mark.slow
def test_dist_run_shows_the_mistake_of_any_rank(config: Path, tmp_path: Path) -> None:
    """Index 4 is read by one rank only; dist-run hides the output of all ranks but the first."""
    words = ["--run-dir", tmp_path / "a", "--data.train.broken", "4"]
    output = call(DIST_RUN, "train.py", config, *words, code=2)
    assert "error: sample 4: points.bin is cut short; copy it again" in output
    for rank, index in enumerate((2, 1)):  # the first sample is read before the training begins
        (config.parent / f"val{rank}.yaml").write_text(
            CONFIG.replace("size: 5, seed: 9}", f"size: 5, broken: {index}}}", 1)
        )
        words = ["--run-dir", tmp_path / f"r{rank}"]
        output = call(DIST_RUN, "train.py", config.parent / f"val{rank}.yaml", *words, code=2)
        assert f"error: sample {index}: points.bin is cut short; copy it again" in output
        assert (tmp_path / f"r{rank}" / "epoch_1.safetensors").is_file()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdet3d.engine import distributed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for name, value in {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_WORLD_SIZE": "4", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="4 processes were started on a machine with 1 GPU; start at most 1"):
        distributed.init()


def test_mpi_without_a_meeting_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmdet3d.engine import distributed

    for name in ("WORLD_SIZE", "RANK", "MASTER_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"without MASTER_HOST=host:port.*torchpack dist-run"):
        distributed.init()


@pytest.mark.parametrize("seconds", ["1e300", "1e-12", "0", "-5", "nan", "inf", "2592001", "soon", ""])
def test_a_timeout_out_of_bounds_is_refused(seconds: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch cannot count, and what is no time to wait at all."""
    from mmdet3d.engine import distributed

    monkeypatch.setenv(distributed.TIMEOUT, seconds)
    with pytest.raises(ValueError, match=f"TIMEOUT must be a number of seconds from 1 to 2592000 .*'{seconds}'"):
        distributed._timeout()
    for fine in ("1", "2592000"):
        monkeypatch.setenv(distributed.TIMEOUT, fine)
        assert distributed._timeout() == timedelta(seconds=int(fine))
