"""The benchmarks run on tiny cases and report what their contract promises."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks import everyday, growth, loading, ops, report, soak, train_step, where
from benchmarks.cases import feature_decorator
from benchmarks.framework import Budget, Case, forward_backward, peak_memory, run_case, twin
from mmdet3d.config import load_config
from mmdet3d.datasets.synthetic.kitti import KittiSettings, generate_kitti
from mmdet3d.evaluation.control import ControlTable
from mmdet3d.evaluation.nuscenes import COLUMNS
from mmdet3d.machine import single_threaded
from mmdet3d.models import build_model
from mmdet3d.ops import native

CPU = torch.device("cpu")
QUICK = Budget(seconds=0.01, runs=5, least=2)


def test_report_of_a_tiny_case(monkeypatch, tmp_path, capsys):
    sizes = {"pillars": 3, "slots": 2, "features": 4}
    small = feature_decorator.cases(CPU, **sizes)
    monkeypatch.setattr(feature_decorator, "cases", lambda device: small)
    monkeypatch.setattr(ops, "floors", lambda *_: {"copy_bytes_per_s": 1e9, "matmul_flops_per_s": 1e9})
    ops.main(["--only", "feature_decorator", "--seconds", "0.01", "--out", str(tmp_path / "new" / "r.json")])
    report = json.loads((tmp_path / "new" / "r.json").read_text())
    assert set(report) == {"date", "device", "machine", "floors", "implementation of ours", "cases"}
    assert {"cpu", "cores", "threads", "torch", "compiler", "python", "peers"} <= set(report["machine"])
    forward, both = report["cases"]
    assert (forward["name"], forward["shape"]) == ("feature_decorator forward", "3x2x4")
    assert forward["floor_ms"] == pytest.approx(forward["bytes"] / 1e9 * 1e3)
    for case in (forward, both):
        ours, other = case["results"]
        assert (ours["implementation"], other["implementation"]) == ("ours", "twin")
        assert ours["runs"] >= 5 and ours["median_ms"] > 0 and ours["iqr_ms"] >= 0 and ours["times_ours"] == 1
        assert other["difference"] < 1e-6
        assert ours["peak_bytes"] is None or ours["peak_bytes"] >= 0
    assert "| twin |" in capsys.readouterr().out


def test_unknown_names_are_refused():
    with pytest.raises(SystemExit, match="no cases named warp"):
        ops.main(["--only", "warp", "--seconds", "0.01"])


def test_peak_memory_counts_what_a_call_touches():
    peak = peak_memory(lambda: torch.ones(1 << 22).add(1).sum(), CPU)  # two tensors of 16 MiB
    if peak is None:
        pytest.skip("this system does not say how much memory a process holds")
    assert 30 << 20 < peak < 40 << 20


def test_a_failing_peer_keeps_its_row_and_differences_are_relative():
    def broken():
        raise NotImplementedError("no such kernel")

    case = Case(
        "x", "2", {"ours": lambda: torch.tensor([2.0, 4.0]), "near": lambda: torch.tensor([2.0, 4.4]), "no": broken}
    )
    result = run_case(case, CPU, QUICK, {})
    ours, near, no = result["results"]
    assert ours["difference"] is None and near["difference"] == pytest.approx(0.1)
    assert no["error"] == "NotImplementedError: no such kernel" and result["floor_ms"] is None
    assert "no such kernel" in ops.table([result])


def test_helpers():
    x = torch.ones(3, requires_grad=True)
    out, grad = forward_backward(lambda v: v * 2, x)()
    assert out.tolist() == [2, 2, 2] and not out.requires_grad and grad.shape == (3,)
    assert twin(native.setting)() == "reference"


def test_shares_of_a_step_add_up():
    runs = [
        {"encoder": 1.0, "teacher/encoder": 0.5, "loss": 2.0, "backward": 3.0, "optimizer": 1.0},
        {"encoder": 1.0, "teacher/encoder": 0.5, "loss": 2.0, "backward": 3.0, "optimizer": 1.0},
    ]
    shares = train_step._shares(runs)
    assert shares == pytest.approx(
        {"encoder": 1 / 6, "teacher/encoder": 0.5 / 6, "losses": 0.5 / 6, "backward": 0.5, "optimizer": 1 / 6}
    )


@pytest.mark.slow
def test_training_step_report(tmp_path, capsys):
    """The command on a small distiller: every model, every stage of each, and what distilling costs."""
    out = tmp_path / "step.json"
    train_step.main(["--config", "synthetic/crkd/small.yaml", "--runs", "1", "--out", str(out)])
    report = json.loads(out.read_text())
    assert list(report["models"]) == ["teacher", "student", "distiller", "stored"]
    for row in report["models"].values():
        assert row["samples_per_s"] > 0 and row["step"]["runs"] == 1
        assert sum(row["parts"].values()) == pytest.approx(1, abs=1e-6)
    student = build_model(load_config("synthetic/crkd/small.yaml").model).student
    assert {"losses", "backward", "optimizer", "fuser", "heads.object"} <= set(report["models"]["student"]["parts"])
    assert len(report["models"]["distiller"]["parts"]) > len(report["models"]["student"]["parts"])
    assert report["models"]["student"]["parameters"] == sum(p.numel() for p in student.parameters())
    assert not any(part.startswith("teacher/") for part in report["models"]["stored"]["parts"])
    assert "With the teacher's answers stored it costs" in capsys.readouterr().out


@pytest.mark.slow
def test_loading_is_measured_with_and_without_the_cache(tmp_path):
    root = generate_kitti(
        tmp_path / "world",
        KittiSettings(frames=4, test_frames=0, image_size=(320, 96), val_fraction=0.5),
        progress=False,
    )
    report = loading.main(["--config", "kitti/synthetic/monoskd.yaml", "--kitti", str(root), "--epochs", "1"])
    (row,) = report["rows"]
    assert row["none"] > 0 and row["disk"] > 0
    assert list((root / ".cache").iterdir())


def test_everyday_report_compares_revisions():
    row = {"cpu_ms": {"loading": 20.0, "forward": 40.0, "backward": 60.0}, "peak_bytes": 5e8}
    slower = {"cpu_ms": {"loading": 40.0, "forward": 70.0, "backward": 130.0}, "peak_bytes": 6e8}
    student = {"before": everyday._medians([slower, slower]), "now": everyday._medians([row, slower])}
    teaching = {name: everyday._medians([slower, slower]) for name in student}
    found = {
        "before": "abc",
        "machine": {"load": 7.2},
        "load_after": 0.3,
        "steps": 6,
        "parts": {everyday.CONTROL: student, "CRKD, live teacher": teaching},
        "wall": {"busy": {"before": {"wall_s": 7.0, "cpu_s": 60.0}, "now": {"wall_s": 0.5, "cpu_s": 9.0}}},
        "recipe": {"before": {"wall_s": 1200.0, "cpu_s": 2000.0}, "now": {"wall_s": 600.0, "cpu_s": 900.0}},
    }
    text = everyday.table(found)
    assert "load average 7.2 before, 0.3 after" in text
    assert "| CRKD, control | before | 40 | 70 | 0 | 130 | 0 | 240 | 600 |  |" in text
    assert "| CRKD, control | now | 30 | 55 | 0 | 95 | 0 | 180 | 600 | 0.75 (0.50 to 1.00) |" in text
    assert "| CRKD, live teacher | 1.50 (1.00 to 2.00) |" in text
    assert "| busy | 7.00 | 0.50 |" in text
    assert "before 1200 s, 2000 CPU s; now 600 s, 900 CPU s" in text


@pytest.mark.parametrize("words", [["--only", "junk"], ["--rounds", "0"], ["--steps", "0"]])
def test_everyday_refuses_what_it_cannot_measure(words, capsys):
    with pytest.raises(SystemExit):
        everyday.main(words)
    assert f"argument {words[0]}: " in capsys.readouterr().err


def test_everyday_leaves_no_tree_behind(monkeypatch, tmp_path):
    """Not even one that git has locked, as it does while it checks out."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    monkeypatch.setattr(everyday, "ROOT", tmp_path)
    lost = tmp_path / f"{everyday._SCRATCH}1" / "tree"
    subprocess.run([*git, "worktree", "add", "-q", "--lock", "--detach", str(lost), "HEAD"], check=True)
    shutil.rmtree(lost)
    with pytest.raises(SystemExit), everyday._checked_out("HEAD", tmp_path / "tree") as tree:
        subprocess.run([*git, "worktree", "lock", str(tree)], check=True)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    listed = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1 and not tree.exists()


