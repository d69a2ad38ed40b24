"""What runs first where a GPU is at hand, up to the launch: emulated kernels on the CPU, small sizes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import operators, recipe
from benchmarks.gpu.environment import WHEELS, carry_wheels
from benchmarks.gpu.operators import SMALL, burst_seconds
from benchmarks.gpu.probes import PROBES, Probe
from benchmarks.gpu.runner import Piece, Progress, Setup, Worker, attempt, run_pieces
from mmdet3d.ops import build

ROOT = Path(__file__).resolve().parents[1]
needs_compiler = pytest.mark.skipif(build.compiler("cpu") is None, reason="there is no C++ compiler on this machine")


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup("cpu", True, tmp_path / "work")


# -- the runner -------------------------------------------------------------------------------------------------------


def _act(setup: Setup, item: str, seconds: float) -> dict:
    if item == "raises":
        raise ValueError("first line\nsecond line")
    if item == "full":
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    if item == "broken context":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    if item == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "hangs":
        time.sleep(600)
    return {"process": os.getpid()}


def _acts(seconds: float = 20.0) -> Piece:
    return Piece(
        "tries", lambda _: [], _act, seconds, lambda rows: [f"| {i} | {r['status']} |" for i, r in rows.items()]
    )


ACTS = {"acts": _acts(), "quick": _acts(0.5)}


@pytest.mark.parametrize(
    ("item", "status", "cause"),
    [
        ("well", "ok", None),
        ("raises", "failed", "ValueError: first line"),
        ("full", "OOM", "OutOfMemoryError: CUDA out of memory. Tried to allocate 9 GiB"),
    ],
)
def test_what_an_item_raises_is_its_result(setup, item, status, cause):
    row = attempt(ACTS["acts"], item, setup, 1.0)
    assert (row["status"], row.get("cause")) == (status, cause)
    assert ("Traceback" in row.get("traceback", "")) == (status != "ok") and not row.get("unusable")


@pytest.mark.slow
def test_an_item_that_breaks_its_process_leaves_the_others_alone(setup):
    worker = Worker("test_gpu_check:ACTS")
    try:
        first = worker.run("acts", "well", setup, 300)
        assert worker.run("acts", "well", setup, 300)["process"] == first["process"]
        assert worker.run("acts", "dies", setup, 300)["cause"].startswith(
            f"its process died with exit code {-signal.SIGSEGV}"
        )
        second = worker.run("acts", "well", setup, 300)
        os.kill(second["process"], signal.SIGKILL)
        worker._process.join()
        assert worker.run("acts", "well", setup, 300)["status"] == "ok", "killed between two items"
        assert worker.run("acts", "broken context", setup, 300)["cause"].startswith("RuntimeError: CUDA error")
        assert worker.run("acts", "hangs", setup, 1.0)["cause"] == "no end within 1 s"
        assert len({first["process"], second["process"], os.getpid()}) == 3
    finally:
        worker.close()


class _Here:
    """A worker without a process."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def run(self, piece, item, setup, seconds):
        self.done.append(item)
        return attempt(ACTS[piece], item, setup, seconds)


def test_the_next_call_goes_on_and_failures_are_repeated_on_request(setup, tmp_path):
    chosen = {"acts": ["well", "raises", "more"]}

    def call(seconds: float, again: bool = False) -> tuple[bool, list[str]]:
        worker = _Here()
        deadline = time.monotonic() + seconds
        return run_pieces(ACTS, chosen, setup, Progress(tmp_path, setup), worker, deadline, again), worker.done

    assert call(ACTS["acts"].seconds - 1) == (False, []), "an item that might not end in time is not begun"
    assert call(60) == (True, ["well", "raises", "more"])
    assert call(60) == (True, [])
    assert call(60, again=True) == (True, ["raises"])
    rows = json.loads((tmp_path / "gpu.json").read_text())["pieces"]["acts"]
    assert {i: r["status"] for i, r in rows.items()} == {"well": "ok", "raises": "failed", "more": "ok"}
    assert rows["raises"]["traceback"] == "tracebacks.txt"
    assert (tmp_path / "tracebacks.txt").read_text().count("== acts/raises\nTraceback") == 2


