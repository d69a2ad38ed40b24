"""How a call is timed and its memory measured; the contract is benchmarks/README.md."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from mmdet3d.machine import cpus, share
from mmdet3d.ops import build, native

__all__ = [
    "Budget",
    "Case",
    "difference",
    "floors",
    "forward_backward",
    "machine",
    "measure",
    "optional",
    "peak_memory",
    "run_case",
    "summary",
    "threads",
    "time_calls",
    "twin",
    "write_json",
]

Implementation = Callable[[], Any]
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
PEERS = ("mmcv.ops", "spconv.pytorch", "torchsort", "torchvision.ops")


@dataclass(frozen=True)
class Case:
    """One op at one size, in several implementations.

    Attributes:
        name: the op, and what of it, for instance "bev_pool forward".
        shape: the size in words, for instance "6x118x32x88x80 -> 360x360".
        implementations: name -> call. The first is ours, "twin" is the PyTorch twin, the others are peers. What a call
            returns (a tensor, tensors in a tuple or list, None) is compared with what the first one returns.
        bytes: what must be moved at least, each input read once and each output written once; None if unknown.
        flops: what must be calculated at least; None if unknown or negligible.
    """

    name: str
    shape: str
    implementations: Mapping[str, Implementation]
    bytes: int | None = None
    flops: int | None = None


@dataclass(frozen=True)
class Budget:
    """How long an implementation is timed: until `seconds` are spent or `runs` made, but at least `least` runs."""

    seconds: float = 2.0
    runs: int = 100
    least: int = 5
    warmup: int = 2


def optional(name: str) -> ModuleType | None:
    """The module, or None where it is not installed or does not load."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError, AttributeError):
        return None


def twin(function: Implementation) -> Implementation:
    """The same call with every op taking its PyTorch twin."""

    def call() -> Any:
        with native.forced("reference"):
            return function()

    return call


def forward_backward(function: Callable[..., Tensor], *inputs: Any) -> Implementation:
    """A call of `function(*inputs)` and the gradients of all inputs that require one, for a fixed output gradient.

    The call returns the output and the gradients.
    """
    wanted = [i for i in inputs if isinstance(i, Tensor) and i.requires_grad]
    seeds: dict[torch.Size, Tensor] = {}

    def call() -> tuple[Tensor, ...]:
        out = function(*inputs)
        if out.shape not in seeds:
            generator = torch.Generator(out.device).manual_seed(0)
            seeds[out.shape] = torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
        return (out.detach(), *torch.autograd.grad(out, wanted, seeds[out.shape]))

    return call


