"""Ops on a GPU: built, compared with their twins, watched by the sanitizer, timed."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.framework import Budget, difference, floors, run_case, summary
from benchmarks.gpu.probes import PROBES, Probe, probes
from benchmarks.gpu.runner import Piece, Row, Setup
from mmdet3d.machine import bound
from mmdet3d.ops import build, native

__all__ = ["BUILD", "EQUAL", "SANITIZE", "TIME", "burst_seconds"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Largest deviation from the twin in float64, on the same rounded inputs, over the largest magnitude of that tensor.
TOLERANCE = {"fp32": 2e-5, "bf16": 1.5e-2, "fp16": 2e-3}
TOOLS = ("memcheck", "initcheck", "racecheck", "synccheck")
QUICK = Budget(seconds=1.0, runs=50, least=5)
SMALL: dict[str, dict[str, Any]] = {
    "bev_pool": {"bins": 4, "height": 4, "width": 6, "channels": 8, "cells": 20},
    "deform_attn": {"sizes": (("BEV", 1, 6, 6, 2, 4, 3),)},
    "deform_conv": {"sizes": (("v2", 1, 8, 6, 6, 1, True),)},
    "feature_decorator": {"pillars": 20, "slots": 3, "features": 5},
    "nms": {"count": 40, "groups": 2},
    "roi_align": {"images": 1, "per_image": 2, "channels": 2},
    "rotated_iou": {"sizes": ((20, 10),), "pairs": 50},
    "soft_rank": {"samples": 2, "n": 400, "ranked": 40},
    "sparse_conv": {"sweeps": 1, "azimuths": 20},
    "voxelize": {"points": 400, "voxels": 200},
}


# -- build ------------------------------------------------------------------------------------------------------------


def _build(setup: Setup, op: str, seconds: float) -> Row:
    """Compile for the cards here, or for TORCH_CUDA_ARCH_LIST, into the folder in which ops look at their first use."""
    if build.compiler("cuda") is None:
        return {"status": "skipped" if setup.dry else "failed", "cause": "there is no nvcc (install the CUDA toolkit)"}
    cards = native.present_architectures() or ("9.0",)
    began = time.perf_counter()
    found = build.prebuilt(op, "cuda", cards)
    library = found or build.build(op, "cuda", build.cache_folder(), cards)
    note = "was built" if found else f"built in {time.perf_counter() - began:.0f} s"
    return {"library": library.name, "architectures": list(cards), "bytes": library.stat().st_size, "note": note}


# -- equal ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """Matrix products without TensorFloat-32, so that the twin is an oracle."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _equal(setup: Setup, item: str, seconds: float) -> Row:
    op, kind = item.split()
    device = torch.device(setup.device)
    check = _compiled if kind == "compiled" else _compared
    with _exact_products(), native.forced("emulated" if setup.dry else "native"):
        rows = {probe.name: check(probe, kind, setup) for probe in probes(op, device)}
    wrong = [f"{name}: {row['wrong']}" for name, row in rows.items() if row["wrong"]]
    worst = max((row["difference"] for row in rows.values()), default=0.0)
    found: Row = {"difference": worst, "tolerance": TOLERANCE.get(kind, TOLERANCE["fp32"]), "probes": rows}
    found["same bits"] = all(row.get("same bits", True) for row in rows.values())
    return found | ({"status": "failed", "cause": "; ".join(wrong)[:300]} if wrong else {})


def _compared(probe: Probe, kind: str, setup: Setup) -> Row:
    """Values and gradients against the twin; the same from strided inputs, on another stream, and once more."""
    dtype, limit = DTYPES[kind], TOLERANCE[kind]
    inputs = [t.to(dtype) for t in probe.inputs]
    with native.forced("reference"):
        expected = probe.values(inputs if probe.exact else [t.double() for t in inputs])
    ours = probe.values(inputs)
    again = [probe.values(inputs) for _ in range(2)]
    routes = {
        "": ours,
        "strided inputs": probe.values([_strided(t) for t in inputs]),
        "another stream": _on_another_stream(probe, inputs) if setup.device == "cuda" else ours,
    }
    if dtype != torch.float32 and not probe.exact:
        with torch.autocast(setup.device, dtype):
            routes["autocast"] = probe.values([t.float() for t in inputs])
    gaps = {route: _gap(values, expected, probe.exact) for route, values in routes.items()}
    same = all(torch.equal(a, b) for other in again for a, b in zip(ours, other, strict=True))
    wrong = [f"{route or 'result'} differs by {gap:.1e}" for route, gap in gaps.items() if not gap <= limit]
    if not same and not probe.atomic:
        wrong.append("results change from call to call")
    return {"difference": max(gaps.values()), "same bits": same, "wrong": ", ".join(wrong)}


