"""Exported programs compiled to machine code by AOTInductor, which the file holds: no graph is read or interpreted.

A package is compiled for one kind of machine, which it names. Compiling needs a C++ compiler, running needs none.
"""

from __future__ import annotations

import io
import json
import platform
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet3d.io.files import atomic_write
from mmdet3d.ops import build

__all__ = ["check_compiler", "is_package", "machine", "open_package", "without_own_ops", "write_package"]

_PLACE = "/data/aotinductor/"  # in the archive
# The level of x86-64 that processors since about 2015 have, so that a package also runs on another than this one.
_X86_64_V3 = ("avx2", "bmi", "bmi2", "f16c", "fma3", "lzcnt")


def machine() -> dict[str, Any]:
    """What a package that is compiled here needs where it runs, as plain values.

    Returns:
        `device`; `platform`, system and architecture; `instructions`, names of `torch.cpu.get_capabilities`; and the
        version of `torch`.
    """
    has = torch.cpu.get_capabilities()
    common = all(has.get(name) for name in _X86_64_V3)
    instructions = _X86_64_V3 if common else sorted(name for name, value in has.items() if value is True)
    return {
        "device": "cpu",
        "platform": _platform(),
        "instructions": list(instructions),
        "torch": torch.__version__,
    }


def check_compiler() -> None:
    """Raises ValueError if there is no C++ compiler."""
    if build.compiler("cpu") is None:
        raise ValueError(
            "--compile needs a C++ compiler, and there is none on PATH; install g++, or leave --compile out"
        )


def write_package(
    program: torch.export.ExportedProgram, path: Path, needs: Mapping[str, Any], key: str, metadata: str
) -> None:
    """Compile a program for the machine `needs`, that of `machine()`, and write it with `metadata` under `key`.

    Raises:
        ValueError: AOTInductor cannot compile it.
    """
    from torch._inductor import aoti_compile_and_package  # takes seconds

    options: dict[str, Any] = {
        "aot_inductor.metadata": {key: metadata},
        "aot_inductor.precompile_headers": False,  # they would stay in the temporary folder, 300 MB
        "cpp.cxx": (build.compiler("cpu"),),
        "cpp.dynamic_threads": True,  # those of the machine that runs it, not of this process
    }
    if needs["instructions"] == list(_X86_64_V3):
        options |= {"cpp.march": "x86-64-v3", "cpp.simdlen": 256}
    package = io.BytesIO()
    try:
        aoti_compile_and_package(without_own_ops(program), package_path=package, inductor_configs=options)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"AOTInductor cannot compile {path.name} ({reason}); leave --compile out") from error
    with atomic_write(path, "wb") as file:
        file.write(package.getvalue())


def without_own_ops(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """With plain operations in place of the op that programs hold as a whole: machine code could not call Python."""
    import mmdet3d.ops.roi_align  # noqa: F401  (registers the op)
    from mmdet3d.ops.roi_align import exported

    op = torch.ops.mmdet3d.roi_align.default
    if all(node.target != op for node in program.graph.nodes):
        return program
    plain: torch.export.ExportedProgram = program.run_decompositions({op: exported.roi_align})
    return plain


def is_package(path: Path) -> bool:
    """Whether a file holds machine code of AOTInductor."""
    return bool(_metadata_files(path))


def open_package(path: Path, key: str) -> tuple[Callable[..., Any], str]:
    """What computes outputs of inputs, in the order of the program's, and the metadata under `key`.

    Raises:
        ValueError: compiled for another machine, or by a torch that does not fit; nothing in it has run then.
    """
    with zipfile.ZipFile(path) as archive:
        text: str = json.loads(archive.read(_metadata_files(path)[0])).get(key, "")
    if not text:
        return lambda *_: (), ""
    needs = json.loads(text)["facts"]["compiled"]
    _check_machine(path, needs)
    try:
        # What torch._inductor.aoti_load_package wraps, without importing the compiler and looking for g++.
        loader = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 1, -1)
    except RuntimeError as error:
        versions = f"torch {needs['torch']} and does not load with {torch.__version__}"
        raise ValueError(f"{path} was compiled with {versions}; export it anew") from error

    def run(*inputs: Tensor) -> list[Tensor]:
        # The code takes for granted how the inputs of the export lay in memory, which is so.
        found: list[Tensor] = loader.run([value.contiguous() for value in inputs])
        return found

    return run, text


def _metadata_files(path: Path) -> list[str]:
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return [name for name in archive.namelist() if _PLACE in name and name.endswith("_metadata.json")]


def _check_machine(path: Path, needs: Mapping[str, Any]) -> None:
    remedy = "export it on a machine of this kind, or without --compile"
    meant, here = (needs["device"], needs["platform"]), ("cpu", _platform())
    if meant != here:
        raise ValueError(f"{path} was compiled for {' of '.join(meant)}, and this is {' of '.join(here)}; {remedy}")
    has = torch.cpu.get_capabilities()
    lacking = [name for name in needs["instructions"] if not has.get(name)]
    if lacking:
        raise ValueError(f"{path} was compiled for processors with {', '.join(lacking)}, this one has none; {remedy}")


def _platform() -> str:
    return f"{platform.system()} {platform.machine()}"
