"""Machine code of exported networks: where it runs, and what is said where it does not or cannot be made."""

from __future__ import annotations

import dataclasses
import json
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mmdet3d import Detector
from mmdet3d.commands import export
from mmdet3d.engine import inductor
from mmdet3d.engine.export import FORMAT, Facts


def package(path: Path, **changes: Any) -> Path:
    """A package without machine code that says that it was compiled here, but for `changes`."""
    facts = Facts(("car",), ("camera",), {}, None, "none", "", "0", compiled=inductor.machine() | changes)
    text = json.dumps({"format": FORMAT, "interface": {}, "facts": dataclasses.asdict(facts)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/aotinductor/model/y.wrapper_metadata.json", json.dumps({"distill3d": text}))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"device": "cuda"},
            r"student\.pt2 was compiled for cuda of .*, and this is cpu of .*; export it on a machine",
        ),
        (
            {"platform": "Plan9 vax"},
            r"student\.pt2 was compiled for cpu of Plan9 vax, and this is cpu of .*; export it",
        ),
        ({"instructions": ["avx4096"]}, r"compiled for processors with avx4096, this one has none; export it"),
        (
            {"torch": "1.0"},
            rf"student\.pt2 was compiled with torch 1\.0 and does not load with {torch.__version__[:3]}",
        ),
    ],
)
def test_a_file_for_another_machine_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    """By what it says of itself, before any of its code is loaded; the last has none that could be."""
    with pytest.raises(ValueError, match=message):
        Detector.from_file(package(tmp_path / "student.pt2", **changes))


def test_a_package_of_another_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "other.pt2", "w") as archive:
        archive.writestr("x/data/aotinductor/model/y.wrapper_metadata.json", json.dumps({"AOTI_DEVICE_KEY": "cpu"}))
    with pytest.raises(ValueError, match="does not say how frames are read and boxes decoded"):
        Detector.from_file(tmp_path / "other.pt2")


def test_what_compiling_needs_is_said_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--compile --to student\.onnx: it needs a file \.pt2"):
        export.main(["nowhere.safetensors", "--to", "student.onnx", "--compile"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"--compile needs a C\+\+ compiler, and there is none on PATH; install g\+\+"):
        export.main(["nowhere.safetensors", "--to", "student.pt2", "--compile"])


def test_what_the_compiler_refuses_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: Any, package_path: Any, inductor_configs: dict) -> None:
        raise RuntimeError("no kernel for frobnicate\n  in a long trace")

    monkeypatch.setitem(sys.modules, "torch._inductor", SimpleNamespace(aoti_compile_and_package=refuse))
    program: Any = SimpleNamespace(graph=SimpleNamespace(nodes=[]))
    with pytest.raises(
        ValueError, match=r"cannot compile student\.pt2 \(no kernel for frobnicate\); leave --compile out"
    ):
        inductor.write_package(program, tmp_path / "student.pt2", inductor.machine(), "distill3d", "{}")
    assert not list(tmp_path.iterdir())
