"""Order of the data, and what workers hand over."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config
from hypothesis import given
from hypothesis import strategies as st

from mmdet3d.engine import data
from mmdet3d.engine.data import EvaluationSampler, LeftOut, MixedSampler, TrainSampler, batches, build_loader
from mmdet3d.engine.trainer import Trainer
from mmdet3d.structures import Sample


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_training_covers_everything_in_full_batches(size: int, batch: int, world: int, epoch: int) -> None:
    ranks = [TrainSampler(size, batch, 5, r, world) for r in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    shares = [list(s) for s in ranks]
    assert {len(s) for s in shares} == {len(ranks[0])}
    assert all(len(b) == batch for s in shares for b in s)
    seen = [i for s in shares for b in s for e, i in b if e == epoch]
    assert set(seen) == set(range(size))
    assert len(seen) - size < batch * world


def test_global_batches_do_not_depend_on_the_ranks() -> None:
    whole = list(TrainSampler(20, 4, 0))
    halves = [list(TrainSampler(20, 2, 0, r, 2)) for r in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_order_changes_with_epoch_and_seed_and_continues() -> None:
    sampler, other = TrainSampler(20, 4, 0), TrainSampler(20, 4, 1)
    first = [[i for _, i in b] for b in sampler]
    assert first != [[i for _, i in b] for b in other]
    sampler.set_epoch(1)
    second = list(sampler)
    assert first != [[i for _, i in b] for b in second]
    sampler.set_epoch(1, seen=12)
    assert list(sampler) == second[3:]


@given(st.integers(1, 40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 12))
def test_the_rest_of_an_epoch_is_seen_once_by_other_ranks(size: int, before: int, batch: int, world: int, done: int):
    """Whatever the batches before were; only the last batch is filled up with others."""
    order = [i for b in TrainSampler(size, 1, 5) for _, i in b]
    seen = min(done * before, size - 1)
    ranks = [TrainSampler(size, batch, 5, r, world) for r in range(world)]
    for sampler in ranks:
        assert sampler.continues(size, before)
        sampler.set_epoch(0, seen)
    steps = list(zip(*ranks, strict=True))
    assert len(steps) == len(ranks[0]) - ranks[0].after(seen)
    found = [i for step in steps for part in step for _, i in part]
    assert found[: size - seen] == order[seen:]
    assert len(found) < size - seen + batch * world


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([(2, 0.5), (5, 0.8), (4, 0.25)]), st.integers(1, 3))
def test_mixed_batches(labelled: int, unlabelled: int, sizes: tuple[int, float], world: int) -> None:
    """Each batch has its share; over epochs every frame of a group is seen equally often, but for the current pass."""
    batch, share = sizes
    ranks = [MixedSampler(labelled, unlabelled, share, batch, 7, r, world) for r in range(world)]
    assert len(ranks[0]) == len(TrainSampler(labelled, batch, 7, 0, world))
    seen: list[int] = []
    for epoch in range(3):
        for sampler in ranks:
            sampler.set_epoch(epoch)
        for group in zip(*ranks, strict=True):
            for part in group:
                assert [i >= labelled for _, i in part] == [False] * round(batch * (1 - share)) + [True] * round(
                    batch * share
                )
                assert all(e == epoch for e, _ in part)
                seen += [i for _, i in part]
    for first, last in ((0, labelled), (labelled, labelled + unlabelled)):
        counts = [seen.count(i) for i in range(first, last)]
        assert max(counts) - min(counts) <= 1


def test_mixed_batches_continue_and_differ_between_passes() -> None:
    sampler = MixedSampler(12, 6, 0.5, 2, 0)
    first = list(sampler)
    assert [b[1][1] for b in first[:6]] != [b[1][1] for b in first[6:]]
    sampler.set_epoch(0, seen=8)
    assert list(sampler) == first[4:]
    assert sampler.continues(18, 2) and not sampler.continues(18, 4) and not sampler.continues(20, 2)


@pytest.mark.parametrize("share", [0.8, 0.1, 0.95])
def test_a_share_that_is_no_whole_number_of_samples(share: float) -> None:
    with pytest.raises(ValueError, match=f"share {share} of data.samples_per_gpu 2 must be a whole number"):
        MixedSampler(10, 10, share, 2, 0)


@pytest.mark.parametrize(("sizes", "key"), [((0, 10), r"data\.train"), ((10, 0), r"data\.unlabelled")])
def test_a_group_without_frames_is_refused(sizes: tuple[int, int], key: str) -> None:
    with pytest.raises(ValueError, match=f"the data set of {key} is empty"):
        MixedSampler(*sizes, 0.5, 2, 0)


@given(st.integers(0, 30), st.integers(1, 4), st.integers(1, 5))
def test_evaluation_sees_each_sample_once(size: int, batch: int, world: int) -> None:
    seen = [i for r in range(world) for b in EvaluationSampler(size, batch, r, world) for _, i in b]
    assert sorted(seen) == list(range(size))


def test_empty_training_set() -> None:
    with pytest.raises(ValueError, match="training data set is empty"):
        TrainSampler(0, 1, 0)


def test_epoch_reaches_workers_that_live_on() -> None:
    dataset = EngineToyDataset(6, augment=True)
    sampler = TrainSampler(6, 3, 0)
    loader = build_loader(dataset, sampler, workers=1)
    points = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        found = {m["index"]: (m["epoch"], p) for b in batches(loader) for m, p in zip(b.metas, b.points, strict=True)}
        assert {e for e, _ in found.values()} == {epoch}
        points.append(found[0][1])
    assert not points[0].equal(points[1])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_worker_arrives_as_its_sentence(workers: int) -> None:
    loader = build_loader(EngineToyDataset(6, broken=4), TrainSampler(6, 3, 0), workers)
    with pytest.raises(ValueError) as caught:
        list(batches(loader))
    assert str(caught.value) == "sample 4: points.bin is cut short; copy it again"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_outlive_a_signal_to_the_process_group(number: int) -> None:
    """Such a signal is sent by another process than the one that reads the samples."""
    sampler = TrainSampler(12, 3, 0)
    loader = build_loader(EngineToyDataset(12), sampler, workers=1)
    source = batches(loader)
    next(source)
    (worker,) = loader._iterator._workers
    subprocess.run(["sh", "-c", f"kill -{int(number)} {worker.pid}"], check=True)
    assert len(list(source)) == len(sampler) - 1
    assert worker.is_alive()


class _AsksForItsEnd(EngineToyDataset):
    """Notes the signal that its process gets when the parent ends."""

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        sample.meta["signal"] = _death_signal()
        return sample


def _death_signal() -> int:
    number = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
    return number.value


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_die_with_a_process_that_is_killed(workers: int) -> None:
    own = _death_signal()  # which tests of ranks have set, if they ran in this process
    batch = next(batches(build_loader(_AsksForItsEnd(6), TrainSampler(6, 3, 0), workers)))
    assert [meta["signal"] for meta in batch.metas] == [signal.SIGKILL if workers else own] * 3


def test_a_process_that_exits_with_a_loader_open_ends_its_workers() -> None:
    """Python then terminates and joins them, for ever if they do not obey."""
    program = (
        "from engine_toy import EngineToyDataset\n"
        "from mmdet3d.engine.data import TrainSampler, batches, build_loader\n"
        "import builtins\n"
        "builtins.source = batches(build_loader(EngineToyDataset(12), TrainSampler(12, 3, 0), workers=1))\n"
        "next(builtins.source)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, check=True, timeout=120)


class _Torn:
    """What iterates over a loader whose pipe is torn."""

    def __init__(self, error: Exception, alive: bool) -> None:
        self._error, self._workers = error, [SimpleNamespace(is_alive=lambda: alive)]

    def __next__(self) -> Any:
        raise self._error


@pytest.mark.parametrize(
    "error", [EOFError(), ConnectionResetError(104, "reset"), OSError("got end of file during message")], ids=repr
)
def test_the_pipe_of_a_worker_that_has_ended_is_said_to_be_that(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way it is noticed. What a data set raises, whose worker lives, stays what it is."""
    monkeypatch.setattr(data.time, "sleep", lambda _: None)
    with pytest.raises(RuntimeError, match=r"^DataLoader worker has ended while it sent a batch"):
        next(data._received(_Torn(error, alive=False)))
    with pytest.raises(type(error)) as same:
        next(data._received(_Torn(error, alive=True)))
    assert same.value is error


