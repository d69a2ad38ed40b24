"""What is wrong with a file that a user names is said with its name and what to do."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest

from mmdet3d.commands import create_data, curves, evaluate, test, visualize
from mmdet3d.config import load_config
from mmdet3d.engine.command import read_overrides
from mmdet3d.io.files import atomic_write, check_place, in_words, read_json, utf8_text

BINARY = b"\xff\xfe\x00\x81"


def test_text_of_windows_programs_is_read(tmp_path: Path) -> None:
    """With a byte order mark and carriage returns, in a file whose name has spaces and umlauts."""
    for name, content in (("größe 1.json", '{"a": 1}\r\n'), ("config größe.yaml", "a: 1\r\nb: 2\r\n")):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content.encode())
    assert read_json(tmp_path / "größe 1.json", "file") == {"a": 1}
    assert load_config(tmp_path / "config größe.yaml") == {"a": 1, "b": 2}
    assert read_overrides([], str(tmp_path / "config größe.yaml")) == {"a": 1, "b": 2}


def test_what_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(BINARY)
    for read in (
        utf8_text,
        lambda path: read_json(path, "file"),
        load_config,
        lambda path: read_overrides([], str(path)),
    ):
        with pytest.raises(ValueError, match=r"x\.yaml is no text in UTF-8 \(invalid start byte at byte 0\)"):
            read(file)


@pytest.mark.parametrize("words", [["x.json"], ["y.json", "--tokens", "x.json"]])
def test_results_and_tokens_that_are_no_text(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.json").write_bytes(BINARY)
    Path("y.json").write_text('{"meta": {}, "results": {}}')
    assert evaluate.main(["nuscenes", *words, "--version", "v1.0-mini", "--out", "out"]) == 2
    assert "x.json is no text in UTF-8" in capsys.readouterr().err and not Path("out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["nuscenes", "y.json", "--out", "file"],
        ["nuscenes", "y.json", "--report", "file/report"],
        ["kitti", "folder", "--out", "file"],
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_anything_is_scored(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    assert evaluate.main(words) == 2  # results and tables are not there either, which would be said later
    place, option = words[-1], words[-2]
    assert capsys.readouterr().err == (
        f"error: cannot write into {place} ({tmp_path / 'file'} is a file); pass another folder with {option}\n"
    )


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (visualize, ["config.yaml", "--out-dir", "file/pictures"], "is a file); pass another folder with --out-dir"),
        (visualize, ["config.yaml", "--video", "file/a.gif"], "is a file); pass another folder with --video"),
        (test, ["config.yaml", "x.pth", "--out", "file/a.pkl"], "is a file); pass another folder with --out"),
        (test, ["config.yaml", "x.pth", "--out", "folder.pkl"], "--out folder.pkl is a folder; name a file"),
        (curves, ["folder.pkl", "--out", "file/a.png"], "is a file); pass another folder with --out"),
    ],
)
def test_places_of_other_commands_are_looked_at_first(
    command: ModuleType, words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Config and weights are not there, and would be missed next."""
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("folder.pkl").mkdir()
    Path("folder.pkl/metrics.jsonl").touch()
    with pytest.raises(ValueError, match=re.escape(message)):
        command.main(words)


@pytest.mark.parametrize(
    "words",
    [["--limit", "-1"], ["--limit", "0"], ["--width", "-5"], ["--width", "x"], ["--fps", "0"], ["--fps", "nan"]],
)
def test_numbers_of_options_that_cannot_be_meant(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        visualize.parse(["config.yaml", *words])
    assert f"argument {words[0]}: must be a" in capsys.readouterr().err


def test_info_files_are_not_begun_where_they_cannot_lie(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "file").touch()
    for words, message in (
        (["--out-dir", str(tmp_path / "file")], "pass another folder with --out-dir"),
        (["--out-dir", str(tmp_path), "--max-sweeps", "-1"], "max_sweeps must be an integer of at least 0, got -1"),
        (["--out-dir", str(tmp_path), "--extra-tag", ""], "give one by --extra-tag"),
    ):
        assert create_data.main(["nuscenes", "--root-path", str(tmp_path), "--version", "v1.0-mini", *words]) == 2
        assert message in capsys.readouterr().err


def test_messages_of_the_system_say_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError) as error:
        (tmp_path / "file").mkdir()
    assert in_words(error.value) == (
        f"{tmp_path / 'file'}: a file lies where a folder is needed; choose another place, or move it away"
    )
    with pytest.raises(OSError) as error:
        tmp_path.read_text()
    assert in_words(error.value).endswith("it is a folder, and a file is needed; name the file in it")
    assert in_words(OSError(0, os.strerror(5))) == "[Errno 0] Input/output error"
    assert in_words(FileNotFoundError("config x not found")) == "config x not found"
    check_place(tmp_path / "new" / "folder", "--out")
    assert not (tmp_path / "new").exists()


def test_a_device_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """As --out /dev/null would be by somebody with all rights."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as reader:
        read = reader.submit(pipe.read_text)
        with atomic_write(pipe) as file:
            file.write("through")
        assert read.result(timeout=10) == "through" and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]