def test_everyday_compares_distillers_of_one_size_that_the_trained_teacher_fits(tmp_path):
    """An earlier revision gets today's models as configs of its own, under a name that today's tree does not have."""
    everyday_cases = everyday._cases({}, {}, tmp_path / "answers")
    for side, (_, overrides) in everyday_cases["CRKD, live teacher"].items():
        assert (everyday.ROOT / "configs" / overrides["teacher_config"]).is_file() == (side == "now")
    for folder in ("camera+lidar", "camera+radar"):
        (tmp_path / "configs" / "synthetic" / folder).mkdir(parents=True)
    everyday._add_present_models(tmp_path)
    given = (tmp_path / "configs" / everyday.PRESENT_TEACHER).read_text()
    assert given == (everyday.ROOT / "configs" / everyday.TEACHER).read_text()
    distiller = build_model(load_config(*everyday_cases["CRKD, stored answers"]["now"]).model)
    distiller.setup_training(lambda _: {})
    assert distiller.instructor.loaded() is distiller.teacher and len(distiller.losses) == 5
    control = build_model(load_config(*everyday_cases[everyday.CONTROL]["now"]).model)
    assert {k: v.shape for k, v in control.student.state_dict().items()} == {
        k: v.shape for k, v in distiller.student.state_dict().items()
    }