def test_items_begin_if_those_before_them_would_have_ended(setup, tmp_path):
    """And one that the budget ends, not its own limit, has its turn in the next call."""
    progress, pieces = Progress(tmp_path, setup), {"acts": _acts(100.0)}
    for item in "abc":
        progress.finish("acts", item, {"status": "ok", "seconds": 1.0})

    class Slow:
        def run(self, piece, item, setup, seconds):
            return {"status": "failed", "cause": "no end", "seconds": seconds}

    items = {"acts": ["a", "b", "c", "d"]}
    assert not run_pieces(pieces, items, setup, progress, Slow(), time.monotonic() + 11)
    assert "d" not in progress.rows("acts")
    assert not run_pieces(pieces, items, setup, progress, Slow(), time.monotonic() + 60)
    assert progress.rows("acts")["d"]["status"] == "unfinished"
    assert run_pieces(pieces, items, setup, progress, Slow(), time.monotonic() + 200)
    assert progress.rows("acts")["d"]["status"] == "failed"


def test_an_item_that_takes_the_program_with_it_is_tried_twice(setup, tmp_path):
    for _ in range(2):
        assert Progress(tmp_path, setup).begin("acts", "item")
    assert not Progress(tmp_path, setup).begin("acts", "item")
    assert Progress(tmp_path, setup).rows("acts")["item"]["cause"] == "did not come back from 2 attempts"
    with pytest.raises(ValueError, match="is of another run"):
        Progress(tmp_path, Setup("cuda", False, tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pieces": []}', '{"pieces": {"build": {"nms": {}}}}'])
def test_a_damaged_report_is_said_in_a_sentence(content, tmp_path):
    (tmp_path / "gpu.json").write_text(content)
    with pytest.raises(SystemExit, match=r"gpu\.json is (not valid JSON|no report of this program)"):
        gpu.main(["--dry-run", "--out", str(tmp_path), "--budget", "0"])


def test_no_time_at_all_is_no_fault(tmp_path):
    assert gpu.main(["--dry-run", "--out", str(tmp_path / "new"), "--only", "build", "--budget", "0"]) == 2
    assert "nothing done" in (tmp_path / "new" / "gpu.md").read_text()


def test_words_choose_items(setup, capsys):
    chosen = gpu.chosen_items(["build", "ops-equal/nms", "steps/CRKD distiller fp16"], setup)
    assert chosen["build"] == sorted(PROBES)
    assert chosen["ops-equal"] == ["nms fp32", "nms bf16", "nms fp16", "nms compiled"]
    assert chosen["steps"] == ["CRKD distiller fp16 batch 1", "CRKD distiller fp16 batch 4"]
    with pytest.raises(SystemExit, match="--only warp fits no item"):
        gpu.chosen_items(["warp"], setup)
    assert gpu.main(["--list"]) == 0 and "  ops-sanitize/bev_pool memcheck" in capsys.readouterr().out


# -- the pieces -------------------------------------------------------------------------------------------------------


@needs_compiler
def test_dry_run_of_a_few_items(tmp_path, capsys):
    """The program as it is called, from the processes to the tables."""
    words = ["environment", "ops-equal/feature_decorator", "ops-time/feature_decorator"]
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--budget", "500", "--only", *words]) == 0
    text = (tmp_path / "gpu.md").read_text()
    assert text.startswith("# GPU check (dry run on the CPU") and "6 ok" in text
    assert "| feature_decorator fp16 |" in text and "| feature_decorator forward | 20x3x5 |" in text
    report = json.loads((tmp_path / "gpu.json").read_text())
    assert report["pieces"]["environment"]["machine"]["machine"]["torch"] == torch.__version__
    row = report["pieces"]["ops-equal"]["feature_decorator fp32"]
    assert (
        row["same bits"]
        and 0 <= row["difference"] < row["tolerance"]
        and set(row["probes"]) == {"decorate", "no pillars"}
    )


@pytest.mark.parametrize(
    ("call", "atomic", "cause"),
    [
        (lambda x: x * (1 + 1e-3), False, "result differs by"),
        (lambda x: x.as_strided(x.shape, (3, 1)) * 1, False, "strided inputs differs by"),
        (lambda x: x + torch.rand(()) * 1e-6, False, "results change from call to call"),
        (lambda x: x + torch.rand(()) * 1e-6, True, ""),
    ],
)
def test_a_wrong_operator_is_found(setup, call, atomic, cause):
    """The twin doubles what it gets; the operator is wrong in one way each."""
    from mmdet3d.ops import native

    def operator(x: torch.Tensor) -> torch.Tensor:
        return (x if native.setting() == "reference" else call(x)) * 2

    row = operators._compared(Probe("p", operator, (torch.randn(4, 3),), atomic=atomic), "fp32", setup)
    assert row["wrong"].startswith(cause) if cause else row["wrong"] == ""


def _sanitizer(folder: Path, lines: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = folder / "compute-sanitizer"
    tool.write_text(
        f"#!/bin/sh\necho \"$PYTORCH_NO_CUDA_MEMORY_CACHING $*\" > {folder}/call\nprintf '{lines}'\nexit {code}\n"
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


@pytest.mark.parametrize(
    ("lines", "code", "status", "cause"),
    [
        ("========= ERROR SUMMARY: 0 errors\\n", 0, "ok", None),
        ("========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\\n", 0, "ok", None),
        ("========= T\\n========= Invalid write\\n========= ERROR SUMMARY: 2 errors\\n", 9, "failed", "Invalid write"),
        ("========= Error: Device not supported\\n", 1, "skipped", "Error: Device not supported"),
        ("Traceback\\nKeyError: 3\\n", 1, "failed", "KeyError: 3"),
    ],
)  # fmt: skip
def test_what_the_sanitizer_says(setup, tmp_path, monkeypatch, lines, code, status, cause):
    _sanitizer(tmp_path, lines, code, monkeypatch)
    row = attempt(operators.SANITIZE, "nms memcheck", setup, 60)
    assert (row["status"], row.get("cause")) == (status, cause)
    called = (tmp_path / "call").read_text().split()
    assert called[:3] == ["1", "--tool", "memcheck"] and called[-4:] == [
        "benchmarks.gpu.probes",
        "nms",
        "--device",
        "cpu",
    ]


def test_without_a_sanitizer_and_without_nvcc(setup, monkeypatch):
    monkeypatch.setattr(operators.shutil, "which", lambda _: None)
    assert attempt(operators.SANITIZE, "nms memcheck", setup, 60)["status"] == "skipped"
    monkeypatch.setattr(build, "compiler", lambda _: None)
    assert attempt(operators.BUILD, "nms", setup, 60)["cause"] == "there is no nvcc (install the CUDA toolkit)"


def test_every_op_has_small_cases_and_probes():
    assert set(SMALL) == set(PROBES) == set(build.ops_with_kernels("cuda"))


def test_ops_need_torch_and_numpy_alone():
    """Building and comparing ops must not ask for the packages that configs, data and training need."""
    code = (
        "import builtins, sys; block, plain = set(sys.argv[1].split(',')), builtins.__import__\n"
        "def absent(name, globals=None, locals=None, fromlist=(), level=0):\n"
        "    if not level and name.split('.')[0] in block: raise ModuleNotFoundError(name, name=name)\n"
        "    return plain(name, globals, locals, fromlist, level)\n"
        "builtins.__import__ = absent\n"
        "import benchmarks.gpu.__main__, benchmarks.gpu.probes\n"
    )
    absent = ["torchpack", "nuscenes", "pyquaternion", "cv2", "mmcv", *(m for m in WHEELS if m != "numpy")]
    done = subprocess.run([sys.executable, "-c", code, ",".join(absent)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_wheels_that_are_missing_come_with_commands():
    download, install = carry_wheels(["pyyaml==6.0.4", "tqdm==4.70.1"])
    assert "pip download" in download and "pyyaml==6.0.4 tqdm==4.70.1" in download
    assert (
        f"--python-version {sys.version_info.major}.{sys.version_info.minor} " in download and "--no-index" in install
    )
    assert carry_wheels([]) == []


def test_recipe_is_compared_with_the_recorded_table(setup):
    recorded = json.loads(recipe.RECORDED.read_text())
    found = {"table": recorded["table"], "runs": {n: {"0": {"seconds": 1.0}} for n in recorded["runs"]}}
    real = Setup("cuda", False, setup.work)
    assert "status" not in recipe._compared(found, real)
    worse = json.loads(json.dumps(found))
    worse["table"]["roles"]["distilled"]["NDS"]["mean"] -= 0.1
    row = recipe._compared(worse, real)
    assert row["status"] == "failed" and row["cause"].startswith("distilled NDS")


def test_seconds_of_queued_calls():
    calls: list[int] = []
    assert len(burst_seconds(lambda: calls.append(1), torch.device("cpu"), runs=3, burst=4)) == 3
    assert len(calls) == 13


@pytest.mark.slow
@needs_compiler
def test_dry_run_of_all(tmp_path):
    """Every operator, one training step of every model, the small recipe; the sanitizer is absent or refuses."""
    words = [
        "ops-equal",
        "ops-time",
        "recipe",
        "steps/CRKD teacher compiled batch 1",
        "steps/CRKD student bf16 batch 4",
    ]
    # Not fp16, in which a CPU takes minutes.
    words += [f"steps/{name} distiller fp32 batch 1" for name in ("CRKD", "SimDistill", "LabelDistill", "MonoSKD")]
    code = gpu.main(["--dry-run", "--out", str(tmp_path), "--budget", "900", "--only", *words])
    assert code == 0, (tmp_path / "gpu.md").read_text() + (tmp_path / "tracebacks.txt").read_text()
