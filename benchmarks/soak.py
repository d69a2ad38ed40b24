"""Whether a long training grows: python -m benchmarks.soak [--steps 2000] [--kills 20] [--out FILE]

The detector and the distiller of the demo train by `tools/train.py`, the one with a data cache, the other with stored
answers of its teacher besides. Each process is killed (SIGKILL) after its share of the steps and goes on with the same
command. Memory, open files and /dev/shm are those of the process and its loader workers, as the system counts them
from outside; the slope is that of the second half of each process's life, when caches are full.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.framework import machine, write_json
from mmdet3d.datasets.synthetic import WorldSettings, generate
from mmdet3d.machine import bound

ROOT = Path(__file__).resolve().parents[1]
TRAIN = [sys.executable, str(ROOT / "tools" / "train.py")]
ANSWERS = ["--views", "1", "--model.teacher.checkpoint", str(ROOT / "pretrained" / "demo" / "teacher.safetensors")]
EVERY = 1.0  # seconds
Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> Row:
    """Train, print, and return the report."""
    options = _parse(arguments)
    report: Row = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(torch.device("cpu")),
        "steps": options.steps,
        "kills": options.kills,
        "trainings": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for name, words in _trainings(Path(scratch)).items():
            rows = list(_soak(words, Path(scratch) / "run" / name, options.steps, options.kills))
            report["trainings"][name] = rows
            print(f"{name}: {_summary(rows)}", flush=True)
            if options.out:
                write_json(options.out, report)
    return report


def _trainings(folder: Path) -> dict[str, list[str]]:
    """Words of the command by name; their world is made here."""
    world = generate(folder / "world", WorldSettings(scenes=5), progress=False)
    prepare = [sys.executable, str(ROOT / "tools" / "create_data.py"), "nuscenes", "--root-path", str(world)]
    prepare += ["--version", "v1.0-synthetic", "--extra-tag", "synthetic", "--workers", "1"]
    subprocess.run(prepare, check=True, stdout=subprocess.DEVNULL, preexec_fn=bound())
    common = ["--dataset_root", f"{world}/", "--max_epochs", "100000", "--evaluation.start", "100000"]
    common += [
        "--data.cache",
        str(folder / "cache"),
        "--checkpoint_config.interval_iters",
        "5",
        "--log_config.interval",
        "1",
    ]
    return {
        "detector": ["synthetic/camera+radar/demo.yaml", *common],
        "distiller": [
            "synthetic/crkd/demo.yaml", *common, *ANSWERS, "--model.teacher.answers", str(folder / "answers")
        ],
    }  # fmt: skip


def _soak(words: Sequence[str], run: Path, steps: int, kills: int) -> Iterator[Row]:
    """A row per process: what it did and how it grew."""
    run.parent.mkdir(exist_ok=True)
    for part in range(kills + 1):
        command = [*TRAIN, *words, "--run-dir", str(run)] if not part else [*TRAIN, "--resume", str(run)]
        until = steps * (part + 1) // (kills + 1)
        with (run.parent / f"{run.name}.log").open("w+") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=bound())
            try:
                samples = []
                while (done := _steps(run / "metrics.jsonl")) < until:
                    if process.poll() is not None:
                        log.seek(0)
                        raise RuntimeError(f"{' '.join(command)} ended:\n{log.read()[-2000:]}")
                    samples.append({"step": done, **_held(process.pid)})
                    time.sleep(EVERY)
            finally:
                process.kill()
                process.wait()
        yield _grown(samples)


def _steps(log: Path) -> int:
    """Steps that a run has logged."""
    lines = log.read_text().splitlines() if log.is_file() else []
    return json.loads(lines[-1])["iteration"] if lines else 0


def _held(pid: int) -> dict[str, int]:
    """Bytes of memory, open files and files in /dev/shm of a process and its children."""
    family = [pid, *_children(pid)]
    memory = files = 0
    for each in family:
        with contextlib.suppress(OSError):  # it has ended
            memory += 4096 * int(Path(f"/proc/{each}/statm").read_text().split()[1])
            files += len(list(Path(f"/proc/{each}/fd").iterdir()))
    return {"memory": memory, "files": files, "shm": len(list(Path("/dev/shm").iterdir()))}


def _children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _grown(samples: Sequence[Mapping[str, int]]) -> Row:
    """The slope of memory over the second half of the samples, and the most files in each half."""
    half = len(samples) // 2
    first, second = samples[:half], samples[half:]
    steps = [s["step"] for s in second]
    slope = None
    if len(set(steps)) > 2:
        slope = round(float(np.polyfit(steps, [s["memory"] for s in second], 1)[0]))
    row: Row = {"from": samples[0]["step"], "to": samples[-1]["step"], "bytes per step": slope}
    for kind in ("files", "shm"):
        row[kind] = [max((s[kind] for s in part), default=0) for part in (first, second)]
    return row | {"memory": samples[-1]["memory"]}


def _summary(rows: Sequence[Row]) -> str:
    slopes = [row["bytes per step"] for row in rows if row["bytes per step"] is not None]
    grown = {kind: max(row[kind][1] - row[kind][0] for row in rows) for kind in ("files", "shm")}
    middle = (
        f"{np.median(slopes):.0f} bytes a step (median of {len(slopes)} processes)" if slopes else "too short to say"
    )
    memory = [round(row["memory"] / 1e6) for row in rows]
    return f"{middle}, {grown['files']} more open files, {grown['shm']} more in /dev/shm; MB at the ends: {memory}"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=2000, help="of each training")
    parser.add_argument("--kills", type=int, default=20, help="of each training")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
