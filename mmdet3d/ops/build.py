"""Compile the kernels of an op into a shared library. Needs a compiler and nothing else: the sources include no torch.

An op folder holds `csrc/cpu.cpp` (C++, OpenMP) and `csrc/cuda.cu`. Both export plain C functions that `native.py` calls
with pointers. C++ is compiled for this processor, or for the one that `MMDET3D_ARCH` names as g++'s `-march` does. File
names carry it and a digest of sources, flags and processor, so that a stale library is never loaded.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["BuildError", "build", "cache_folder", "compiler", "library_name", "ops_with_kernels", "prebuilt"]

OPS = Path(__file__).resolve().parent
SOURCES = {"cpu": "cpu.cpp", "cuda": "cuda.cu", "emulated": "cuda.cu"}
# For which cards, if nobody says: the oldest that CUDA 13 compiles for to the newest, and PTX for later ones.
ALL_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"


class BuildError(RuntimeError):
    """A compiler is missing or refused; the message names the file and what to do."""


def ops_with_kernels(target: str) -> list[str]:
    """Names of the ops that have a source for `target`, one of "cpu", "cuda", "emulated" (CUDA source as plain C++)."""
    return sorted(p.parents[1].name for p in OPS.glob(f"*/csrc/{SOURCES[target]}"))


def compiler(target: str) -> str | None:
    """Path of the compiler for `target`; None if there is none. `CXX` and `CUDA_HOME` are honoured."""
    if target == "cuda":
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        places = [f"{home}/bin/nvcc"] if home else []
        return next((p for p in map(shutil.which, [*places, "nvcc", "/usr/local/cuda/bin/nvcc"]) if p), None)
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    return next((p for p in map(shutil.which, names) if p), None)


def cache_folder() -> Path:
    """Where libraries that are built at first use are kept: `MMDET3D_CACHE`, or the user's cache folder."""
    base = os.environ.get("MMDET3D_CACHE")
    return Path(base) if base else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmdet3d" / "ops"


def library_name(op: str, target: str, architectures: Sequence[str] = ()) -> str:
    """File name of the library that belongs to the present sources, flags and processor."""
    digest = hashlib.sha256()
    for path in [*sorted((OPS / "csrc").glob("*.h")), *sorted((OPS / op / "csrc").iterdir())]:
        if path.suffix in (".h", ".cpp", ".cu"):
            digest.update(path.name.encode() + path.read_bytes())
    digest.update(" ".join(_flags(target, architectures)).encode())
    if target == "cuda":
        return f"{op}-cuda-{digest.hexdigest()[:16]}.so"
    if _host_architecture() == "native":
        digest.update(_processor().encode())
    return f"{op}-{target}-{_host_architecture()}-{digest.hexdigest()[:16]}.so"


def prebuilt(op: str, target: str, architectures: Sequence[str] = ()) -> Path | None:
    """The library if it was built at installation or at an earlier first use."""
    name = library_name(op, target, architectures)
    return next((p for p in (OPS / op / name, cache_folder() / name) if p.is_file()), None)


def build(op: str, target: str, folder: Path, architectures: Sequence[str] = ()) -> Path:
    """Compile one library into `folder`; processes that ask for the same one wait for each other.

    Args:
        op: folder name of the op.
        target: "cpu", "cuda" or "emulated".
        folder: made if it does not exist.
        architectures: for "cuda", compute capabilities such as "9.0", the last one perhaps "12.0+PTX".

    Returns:
        The library.

    Raises:
        BuildError: no compiler, no permission to write, or the compiler's own message.
    """
    tool = compiler(target)
    if tool is None:
        raise BuildError(f"no {'nvcc' if target == 'cuda' else 'C++ compiler (g++)'} on PATH to build {op}")
    library = folder / library_name(op, target, architectures)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(library.with_suffix(".lock")):
            if not library.is_file():
                _compile(tool, op, target, library, architectures)
    except OSError as error:
        raise BuildError(f"cannot write to {folder}: {error} (set MMDET3D_CACHE to a folder of yours)") from error
    return library


def _compile(tool: str, op: str, target: str, library: Path, architectures: Sequence[str]) -> None:
    source = OPS / op / "csrc" / SOURCES[target]
    scratch = library.with_name(f".{library.stem}.{os.getpid()}.so")
    command = [tool, *_flags(target, architectures), f"-I{OPS / 'csrc'}", str(source), "-o", str(scratch)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        scratch.unlink(missing_ok=True)
        raise BuildError(f"{source} does not compile:\n{' '.join(command)}\n{done.stderr.strip()[-4000:]}")
    scratch.replace(library)


def _flags(target: str, architectures: Sequence[str]) -> list[str]:
    extra = os.environ.get("MMDET3D_CFLAGS", "").split()
    if target == "cuda":
        gencode = [f"-gencode={g}" for a in architectures for g in _gencode(a)]
        return ["-O3", "-std=c++17", "-shared", "-Xcompiler=-fPIC", "--extended-lambda", *gencode]
    # Products and sums are fused where the source says so. A compiler left to itself fuses in one copy of a loop and
    # not in the next, and the last bit would depend on the copy that a thread runs.
    arithmetic = [f"-march={_host_architecture()}", "-ffp-contract=off"]
    flags = ["-O3", "-std=c++17", "-shared", "-fPIC", *arithmetic, "-fopenmp", "-fvisibility=hidden", *extra]
    return [*flags, "-x", "c++"] if target == "emulated" else flags


def _host_architecture() -> str:
    return os.environ.get("MMDET3D_ARCH") or "native"


def _gencode(architecture: str) -> list[str]:
    number = architecture.removesuffix("+PTX").replace(".", "")
    codes = [f"arch=compute_{number},code=sm_{number}"]
    return [*codes, f"arch=compute_{number},code=compute_{number}"] if architecture.endswith("+PTX") else codes


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.machine() + platform.processor()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
