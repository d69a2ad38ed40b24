"""Memory and step time of the systems at their published sizes on 1 to 64 GPUs, from what a step counts:
python -m benchmarks.scaling [--only NAME ...] [--out FILE]

The counts (`ledger.py`) are facts of the models; rates of GPUs and links are assumptions, none of them measured. The
same arithmetic is compared with measurement where there is something to measure: CPU seconds and peak memory of the
systems' small twins, and the real loader.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.feeding import index_cost, loader_steps, simulate
from benchmarks.framework import machine, peak_memory, threads, write_json
from benchmarks.gpu.steps import MODELS
from benchmarks.ledger import KeptBytes, Ledger
from benchmarks.samples import random_image_sample, random_sample
from benchmarks.train_step import Losses, roles, training_step
from mmdet3d.config import Config, load_config
from mmdet3d.engine.compilation import checkpoint_activations
from mmdet3d.engine.settings import Settings
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.structures import Batch

ROLES = ("teacher", "student", "distiller")
SYSTEMS = {name: (full, small) for name, (full, small, _) in MODELS.items()}
SYSTEMS["MonoMMKD"] = ("kitti/monommkd.yaml", "kitti/synthetic/monommkd.yaml")
RANKS = (1, 4, 8, 64)
PARTS = ("counts", "check", "feeding", "size")
CPU = torch.device("cpu")
Row = dict[str, Any]
NUSCENES, KITTI = 28_130, 3_712  # training frames
# Of a nuScenes frame with ten scans and seven radar sweeps: bytes on disk (six images of 133 kB, ten scans of 695 kB,
# 35 radar files of 9.5 kB), and CPU seconds to load it (docs/performance.md), of which a fifth is the spread.
FRAME_BYTES, LOAD, SPREAD = 8.1e6, 0.195, 0.2


@dataclass(frozen=True)
class GPU:
    """Peak rates as the vendor names them, and the bandwidth of its links in one direction.

    Attributes:
        rate: fp16 with sums in fp32, dense, operations per second.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
        inside: bytes per second to the others of a machine of eight.
        outside: of its network card, for ranks on several machines.
    """

    rate: float
    bandwidth: float
    memory: float
    inside: float
    outside: float


GPUS = {
    "A100 SXM 80 GB": GPU(312e12, 2.04e12, 80e9, 300e9, 25e9),
    "H100 SXM 80 GB": GPU(989e12, 3.35e12, 80e9, 450e9, 50e9),
}
# Shares of the peak rates that are reached, and the least time of an operation: assumed, for no GPU was there.
COMPUTE, MEMORY, LINKS, LAUNCH = 0.35, 0.7, 0.7, 6e-6
ASSUMED = {name: (gpu.rate * COMPUTE, gpu.bandwidth * MEMORY, LAUNCH) for name, gpu in GPUS.items()}
PER_MACHINE = 8
CONTEXT = 1.5e9  # bytes of the CUDA context, libraries and what convolutions need for themselves: assumed
# Bytes per parameter: weight, AdamW's two moments; and what clipping and AdamW move.
WEIGHT, MOMENTS, GRADIENT, UPDATE = 4, 8, 4, 36


def main(arguments: Sequence[str] | None = None) -> Row:
    """Count, measure, predict, print; returns the report."""
    options = _parse(arguments)
    old = options.out is not None and options.out.is_file()
    report: Row = json.loads(options.out.read_text()) if old else {"counts": {}}
    report |= {"date": time.strftime("%Y-%m-%d"), "machine": machine(CPU)}
    report["assumed"] = {name: asdict(gpu) for name, gpu in GPUS.items()} | {
        "compute": COMPUTE,
        "memory": MEMORY,
        "links": LINKS,
        "launch": LAUNCH,
    }
    with threads(1):
        if "counts" not in options.skip:
            for name in options.only:
                for role, row in counted(load_config(SYSTEMS[name][options.small])):
                    report["counts"][f"{name} {role}"] = row
                    print(name, role, {k: v for k, v in row.items() if not isinstance(v, dict)}, flush=True)
                    _write(options.out, report)
        if "check" not in options.skip:
            report["check"] = check(options.only)
            _write(options.out, report)
        if "feeding" not in options.skip:
            report["feeding"] = feeding(options.infos)
            _write(options.out, report)
        if "size" not in options.skip:
            report["at_size"] = at_size()
            _write(options.out, report)
    print("\n\n".join(tables(report).values()))
    return report


def _write(path: Path | None, report: Row) -> None:
    if path is not None:
        write_json(path, report)


# -- what a step takes ------------------------------------------------------------------------------------------------


def counted(cfg: Config, precision: torch.dtype | None = torch.bfloat16) -> Iterator[tuple[str, Row]]:
    """Counts of a training step of one sample, by role; with `, checkpointed`, where stages are computed again.

    Half precision is bf16, which a CPU's autocast has; the bytes are those of fp16.
    """
    settings = Settings.from_config(cfg)
    batch = Batch.collate([_sample(cfg)])
    with Ledger():  # in which weights are not drawn
        builders = dict(roles(cfg, CPU))
    for role in ROLES:
        with Ledger():  # the first step folds a teacher's batch norms and compares gradients
            model = builders[role]().train()
            model.loss(batch)
        row = {"samples_per_gpu": settings.data.samples_per_gpu, **count(model, batch, precision)}
        yield role, row
        checkpoint_activations(model)
        yield f"{role}, checkpointed", {**row, **count(model, batch, precision)}
        del model
        gc.collect()


def count(
    model: Trainable,
    batch: Batch,
    precision: torch.dtype | None = None,
    rates: Mapping[str, tuple[float, float, float]] = ASSUMED,
) -> Row:
    """Forward and backward of one batch: see `Ledger` and `KeptBytes`.

    Args:
        rates: operations and bytes per second, and least seconds of an operation, by what `seconds` calls them.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    known = [*model.parameters(), *model.buffers()]
    with torch.autocast("cpu", precision or torch.bfloat16, enabled=precision is not None), Ledger() as ledger:
        with KeptBytes(known) as kept:
            total = sum(v for k, v in model.loss(batch).items() if k.startswith("loss/"))
        forward = ledger.flops
        with torch.autocast("cpu", enabled=False):
            total.backward()
    found = {
        "flops": ledger.flops,
        "flops_forward": forward,
        "moved": ledger.moved,
        "operations": len(ledger.operations),
        "kept": kept.total,
        "most_held": ledger.most_held,
        "parameters": sum(p.numel() for p in model.parameters()),
        "trained": sum(p.numel() for p in parameters),
        "seconds": {
            name: {str(samples): ledger.seconds(*rate, samples) for samples in (1, 2, 4, 6, 8, 16)}
            for name, rate in rates.items()
        },
    }
    for parameter in parameters:
        parameter.grad = None
    return found


