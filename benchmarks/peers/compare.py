"""Our CenterPoint against that of mmdetection3d 1.4: the same weights, the same frame; answers, then time and memory.

python -m benchmarks.peers.compare --peer PYTHON --data FOLDER [--rounds N] [--threads N ...] [--out FILE]
python -m benchmarks.peers.compare --peer PYTHON --golden FOLDER    (what tests/interop/test_mmdetection3d.py reads)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.framework import machine, write_json
from benchmarks.peers import ours
from benchmarks.samples import real_sample
from mmdet3d.machine import bound

__all__ = ["answers", "differences", "golden", "paired", "table"]

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("peer_mmdet3d.py")
MODES = {"forward": "points to boxes", "train": "points to losses to gradients"}
SIDES = ("peer", "ours")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parse(arguments)
    if options.golden:
        golden(options.peer, options.golden)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        scan, sweeps, weights = work / "scan.npz", work / "sweeps.npz", work / "weights.pth"
        frame = real_frame(options.data)
        np.savez(scan, **frame)
        np.savez(sweeps, **frame | {"points": ten_sweeps(frame["points"])})
        _peer(options.peer, "weights", sweeps, weights)
        report = {"date": time.strftime("%Y-%m-%d"), "machine": machine(torch.device("cpu")), "answers": {}}
        for dtype in ("float32", "float64"):
            report["answers"][dtype] = differences(*answers(options.peer, scan, weights, dtype))
        report["frames"] = {
            name: turns(options.peer, file, weights, options.threads, options.rounds)
            for name, file in {"one scan": scan, "ten sweeps": sweeps}.items()
        }
    print(table(report))
    if options.out:
        write_json(options.out, report)


# -- frames -----------------------------------------------------------------------------------------------------------


def real_frame(root: Path) -> dict[str, np.ndarray]:
    """Points of the key frame alone (nuScenes' own five columns, its time lag 0) and its annotations."""
    sample, _ = real_sample(ours.CONFIG, root, 0, split="val")
    points = sample.points.numpy()
    # A frame without a past is padded with itself.
    _, first = np.unique(points, axis=0, return_index=True)
    return {
        "points": points[np.sort(first)], "boxes": sample.boxes.tensor.numpy(), "labels": sample.labels.numpy()
    }  # fmt: skip


def ten_sweeps(points: np.ndarray) -> np.ndarray:
    """The scan, and nine more of it as a car at 10 m/s would have taken them: as many voxels as ten sweeps have."""
    lag = np.arange(10, dtype=np.float32).repeat(len(points)) * np.float32(0.05)
    sweeps = np.tile(points, (10, 1))
    sweeps[:, 0] -= 10 * lag
    sweeps[:, 4] = lag
    return sweeps


def synthetic_frame() -> dict[str, np.ndarray]:
    """A small scene for the small network: ground, and a surface around each of six boxes."""
    rng = np.random.default_rng(0)
    boxes = np.array(
        [
            [1.0, 2.0, -0.6, 4.2, 1.9, 1.6, 0.3, 4.0, 1.0],
            [-3.0, -4.0, 0.1, 5.5, 2.4, 2.8, 2.0, 0.0, 0.0],
            [3.1, -4.2, -0.5, 0.7, 0.6, 1.7, -2.0, -1.0, 0.5],
            [-5.0, 3.0, -0.4, 1.8, 0.7, 1.4, -0.7, 2.0, -3.0],
            [4.5, 4.9, -0.8, 0.5, 2.5, 1.0, 1.2, 0.0, 0.0],
            [-1.0, 5.5, -1.0, 0.4, 0.4, 0.9, 3.0, 0.0, 0.0],
        ],
        np.float32,
    )
    around = boxes[:, None, :3] + rng.normal(0, 0.3, (6, 150, 3)) * boxes[:, None, 3:6]
    ground = rng.uniform([-7, -7, -1.7], [7, 7, -1.4], (900, 3))
    places = np.concatenate([ground, around.reshape(-1, 3)])
    extra = rng.uniform([0, 0], [1, 0.45], (len(places), 2))
    points = np.concatenate([places, extra], axis=1).astype(np.float32)
    return {"points": points, "boxes": boxes, "labels": np.array([0, 1, 8, 6, 5, 9])}


# -- answers ----------------------------------------------------------------------------------------------------------


def answers(
    python: Path, frame: Path, weights: Path, dtype: str, small: bool = False
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What ours and the peer answer, both under our names and in our layout."""
    out = weights.with_name(f"{dtype}.npz")
    _peer(python, *["--small"] * small, "outputs", frame, weights, out, "--dtype", dtype)
    model = ours.build(weights, small, getattr(torch, dtype))
    mine = ours.outputs(model, ours.read_frame(np.load(frame)))
    return mine, ours.in_our_layout(np.load(out), model.state_dict())


def differences(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Per kind of answer the largest difference, as such and over the largest magnitude of its tensor.

    Raises:
        ValueError: one of them answered what the other did not.
    """
    if mine.keys() != theirs.keys():
        raise ValueError(f"only one of the two answers {sorted(mine.keys() ^ theirs.keys())}")
    mine = {**mine, **paired(mine, theirs)}
    rows: dict[str, dict[str, float]] = {}
    for name, expected in theirs.items():
        absolute = float((mine[name].double() - expected.double()).abs().max())
        relative = absolute / max(float(expected.double().abs().max()), 1e-30)
        row = rows.setdefault(name.partition("/")[0], {"absolute": 0.0, "relative": 0.0})
        rows[name.partition("/")[0]] = {
            "absolute": max(absolute, row["absolute"]), "relative": max(relative, row["relative"])
        }  # fmt: skip
    return rows


def paired(mine: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our detections, for each of theirs the nearest: rounding swaps those of nearly equal score."""

    def places(found: Mapping[str, Tensor]) -> Tensor:
        return torch.column_stack([found["labels"] * 1e3, found["boxes"][:, :3], found["scores"]]).double()

    nearest = torch.cdist(places(theirs), places(mine)).argmin(1)
    return {name: mine[name][nearest] for name in ("boxes", "scores", "labels")}


def golden(python: Path, folder: Path) -> None:
    """Weights, frame and the peer's answers of the small network; of gradients the norms, and the first kernel's."""
    folder.mkdir(parents=True, exist_ok=True)
    weights, frame, out = folder / "centerpoint.pth", folder / "frame.npz", folder / "answers.npz"
    np.savez_compressed(frame, **synthetic_frame())
    _peer(python, "--small", "weights", frame, weights)
    _peer(python, "--small", "outputs", frame, weights, out, "--dtype", "float64")
    found = dict(np.load(out))
    norms = {k: np.linalg.norm(v) for k, v in found.items() if k.startswith("gradient/")}
    kept = {k: v for k, v in found.items() if k not in norms or k.endswith("conv_input.0.weight")}
    kept = {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in kept.items()}
    np.savez_compressed(out, **kept)
    lengths = {k.removeprefix("gradient/"): float(f"{v:.7g}") for k, v in norms.items()}
    (folder / "gradient_norms.json").write_text(json.dumps(lengths, indent=0) + "\n")


# -- time and memory --------------------------------------------------------------------------------------------------


def turns(python: Path, frame: Path, weights: Path, threads: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """The two in turns, each time in a process of its own; a row per mode and number of threads."""
    rows = []
    for count in threads:
        for mode in MODES:
            taken: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for _ in range(rounds):
                for side in SIDES:
                    run = _peer if side == "peer" else _ours
                    taken[side].append(json.loads(run(python, "--threads", count, "time", frame, weights, mode)))
            rows.append({"mode": mode, "threads": count} | {side: _summary(runs) for side, runs in taken.items()})
    return rows


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    seconds, cpu = ([s for run in runs for s in run[key]] for key in ("seconds", "cpu_seconds"))
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "median_s": statistics.median(seconds),
        "median_cpu_s": statistics.median(cpu),
        "peak_bytes": max(run["peak_bytes"] for run in runs),
        "extra_bytes": max(run["extra_bytes"] for run in runs),
    }


def _peer(python: Path, *arguments: Any) -> str:
    return _run([python, PEER, *arguments])


def _ours(_: Path, *arguments: Any) -> str:
    return _run([sys.executable, "-m", "benchmarks.peers.ours", *arguments])


def _run(command: Sequence[Any]) -> str:
    """The last line that it prints."""
    threads = str(command[command.index("--threads") + 1]) if "--threads" in command else "1"
    done = subprocess.run(
        [str(c) for c in command],
        cwd=ROOT,
        text=True,
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        preexec_fn=bound(),
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stderr[-2000:]}")
    return done.stdout.strip().rpartition("\n")[2]


# -- report -----------------------------------------------------------------------------------------------------------


def table(report: Mapping[str, Any]) -> str:
    """Markdown: how far the answers differ, then time and memory."""
    single, double = (report["answers"][dtype] for dtype in ("float32", "float64"))
    lines = [
        "| answer | largest difference, float32 | over the largest magnitude | the same in float64 |",
        "|---|---|---|---|",
    ]
    for name, row in single.items():
        lines.append(f"| {name} | {row['absolute']:.1e} | {row['relative']:.1e} | {double[name]['relative']:.1e} |")
    lines += [
        "",
        "| frame | what | threads | s: peer | ours | times ours | CPU s: peer | ours | times ours | MB: peer | ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for frame, rows in report["frames"].items():
        for row in rows:
            peer, own = row["peer"], row["ours"]
            lines.append(
                f"| {frame} | {MODES[row['mode']]} | {row['threads']} "
                f"| {peer['median_s']:.2f} | {own['median_s']:.2f} | {peer['median_s'] / own['median_s']:.2f} "
                f"| {peer['median_cpu_s']:.2f} | {own['median_cpu_s']:.2f} "
                f"| {peer['median_cpu_s'] / own['median_cpu_s']:.2f} "
                f"| {peer['peak_bytes'] / 1e6:.0f} | {own['peak_bytes'] / 1e6:.0f} |"
            )
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers.compare", description=__doc__)
    parser.add_argument("--peer", type=Path, required=True, metavar="PYTHON", help="of benchmarks/peers/build.sh")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="nuScenes mini")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    parser.add_argument("--golden", type=Path, metavar="FOLDER", help="write the small network's answers there instead")
    options = parser.parse_args(arguments)
    if options.data is None and options.golden is None:
        parser.error("--data names no folder")
    return options


if __name__ == "__main__":
    main()
