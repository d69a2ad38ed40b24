"""Speed and memory of one training step of teacher, student and distiller, with live and stored answers, at real size.

python -m benchmarks.train_step [--config FILE] [--data FOLDER] [--device cpu|cuda] [--out FILE]
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import gc
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from benchmarks.framework import machine, peak_memory, summary, threads, write_json
from benchmarks.samples import random_sample, real_sample
from mmdet3d.config import Config, load_config
from mmdet3d.distill.distiller import Distiller
from mmdet3d.distill.teacher import build_detector
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.settings import Settings, autocast_dtype
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.structures import Batch

DEFAULT = (
    "nuscenes/distill/feature_response_distill/"
    "feat_fused_da_lr_mean_c2c_scale_mask_relation_resp_kd_dynamic_class_loss_80_256_resnet.yaml"
)


class Clock:
    """Seconds of named parts of a step, the device idle at both ends of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = collections.defaultdict(float)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = self._now()
        yield
        self.seconds[name] += self._now() - start

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def watch(self, detector: Detector, prefix: str = "") -> None:
        """Time every stage of a detector as a part `prefix + first output`."""

        def timed(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                with self.part(name):
                    return run(*arguments)

            return call

        for stage in {id(s): s for s in detector._stages.values()}.values():
            watched = dataclasses.replace(stage, run=timed(prefix + stage.outputs[0], stage.run))
            detector._stages.update(dict.fromkeys(stage.outputs, watched))


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure the three models, print the tables, write JSON if asked; returns the report."""
    options = _parse(arguments)
    device = torch.device(options.device)
    with threads(options.threads):
        report = _run(options, device)
    print(table(report))
    if options.out:
        write_json(options.out, report)
    return report


def _run(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    cfg = load_config(options.config)
    if options.data:
        sample, loading = real_sample(options.config, options.data, options.runs)
    else:
        sample, loading = random_sample(cfg["image_size"]), []
    sample.view = "benchmark/sample"
    batch = Batch.collate([sample] * options.batch).to(device)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "config": options.config,
        "device": options.device,
        "machine": machine(device),
        "batch": options.batch,
        "data": "real frame" if options.data else "random values",
        "loading": summary(loading) if loading else None,
        "models": {},
    }
    for role, build in roles(cfg, device):
        torch.manual_seed(0)
        report["models"][role] = measure_step(build(), batch, cfg, device, options.runs)
        gc.collect()
    student, live, stored = (report["models"][r]["step"]["median_ms"] for r in ("student", "distiller", "stored"))
    report["cost of distilling"], report["cost with stored answers"] = live / student - 1, stored / student - 1
    return report


def measure_step(
    model: Trainable,
    batch: Batch,
    cfg: Mapping[str, Any],
    device: torch.device,
    runs: int,
    shared: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> dict[str, Any]:
    """Time, parts and peak memory of full training steps: forward, losses, backward, clipping, optimiser.

    Args:
        shared: what several processes wrap around the module that calculates the losses.

    Returns:
        `step` (median, IQR, runs), `samples_per_s`, `peak_bytes` beyond what the model and the optimiser hold between
        steps, `parameters`, and `parts`, the share of the step of each stage, of the losses, backward and optimiser.
    """
    settings = Settings.from_config(cfg)
    model.to(device).train()
    clock = Clock(device)
    step = training_step(model, shared(Losses(model)), batch, settings, clock.part)

    step()  # after which a live teacher is the copy that answers
    if isinstance(model, Distiller):
        clock.watch(model.student)
        for teacher in getattr(model.instructor, "folded", {}).values():
            clock.watch(teacher, "teacher/")
    else:
        clock.watch(model)
    seconds, parts, peaks = [], [], []
    for _ in range(runs):
        clock.seconds.clear()
        peaks.append(peak_memory(step, device))
        parts.append(dict(clock.seconds))
        seconds.append(sum(clock.seconds[p] for p in ("loss", "backward", "optimizer")))
    known = [p for p in peaks if p is not None]
    return {
        "step": summary(seconds),
        "samples_per_s": len(batch) / statistics.median(seconds),
        "peak_bytes": max(known) if known else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parts": _shares(parts),
    }


def training_step(
    model: Trainable,
    losses: nn.Module,
    batch: Batch,
    settings: Settings,
    part: Callable[[str], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext(),
) -> Callable[[], torch.Tensor]:
    """A call that does one training step as the engine does: forward, losses, backward, clipping, optimiser.

    Args:
        losses: `Losses(model)`, perhaps wrapped.
        part: wraps the parts `loss`, `backward` and `optimizer`, to time them.

    Returns:
        The call; it returns the sum of the losses.
    """
    device = batch.device
    optimizer = build_optimizer(model, settings.optimizer)
    dtype = autocast_dtype(settings.precision, device)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    def step() -> torch.Tensor:
        with part("loss"), torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            terms = losses(batch)
        total = sum(v for k, v in terms.items() if k.startswith("loss/"))
        with part("backward"):
            scaler.scale(total).backward()
        with part("optimizer"):
            if clip := settings.optimizer_config.grad_clip:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip.max_norm, clip.norm_type)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
        return total.detach()

    return step


class Losses(nn.Module):
    """A model's losses as a forward pass."""

    def __init__(self, model: Trainable) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        return self.model.loss(batch)


def _shares(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of each part as a share of the step; `loss` becomes what is left of it without the stages."""
    median = {name: statistics.median(r.get(name, 0.0) for r in runs) for name in runs[0]}
    outer = ("loss", "backward", "optimizer")
    stages = {n: s for n, s in median.items() if n not in outer}
    total = sum(median[n] for n in outer)
    losses = max(0.0, median["loss"] - sum(stages.values()))
    parts = {**stages, "losses": losses, "backward": median["backward"], "optimizer": median["optimizer"]}
    return {name: seconds / total for name, seconds in parts.items()}


def roles(cfg: Config, device: torch.device) -> list[tuple[str, Callable[[], Trainable]]]:
    """Teacher, student and distiller of a distiller's config, by name, each with what builds it on a device."""
    teacher, student = cfg.model["teacher"], cfg.model["student"]

    # A teacher of random weights, which responds everywhere: no trained one leaves the losses more to compare.
    folder = tempfile.TemporaryDirectory()
    teaching = build_detector(teacher["model"])
    save_file(teaching.state_dict(), f"{folder.name}/teacher.safetensors")

    def distiller(**answers: str) -> Trainable:
        # The name is read here, so that the folder lives as long as this function does.
        block = {"checkpoint": f"{folder.name}/teacher.safetensors", "min_score": None, **answers}
        model = build_model({**cfg.model, "teacher": {**teacher, **block}})
        model.to(device)  # first, for the teacher is no part of the model and goes where the student lies
        model.setup_training(lambda _: {})
        return model

    return [
        ("teacher", lambda: build_detector(teacher["model"]).to(device)),
        ("student", lambda: build_detector(student["model"]).to(device)),
        ("distiller", distiller),
        ("stored", lambda: distiller(answers=f"{folder.name}/answers")),
    ]


def table(report: Mapping[str, Any]) -> str:
    """Markdown: a row per model, then the shares."""
    lines = [
        f"{report['config']}, batch {report['batch']}, {report['data']}",
        "",
        "| model | samples/s | ms a step | IQR ms | runs | peak extra MB | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for role, row in report["models"].items():
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        step = row["step"]
        lines.append(
            f"| {role} | {row['samples_per_s']:.3f} | {step['median_ms']:.0f} | {step['iqr_ms']:.0f} | {step['runs']} "
            f"| {memory} | {row['parameters'] / 1e6:.1f} M |"
        )
    lines += ["", f"Distilling costs {report['cost of distilling']:+.0%} over training the student alone."]
    if "stored" in report["models"]:
        lines.append(f"With the teacher's answers stored it costs {report['cost with stored answers']:+.0%}.")
    if report["loading"]:
        once = report["loading"]["median_ms"]
        shares = [
            f"{role} {once / (once + row['step']['median_ms'] / report['batch']):.1%}"
            for role, row in report["models"].items()
        ]
        lines.append(f"Loading a sample takes {once:.0f} ms; share without loader processes: {', '.join(shares)}.")
    names = list(dict.fromkeys(n for row in report["models"].values() for n in row["parts"]))
    lines += ["", f"| share of the step | {' | '.join(report['models'])} |", "|---|" + "---|" * len(report["models"])]
    for name in names:
        cells = [f"{row['parts'][name]:.1%}" if name in row["parts"] else "" for row in report["models"].values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument(
        "--config", default=DEFAULT, metavar="FILE", help="a distiller's config (default: CRKD, ResNet-50)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="nuScenes mini; default: random values")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=1, help="samples of a step (the same one, repeated)")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="CPU threads (default: all that this process may use)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSON with every figure")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
