"""What could run a stranger's code or command is called where SECURITY.md says, and nowhere else."""

from __future__ import annotations

import ast
import os
import tracemalloc
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import frames
import pytest
import torch

from mmdet3d.config import load_config
from mmdet3d.datasets.kitti.files import read_ids
from mmdet3d.datasets.kitti.labels import zip_results
from mmdet3d.datasets.nuscenes.infos import read_infos, write_infos
from mmdet3d.io.weights import read_weights, save_weights

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "mmdet3d").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py")), ROOT / "distill3d.py"]

# Call to the files that may make it.
AUDITED = {
    # A subclass that knows plain containers and arrays only; and records that this process itself has packed.
    "pickle.Unpickler": {"mmdet3d/io/pickles.py"},
    "pickle.loads": {"mmdet3d/datasets/base.py"},
    # With a subclass of SafeLoader.
    "yaml.load": {"mmdet3d/io/yaml_text.py"},
    # With weights_only=True, see below.
    "torch.load": {"mmdet3d/io/weights.py"},
    # Of a module that a config, an option or an installed plugin names, of OpenMMLab's or timm's, or of this project.
    "importlib.import_module": {
        "mmdet3d/plugins.py",
        "mmdet3d/registry.py",
        "mmdet3d/interop/openmmlab.py",
        "mmdet3d/interop/timm_models.py",
        "mmdet3d/commands/doctor.py",
        "distill3d.py",
    },
}
NEVER = {
    "eval", "exec", "compile", "__import__", "input",
    "os.system", "os.popen", "os.execv", "os.execvp", "commands.getoutput", "subprocess.getoutput",
    "pickle.load", "dill.load", "joblib.load", "marshal.loads", "shelve.open",
    "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load",
    "tarfile.open", "shutil.unpack_archive",
}  # fmt: skip


def _calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call | None]]:
    """Dotted names that are called, with the call; base classes count as called."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node
        elif isinstance(node, ast.ClassDef):
            yield from ((ast.unparse(base), None) for base in node.bases)


def test_dangerous_calls_are_where_they_were_audited() -> None:
    found: dict[str, set[str]] = {name: set() for name in AUDITED}
    for file in SOURCES:
        place = file.relative_to(ROOT).as_posix()
        for name, call in _calls(ast.parse(file.read_text())):
            assert name not in NEVER and not name.endswith(".extractall"), f"{place} calls {name}"
            if name in AUDITED:
                found[name].add(place)
            keywords = {k.arg: ast.unparse(k.value) for k in call.keywords} if call else {}
            assert keywords.get("shell", "False") == "False", f"{place} starts a shell"
            assert name != "torch.load" or keywords.get("weights_only") == "True", f"{place}: torch.load of anything"
            assert name != "yaml.load" or keywords.get("Loader") == "_Loader", f"{place}: yaml.load of anything"
    assert {name: places - AUDITED[name] for name, places in found.items()} == {name: set() for name in AUDITED}
    assert {name: AUDITED[name] - places for name, places in found.items()} == {name: set() for name in AUDITED}


def test_the_audit_sees_what_it_forbids() -> None:
    seen = {name for name, _ in _calls(ast.parse("class A(pickle.Unpickler): pass\nos.system(x)\nz.extractall()"))}
    assert seen == {"pickle.Unpickler", "os.system", "z.extractall"}


def test_processes_are_started_from_lists_of_words() -> None:
    """So that no value of a config, whatever it holds, is read by a shell."""
    found = 0
    for file in SOURCES:
        for name, call in _calls(ast.parse(file.read_text())):
            if name in ("subprocess.run", "subprocess.Popen", "subprocess.check_output", "subprocess.call"):
                found += 1
                assert not isinstance(call.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)), f"{file}: {name} of text"
    assert found > 3


@pytest.mark.parametrize("token", ["../../outside", "a/b", "/etc/x", "..", ".hidden", "", "a\0b", None])
def test_names_of_samples_cannot_leave_the_folder_that_files_are_written_to(token: str | None, tmp_path: Path) -> None:
    record = replace(frames.small_frame(tmp_path), token=token)
    write_infos([record], {}, tmp_path / "infos.pkl")
    with pytest.raises(ValueError, match=r"infos\.pkl: .* is no token of a sample"):
        read_infos(tmp_path / "infos.pkl")


@pytest.mark.parametrize("name", ["../../outside", "a/b", "/etc/x", "..", ".hidden"])
def test_names_of_frames_cannot_leave_their_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(f"{name}\n")
    with pytest.raises(ValueError, match=r"train\.txt, line 1: .* is no frame id"):
        read_ids(tmp_path / "train.txt")


def test_an_archive_takes_files_of_its_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "000001.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"outside\.txt"):
        zip_results(tmp_path / "results", ["../outside", "000001"], tmp_path / "a.zip")
    zip_results(tmp_path / "results", ["000001"], tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert archive.namelist() == ["000001.txt"]


def sparse(path: Path, head: bytes, size: int = 1 << 42) -> Path:
    """A file of four terabytes that takes no room."""
    path.write_bytes(head)
    os.truncate(path, size)
    return path


def test_files_of_absurd_size_are_refused_before_they_are_read(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(2)}, tmp_path / "a.safetensors", {})
    sparse(tmp_path / "a.json", b"{")
    with pytest.raises(ValueError, match=r"a\.json has 4398046511104 bytes"):
        read_weights(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"big\.yaml has 4398046511104 bytes"):
        load_config(sparse(tmp_path / "big.yaml", b"a: 1"))


@pytest.mark.parametrize("length", [1 << 62, 1 << 40, 200_000_000])
def test_a_header_of_absurd_size_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" * 64)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.safetensors is not a safetensors file"):
            read_weights(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