@pytest.mark.slow
def test_everyday_measures_a_tree(tmp_path):
    """The child process in the present tree, both ways; what it says of an earlier revision is the same code."""
    root = generate_kitti(
        tmp_path / "world",
        KittiSettings(frames=4, test_frames=0, image_size=(320, 96), val_fraction=0.5),
        progress=False,
    )
    overrides = {"dataset_root": f"{root}/", "data.samples_per_gpu": 1}
    config = "kitti/synthetic/rgb_baseline.yaml"
    parts = everyday._child(everyday.ROOT, "parts", config, overrides, 2, single_threaded())
    assert {"loading", "forward", "backward", "optimiser"} <= set(parts["cpu_ms"]) and parts["peak_bytes"] > 0
    wall = everyday._child(everyday.ROOT, "wall", config, overrides, 2, single_threaded())
    assert wall["wall_s"] > 0 and wall["cpu_s"] > 0


@pytest.mark.slow
def test_growth_report_and_picture(monkeypatch, tmp_path):
    monkeypatch.setattr(growth, "BUDGET", Budget(seconds=0.01, runs=2, least=2))
    monkeypatch.setenv("DISTILL3D_CPUS", "3")
    out, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    growth.main(["--scale", "0.02", "--out", str(out), "--picture", str(picture)])
    curves = json.loads(out.read_text())["curves"]
    assert {name: sorted({r["at"] for r in rows}) for name, rows in curves.items() if name in ("batch", "ranks")} == {
        "batch": [1, 2, 4, 8],
        "ranks": [1, 2],
    }
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_learning_curves_are_told_as_stored():
    runs = json.loads((report.DOCUMENT.parents[1] / "benchmarks/results/crkd_taught_curves.json").read_text())["runs"]
    told = []
    for name, curve in runs.items():
        told.append(f"{name} " + ", ".join(f"{curve[step]['map']:.3f}" for step in ("114", "342", "684")))
    assert f"mAP: {'; '.join(told)}." in report.CONTROL_TABLES.read_text()


