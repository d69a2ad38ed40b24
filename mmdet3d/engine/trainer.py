"""One training loop for everything that has `loss` and `predict`."""

from __future__ import annotations

import contextlib
import math
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmdet3d import __version__
from mmdet3d.datasets import benchmark_of
from mmdet3d.engine import distributed
from mmdet3d.engine.checkpoint import RunCheckpoints, load_start, random_state, read_training_state, set_random_state
from mmdet3d.engine.compilation import checkpoint_activations, compile_dense_stages
from mmdet3d.engine.data import DetectionDataset, LeftOut, batches, build_loader, train_sampler
from mmdet3d.engine.divergence import Divergence
from mmdet3d.engine.ema import EMA
from mmdet3d.engine.evaluate import evaluate, say_if_nothing_is_found
from mmdet3d.engine.interrupt import Interrupt, Interrupted
from mmdet3d.engine.logging import Window, Writer, finite, get_logger
from mmdet3d.engine.loss_sum import LossSum
from mmdet3d.engine.optimizer import build_optimizer
from mmdet3d.engine.parallel import Copies
from mmdet3d.engine.resuming import model_changes
from mmdet3d.engine.schedule import LearningRate, Momentum
from mmdet3d.engine.settings import AUTO, GradClip, Settings, autocast_dtype
from mmdet3d.interop.checkpoints import load_checkpoint, load_state
from mmdet3d.models.detectors.base import Trainable
from mmdet3d.progress import progress_bar
from mmdet3d.shell import command, quote
from mmdet3d.structures import Batch

__all__ = ["Trainer", "seed_everything"]


def seed_everything(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch; `deterministic` also asks torch for reproducible kernels (slower)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)


