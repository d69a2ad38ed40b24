"""Messages name commands as this user can type them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mmdet3d import shell

PACKAGE = Path(shell.__file__).parent


def test_a_checkout_has_tools_and_a_wheel_has_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shell.command("create-data") == "python tools/create_data.py"
    assert shell.script("train") == "tools/train.py"
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
