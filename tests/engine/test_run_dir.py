"""Which folder a training may write into, and what it resumes there."""

from __future__ import annotations

import copy
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import toy_config

from mmdet3d.config import Config
from mmdet3d.engine import jobs
from mmdet3d.engine import run_dir as module
from mmdet3d.engine.checkpoint import RunCheckpoints
from mmdet3d.engine.run_dir import begin_run, choose_run_dir, sole_user
from mmdet3d.engine.run_record import write_record


def hold_run(folder: Path, epochs: int) -> Path:
    folder.mkdir()
    for epoch in range(1, epochs + 1):
        RunCheckpoints(folder).save(f"epoch_{epoch}", {"w": torch.zeros(1)}, {}, {"iteration": epoch})
    (folder / "configs.yaml").write_text("what was trained\n")
    return folder


BEGUN = {
    "max_epochs": 2,
    "optimizer": {"type": "AdamW", "lr": 0.1},
    "data": {
        "samples_per_gpu": 2,
        "workers_per_gpu": 2,
        "train": {"dataset_root": "here/", "pipeline": [{"type": "A", "n": 1}]},
    },
    "model": {"losses": {"cosine": {"weight": 1.0}}, "teacher": {"checkpoint": "t.pth"}},
}


def begun(folder: Path) -> Path:
    run = hold_run(folder, 1)
    (run / "configs.yaml").write_text(Config(copy.deepcopy(BEGUN)).dump())
    return run


