"""Static facts are in pyproject.toml. This file compiles the kernels of `mmdet3d/ops` ahead of time, and puts what lies
beside the package in a checkout (`configs`, `pretrained/zoo`) into the one that a wheel holds.

With `pip install --no-build-isolation -e .` or `python setup.py develop` they are compiled for this machine: C++ where
there is a compiler; CUDA where there is nvcc and torch is built for CUDA, or where TORCH_CUDA_ARCH_LIST says for which
cards. Without a compiler nothing is lost: kernels are built at first use, or the PyTorch twins run.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
DATA = ("configs", "pretrained/zoo")


def load_builder():
    spec = importlib.util.spec_from_file_location("builder", ROOT / "mmdet3d" / "ops" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def architectures(builder) -> tuple[str, ...]:
    """Compute capabilities to build for; none if nothing here needs CUDA."""
    named = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";")
    if named:
        return tuple(named.split(";"))
    try:
        import torch
    except ImportError:
        return ()
    cards = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    if cards:
        return tuple(f"{major}.{minor}" for major, minor in sorted(cards))
    return tuple(builder.ALL_ARCHITECTURES.split(";")) if torch.version.cuda else ()


class BuildKernels(build_ext):
    """Puts one library per op and target beside the op's sources."""

    def run(self) -> None:
        builder = load_builder()
        self.libraries_built = []
        targets = {"cpu": ()}
        if architectures(builder) and builder.compiler("cuda"):
            targets["cuda"] = architectures(builder)
        jobs = [(op, target, archs) for target, archs in targets.items() for op in builder.ops_with_kernels(target)]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda job: self._build(builder, *job), jobs))

    def _build(self, builder, op: str, target: str, archs: tuple[str, ...]) -> None:
        folder = (ROOT if self.inplace else Path(self.build_lib)) / "mmdet3d" / "ops" / op
        for stale in folder.glob(f"{op}-{target}-*"):
            if stale.name != builder.library_name(op, target, archs):
                stale.unlink()
        try:
            library = builder.build(op, target, folder, archs)
            library.with_suffix(".lock").unlink(missing_ok=True)
            self.libraries_built.append(str(library))
        except builder.BuildError as error:
            self.warn(f"{op} for {target} is left to first use: {error}")

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else list(self.libraries_built)

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return []


class BuildWithData(build_py):
    """An editable install uses the checkout's own (`mmdet3d.config.CONFIG_ROOT`)."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in DATA:
            target = Path(self.build_lib) / "mmdet3d" / name
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
            shutil.copytree(ROOT / name, target)


class WithKernels(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_ext": BuildKernels, "build_py": BuildWithData}, distclass=WithKernels)