def _compiled(probe: Probe, kind: str, setup: Setup) -> Row:
    """The call under torch.compile against the plain call: shapes, strides and devices that operators promise."""
    torch._dynamo.reset()
    backend = "aot_eager" if setup.dry else "inductor"
    graph = Probe(probe.name, torch.compile(probe.call, backend=backend), probe.inputs, probe.gradients)
    gap = _gap(graph.values(probe.inputs), probe.values(probe.inputs), probe.exact)
    return {"difference": gap, "wrong": "" if gap <= TOLERANCE["fp32"] else f"differs by {gap:.1e}"}


def _gap(values: Sequence[Tensor], expected: Sequence[Tensor], exact: bool) -> float:
    """Largest relative deviation; infinite where shapes differ, NaN is not met by NaN, or bits differ that must not."""
    if len(values) != len(expected) or any(a.shape != b.shape for a, b in zip(values, expected, strict=True)):
        return float("inf")
    if exact:
        return 0.0 if all(torch.equal(a, b) for a, b in zip(values, expected, strict=True)) else float("inf")
    if any((a.isnan() != b.isnan()).any() for a, b in zip(values, expected, strict=True)):
        return float("inf")
    return difference([a.nan_to_num() for a in values], [b.nan_to_num() for b in expected])


def _strided(tensor: Tensor) -> Tensor:
    """The same values, every second one in memory."""
    return torch.stack([tensor, torch.full_like(tensor, torch.nan)], dim=-1)[..., 0]