def _sample(cfg: Config, points: int = 250_000) -> Any:
    student = cfg.model["student"]["model"]
    if student["type"] == "MonoDetector":
        return random_image_sample(cfg["image_size"])
    return random_sample(cfg["image_size"], points=points, history=student.get("history") or 0)


# -- what follows for GPUs --------------------------------------------------------------------------------------------


def predicted(row: Row, gpu: str, ranks: int, batch: int, shared: bool = False) -> Row:
    """Bytes of one GPU, rather too many than too few, and seconds of a step of `ranks`, with `batch` samples each.

    Args:
        row: of `counted`.
        shared: weights, gradients and moments are shared out (`fully_shard`).
    """
    trained, held = row["trained"], GPUS[gpu]
    parts = ranks if shared else 1
    # While a step runs all weights and gradients are there, beside the shares; without sharing, the buckets that
    # gradients travel in.
    state = WEIGHT * row["parameters"] + GRADIENT * trained + MOMENTS * trained / parts
    if ranks > 1:
        state += (WEIGHT + GRADIENT) * trained / parts if shared else GRADIENT * trained
    calculated = row["seconds"][gpu][str(batch)] + UPDATE * trained / parts / (held.bandwidth * MEMORY)
    link = held.inside if ranks <= PER_MACHINE else held.outside
    travelled = 2 * (ranks - 1) / ranks * GRADIENT * trained / (link * LINKS)
    return {"bytes": CONTEXT + state + row["most_held"] * batch, "seconds": calculated + travelled}


