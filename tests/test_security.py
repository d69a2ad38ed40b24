"""What could run a stranger's code or command is called where SECURITY.md says, and nowhere else."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [*sorted((ROOT / "mmdet3d").rglob("*.py")), *sorted((ROOT / "tools").glob("*.py")), ROOT / "distill3d.py"]

# Call to the files that may make it.
AUDITED = {
    # A subclass that knows plain containers and arrays only; and records that this process itself has packed.
    "pickle.Unpickler": {"mmdet3d/io/pickles.py"},
    "pickle.loads": {"mmdet3d/datasets/base.py"},
    # With a subclass of SafeLoader.
    "yaml.load": {"mmdet3d/config.py"},
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