def _on_another_stream(probe: Probe, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The call on a stream that is still making the inputs, which a kernel on any other stream would read too early."""
    targets = [torch.full_like(t, torch.nan) for t in inputs]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(50_000_000)  # cycles, tens of milliseconds
        for target, source in zip(targets, inputs, strict=True):
            target.copy_(source)
        values = probe.values(targets)
    torch.cuda.synchronize()
    return values


# -- sanitize ---------------------------------------------------------------------------------------------------------


def _sanitize(setup: Setup, item: str, seconds: float) -> Row:
    op, tool = item.split()
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        return {"status": "skipped", "cause": "there is no compute-sanitizer (it comes with the CUDA toolkit)"}
    command = [sanitizer, "--tool", tool, "--print-limit", "20", "--error-exitcode", "9", sys.executable, "-m"]
    command += ["benchmarks.gpu.probes", op, "--device", setup.device]
    # PyTorch's allocator would hide what lies beyond a tensor, and reuse what was freed.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "OMP_NUM_THREADS": "1"}
    limit = seconds - 5
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=limit, preexec_fn=bound()
        )
    except subprocess.TimeoutExpired:
        return {"status": "failed", "cause": f"no end within {limit:.0f} s under the sanitizer"}
    text = done.stdout + done.stderr
    lines = [line.lstrip("= ") for line in text.splitlines() if line.startswith("=========")]
    if "not supported" in text:
        return {"status": "skipped", "cause": next(line for line in lines if "not supported" in line)[:300]}
    errors = sum(int(n) for n in re.findall(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", text))
    if done.returncode == 0 and not errors:
        return {"errors": 0}
    cause = lines[1] if errors and len(lines) > 1 else (text.strip().splitlines() or ["no output"])[-1]
    return {"status": "failed", "errors": errors, "cause": cause[:300], "traceback": text[-8000:]}


# -- time -------------------------------------------------------------------------------------------------------------


def _time(setup: Setup, op: str, seconds: float) -> Row:
    """The cases of benchmarks/cases at real size: as a call takes them, and as the device does when calls queue up."""
    device = torch.device(setup.device)
    budget = Budget(seconds=0.01, runs=3, least=2) if setup.dry else QUICK
    module = importlib.import_module(f"benchmarks.cases.{op}")
    with native.forced("emulated" if setup.dry else "native"):
        limits = {"copy_bytes_per_s": 1e10, "matmul_flops_per_s": 1e11} if setup.dry else floors(device, budget)
        results = []
        for case in module.cases(device, **(SMALL[op] if setup.dry else {})):
            result = run_case(case, device, budget, limits)
            ours = next(iter(case.implementations.values()))
            if "error" not in result["results"][0]:
                queued = summary(burst_seconds(ours, device, runs=2 if setup.dry else 10))
                result["queued"] = queued
                if case.bytes:
                    result["bytes_per_s"] = case.bytes / queued["median_ms"] * 1e3
            results.append(result)
    failed = [f"{r['name']}: {r['results'][0]['error']}" for r in results if "error" in r["results"][0]]
    row: Row = {"floors": limits, "cases": results}
    return row | ({"status": "failed", "cause": "; ".join(failed)[:300]} if failed else {})


def burst_seconds(call: Callable[[], Any], device: torch.device, runs: int, burst: int = 5) -> list[float]:
    """Seconds of a call on the device: `runs` times `burst` calls in a row, between two events of the stream."""
    call()
    found = []
    for _ in range(runs):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(burst):
                call()
            end.record()
            end.synchronize()
            found.append(start.elapsed_time(end) / 1e3 / burst)
        else:
            began = time.perf_counter()
            for _ in range(burst):
                call()
            found.append((time.perf_counter() - began) / burst)
    return found


# -- tables -----------------------------------------------------------------------------------------------------------


def _build_table(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| op | library | for | KB | |", "|---|---|---|---|---|"]
    for op, row in rows.items():
        size = f"{row['bytes'] / 1e3:.0f}" if "bytes" in row else ""
        found = row.get("library", row["status"]), " ".join(row.get("architectures", []))
        lines.append(f"| {op} | {found[0]} | {found[1]} | {size} | {row.get('note') or row.get('cause', '')} |")
    return lines


def _equal_table(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| op, dtype | largest difference | allowed | same bits again | |", "|---|---|---|---|---|"]
    for item, row in rows.items():
        known = "difference" in row
        cells = (
            (f"{row['difference']:.1e}", f"{row['tolerance']:.1e}", "yes" if row["same bits"] else "no")
            if known
            else "---"
        )
        lines.append(f"| {item} | {cells[0]} | {cells[1]} | {cells[2]} | {row.get('cause', '')} |")
    return lines


def _sanitize_table(rows: Mapping[str, Row]) -> list[str]:
    lines = [f"| op | {' | '.join(TOOLS)} |", "|---|" + "---|" * len(TOOLS)]
    for op in sorted({item.split()[0] for item in rows}):
        cells = []
        for tool in TOOLS:
            row = rows.get(f"{op} {tool}", {"status": ""})
            cells.append("clean" if row["status"] == "ok" else " ".join([row["status"], row.get("cause", "")]).strip())
        lines.append(f"| {op} | {' | '.join(cells)} |")
    return lines


def _time_table(rows: Mapping[str, Row]) -> list[str]:
    lines = ["| case | size | ms a call | IQR | ms queued | GB/s | of a copy | twin: times ours | peak extra MB |"]
    lines.append("|---" * 9 + "|")
    for op, row in rows.items():
        for case in row.get("cases", []):
            lines.append(_case_line(case, row["floors"]["copy_bytes_per_s"]))
        if row["status"] != "ok":
            lines.append(f"| {op} | {row['status']}: {row.get('cause', '')} |" + " |" * 7)
    return lines


def _case_line(case: Mapping[str, Any], copy: float) -> str:
    ours, others = case["results"][0], {r["implementation"]: r for r in case["results"][1:]}
    if "error" in ours:
        return f"| {case['name']} | {case['shape']} | {ours['error']} |" + " |" * 6
    rate = case.get("bytes_per_s")
    speed = (f"{rate / 1e9:.0f}", f"{rate / copy:.0%}") if rate else ("-", "-")
    twin = others.get("twin", {})
    slower = f"{twin['times_ours']:.1f}" if twin.get("times_ours") else twin.get("error", "-")
    peak = "-" if ours["peak_bytes"] is None else f"{ours['peak_bytes'] / 1e6:.1f}"
    return (
        f"| {case['name']} | {case['shape']} | {ours['median_ms']:.3f} | {ours['iqr_ms']:.3f} "
        f"| {case['queued']['median_ms']:.3f} | {speed[0]} | {speed[1]} | {slower} | {peak} |"
    )


def _ops(setup: Setup) -> list[str]:
    return sorted(PROBES)


BUILD = Piece("compile the CUDA kernels (needs nvcc, no GPU)", _ops, _build, 240, _build_table)
EQUAL = Piece(
    "each op against its twin: values, gradients, layouts, streams, the same bits again, torch.compile",
    lambda setup: [f"{op} {kind}" for op in sorted(PROBES) for kind in (*DTYPES, "compiled")],
    _equal,
    120,
    _equal_table,
)
SANITIZE = Piece(
    "tiny calls of each op under compute-sanitizer",
    lambda setup: [f"{op} {tool}" for tool in TOOLS for op in sorted(PROBES)],
    _sanitize,
    150,
    _sanitize_table,
)
TIME = Piece(
    "each op at real size: time, bytes per second beside those of a copy, memory, twin", _ops, _time, 150, _time_table
)
