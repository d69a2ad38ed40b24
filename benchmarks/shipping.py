"""Latency, memory and size of a shipped model and of what is exported from it, and what fewer bits cost in mAP: CPU.

python -m benchmarks.shipping [--model NAME] [--scenes N] [--calibration N] [--threads N] [--seconds S] [--out FILE]
python -m benchmarks.shipping --scenes 2 --rows AOTInductor --no-scores --processor-time

Times are of the network alone: from prepared inputs to raw outputs, one frame at a time; all rows take turns.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.framework import Budget, machine, peak_memory, summary, threads, time_calls, write_json
from mmdet3d.datasets import FrameDataset
from mmdet3d.engine.detector import Detector
from mmdet3d.engine.evaluate import evaluate
from mmdet3d.engine.quantization import halve, quantize
from mmdet3d.engine.recipe import Recipe
from mmdet3d.models.network import Network
from mmdet3d.ops import native
from mmdet3d.structures import Batch
from mmdet3d.zoo import read_card

DEVICE = torch.device("cpu")
SEED = 4321  # of the world that the models are scored on; no model was trained or tuned on it
ROWS = ("ONNX fixed", "ONNX half", "ONNX int8", "AOTInductor")  # beside PyTorch and ONNX


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print the table, write JSON if asked; returns the report."""
    options = _parse(arguments)
    with threads(options.threads), tempfile.TemporaryDirectory() as folder:
        report = _run(options, Path(folder))
    print(table(report))
    if options.out:
        write_json(options.out, report)
    return report


def _run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    root = folder / "world"
    card = read_card(options.model)
    world = Recipe.load(card["recipe"]).world(SEED)
    settings = dataclasses.replace(world.settings, scenes=options.scenes, val_fraction=0.6)
    dataclasses.replace(world, settings=settings).make(root, 1)
    detector = Detector.from_zoo(options.model)
    frames = detector.frames(root, "synthetic_infos_val.pkl")
    seen = detector.frames(root, "synthetic_infos_train.pkl")
    files = exported(detector, seen, folder, options.calibration, options.rows)
    detectors = {"PyTorch": detector, **{name: Detector.from_file(path) for name, path in files.items()}}
    batch = Batch.collate([frames[0]])
    calls = {name: _network_call(each, batch) for name, each in detectors.items()}
    peaks = {}
    for name, call in calls.items():
        call()
        peaks[name] = peak_memory(call, DEVICE)
    clock = time.process_time if options.processor_time else time.perf_counter
    seconds = time_calls(calls, DEVICE, Budget(seconds=options.seconds), clock)
    rows = {}
    for name, each in detectors.items():
        scored = options.scores and "fixed" not in name
        rows[name] = {
            **summary(seconds[name]),
            "peak_bytes": peaks[name],
            "file_bytes": files[name].stat().st_size if name in files else None,
            "metrics": _metrics(each, frames, folder / name) if scored else None,
        }
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(DEVICE),
        "model": options.model,
        "images": list(batch.images.shape[1:]),
        "frames": len(frames),
        "calibration": min(options.calibration, len(seen)),
        "gflops": flops(detector, batch) / 1e9,
        "processor_time": options.processor_time,
        "rows": rows,
    }


def exported(
    detector: Detector, seen: FrameDataset, folder: Path, count: int, rows: Sequence[str] = ROWS
) -> dict[str, Path]:
    """By name the detector as ONNX in float32, and as `rows` say: with the calibration of a frame built in, in float16,
    in int8 with ranges from `count` frames, and compiled for this machine.
    """
    plain = folder / "ONNX.onnx"
    writers: dict[str, Callable[[Path], Any]] = {
        "ONNX fixed": lambda path: detector.export(path, seen[0], fixed_calibration=True),
        "ONNX half": lambda path: halve(plain, path),
        "ONNX int8": lambda path: quantize(plain, path, (seen[k] for k in range(len(seen))[:count])),
        "AOTInductor": lambda path: detector.export(path, seen[0], compiled=True),
    }
    detector.export(plain, seen[0])
    paths = {name: folder / f"{name}.{'pt2' if name == 'AOTInductor' else 'onnx'}" for name in rows}
    for name, path in paths.items():
        writers[name](path)
    return {"ONNX": plain, **paths}


def flops(detector: Detector, batch: Batch) -> int:
    """Of one frame, multiplications and additions of convolutions and products."""
    with torch.no_grad(), native.forced("reference"), FlopCounterMode(display=False) as counter:
        detector.model.predict(batch)
    return counter.get_total_flops()


def _network_call(detector: Detector, batch: Batch) -> Callable[[], Any]:
    model = detector.model
    if hasattr(model, "interface"):
        inputs = model.interface.prepare(batch)
        return lambda: model.run(inputs)
    network = Network(model, batch)
    inputs = list(network.interface.prepare(batch).values())

    def call() -> Any:
        with torch.no_grad():
            return network(*inputs)

    return call


def _metrics(detector: Detector, frames: FrameDataset, folder: Path) -> dict[str, float]:
    found = evaluate(detector.model, frames, folder, DEVICE)
    return {name: found[name] for name in ("object/map", "object/nds")}


def table(report: Mapping[str, Any]) -> str:
    """As Markdown."""
    cameras, _, height, width = report["images"]
    rows = report["rows"]
    scores = f"mAP and NDS on {report['frames']} frames of a world of another seed"
    scored = f"; {scores}" if any(row["metrics"] for row in rows.values()) else ""
    timed = "; processor time" if report.get("processor_time") else ""
    calibrated = f"; int8 calibrated on {report['calibration']} frames" if "ONNX int8" in rows else ""
    size = f"{cameras} x {height} x {width}, {report['gflops']:.2f} GFLOP"
    lines = [
        f"`{report['model']}`, {size}{timed}{scored}{calibrated}.",
        "",
        "| network | median ms | IQR ms | runs | peak extra MB | file MB | mAP | NDS |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        size = "-" if row["file_bytes"] is None else f"{row['file_bytes'] / 1e6:.2f}"
        peak = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.1f}"
        scores = row["metrics"]
        scored = f"{scores['object/map']:.4f} | {scores['object/nds']:.4f}" if scores else "- | -"
        lines.append(
            f"| {name} | {row['median_ms']:.2f} | {row['iqr_ms']:.2f} | {row['runs']} | {peak} | {size} | {scored} |"
        )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="crkd-demo-distilled", help="in pretrained/")
    parser.add_argument("--scenes", type=int, default=12, help="of the world (default: 12)")
    parser.add_argument("--calibration", type=int, default=30, help="frames for int8 (default: 30)")
    parser.add_argument("--rows", nargs="*", choices=ROWS, default=ROWS, help="beside PyTorch and ONNX (default: all)")
    parser.add_argument("--no-scores", dest="scores", action="store_false", help="times and sizes alone")
    parser.add_argument("--processor-time", action="store_true", help="without waiting for others, on a busy machine")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="each is timed for so long (default: 5)")
    parser.add_argument("--out", type=Path, help="JSON file")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