class Trainer:
    """Trains a model and leaves its checkpoints, logs and evaluations in a folder.

    The position in training is (epoch, batch); learning rate, data order and augmentation are functions of it. Stopping
    anywhere and resuming gives the same weights as never having stopped, bit for bit where the kernels are
    deterministic, with the same number of processes. With another number every sample of the rest of the epoch is still
    seen once.

    Before the first step the engine loads the weights that `resume_from` or `load_from` names, or without them calls
    `model.init_weights()`; then it calls `model.setup_training(evaluate)` on the final device.

    Args:
        model: anything with `loss` and `predict`.
        train_dataset: see `data.DetectionDataset`.
        val_dataset: evaluated after epochs; None for a training without evaluation.
        cfg: see `settings.Settings`; other keys are ignored.
        run_dir: an existing folder.
        device: default: what `distributed.init` chooses.

    Raises:
        ValueError: a wrong or missing config key, a custom key that no parameter has, an empty data set, or no compiler
            where `compile` needs one.
    """

    def __init__(
        self,
        model: Trainable,
        train_dataset: DetectionDataset,
        val_dataset: DetectionDataset | None,
        cfg: Mapping[str, Any],
        run_dir: str | Path,
        device: torch.device | None = None,
    ) -> None:
        self.settings = s = Settings.from_config(cfg)
        self.run_dir = Path(run_dir)
        names = getattr(train_dataset, "class_names", ())
        self._about: dict[str, Any] = {"model_config": cfg.get("model"), "classes": [*names]}
        if device is None:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.device = device
        self.model = model.to(device)
        if s.compile:
            compile_dense_stages(self.model, device)
        if s.activation_checkpointing:
            checkpoint_activations(self.model)
        self._val_dataset = val_dataset
        self._benchmark = benchmark_of(s.data.val)
        rank, world = distributed.rank(), distributed.world_size()
        self._sampler = train_sampler(train_dataset, s.data.samples_per_gpu, s.seed, rank, world)
        cores = distributed.share_cores(s.data.workers_per_gpu)
        get_logger().info("%s", cores)
        self._loader = build_loader(
            train_dataset, self._sampler, cores.workers, s.seed + rank, s.data.on_error == "skip"
        )
        self._left_out = LeftOut(s.data.max_left_out)
        self.epoch_iters = len(self._sampler)
        self.epoch = self.batch = self._seen = 0
        self._lr = LearningRate(s.lr_config, s.max_epochs, self.epoch_iters)
        self._momentum = Momentum(s.momentum_config, s.max_epochs, self.epoch_iters)
        self.optimizer = build_optimizer(self.model, s.optimizer)
        self._dtype = autocast_dtype(s.precision, device)
        scaled = self._dtype is torch.float16
        self._scaler = torch.amp.GradScaler(device.type, enabled=scaled, growth_interval=2000)
        patience = None if scaled else math.ceil(s.log_config.interval / s.optimizer_config.cumulative_iters)
        self._divergence = Divergence(self.run_dir, patience, s.optimizer_config.not_finite == "stop")
        self._checkpoints = RunCheckpoints(self.run_dir, s.checkpoint_config.max_keep_ckpts)
        self._ema: EMA | None = None
        self._best: dict[str, Any] | None = None
        self._interrupt = Interrupt()
        self.metrics: dict[str, float] = {}

    @property
    def iteration(self) -> int:
        """Batches done since the beginning of training, per process."""
        return self.epoch * self.epoch_iters + self.batch

    def fit(self, begin: Callable[[], None] = lambda: None) -> dict[str, float]:
        """Train to `max_epochs` and return the metrics of the last evaluation.

        Args:
            begin: called before the first file is written, once a step was done, so after all that can be wrong with
                config, weights and the first samples; maybe a second time.

        Raises:
            Interrupted: SIGINT or SIGTERM arrived; a checkpoint was saved first.
            ValueError: a checkpoint that does not fit, bad data, losses that are not finite, a full disk. Checkpoints
                written before stay.
        """
        with self._interrupt:
            pending = self._prepare(begin)
            self._begin = begin
            self._writer: Writer | None = None
            try:
                if pending or self.epoch >= self.settings.max_epochs:
                    self._begin_writing(self.iteration)
                if pending:
                    self._evaluate_epoch()
                if self.epoch >= self.settings.max_epochs:
                    get_logger().info("nothing left to train: %d epochs are done", self.epoch)
                total, shown = self.settings.max_epochs * self.epoch_iters, distributed.is_main()
                with progress_bar(
                    total=total, initial=self.iteration, desc="train", unit="step", disable=not shown
                ) as self._progress:
                    while self.epoch < self.settings.max_epochs:
                        self._train_epoch()
                        self._finish_epoch()
            finally:
                if self._writer is not None:
                    self._writer.close()
        return self.metrics

    def _begin_writing(self, iteration: int) -> None:
        if self._writer is None:
            self._begin()
            self._writer = Writer(self.run_dir, iteration)

    # -- before the first step --------------------------------------------------------------------------------------

    def _prepare(self, begin: Callable[[], None]) -> bool:
        """Bring model, optimiser and position to where training starts; whether an evaluation was cut off there."""
        s = self.settings
        seed_everything(s.seed, s.deterministic)
        resumed = average = None
        with distributed.together():
            if s.resume_from:
                resumed = read_training_state(s.resume_from)
                if changed := model_changes(resumed[1].get("model_config"), self._about["model_config"]):
                    raise ValueError(
                        f"{s.resume_from} was trained with another model ({changed}); bring that config back, or train "
                        f"the new one from these weights: --load_from {s.resume_from}"
                    )
                self._check_resumable(resumed[0])
                average = self._load_resumed_weights(resumed[0])
            elif s.load_from:
                get_logger().info("loaded %s", load_start(self.model, s.load_from))
            else:
                self.model.init_weights()

            if self._val_dataset is not None and len(self._val_dataset):
                self._val_dataset[0]  # a pipeline that cannot work is not found after a whole epoch

        def evaluate(model: Trainable) -> dict[str, float]:
            begin()
            return self.evaluate(model, "setup")

        self.model.setup_training(evaluate)
        self._parallelize()
        self._ema = EMA(self.model, s.ema.decay, s.ema.ramp) if s.ema else None
        # The ranks need different dropout.
        seed_everything(s.seed + distributed.rank(), s.deterministic)
        return self._restore(*resumed, average) if resumed else False

    def _parallelize(self) -> None:
        s, module = self.settings, LossSum(self.model)
        if s.fully_shard and distributed.world_size() > 1:
            from mmdet3d.engine.sharing import Shares

            self._ranks: Copies = Shares(module, self.device)
            self.optimizer = build_optimizer(self.model, s.optimizer)  # over this rank's parts
        else:
            self._ranks = Copies(module, self.device, s.find_unused_parameters)

    def _check_resumable(self, state: Mapping[str, Any]) -> None:
        source, world = self.settings.resume_from, distributed.world_size()
        fits = (state["world_size"], state["epoch_iters"]) == (world, self.epoch_iters)
        if "samples" in state:  # which older checkpoints do not have
            fits = self._sampler.continues(state["samples"], state["whole"])
        if state["batch"] and not fits:
            raise ValueError(
                f"{source} was saved within an epoch of {state['epoch_iters']} iterations on {state['world_size']} "
                f"processes, but this run has {self.epoch_iters} on {world}; resume with the same data (with "
                "data.unlabelled also the same processes), or from a checkpoint at the end of an epoch"
            )
        if (state["model"] is not None) != (self.settings.ema is not None):
            wanted = "with" if state["model"] is not None else "without"
            raise ValueError(f"{source} was trained {wanted} an averaged model; resume {wanted} the config key ema")

    def _load_resumed_weights(self, state: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Into the model; returns the average, where one is kept."""
        source = str(self.settings.resume_from)
        load_checkpoint(self.model, source)
        if state["model"] is None:
            return None
        average = {k: v.clone() for k, v in self.model.state_dict().items()}
        load_state(self.model, state["model"], source=source)
        return average

    def _restore(
        self, state: Mapping[str, Any], metadata: Mapping[str, Any], average: Mapping[str, Tensor] | None
    ) -> bool:
        source = str(self.settings.resume_from)
        self._restore_optimizer(state["optimizer"])
        if self._scaler.is_enabled() and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        if self._ema and average is not None:
            shares = {k: self._ranks.cut(average[k], like) for k, like in self._ema.state.items()}
            self._ema.load(shares, state["ema_steps"])
        if state.get("method"):
            self.model.load_training_state(state["method"])
        self.epoch, within = state["epoch"], state["batch"] > 0
        if within:
            self._seen = state.get("seen", state["batch"] * self._sampler.whole)
            self.batch = self._sampler.after(self._seen)
        self._best = metadata["best"]
        self.metrics = {k: math.nan if v is None else v for k, v in (metadata["metrics"] or {}).items()}
        if len(state["random"]) == distributed.world_size():
            set_random_state(state["random"][distributed.rank()])
        else:
            get_logger().warning("resumed on another number of processes: random states start anew")
        get_logger().info("resumed %s: epoch %d, iteration %d", source, self.epoch, self.iteration)
        return not within and metadata["metrics"] is None and self._evaluation_due()

    def _restore_optimizer(self, state: Mapping[str, Any]) -> None:
        """Load moments and step counts; learning rates, weight decays and the like stay those of the config."""
        source = self.settings.resume_from
        configured = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(self._ranks.cut_state(state, self.optimizer))
        except ValueError as error:
            raise ValueError(
                f"the optimiser state of {source} does not fit this config ({error}); "
                "resume with the optimizer settings of that run, or start anew with --load_from"
            ) from error
        for group, values in zip(self.optimizer.param_groups, configured, strict=True):
            # Cleared, because what the schedules added (initial_lr) belongs to the config of that run too.
            parameters = group["params"]
            group.clear()
            group.update(values, params=parameters)

    # -- one epoch --------------------------------------------------------------------------------------------------

    def _train_epoch(self) -> None:
        s = self.settings
        self.model.train()
        self._sampler.set_epoch(self.epoch, self._seen)
        if not self._seen:
            self.model.start_epoch(self.epoch)
        window, began, first = Window(), time.perf_counter(), self.iteration
        save_due = False
        previous = began
        for batch in self._agreed(batches(self._loader, self._left_out)):
            loaded = time.perf_counter()
            values = self._iterate(batch.to(self.device, non_blocking=True))
            self._begin_writing(first)
            now = time.perf_counter()
            self._progress.update()
            window.add(values, {"time": now - previous, "data_time": loaded - previous})
            previous = now
            if self.batch % s.log_config.interval == 0 or self.batch == self.epoch_iters:
                rest = s.max_epochs * self.epoch_iters - self.iteration
                self._log(window, (now - began) / (self.iteration - first) * rest)
            if s.checkpoint_config.interval_iters and self.batch % s.checkpoint_config.interval_iters == 0:
                save_due = True
            if self.batch == self.epoch_iters or self.batch % s.optimizer_config.cumulative_iters:
                continue
            stopped = distributed.any_rank(self._interrupt.number != 0)
            if save_due or stopped:
                saved = self._save(f"epoch_{self.epoch + 1}_iter_{self.batch}")
                save_due = False
            if stopped:
                self._stop(saved)

    def _agreed(self, source: Iterator[Batch]) -> Iterator[Batch]:
        """The remaining batches of the epoch; a rank that cannot load its batch ends them on all ranks."""
        for _ in range(self.batch, self.epoch_iters):
            batch = error = None
            try:
                batch = next(source)
            except (ValueError, FileNotFoundError) as caught:
                error = caught
            distributed.raise_everywhere(error)
            assert batch is not None
            yield batch

    def _iterate(self, batch: Batch) -> dict[str, Tensor]:
        """Forward, backward and, where a group of accumulated iterations ends, an optimiser step."""
        s = self.settings
        start = self.batch - self.batch % s.optimizer_config.cumulative_iters
        group = min(s.optimizer_config.cumulative_iters, self.epoch_iters - start)
        steps = self.batch == start + group - 1
        self.model.start_step(self.iteration / (s.max_epochs * self.epoch_iters))
        self._lr.apply(self.optimizer, self.epoch, self.iteration)
        self._momentum.apply(self.optimizer, self.epoch, self.iteration)
        with self._ranks.accumulating(waits=not steps):
            with torch.autocast(self.device.type, self._dtype or torch.bfloat16, enabled=self._dtype is not None):
                total, values = self._ranks.module(batch)
            self._scaler.scale(total / group).backward()
        self._divergence.saw(batch, values)
        if steps:
            values |= self._step()
        self.batch += 1
        self._seen += self._sampler.whole
        return dict(values)

    def _step(self) -> dict[str, Tensor]:
        clip = self.settings.optimizer_config.grad_clip or GradClip(math.inf)  # the norm is needed in any case
        self._scaler.unscale_(self.optimizer)
        parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = self._ranks.whole(nn.utils.get_total_norm(gradients, clip.norm_type).detach())
        nn.utils.clip_grads_with_norm_(parameters, clip.max_norm, norm)
        if self._divergence.may_step(norm, f"epoch {self.epoch + 1}, iteration {self.batch + 1}"):
            self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self._ema:
            self._ema.update()
        return {"grad_norm": norm}

    def _log(self, window: Window, eta: float) -> None:
        self._divergence.check_progress(window, f"epoch {self.epoch + 1} up to iteration {self.batch}")
        means = window.mean()
        if means is None:
            return
        values = {"lr": self.optimizer.param_groups[0]["lr"], "time": means.pop("time")}
        values["data_time"] = means.pop("data_time")
        if self.device.type == "cuda":
            values["memory"] = torch.cuda.max_memory_allocated(self.device) / 2**20
        position = {"epoch": self.epoch + 1, "iter": self.batch, "iteration": self.iteration}
        assert self._writer is not None
        self._writer.train(position, self.epoch_iters, eta, values | means)

    # -- after an epoch ---------------------------------------------------------------------------------------------

    def _finish_epoch(self) -> None:
        self.epoch, self.batch, self._seen = self.epoch + 1, 0, 0
        stopped = distributed.any_rank(self._interrupt.number != 0)
        last = self.epoch == self.settings.max_epochs
        saved = None
        if stopped or last or self.epoch % self.settings.checkpoint_config.interval == 0:
            saved = self._save(f"epoch_{self.epoch}")
        if stopped and not (last and not self._evaluation_due()):
            self._stop(saved)
        if self._evaluation_due():
            self._evaluate_epoch()

    def _evaluation_due(self) -> bool:
        plan = self.settings.evaluation
        since = self.epoch - plan.start
        return self._val_dataset is not None and self.epoch > 0 and since >= 0 and since % plan.interval == 0

    def _evaluate_epoch(self) -> None:
        with self._ema.applied() if self._ema else contextlib.nullcontext():
            weights = self._ranks.whole(self.model.state_dict())
            self._divergence.check_weights(weights)
            with self._ranks.gathered():
                self.metrics = self.evaluate(self.model, f"epoch_{self.epoch}")
            distributed.on_main(lambda: self._keep_metrics(weights))
        position = {"epoch": self.epoch, "iter": 0, "iteration": self.iteration}
        if distributed.is_main() and self._writer is not None:
            self._writer.evaluation(position, self.metrics, self._benchmark.table(self.metrics))
            say_if_nothing_is_found(self.metrics, self._benchmark.main, self.epoch)
            self.model.evaluated(self.metrics)

    def _keep_metrics(self, weights: Mapping[str, Tensor]) -> None:
        """Note the metrics in the epoch's checkpoint; keep the weights if they are the best so far."""
        name, rule = self.settings.evaluation.save_best, self.settings.evaluation.rule
        if name == AUTO:
            name = self._benchmark.main
        if name is not None and name not in self.metrics:
            shown = ", ".join(list(self.metrics)[:8])
            raise ValueError(f"evaluation.save_best: no metric {name!r}; the data set reports {shown}")
        if name is not None and _better(self.metrics[name], self._best, rule):
            self._best = {"metric": name, "value": self.metrics[name], "epoch": self.epoch}
            self._checkpoints.save_best(weights, self._metadata())
        # Metrics mark the evaluation as done, so they come last: cut off before, it is repeated when training resumes.
        path = self.run_dir / f"epoch_{self.epoch}.safetensors"
        if path in self._checkpoints.resumable():
            self._checkpoints.annotate(path, {"metrics": finite(self.metrics), "best": self._best})

    def evaluate(self, model: Trainable, name: str) -> dict[str, float]:
        """Metrics of any model on the validation set; files go to `run_dir/evaluation/name`. Every rank must call.

        Random states are the same afterwards, so that evaluating does not change the training.

        Raises:
            ValueError: this training has no validation set.
        """
        if self._val_dataset is None:
            raise ValueError("evaluation needs a validation set, but the config has no data.val")
        before = random_state()
        s = self.settings
        try:
            return evaluate(
                model,
                self._val_dataset,
                self.run_dir / "evaluation" / name,
                self.device,
                batch_size=s.data.samples_per_gpu,
                workers=s.data.workers_per_gpu,
                precision=s.precision,
                check=self._check_interrupt,
            )
        finally:
            set_random_state(before)

    def _check_interrupt(self) -> None:
        if self._interrupt.number:
            latest = self._checkpoints.resumable()
            self._stop(latest[-1] if latest else None)

    def _stop(self, saved: Path | None) -> None:
        kept = f"{saved} holds everything; continue with: {command('train')} --resume {quote(self.run_dir)}"
        raise Interrupted(kept if saved else "nothing was trained yet", self._interrupt.number)

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def _save(self, name: str) -> Path:
        own = self._ranks.whole(self.model.state_dict())
        weights = self._ranks.whole(self._ema.state) if self._ema else own
        for tensors in (own, weights):
            self._divergence.check_weights(tensors)
        randoms = distributed.gather_objects(random_state())
        state = {
            "epoch": self.epoch,
            "batch": self.batch,
            "epoch_iters": self.epoch_iters,
            "seen": self._seen,
            "samples": self._sampler.size,
            "whole": self._sampler.whole,
            "world_size": distributed.world_size(),
            "optimizer": self._ranks.whole(self.optimizer.state_dict()),
            "scaler": self._scaler.state_dict(),
            "ema_steps": self._ema.steps if self._ema else 0,
            "method": self.model.training_state(),
            "model": own if self._ema else None,
            "random": randoms,
        }
        metadata = self._metadata() | {"metrics": None}
        path = distributed.on_main(lambda: self._checkpoints.save(name, weights, state, metadata))
        get_logger().info("saved %s", path)
        return path

    def _metadata(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "batch": self.batch,
            "iteration": self.iteration,
            "metrics": finite(self.metrics),
            "best": self._best,
            "model": type(self.model).__name__,
            "averaged": self._ema is not None,
            **self._about,
            "versions": {"mmdet3d": __version__, "torch": torch.__version__},
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
        }


def _better(value: float, best: Mapping[str, Any] | None, rule: str) -> bool:
    if best is None:
        return value == value
    return bool(value > best["value"] if rule == "greater" else value < best["value"])
