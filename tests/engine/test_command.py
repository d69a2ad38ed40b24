"""Overrides on the command line, as one shell or two hand them over."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmdet3d.commands import demo
from mmdet3d.engine.command import read_overrides, rejoin


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--a.b", "1", "c=x"], {"a.b": 1, "c": "x"}),
        (["--a", "[1,", "2]", "--b", "3"], {"a": [1, 2], "b": 3}),
        (["--a", "[1, 2]"], {"a": [1, 2]}),
        (["a=[1,", "2]"], {"a": [1, 2]}),
        (["--a=two", "words", "--b=-0.5"], {"a": "two words", "b": -0.5}),
        (["--a", "{x:", "1,", "y:", "b=2}"], {"a": {"x": 1, "y": "b=2"}}),
        (["--lr", "-1e-3", "--path", "/a=b/c"], {"lr": -1e-3, "path": "/a=b/c"}),
        (["--a", "it's fine"], {"a": "it's fine"}),
        (["--deterministic", "--seed", "1"], {"deterministic": True, "seed": 1}),
        ([], {}),
    ],
)
def test_values_are_whole(words: list[str], expected: dict) -> None:
    assert read_overrides(words) == expected


@pytest.mark.parametrize(
    ("words", "message"), [(["x"], "unexpected argument 'x'"), (["--a", "--b", "1"], "--a needs a")]
)
def test_mistakes(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rejoin(words)


def test_file_comes_first(tmp_path: Path) -> None:
    file = tmp_path / "o.yaml"
    file.write_text('a.b: "x; $y"\nc: {d: 1e-3}\ne: 2\n')
    assert read_overrides(["--e", "3"], str(file)) == {"a.b": "x; $y", "c": {"d": 0.001}, "e": 3}
    file.write_text("- 1\n")
    with pytest.raises(ValueError, match="must hold lines"):
        read_overrides([], str(file))
    with pytest.raises(FileNotFoundError, match=r"nowhere.yaml does not exist"):
        read_overrides([], "nowhere.yaml")


@pytest.mark.parametrize("word", ["-1", "1.5", "x", "", f"{2**32}", "9" * 5000])
def test_seeds_that_no_generator_takes_are_refused_with_the_options(
    word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.parse(["--seed", word])
    assert f"--seed: must be a whole number from 0 to 4294967295, got '{word}'" in capsys.readouterr().err
    assert demo.parse(["--seed", f"{2**32 - 1}"])[0].seed == 2**32 - 1
