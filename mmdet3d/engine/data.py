"""Data order and loaders.

Order depends on (seed, epoch) only. Every index travels to its worker together with the epoch, so that workers that
live through the whole training still augment each epoch differently.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mmdet3d.datasets.sampling import MixedDataset
from mmdet3d.datasets.scene import Scene
from mmdet3d.engine import distributed
from mmdet3d.machine import die_with_parent
from mmdet3d.plugins import import_modules, imported
from mmdet3d.structures import Batch, Detections3D, Sample

__all__ = [
    "DetectionDataset",
    "EvaluationSampler",
    "LeftOut",
    "MixedSampler",
    "PictureDataset",
    "TrainSampler",
    "batches",
    "build_loader",
    "train_sampler",
]


logger = logging.getLogger("mmdet3d")
_TRIES = 20  # neighbours that are tried for a sample that cannot be read


class DetectionDataset(Protocol):
    """What the engine asks of a data set. `evaluate` and `format` are asked of validation and test sets only.

    A class may also have a static `benchmark(block)`, what `evaluate` reports on the data set of a config block
    (`evaluation.benchmark.Benchmark`): a metric that a config names is then looked for before anything is trained,
    and configs and recipes need not name metrics and columns.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...

    def set_epoch(self, epoch: int) -> None:
        """`epoch` (0-based) of the samples that are asked for next."""

    def evaluate(self, detections: Sequence[Detections3D], out_dir: Any) -> dict[str, float]:
        """Metrics of detections in data-set order; whatever is written goes to `out_dir`."""

    def format(self, detections: Sequence[Detections3D], out_dir: Any) -> Any:
        """Write the benchmark's submission file into `out_dir` and return its path."""


class PictureDataset(DetectionDataset, Protocol):
    """What is asked of a data set besides where pictures are drawn.

    Attributes:
        tokens: names of the samples.
    """

    tokens: list[str]

    @property
    def classes(self) -> Sequence[str]:
        """Name of each label."""

    def scene(self, sample: Sample) -> Scene:
        """The frame of a sample without its augmentation."""

    def scenes(self) -> list[list[int]]:
        """Samples of every scene in the order of time."""


Item = tuple[int, int]