def changed(**keys: object) -> Config:
    config = copy.deepcopy(BEGUN) | {"resume_from": "auto"}
    for key, value in keys.items():
        *way, last = key.split("__")
        block = config
        for name in way:
            block = block[name]
        if value is None:
            del block[last]
        else:
            block[last] = value
    return Config(config)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"max_epochs": 9, "optimizer__lr": 0.01, "data__workers_per_gpu": 0},
        {"data__train__dataset_root": "there/", "model__teacher__checkpoint": "moved.pth"},
    ],
)
def test_what_a_resumed_run_may_change(keys: dict, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert choose_run_dir(run, "x.yaml", changed(**keys)) == run


@pytest.mark.parametrize(
    "keys, named",
    [
        ({"model__losses__cosine": None}, r"model\.losses\.cosine: \{'weight': 1\.0\}, now None"),
        ({"data__samples_per_gpu": 4}, r"data\.samples_per_gpu: 2, now 4"),
        ({"data__train__pipeline": [{"type": "A", "n": 2}]}, r"data\.train\.pipeline\.0\.n: 1, now 2"),
        ({"model__losses__other": {"weight": 2.0}}, r"model\.losses\.other: None, now \{'weight': 2\.0\}"),
    ],
)
def test_what_a_resumed_run_may_not_change(keys: dict, named: str, tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    before = (run / "configs.yaml").read_text()
    with pytest.raises(ValueError, match=named) as caught:
        choose_run_dir(run, "x.yaml", changed(**keys))
    assert f"python tools/train.py --resume {run};" in str(caught.value)
    assert (run / "configs.yaml").read_text() == before


def test_a_resumed_run_keeps_its_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = begun(tmp_path / "run")
    for name in ("t.pth", "moved.pth"):
        Path(name).write_bytes(b"weights")
    Path("other.pth").write_bytes(b"other weights")
    write_record(run, BEGUN, torch.device("cpu"))
    assert choose_run_dir(run, "x.yaml", changed(model__teacher__checkpoint="moved.pth")) == run
    for teacher in ("other.pth", "t.pth"):
        Path("t.pth").write_bytes(b"other weights")
        with pytest.raises(ValueError, match=rf"run was begun with another teacher than {teacher} is now") as caught:
            choose_run_dir(run, "x.yaml", changed(model__teacher__checkpoint=teacher))
        assert "or train with the new teacher from the weights so far: python tools/train.py" in str(caught.value)
    Path("t.pth").unlink()  # which is said where it is read
    assert choose_run_dir(run, "x.yaml", changed()) == run


def test_a_folder_with_a_run_goes_on_from_its_latest_checkpoint_only(tmp_path: Path) -> None:
    run, other = hold_run(tmp_path / "run", 2), hold_run(tmp_path / "other", 3)
    refused = [(run, run / "epoch_1.safetensors"), (None, run / "epoch_1.safetensors")]
    refused += [(run, other / "latest.safetensors"), (other, run / "epoch_2.safetensors")]
    for folder, source in refused:
        message = r"already holds a run up to epoch_[23]\.safetensors.*, or pass another --run-dir"
        with pytest.raises(ValueError, match=message):
            choose_run_dir(folder, "x.yaml", Config(resume_from=str(source)))
    assert (run / "configs.yaml").read_text() == (other / "configs.yaml").read_text() == "what was trained\n"


@pytest.mark.parametrize("name", ["auto", "epoch_2.safetensors", "latest.safetensors"])
def test_the_latest_checkpoint_by_any_name(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = hold_run(tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path)
    config = Config(resume_from=name if name == "auto" else f"run/{name}")
    assert choose_run_dir(run, "x.yaml", config) == run
    assert Path(config.resume_from).resolve() == run / "epoch_2.safetensors"


def test_an_earlier_checkpoint_goes_on_in_another_folder(tmp_path: Path) -> None:
    source = str(hold_run(tmp_path / "run", 2) / "epoch_1.safetensors")
    config = Config(resume_from=source)
    assert choose_run_dir(tmp_path / "new", "x.yaml", config) == tmp_path / "new"
    assert config.resume_from == source


def test_a_folder_is_chosen_without_a_trace_and_made_when_the_run_begins(tmp_path: Path) -> None:
    folder = choose_run_dir(tmp_path / "deep" / "run", "x.yaml", Config(BEGUN))
    assert list(tmp_path.iterdir()) == []
    begin_run(folder, Config(BEGUN))
    assert [p.name for p in folder.iterdir()] == ["configs.yaml"]
    with pytest.raises(ValueError, match=r"cannot write into .*configs\.yaml is a file.*--run-dir"):
        choose_run_dir(folder / "configs.yaml" / "x", "x.yaml", Config(BEGUN))


HOLD = """
import fcntl, os, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(os.getpid(), file=file, flush=True)
print("held", flush=True)
time.sleep(60)
"""


def test_one_process_at_a_time_trains_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PATIENCE", 0.2)
    run = begun(tmp_path / "run")
    other = subprocess.Popen([sys.executable, "-S", "-c", HOLD, run / ".lock"], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "held\n"
        refused = rf"run is in use by process {other.pid}; wait until that ends, or pass another --run-dir"
        with pytest.raises(ValueError, match=refused), sole_user(run):
            pytest.fail("two at once")
        with pytest.raises(ValueError, match=refused):
            choose_run_dir(run, "x.yaml", changed())
    finally:
        other.kill()
        other.communicate()
    with sole_user(run), sole_user(tmp_path / "run" / ".." / "run"):  # the kernel gave it back
        assert (run / ".lock").read_text().startswith(f"{os.getpid()} on ")
        assert choose_run_dir(run, "x.yaml", changed()) == run
    with sole_user(run):
        pass


def test_the_lock_of_another_user_can_be_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may read it, and write into the folder, but not into that file."""
    (tmp_path / ".lock").write_text("7 on elsewhere\n")
    opened = Path.open

    def of_others(path: Path, mode: str = "r", **more: Any) -> Any:
        if path.name == ".lock" and mode != "r":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, mode, **more)

    monkeypatch.setattr(Path, "open", of_others)
    with sole_user(tmp_path):
        file = opened(tmp_path / ".lock")
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / ".lock").read_text() == "7 on elsewhere\n"


def test_a_folder_that_another_training_took_meanwhile_is_refused(tmp_path: Path) -> None:
    run = hold_run(tmp_path / "run", 1)
    with pytest.raises(ValueError, match=r"run holds a run by now \(epoch_1\.safetensors\)"):
        begin_run(run, Config({"resume_from": None}))
    assert (run / "configs.yaml").read_text() == "what was trained\n"


def test_a_drive_without_locks_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(module.fcntl, "flock", flock)
    with sole_user(tmp_path / "new" / "run"):
        assert (tmp_path / "new" / "run").is_dir()


def test_a_training_has_its_folder_alone_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"

    def is_free() -> bool:
        with (run / ".lock").open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    def fit(cfg: Config, folder: Path, *begin: Any) -> None:
        if begin:
            assert not run.exists()
            begin[-1]()
        assert not is_free()

    monkeypatch.setattr(jobs, "_fit", fit)
    monkeypatch.setattr(jobs, "log_to_folder", lambda *_, **__: None)
    monkeypatch.setattr(jobs, "hold_log", lambda: None)
    monkeypatch.setattr(jobs, "report_to", lambda _: None)
    monkeypatch.setattr(jobs, "check_agreement", lambda _: [])
    config = Config(toy_config(model={"type": "EngineToyModel"}))
    jobs.train("x.yaml", config, run)
    assert is_free()
    jobs.train_recipe_run(run, 0)
    assert is_free()