def largest_batch(row: Row, gpu: str, ranks: int) -> int:
    """Samples that fit into the memory of one GPU."""
    empty = predicted(row, gpu, ranks, 1)["bytes"] - row["most_held"]
    return int((GPUS[gpu].memory - empty) // row["most_held"])


# -- the same arithmetic where it can be measured ---------------------------------------------------------------------


def check(names: Sequence[str], runs: int = 3) -> dict[str, Row]:
    """CPU seconds and peak memory of a step of the small twins' distillers, and what the counts say of them."""
    rate, bandwidth = _cpu_rates()
    found: dict[str, Row] = {"rates": {"operations": rate, "bytes": bandwidth}}
    for name in names:
        cfg = load_config(SYSTEMS[name][1])
        model = dict(roles(cfg, CPU))["distiller"]().train()
        batch = Batch.collate([_sample(cfg, 30_000)])
        row = count(model, batch, rates={"here": (rate, bandwidth, 0.0)})
        step = training_step(model, Losses(model), batch, Settings.from_config(cfg))
        step()
        seconds, peaks = [], []
        for _ in range(runs):
            start = time.process_time()
            peaks.append(peak_memory(step, CPU))
            seconds.append(time.process_time() - start)
        found[name] = {
            "seconds": statistics.median(seconds),
            "predicted_seconds": row["seconds"]["here"]["1"],
            "peak_bytes": max(p for p in peaks if p is not None),
            "predicted_bytes": row["most_held"],
            "kept": row["kept"],
        }
        print(name, found[name], flush=True)
    return found


def at_size() -> dict[str, Row]:
    """CRKD's models at the published size in float32: bytes and seconds of a step, as counted and as measured.

    What was measured, on a real frame with one LiDAR scan, and the rates of that machine are in results/.
    """
    results = Path(__file__).parent / "results"
    measured, floors = (json.loads((results / f"{name}_cpu.json").read_text()) for name in ("train_step", "ops"))
    bandwidth, rate = floors["floors"].values()
    cfg = load_config(measured["config"])
    batch, found = Batch.collate([_sample(cfg, 30_000)]), {}
    with Ledger():
        builders = dict(roles(cfg, CPU))
    for role in ROLES:
        with Ledger():
            model = builders[role]().train()
            model.loss(batch)
        row = measured["models"][role]
        said = count(model, batch, rates={"here": (rate, bandwidth, 0.0)})
        found[role] = {
            "seconds": row["step"]["median_ms"] / 1e3,
            "predicted_seconds": said["seconds"]["here"]["1"],
            "peak_bytes": row["peak_bytes"],
            "predicted_bytes": said["most_held"],
        }
        print(role, found[role], flush=True)
    return found


def _cpu_rates() -> tuple[float, float]:
    """Of one thread: operations per second of a matrix product, bytes per second of a copy; by CPU time."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    source, target = torch.randn(16_000_000), torch.empty(16_000_000)
    product, copy = _cpu_seconds(lambda: a @ b), _cpu_seconds(lambda: target.copy_(source))
    return 2 * 1024**3 / product, 2 * 64e6 / copy


def _cpu_seconds(call: Callable[[], Any], runs: int = 7) -> float:
    call()
    found = []
    for _ in range(runs):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return statistics.median(found)


def feeding(infos: Path | None) -> Row:
    """The simulated loader against the real one, the frames' index, and what 4 GPUs need."""
    cases = [(1, 0.05, 0.02, 2), (2, 0.05, 0.06, 2), (4, 0.05, 0.02, 2), (4, 0.02, 0.05, 4)]
    rows = []
    for workers, load, step, batch in cases:
        said = simulate(60, 1, workers, load, step, batch)["seconds"]
        rows.append({"workers": workers, "load": load, "step": step, "batch": batch, "simulated": said})
        rows[-1]["measured"] = loader_steps(60, workers, load, step, batch)
        print(rows[-1], flush=True)
    return {"loader": rows, "index": index_cost(infos) if infos else None}


# -- tables -----------------------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> dict[str, str]:
    """Markdown by the name of each table, of the parts that the report has."""
    found = {}
    if report["counts"]:
        counts = report["counts"]
        steps = [name for name in counts if not name.endswith(", checkpointed")]
        pairs = {name: (counts[name], counts[f"{name}, checkpointed"]) for name in steps}
        found |= {"scaling_counts": _counts(pairs), "scaling_memory": _memory(pairs), "scaling_time": _time(pairs)}
        found["scaling_feeding"] = _feeding(pairs)
    if "check" in report:
        found["scaling_check"] = _check(report["check"])
    if "at_size" in report:
        found["scaling_at_size"] = _measured("CRKD at its published size, float32", report["at_size"])
    if "feeding" in report:
        found["scaling_loader"] = _loader(report["feeding"])
    return found


def _lines(head: str, rows: Iterable[Sequence[object]]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|---" * columns + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _counts(pairs: Mapping[str, tuple[Row, Row]]) -> str:
    rows = []
    for name, (plain, again) in pairs.items():
        row = [name, f"{plain['parameters'] / 1e6:.1f}"]
        for found in (plain, again):
            row += [f"{found['flops'] / 1e12:.2f}", *(f"{found[k] / 1e9:.2f}" for k in ("moved", "kept", "most_held"))]
        rows.append(row)
    again = "again: TFLOP | again: moved GB | again: kept GB | again: most held GB"
    return _lines(f"step | parameters, M | TFLOP | moved GB | kept GB | most held GB | {again}", rows)


def _memory(pairs: Mapping[str, tuple[Row, Row]]) -> str:
    gpu, rows = next(iter(GPUS)), []
    for name, (plain, again) in pairs.items():
        batch = plain["samples_per_gpu"]
        cases = [(plain, 1, False), *((plain, n, False) for n in (8,)), (plain, 8, True), (plain, 64, True)]
        cases += [(again, 8, False)]
        cells = [f"{predicted(row, gpu, ranks, batch, shared)['bytes'] / 1e9:.1f}" for row, ranks, shared in cases]
        rows.append([name, batch, *cells, largest_batch(plain, gpu, 8), largest_batch(again, gpu, 8)])
    most = "samples that fit into 80 GB | the same, again"
    return _lines(f"step | samples | 1 GPU | 4, 8, 64 GPUs | 8, shared | 64, shared | 8, again | {most}", rows)


def _time(pairs: Mapping[str, tuple[Row, Row]]) -> str:
    rows = []
    for name, (plain, again) in pairs.items():
        batch = plain["samples_per_gpu"]
        frames = KITTI if name.startswith("Mono") else NUSCENES
        for gpu in GPUS:
            steps = [predicted(plain, gpu, ranks, batch)["seconds"] for ranks in RANKS]
            slower = predicted(again, gpu, 1, batch)["seconds"] / steps[0] - 1
            minutes = frames / (8 * batch) * steps[RANKS.index(8)] / 60
            rows.append([name, gpu, batch, *(f"{t * 1e3:.0f}" for t in steps), f"{minutes:.1f}", f"{slower:+.0%}"])
    return _lines("step | GPU | samples | 1 GPU, ms | 4 | 8 | 64 | minutes an epoch on 8 | again", rows)


def _feeding(pairs: Mapping[str, tuple[Row, Row]]) -> str:
    rows = []
    for name, (plain, _) in pairs.items():
        if name.startswith("Mono") or not name.endswith("distiller"):
            continue
        batch = plain["samples_per_gpu"]
        for gpu in GPUS:
            step = predicted(plain, gpu, 4, batch)["seconds"]
            steps = min(NUSCENES // (4 * batch), 1500)
            runs = [
                simulate(steps, 4, workers, LOAD, step, batch, cores, SPREAD)["waiting"]
                for workers, cores in ((4, 64), (8, 64), (16, 128), (8, 32))
            ]
            needed = math.ceil(LOAD * batch / step)
            reads = batch * FRAME_BYTES / step / 1e6
            rows.append([name, gpu, batch, f"{step * 1e3:.0f}", needed, f"{reads:.0f}", *(f"{w:.0%}" for w in runs)])
    waits = "4 workers | 8 | 16 on 128 cores | 8 on 32 cores"
    return _lines(f"step | GPU | samples | ms a step | workers needed a rank | MB/s a rank | waiting: {waits}", rows)


def _check(found: Mapping[str, Row]) -> str:
    rates = found["rates"]
    said = f"Rates of one thread: {rates['operations'] / 1e9:.0f} GFLOP/s, {rates['bytes'] / 1e9:.1f} GB/s."
    small = _measured("small distiller", {name: row for name, row in found.items() if name != "rates"})
    return f"{said}\n\n{small}"


def _measured(what: str, found: Mapping[str, Row]) -> str:
    rows = []
    for name, row in found.items():
        seconds, peak, said, held = (row[k] for k in ("seconds", "peak_bytes", "predicted_seconds", "predicted_bytes"))
        cells = [f"{seconds:.2f}", f"{said:.2f}", f"{said / seconds:.2f}"]
        rows.append([name, *cells, f"{peak / 1e6:.0f}", f"{held / 1e6:.0f}", f"{held / peak:.2f}"])
    return _lines(f"{what} | s a step | predicted | ratio | peak MB | predicted | ratio", rows)


def _loader(found: Row) -> str:
    rows = [
        [r["workers"], r["batch"], *(f"{r[k] * 1e3:.0f}" for k in ("load", "step", "simulated", "measured"))]
        for r in found["loader"]
    ]
    text = _lines("workers | samples | ms to load a sample | ms a step | step to step, simulated | measured", rows)
    if index := found["index"]:
        file, memory, own = (index[k] * NUSCENES / 1e9 for k in ("file_bytes", "bytes", "worker_bytes"))
        text += (
            f"\n\nAn index, measured on {index['frames']} frames with ten sweeps each and scaled to {NUSCENES:,}: the "
            f"file has {file:.2f} GB, reading it takes {index['seconds'] * NUSCENES:.0f} CPU s and {memory:.2f} GB in "
            f"every rank, and a worker that has looked at every frame has {own:.2f} GB of its own."
        )
    return text


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--small", action="store_true", help="count the small twins, for a quick look")
    parser.add_argument("--skip", nargs="+", choices=PARTS, default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--infos", type=Path, metavar="FILE", help="info file whose frames make an index")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure; its other parts stay")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