def test_the_document_is_written_from_results(monkeypatch, tmp_path):
    rows = [
        {
            "implementation": "ours",
            "median_ms": 2.0,
            "iqr_ms": 0.0,
            "runs": 5,
            "times_ours": 1.0,
            "peak_bytes": 10,
            "difference": None,
        },
        {
            "implementation": "twin",
            "median_ms": 8.0,
            "iqr_ms": 0.0,
            "runs": 5,
            "times_ours": 4.0,
            "peak_bytes": 200,
            "difference": 0.0,
        },
    ]
    case = {"name": "bev_pool forward + backward", "shape": "big", "floor_ms": None, "results": rows}
    facts = {"cpu": "a chip", "cores": 2, "peers": {"mmcv.ops": "2.1.0"}}
    floors = {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": 2e11}
    found = {"date": "2026-01-02", "machine": facts, "floors": floors, "cases": [case]}
    (tmp_path / "ops_cpu.json").write_text(json.dumps(found))
    loaded = found | {"rows": [{"config": "kitti/small.yaml", "none": 0.0154, "disk": 0.0081}]}
    (tmp_path / "loading_cpu.json").write_text(json.dumps(loaded))
    row = {"median_ms": 12.0, "iqr_ms": 1.0, "runs": 9, "peak_bytes": 3e6, "file_bytes": None, "metrics": None}
    shipped = {"model": "student", "images": [6, 3, 64, 192], "gflops": 1.5, "frames": 42, "calibration": 30}
    (tmp_path / "shipping_cpu.json").write_text(json.dumps(found | shipped | {"rows": {"ONNX fixed": row}}))
    copy_documents(monkeypatch, tmp_path)
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    document = report.DOCUMENT
    report.main()
    first = document.read_text()
    assert "| bev_pool forward + backward | twin | time | 5 times ours | 4.0 | **missed** |" in first
    assert "| bev_pool forward + backward | twin | peak extra memory | 10 times ours | 20.0 | reached |" in first
    assert (
        "2026-01-02; cpu a chip, cores 2, mmcv.ops 2.1.0. Copy bandwidth 10.0 GB/s, matrix rate 200 GFLOP/s." in first
    )
    assert "2026-01-02; cpu a chip, cores 2, mmcv.ops 2.1.0.\n\n| config |" in first
    assert "| kitti/small.yaml | 15 ms | 8 ms |" in first
    assert "`student`, 6 x 64 x 192, 1.50 GFLOP" in first
    assert "| ONNX fixed | 12.00 | 1.00 | 9 | 3.0 | - | - | - |" in first
    report.main()
    assert document.read_text() == first


def test_documents_show_what_the_stored_results_say(monkeypatch, tmp_path):
    """As `python -m benchmarks.report` leaves them."""
    texts = copy_documents(monkeypatch, tmp_path)
    report.main()
    assert {name: getattr(report, name).read_text() for name in texts} == texts


def copy_documents(monkeypatch, folder):
    """Let `report` write into `folder`, where its documents lie as they are; their texts."""
    texts = {name: getattr(report, name).read_text() for name in ("DOCUMENT", "CONTROL_TABLES", "README", "ZOO")}
    for name, text in texts.items():
        monkeypatch.setattr(report, name, folder / f"{name}.md")
        getattr(report, name).write_text(text)
    return texts


def test_a_row_that_an_earlier_table_has_is_not_shown_again():
    head = "| | mAP |\n|---|---:|\n"
    first = f"A: 3 seeds\n\n{head}| teacher | 0.5 |\n| control | 0.3 |\n| distilled | 0.4 |\n\nVerdict."
    second = f"B: 3 seeds\n\n{head}| teacher   | 0.5 |\n| control | 0.3 |\n| distilled | 0.2 |\n\nVerdict."
    others = f"C: 3 seeds\n\n{head.replace('mAP', 'NDS')}| teacher | 0.5 |"
    shown = report._without_repeats({"a": first, "b": second, "c": others})
    assert shown["a"] == first and shown["c"] == others
    rest = f"B: 3 seeds\n\n{head}| distilled | 0.2 |\n\nVerdict."
    assert shown["b"] == f"{rest}\n\nAs in the table of A: teacher, control."


def test_control_tables_go_to_their_page_and_their_heads_to_the_readme(monkeypatch, tmp_path):
    table = ControlTable(
        *[
            [dict.fromkeys((c.key for c in COLUMNS), value) for value in values]
            for values in ([0.6], [0.2, 0.3], [0.3, 0.4])
        ],
        controls={"inherited": [dict.fromkeys((c.key for c in COLUMNS), value) for value in (0.3, 0.2)]},
        columns=COLUMNS,
        variants={"more": [dict.fromkeys((c.key for c in COLUMNS), value) for value in (0.5, 0.4)]},
    )
    (tmp_path / "crkd_small.json").write_text(json.dumps({"table": table.to_dict(), "text": str(table)}))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    copy_documents(monkeypatch, tmp_path)
    report.main()
    assert str(table) in (tmp_path / "CONTROL_TABLES.md").read_text()
    readme = (tmp_path / "README.md").read_text()
    values = "0.600, 0.600 | 0.250, 0.250 | 0.350, 0.350"
    assert f"| crkd_small | 2 | mAP, NDS | {values} | +0.100 ± 0.000, +0.100 ± 0.000 | better |" in readme
    assert "| crkd_small, more | 2 | mAP, NDS |  | 0.250, 0.250 | 0.450, 0.450 | +0.200 ± 1.271, +0" in readme
    assert (
        f"| crkd_small, control inherited | 2 | mAP, NDS | {values} | +0.100 ± 1.271, +0.100 ± 1.271 | within" in readme
    )


def test_gains_by_class_are_of_the_mean_over_distances(monkeypatch, tmp_path):
    def metrics(car, bus):
        found = {
            f"object/{n}_ap_dist_{d}": v + s for n, v in (("car", car), ("bus", bus)) for d, s in ((1.0, 0), (4.0, 0.1))
        }
        return {"metrics": found | {"object/map": 0.5}}

    runs = {
        "teacher": {"1000": metrics(0.6, 0.4), "1001": metrics(0.6, 0.4)},
        "control": {"1000": metrics(0.2, 0.3), "1001": metrics(0.2, 0.3)},
        "distilled": {"1000": metrics(0.3, 0.2), "1001": metrics(0.32, 0.36)},
    }
    lines = report._by_class({"runs": runs}).splitlines()
    # Differences 0.10, 0.12: t(0.975, 1) = 12.706 times 0.01.
    assert lines[2] == "| car | 0.650 | 0.250 | 0.360 | +0.110 ± 0.127 | within noise |"
    assert lines[3].startswith("| bus | 0.450 | 0.350 | 0.330 | -0.020 ± ")


def test_where_a_gain_lies_pairs_worlds_and_leaves_out_empty_buckets():
    nan = float("nan")
    near = {"control": {"1": 0.2, "2": 0.3, "3": 0.4}, "distilled": {"3": 0.51, "1": 0.3, "2": 0.4}}
    far = {"control": {"1": 0.1, "2": nan, "3": 0.1}, "distilled": {"1": 0.1, "2": nan, "3": 0.1}}
    places, speeds = (dict.fromkeys(where.BUCKETS[by][0], nan) for by in where.PROPERTIES)
    arms = {
        arm: {
            w: {"distance": places | {"0-10 m": near[arm][w], "10-20 m": far[arm][w]}, "speed": speeds} for w in "123"
        }
        for arm in near
    }
    found = {by: {arm: where._rows(worlds, by) for arm, worlds in arms.items()} for by in where.PROPERTIES}
    lines = where.table({"properties": found}).splitlines()
    assert lines[0] == "| | control | distilled | gain, 95 % interval | verdict |"
    assert lines[2:] == ["| distance: 0-10 m | 0.300 | 0.403 | +0.103 ± 0.014 | better |"]


TOY = """
seed: 1
max_epochs: 100000
data: {samples_per_gpu: 2, workers_per_gpu: 1, train: {type: EngineToyDataset, size: 10}}
model: {type: EngineToyModel}
optimizer: {type: AdamW, lr: 0.01}
load_from: null
resume_from: null
checkpoint_config: {interval: 10, interval_iters: 1, max_keep_ckpts: 1}
log_config: {interval: 1}
"""


@pytest.mark.slow
def test_soak_of_a_toy(monkeypatch, tmp_path, capsys):
    (tmp_path / "toy.yaml").write_text(TOY)
    tool = Path(__file__).parent / "launch" / "toy_tool.py"
    monkeypatch.setattr(soak, "TRAIN", [sys.executable, str(tool), "train.py"])
    monkeypatch.setattr(soak, "_trainings", lambda _: {"toy": [str(tmp_path / "toy.yaml")]})
    monkeypatch.setattr(soak, "EVERY", 0.2)
    monkeypatch.setenv("ENGINE_TOY_DELAY", "0.05")
    report = soak.main(["--steps", "60", "--kills", "1", "--out", str(tmp_path / "soak.json")])
    first, second = report["trainings"]["toy"]
    assert first["from"] == 0 and 20 <= first["to"] <= second["from"] + 5 and second["to"] < 60
    assert all(row["memory"] > 1e7 and row["files"][1] > 3 for row in (first, second))
    assert first["bytes per step"] is not None
    assert json.loads((tmp_path / "soak.json").read_text()) == report
    assert "bytes a step (median of 2 processes)" in capsys.readouterr().out
