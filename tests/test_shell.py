"""Messages name commands as this user can type them."""

from __future__ import annotations

import ast
import shlex
from pathlib import Path

import pytest

from mmdet3d import shell
from mmdet3d.engine.resuming import refuse_changes

PACKAGE = Path(shell.__file__).parent


def test_a_command_is_said_as_it_was_typed_or_as_this_installation_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shell.command("create-data") == "python tools/create_data.py"
    assert shell.script("train") == "tools/train.py"
    with monkeypatch.context() as typed:
        typed.setattr(shell.sys, "orig_argv", ["python", "/usr/bin/distill3d", "train", "x.yaml"])
        assert (shell.command("create-data"), shell.script("train")) == ("distill3d create-data", "-m distill3d train")
    monkeypatch.setattr(shell, "_TOOLS", tmp_path)
    assert shell.command("create-data") == "distill3d create-data"
    assert shell.script("train") == "-m distill3d train"


def test_no_message_writes_the_path_of_a_tool_itself() -> None:
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        tree = ast.parse(file.read_text())
        docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
            if "tools/" in text and ".py" in text and id(node) not in docstrings:
                wrong.append(f"{file.relative_to(PACKAGE)}:{node.lineno}")
    assert wrong == []


def test_a_folder_in_a_message_can_be_typed_whatever_is_in_its_name(tmp_path: Path) -> None:
    """The command of the message, read as a shell does, names the folder."""
    folder = tmp_path / "größe $1; 'my run'"
    folder.mkdir()
    (folder / "configs.yaml").write_text("seed: 0\n")
    with pytest.raises(ValueError) as error:
        refuse_changes(folder, {"seed": 1}, "my config.yaml")
    assert shlex.split(str(error.value).split("--resume ")[1].split("; to train")[0]) == [str(folder)]
    assert shlex.split(str(error.value).split("from its weights: ")[1])[2:] == [
        "my config.yaml",
        "--load_from",
        str(folder / "latest.safetensors"),
    ]