def measure(call: Implementation, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of one call, the device idle before and after."""
    _synchronize(device)
    start = clock()
    call()
    _synchronize(device)
    return clock() - start


def time_calls(
    implementations: Mapping[str, Implementation],
    device: torch.device,
    budget: Budget,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of repeated calls. Implementations take turns, so that a disturbance of the machine meets all of them.

    Args:
        clock: `time.process_time` counts what the processor spends on this process, not what it waits for others.
    """
    _keep_freed_memory()
    seconds: dict[str, list[float]] = {name: [] for name in implementations}
    waiting = dict(implementations)
    gc.collect()
    gc.disable()
    while waiting:
        for name, call in list(waiting.items()):
            taken = seconds[name]
            taken.append(measure(call, device, clock))
            if len(taken) >= budget.runs or (len(taken) >= budget.least and sum(taken) >= budget.seconds):
                del waiting[name]
    gc.enable()
    return seconds


def _keep_freed_memory() -> None:
    """Let the C library keep what is freed: else a call pays the page faults of what a peer's frees gave back."""
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL("libc.so.6")
        for parameter, value in ((_MMAP_THRESHOLD, 1 << 25), (_TRIM_THRESHOLD, (1 << 31) - 1)):
            library.mallopt(parameter, value)


def peak_memory(call: Implementation, device: torch.device) -> int | None:
    """Most memory that the call holds at one time beyond what was held before it, bytes.

    On CUDA what the allocator hands out; on the CPU resident memory of the process as the kernel counts it (Linux;
    None elsewhere), after free memory was given back, so a call is charged for each page it touches.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present size
        before = _resident("VmRSS")
        kept = call()
        del kept
        return max(0, _resident("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def run_case(case: Case, device: torch.device, budget: Budget, limits: Mapping[str, float]) -> dict[str, Any]:
    """Warm up, compare, measure memory, then time all implementations of one case.

    Args:
        case: what is measured.
        device: where its tensors lie.
        budget: how long.
        limits: the machine's rates, from `floors`.

    Returns:
        Name, shape, floor and one row per implementation, ready for JSON. An implementation that fails has an `error`.
    """
    rows: dict[str, dict[str, Any]] = {}
    expected = None
    for position, (name, call) in enumerate(case.implementations.items()):
        try:
            result = _warm_up(call, budget)
            if position == 0:
                expected = result
            rows[name] = {"difference": difference(result, expected) if position else None}
            del result
            rows[name]["peak_bytes"] = peak_memory(call, device)
        except Exception as error:  # a peer's limits, out of memory included, are a result
            rows[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    running = {n: c for n, c in case.implementations.items() if "error" not in rows[n]}
    for name, taken in time_calls(running, device, budget).items():
        rows[name] |= summary(taken)
    ours = rows[next(iter(rows))].get("median_ms")
    for row in rows.values():
        row["times_ours"] = row["median_ms"] / ours if ours and "median_ms" in row else None
    return {
        "name": case.name,
        "shape": case.shape,
        "bytes": case.bytes,
        "flops": case.flops,
        "floor_ms": _floor(case, limits),
        "results": [{"implementation": name, **row} for name, row in rows.items()],
    }


def _warm_up(call: Implementation, budget: Budget) -> Any:
    start = time.perf_counter()
    for _ in range(max(1, budget.warmup)):
        result = call()
        if time.perf_counter() - start > budget.seconds:
            break
    return result


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, interquartile range and number of runs."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (0.0, 0.0, 0.0)
    return {"median_ms": statistics.median(seconds) * 1e3, "iqr_ms": (high - low) * 1e3, "runs": len(seconds)}


def floors(device: torch.device, budget: Budget) -> dict[str, float]:
    """What the machine can do: bytes read and written per second by a large copy, and flops per second by a product.

    Returns:
        `copy_bytes_per_s` (twice the tensor's bytes over the time) and `matmul_flops_per_s` (float32).
    """
    large = device.type == "cuda"
    source = torch.ones(1 << (28 if large else 25), device=device)  # 1 GiB, 128 MiB
    target = torch.empty_like(source)
    side = 8192 if large else 1536
    matrix = torch.rand(side, side, device=device)
    calls = {"copy": lambda: target.copy_(source), "matmul": lambda: matrix @ matrix}
    for call in calls.values():
        call()
    best = {name: statistics.median(s) for name, s in time_calls(calls, device, budget).items()}
    return {
        "copy_bytes_per_s": 2 * source.nbytes / best["copy"],
        "matmul_flops_per_s": 2 * side**3 / best["matmul"],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """Facts that a figure depends on; nothing that names the machine."""
    facts: dict[str, Any] = {
        "cpu": _cpu_model(),
        "cores": cpus(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "compiler": _first_line(build.compiler("cpu")),
        "ops": native.setting(),
        "peers": {p: v for p in PEERS if (v := _version(p))},
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "nvcc": _first_line(build.compiler("cuda"), last=True),
        }
    return facts


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


@contextlib.contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Run a block with this many CPU threads; None takes as many as `mmdet3d.machine` allows one process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or share().threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _resident(field: str) -> int:
    """A size from the process's own status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def difference(result: Any, expected: Any) -> float | None:
    """Largest difference over the largest expected magnitude, over all tensors; None where shapes do not compare."""
    pairs = list(zip(_tensors(result), _tensors(expected), strict=False))
    if not pairs or len(_tensors(result)) != len(_tensors(expected)) or any(a.shape != b.shape for a, b in pairs):
        return None
    worst = 0.0
    for got, want in pairs:
        if got.numel():
            gap, scale = (got.double() - want.double()).abs().max(), want.double().abs().max()
            worst = max(worst, (gap / scale.clamp(min=1e-30)).item() if gap else 0.0)
    return worst


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for t in value if isinstance(t, Tensor)] if isinstance(value, tuple | list) else []


def _floor(case: Case, limits: Mapping[str, float]) -> float | None:
    """The larger of the times for moving the bytes and for calculating, milliseconds."""
    times = [
        amount / limits[rate] * 1e3
        for amount, rate in ((case.bytes, "copy_bytes_per_s"), (case.flops, "matmul_flops_per_s"))
        if amount and rate in limits
    ]
    return max(times, default=None)


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _first_line(tool: str | None, last: bool = False) -> str | None:
    if tool is None:
        return None
    lines = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    return lines[-1 if last else 0] if lines else None


def _version(module: str) -> str | None:
    """The version of the package that a peer's module belongs to; None if the module does not load."""
    if optional(module) is None:
        return None
    package = module.split(".")[0]
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return str(getattr(importlib.import_module(package), "__version__", "unknown version"))
