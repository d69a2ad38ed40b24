"""Options of mmdetection's tools."""

from __future__ import annotations

import sys

import pytest

from mmdet3d.config import find_config
from mmdet3d.engine import command
from mmdet3d.engine.habits import translate

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0"}


@pytest.mark.parametrize(
    ("words", "ours", "env"),
    [
        ("c.yaml --work-dir d --seed 1 --resume-from f", "c.yaml --run-dir d --seed 1 --resume_from f", {}),
        ("c.yaml --work-dir=d --load-from=f", "c.yaml --run-dir=d --load_from=f", {}),
        ("--cfg-options a.b=1 c=x --eval bbox", "--a.b=1 --c=x --eval bbox", {}),
        ("--options a=1,2 b=[1,2] c=None d=", "--a=[1,2] --b=[1,2] --c=null --d=", {}),
        ("c.yaml --launcher none", "c.yaml", {}),
        ("--local_rank=0 c.yaml --launcher pytorch", "c.yaml", TORCHRUN),
        ("--local-rank 0 c.yaml --launcher=pytorch", "c.yaml", TORCHRUN),
        ("c.yaml --a.b 1 --eval bbox --out x.pkl", "c.yaml --a.b 1 --eval bbox --out x.pkl", {}),
    ],
)
def test_what_means_the_same_is_understood(words: str, ours: str, env: dict) -> None:
    assert translate(words.split(), env) == ours.split()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("c.yaml --run-dir= --seed 1", "--run-dir is empty; name a folder"),
        ("c.yaml --work-dir=", "--work-dir is empty; name a folder"),
        ("--gpus 2", r"--gpus is an option of mmdetection; here .*torchrun"),
        ("--no-validate", r"--data\.val null"),
        ("--auto-resume", r"--resume DIR"),
        ("--launcher pytorch", r"--launcher pytorch, but this process was started by no launcher; .*torchrun"),
        ("--launcher slurm", r"recognised without the option"),
    ],
)
def test_what_has_another_way_here_is_answered_with_it(words: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        translate(words.split(), {})


def test_every_tool_understands(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(sys, "argv", ["tool.py", "c.yaml", "--work-dir", "d"])
    monkeypatch.setattr(command, "_leave", lambda code: seen.append(code))
    command.run(seen.append)
    assert seen == [["c.yaml", "--run-dir", "d"], 0]


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("configs/synthetic/crkd/dmeo.yaml", "configs/synthetic/crkd/demo.yaml"),
        ("synthetic/crkd/demo", "synthetic/crkd/demo.yaml"),
        ("configs/kitti/monskd.yaml", "configs/kitti/monoskd.yaml"),
        ("gatedfuser-typed-nowhere.yaml", None),
        (
            "feat_fused_da_lr_mean_c2c_scale_mask_relation_resp_kd_dynamic_class_loss_80_256.yaml",
            "feature_response_distill/",
        ),
    ],
)
def test_a_mistyped_config_gets_the_nearest(path: str, hint: str | None) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        find_config(path)
    assert (hint in str(caught.value)) if hint else ("did you mean" not in str(caught.value))


def test_a_config_beside_the_mistyped_one(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("a: 1\n")
    with pytest.raises(FileNotFoundError, match=r"did you mean 'mine\.yaml'\?"):
        find_config("mnie.yaml")
