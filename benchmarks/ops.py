"""Time every op beside its twin and its peers: python -m benchmarks.ops [--device cpu|cuda] [--out FILE]"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import cases as cases_package
from benchmarks.framework import Budget, floors, machine, run_case, threads, write_json
from mmdet3d.ops import build
from mmdet3d.ops.native import Kernels


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the cases, print a table, write JSON if asked; returns the report."""
    options = _parse(arguments)
    device = torch.device(options.device)
    budget = Budget(seconds=options.seconds)
    with threads(options.threads):
        limits = floors(device, budget)
        report: dict[str, Any] = {
            "date": time.strftime("%Y-%m-%d"),
            "device": options.device,
            "machine": machine(device),
            "floors": limits,
            "implementation of ours": _states(options.only, device),
            "cases": [],
        }
        print(" | ".join(f"{k} {v}" for k, v in report["machine"].items()))
        copy, matmul = (rate / 1e9 for rate in limits.values())
        print(f"copy {copy:.1f} GB/s | matmul {matmul:.0f} GFLOP/s")
        for module in _modules(options.only):
            torch.manual_seed(0)
            for case in importlib.import_module(module).cases(device):
                result = run_case(case, device, budget, limits)
                report["cases"].append(result)
                print(table([result]), flush=True)
                if options.out:
                    write_json(options.out, report)
    return report


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown rows: times in milliseconds, memory in MB, `times ours` above 1 where ours is faster."""
    lines = []
    for result in results:
        floor = f"{result['floor_ms']:.2f}" if result["floor_ms"] else "-"
        lines += [
            "",
            f"**{result['name']}**, {result['shape']} (floor {floor} ms)",
            "",
            "| implementation | median ms | IQR ms | runs | times ours | peak extra MB | difference |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in result["results"]:
            if "error" in row:
                lines.append(f"| {row['implementation']} | {row['error']} | | | | | |")
                continue
            memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
            difference = "-" if row["difference"] is None else f"{row['difference']:.1e}"
            lines.append(
                f"| {row['implementation']} | {row['median_ms']:.3f} | {row['iqr_ms']:.3f} | {row['runs']} "
                f"| {row['times_ours']:.2f} | {memory} | {difference} |"
            )
    return "\n".join(lines)


def _modules(only: Sequence[str] | None) -> list[str]:
    names = sorted(m.name for m in pkgutil.iter_modules(cases_package.__path__))
    unknown = sorted(set(only or []) - set(names))
    if unknown:
        raise SystemExit(f"no cases named {', '.join(unknown)}; there are {', '.join(names)}")
    return [f"{cases_package.__name__}.{n}" for n in names if not only or n in only]


def _states(only: Sequence[str] | None, device: torch.device) -> dict[str, str]:
    """What "ours" is in this run, per op: compiled kernels, or the twin and why."""
    ops = [m.rsplit(".", 1)[1] for m in _modules(only)]
    return {op: Kernels(op).state(device.type) for op in ops if op in build.ops_with_kernels("cpu")}


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ops", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="modules of benchmarks/cases")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    parser.add_argument("--seconds", type=float, default=2.0, help="timing budget of one implementation")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all that this process may use)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
