"""Which implementation runs, and how libraries come to be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmdet3d.ops import build, native
from mmdet3d.ops.feature_decorator import feature_decorator

ROOT = Path(__file__).resolve().parents[2]
needs_compiler = pytest.mark.skipif(build.compiler("cpu") is None, reason="there is no C++ compiler on this machine")
needs_nvcc = pytest.mark.skipif(build.compiler("cuda") is None, reason="there is no nvcc on this machine")


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """Nothing built yet and nothing chosen yet."""
    monkeypatch.setenv("MMDET3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(build, "prebuilt", lambda *_: None)
    native._resolve.cache_clear()
    yield tmp_path / "cache"
    native._resolve.cache_clear()


def decorate():
    points, counts = torch.rand(3, 2, 4), torch.tensor([2, 1, 0])
    return feature_decorator(points, counts, torch.zeros(3, 3, dtype=torch.int64), [1.0] * 3, [0.0] * 3 + [1.0] * 3)


def python(code: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
    )


def test_importing_the_package_builds_and_loads_nothing(tmp_path):
    code = (
        "import mmdet3d, mmdet3d.models, mmdet3d.distill; from mmdet3d.ops import native; "
        "assert native._resolve.cache_info().currsize == native._load.cache_info().currsize == 0"
    )
    done = python(code, MMDET3D_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "cache").exists()


def test_unknown_setting():
    with native.forced("fast"), pytest.raises(ValueError, match="MMDET3D_OPS must be one of auto, reference, native"):
        decorate()


@pytest.mark.parametrize("value", ["reference", "native"])
def test_environment_variable(value):
    if value == "native" and build.compiler("cpu") is None:
        pytest.skip("there is no C++ compiler on this machine")
    code = "from mmdet3d.ops.native import Kernels; print(Kernels('feature_decorator').state('cpu'))"
    done = python(code, MMDET3D_OPS=value)
    assert ("PyTorch twin" if value == "reference" else "compiled") in done.stdout, done.stderr


@needs_compiler
def test_built_at_first_use_and_only_once(fresh, caplog):
    caplog.set_level("INFO", logger="mmdet3d")
    decorate()
    (library,) = fresh.glob("*.so")
    before = library.stat().st_mtime_ns
    decorate()
    native._resolve.cache_clear()
    decorate()
    assert library.stat().st_mtime_ns == before
    assert [r.message for r in caplog.records].count(
        "feature_decorator on cpu: compiled kernels"
    ) == 2  # once per choice


def test_without_a_compiler_the_twin_runs_and_says_so(fresh, monkeypatch, caplog):
    monkeypatch.setattr(build, "compiler", lambda _: None)
    assert decorate().shape == (3, 2, 6)
    assert "PyTorch twin, slower, because there is no C++ compiler (install g++)" in caplog.text
    with native.forced("native"), pytest.raises(RuntimeError, match="there is no C\\+\\+ compiler"):
        decorate()


@needs_compiler
def test_broken_source_falls_back_or_says_which_file(fresh, monkeypatch, tmp_path, caplog):
    folder = tmp_path / "ops"
    shutil.copytree(ROOT / "mmdet3d/ops/csrc", folder / "csrc")
    (folder / "feature_decorator" / "csrc").mkdir(parents=True)
    (folder / "feature_decorator" / "csrc" / "cpu.cpp").write_text("int broken(")
    monkeypatch.setattr(build, "OPS", folder)
    with native.forced("native"), pytest.raises(RuntimeError, match=r"feature_decorator/csrc/cpu.cpp does not compile"):
        decorate()
    assert decorate().shape == (3, 2, 6)
    assert "does not compile" in caplog.text
    assert not list(fresh.glob("*.so")), "a failed build leaves nothing behind"


@needs_compiler
def test_cache_that_cannot_be_written(fresh, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MMDET3D_CACHE", str(tmp_path / "file" / "below"))
    with native.forced("native"), pytest.raises(RuntimeError, match="set MMDET3D_CACHE to a folder of yours"):
        decorate()


def test_a_changed_source_or_flag_is_another_library(monkeypatch, tmp_path):
    shutil.copytree(ROOT / "mmdet3d/ops/csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "mmdet3d/ops/feature_decorator/csrc", tmp_path / "feature_decorator/csrc")
    monkeypatch.setattr(build, "OPS", tmp_path)
    names = {build.library_name("feature_decorator", "cpu")}
    monkeypatch.setenv("MMDET3D_CFLAGS", "-g")
    names.add(build.library_name("feature_decorator", "cpu"))
    with (tmp_path / "csrc/scalar.h").open("a") as file:
        file.write("\n")
    names.add(build.library_name("feature_decorator", "cpu"))
    assert len(names) == 3


def test_a_library_belongs_to_an_architecture(monkeypatch):
    monkeypatch.delenv("MMDET3D_ARCH", raising=False)
    own = build.library_name("feature_decorator", "cpu")
    assert own.startswith("feature_decorator-cpu-native-")
    monkeypatch.setenv("MMDET3D_ARCH", "x86-64-v3")
    named = build.library_name("feature_decorator", "cpu")
    assert named.startswith("feature_decorator-cpu-x86-64-v3-")
    monkeypatch.setattr(build, "_processor", lambda: "another machine")
    assert build.library_name("feature_decorator", "cpu") == named, "it runs on every processor of that kind"
    monkeypatch.delenv("MMDET3D_ARCH")
    assert build.library_name("feature_decorator", "cpu") != own


@needs_compiler
def test_unknown_architecture(monkeypatch, tmp_path):
    monkeypatch.setenv("MMDET3D_ARCH", "x86-64-v9")
    with pytest.raises(build.BuildError, match=r"(?s)cpu.cpp does not compile.*x86-64-v9"):
        build.build("feature_decorator", "cpu", tmp_path)


def test_calls_refuse_what_kernels_cannot_read():
    kernels = native.Kernels("feature_decorator")
    with pytest.raises(ValueError, match="decorate_forward needs contiguous tensors on cpu"):
        kernels.call("decorate_forward", torch.zeros(2, 3).t())


@needs_compiler
def test_install_builds_ahead_of_time(tmp_path):
    """What `pip install --no-build-isolation -e .` and `python setup.py develop` run."""
    for part in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, tmp_path)
    for part in ("mmdet3d/ops/csrc", "mmdet3d/ops/feature_decorator"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "mmdet3d/ops/build.py", tmp_path / "mmdet3d/ops")
    stale = tmp_path / "mmdet3d/ops/feature_decorator/feature_decorator-cpu-0000000000000000.so"
    stale.write_text("")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built = [p.name for p in stale.parent.glob("*.so")]
    assert built == [build.library_name("feature_decorator", "cpu")]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("8.0", ["arch=compute_80,code=sm_80"]),
        ("12.0+PTX", ["arch=compute_120,code=sm_120", "arch=compute_120,code=compute_120"]),
    ],
)
def test_card_lists(text, expected):
    assert build._gencode(text) == expected


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("op", build.ops_with_kernels("cuda"))
def test_cuda_sources_compile(op, tmp_path):
    assert build.build(op, "cuda", tmp_path, ("8.0", "9.0")).is_file()


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("architecture", "tuning", "needs"),
    [
        ("x86-64-v2", "generic", {"sse4_2"}),
        ("x86-64-v3", "generic", {"avx2", "fma", "bmi2"}),
        # Tuned for AMD, g++ keeps some products and sums apart that it fuses elsewhere.
        ("x86-64-v3", "znver3", {"avx2", "fma", "bmi2"}),
        ("x86-64-v4", "generic", {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    ],
)
def test_same_bits_with_any_number_of_threads_on_every_processor(architecture, tuning, needs, tmp_path):
    """The tests that compare numbers of threads once more, with kernels for other processors than this one."""
    if not needs <= set(build._processor().split()):
        pytest.skip(f"this processor does not run code for {architecture}")
    environment = {
        **os.environ,
        "MMDET3D_OPS": "native",
        "MMDET3D_ARCH": architecture,
        "MMDET3D_CFLAGS": f"-mtune={tuning}",
        "MMDET3D_CACHE": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "tests/ops", "-m", "not slow", "-p", "no:cacheprovider"]
    command += ["-k", "threads and not (reference or emulated)", "--ignore", "tests/ops/test_native.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    built = {library.name.split("-cpu-")[0] for library in tmp_path.glob(f"*-cpu-{architecture}-*.so")}
    assert built == set(build.ops_with_kernels("cpu"))


@pytest.mark.slow
@needs_compiler
def test_kernels_are_clean_under_the_address_sanitizer(tmp_path):
    """All operator tests once more with every kernel instrumented; reads and writes out of bounds abort the process."""
    # The C++ runtime must be there first as well, or the sanitizer cannot follow an exception through PyTorch.
    runtime = [
        subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    if not all(Path(file).is_file() for file in runtime):
        pytest.skip("the compiler here has no address sanitizer runtime")
    environment = {
        **os.environ,
        "LD_PRELOAD": " ".join(runtime),
        "ASAN_OPTIONS": "detect_leaks=0:verify_asan_link_order=0",
        "MMDET3D_CFLAGS": "-fsanitize=address -g -O1",
        "MMDET3D_CACHE": str(tmp_path),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/ops", "-m", "not slow", "-k", "native or emulated"]
    command += ["-p", "no:cacheprovider", "--ignore", "tests/ops/test_native.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "AddressSanitizer" not in done.stderr, (done.stdout + done.stderr)[-4000:]