class TrainSampler:
    """Shuffled batches of (epoch, index), one rank's share of each global batch.

    The permutation is drawn from (seed, epoch). It is padded by its own beginning to a multiple of the global batch, so
    all batches are full and all ranks have equally many. The global batches are the same for every number of ranks that
    shares the same global batch size; within an epoch it may be gone on with another one.

    Args:
        size: length of the data set.
        batch_size: of one rank.
    """

    def __init__(self, size: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        if size == 0:
            raise ValueError("the training data set is empty; check data.train.ann_file and its filters")
        self._batch_size, self._seed = batch_size, seed
        self._rank, self._world_size = rank, world_size
        self._epoch = self._seen = 0
        self.size = size
        self.whole = batch_size * world_size  # samples of a batch of all ranks together

    def continues(self, size: int, whole: int) -> bool:
        """Whether this one can go on within an epoch of a data set of `size` in batches of `whole`."""
        return size == self.size

    def after(self, seen: int) -> int:
        """The batch that an epoch goes on with after `seen` of its samples, whatever their batches were.

        The rest is cut into batches so that the epoch's last one is the last again.
        """
        return len(self) - -(-(self.size - seen) // self.whole)

    def set_epoch(self, epoch: int, seen: int = 0) -> None:
        """The next iteration yields what is left of `epoch` after `seen` samples."""
        self._epoch, self._seen = epoch, seen

    def __len__(self) -> int:
        return -(-self.size // self.whole)

    def __iter__(self) -> Iterator[list[Item]]:
        generator = torch.Generator().manual_seed((self._seed << 24) + self._epoch)
        order = torch.randperm(self.size, generator=generator)
        batches = len(self) - self.after(self._seen)
        end = self._seen + batches * self.whole
        order = order.repeat(-(-end // self.size))[self._seen : end]
        share = order.view(batches, self._world_size, self._batch_size)[:, self._rank]
        for batch in share.tolist():
            yield [(self._epoch, index) for index in batch]


class MixedSampler:
    """Batches of (epoch, index) with a fixed share of frames without labels, see `MixedDataset`.

    An epoch has as many batches as without those frames, so that trainings with and without them take equally many
    steps; the labelled frames are then seen less often. Both groups are shuffled without end, pass after pass, each
    drawn from (seed, group, pass): what a batch holds depends on its place in the training alone.

    Args:
        labelled, unlabelled: how many frames there are.
        share: of unlabelled frames in a batch.
        batch_size: of one rank.

    Raises:
        ValueError: a group is empty, or `share` of the batch is no whole number of samples, or leaves no labelled one.
    """

    def __init__(
        self,
        labelled: int,
        unlabelled: int,
        share: float,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        for size, key in ((labelled, "data.train"), (unlabelled, "data.unlabelled")):
            if size == 0:
                raise ValueError(f"the data set of {key} is empty; check its ann_file, part and filters")
        count = round(share * batch_size)
        if not 0 < count < batch_size or abs(count - share * batch_size) > 1e-6:
            raise ValueError(
                f"data.unlabelled.share {share} of data.samples_per_gpu {batch_size} must be a whole number of samples "
                "that leaves a labelled one; with 2 samples take 0.5, for 0.8 take 5 samples"
            )
        # Per group: number of frames, how many of a batch, index of the first.
        self._groups = [(labelled, batch_size - count, 0), (unlabelled, count, labelled)]
        self._seed, self._rank, self._world_size = seed, rank, world_size
        self._epoch = self._seen = 0
        self.size = labelled + unlabelled
        self.whole = batch_size * world_size  # samples of a batch of all ranks together
        self._batches = -(-labelled // self.whole)

    def continues(self, size: int, whole: int) -> bool:
        """Whether this one can go on within an epoch of a data set of `size` in batches of `whole`."""
        return (size, whole) == (self.size, self.whole)

    def after(self, seen: int) -> int:
        """The batch that an epoch goes on with after `seen` of its samples."""
        return seen // self.whole

    def set_epoch(self, epoch: int, seen: int = 0) -> None:
        """The next iteration yields what is left of `epoch` after `seen` samples."""
        self._epoch, self._seen = epoch, seen

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[Item]]:
        shares = [self._share(group, *self._groups[group]) for group in range(2)]
        for batch in torch.cat(shares, dim=1)[self.after(self._seen) :].tolist():
            yield [(self._epoch, index) for index in batch]

    def _share(self, group: int, size: int, count: int, first: int) -> Tensor:
        """(batches, count): indices of one group in this rank's batches of the epoch."""
        whole = self._batches * count * self._world_size
        begin = self._epoch * whole
        passes = range(begin // size, -(-(begin + whole) // size))
        order = torch.cat([self._permutation(group, number, size) for number in passes])
        order = order[begin - passes.start * size :][:whole]
        return first + order.view(self._batches, self._world_size, count)[:, self._rank]

    def _permutation(self, group: int, number: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed((self._seed << 24) + (number << 1) + group)
        return torch.randperm(size, generator=generator)


def train_sampler(
    dataset: Any, batch_size: int, seed: int, rank: int = 0, world_size: int = 1
) -> TrainSampler | MixedSampler:
    """The sampler that suits a training set."""
    if not isinstance(dataset, MixedDataset):
        return TrainSampler(len(dataset), batch_size, seed, rank, world_size)
    sizes = len(dataset.labelled), len(dataset.unlabelled)
    return MixedSampler(*sizes, dataset.share, batch_size, seed, rank, world_size)


class EvaluationSampler:
    """Rank r's batches of indices r, r + W, r + 2 W, ...: every sample exactly once over all ranks, in order."""

    def __init__(self, size: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.indices = list(range(rank, size, world_size))
        self._batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.indices) // self._batch_size)

    def __iter__(self) -> Iterator[list[Item]]:
        for first in range(0, len(self.indices), self._batch_size):
            yield [(0, index) for index in self.indices[first : first + self._batch_size]]


def build_loader(
    dataset: Any,
    sampler: TrainSampler | MixedSampler | EvaluationSampler,
    workers: int,
    seed: int = 0,
    replace: bool = False,
) -> DataLoader[Any]:
    """A loader over `sampler`; its workers, if any, stay alive between epochs. Read it with `batches`.

    Args:
        replace: a sample that cannot be read gives way to the next one of the data set that can.
    """
    return DataLoader(
        _ByEpoch(dataset, replace),
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=_collate,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=partial(_init_worker, os.getpid(), imported()),
        # Without a generator of its own the loader would draw from the global one, whose state a resumed run restores.
        generator=torch.Generator().manual_seed(seed),
    )


class LeftOut:
    """Counts and names the samples of a training that could not be read and gave way to others.

    Args:
        most: of one process; one more ends the training.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.count = 0

    def add(self, errors: Sequence[str]) -> None:
        """Raises ValueError if there are too many."""
        for error in errors:
            self.count += 1
            if self.count > self._most:
                raise ValueError(
                    f"{error}; {self.count} samples could not be read, more than data.max_left_out: {self._most}; "
                    "create_data with --check lists all that is wrong with the files"
                )
            logger.warning("left out sample %d of at most %d (data.max_left_out): %s", self.count, self._most, error)


def batches(loader: DataLoader[Any], left_out: LeftOut | None = None) -> Iterator[Batch]:
    """The loader's batches; a user's mistake met in a worker is raised here as it was there, without its traceback.

    Args:
        left_out: is told of samples that gave way to others, see `build_loader`.
    """
    # Workers start here. Between its start and the end of `_init_worker` a worker would die of the SIGTERM that a
    # launcher sends to the whole group, and with it the training process, before its checkpoint.
    with _deferred(signal.SIGTERM):
        source = iter(loader)
    for batch in _received(source):
        distributed.progress()
        if isinstance(batch, _Failure):
            raise batch.error
        if isinstance(batch, _Mended):
            if left_out is not None:
                left_out.add(batch.errors)
            batch = batch.content
        yield batch


def _received(source: Iterator[Any]) -> Iterator[Any]:
    """What the workers send; RuntimeError, whose text begins with "DataLoader worker", if one of them is gone."""
    while True:
        try:
            batch = next(source)
        except StopIteration:
            return
        except (OSError, EOFError) as error:  # of the pipe, or of a data set
            time.sleep(1.0)  # torch's handler of a child's death raises here, and knows which worker died of what
            if all(worker.is_alive() for worker in getattr(source, "_workers", ())):
                raise
            raise RuntimeError("DataLoader worker has ended while it sent a batch") from error
        yield batch


@dataclass
class _Failure:
    error: Exception


@dataclass
class _Mended:
    """A sample instead of others, or a batch with such samples, and why the others could not be read."""

    content: Any
    errors: list[str]


class _ByEpoch(Dataset[Any]):
    """Tells the data set the epoch that an index belongs to."""

    def __init__(self, dataset: Any, replace: bool) -> None:
        self._dataset, self._replace = dataset, replace
        self._epoch: int | None = None

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, item: Item) -> Sample | _Failure | _Mended:
        epoch, index = item
        if epoch != self._epoch:
            self._dataset.set_epoch(epoch)
            self._epoch = epoch
        errors: list[str] = []
        for _ in range(min(_TRIES, len(self)) if self._replace else 1):
            try:
                sample = self._dataset[(index + len(errors)) % len(self)]
                return _Mended(sample, errors) if errors else sample
            except (ValueError, FileNotFoundError) as error:
                failure = error
                errors.append(str(error))
        return _Failure(failure)


def _collate(samples: list[Sample | _Failure | _Mended]) -> Batch | _Failure | _Mended:
    found: list[Sample] = []
    errors: list[str] = []
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
        if isinstance(sample, _Mended):
            errors += sample.errors
        found.append(sample.content if isinstance(sample, _Mended) else sample)
    try:
        batch = Batch.collate(found)
    except ValueError as error:
        return _Failure(error)
    return _Mended(batch, errors) if errors else batch


@contextmanager
def _deferred(number: int) -> Iterator[None]:
    """The signal arrives after this context; processes started inside keep it blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(parent: int, modules: Sequence[str], worker: int) -> None:
    die_with_parent(parent)
    import_modules(modules)  # a worker that is not forked knows none of them
    # Ctrl-C and a launcher's SIGTERM reach the whole process group, but the training process still needs its workers to
    # get to the next checkpoint. It decides when they end, also by a SIGTERM of its own to those left when it exits.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_obey_parent, daemon=True).start()


def _obey_parent() -> None:
    """End at a SIGTERM that the parent sent; `_deferred` keeps those of others from doing anything.

    A handler could not tell who sent the signal; waiting for a blocked one can. `os._exit`, because otherwise only the
    main thread can end the process, and that may be in the middle of a read.
    """
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