# -- samples that cannot be read ---------------------------------------------------------------------------------------


class Broken(EngineToyDataset):
    """Some of its samples cannot be read."""

    def __init__(self, size: int, broken: set[int]) -> None:
        super().__init__(size)
        self.all_broken = broken

    def __getitem__(self, index: int) -> Sample:
        self.broken = index if index in self.all_broken else None
        return super().__getitem__(index)


def read_all(broken: set[int], most: int, workers: int = 0, size: int = 12) -> tuple[list[str], LeftOut]:
    left_out = LeftOut(most)
    loader = build_loader(Broken(size, broken), EvaluationSampler(size, 3), workers, replace=True)
    return [token for batch in batches(loader, left_out) for token in batch.tokens], left_out


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sample_that_cannot_be_read_gives_way_and_is_counted(workers: int, caplog) -> None:
    with caplog.at_level("WARNING", "mmdet3d"):
        tokens, left_out = read_all({2, 3, 11}, most=4, workers=workers)
    assert tokens == [f"sample-{k}" for k in (0, 1, 4, 4, 4, 5, 6, 7, 8, 9, 10, 0)]
    assert left_out.count == len(caplog.messages) == 4
    assert caplog.messages[0].startswith("left out sample 1 of at most 4 (data.max_left_out): sample 2: points.bin is")


def test_too_many_of_them_end_the_training() -> None:
    with pytest.raises(ValueError, match=r"sample 5: points.bin .*; 3 samples could not be read, more than .*: 2; cre"):
        read_all({1, 4, 5, 9}, most=2)
    with pytest.raises(ValueError, match="is cut short"):  # where nothing can be read
        read_all(set(range(12)), most=99)


def test_training_fails_unless_it_is_told_to_go_on(tmp_path) -> None:
    def fit(**keys: object) -> Trainer:
        config = toy_config(max_epochs=1, data={"samples_per_gpu": 3, **keys})
        trainer = Trainer(EngineToyModel(), Broken(12, {3}), None, config, tmp_path, torch.device("cpu"))
        trainer.fit()
        return trainer

    with pytest.raises(ValueError, match=r"sample 3: points\.bin is cut short"):
        fit()
    assert fit(on_error="skip").iteration == 4
