"""Independent pieces of work in several processes."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from mmdet3d.machine import die_with_parent, single_threaded

__all__ = ["in_processes"]


def in_processes(
    work: Callable[[Any], Any], items: Sequence[Any], workers: int, start_method: str = "spawn"
) -> Iterator[Any]:
    """Results of `work` for every item, from up to `workers` new processes that compute in one thread each.

    They end with this process, whatever ends it.

    Results come as they are ready. With one worker, or one item, this process does the work.

    Args:
        work: can be pickled, as functions of modules and partials of them can.
        items: arguments.
        workers: processes.
        start_method: of `multiprocessing`; forked processes see what this one holds without a copy.

    Raises:
        ValueError: less than one process, or one of them was killed.
    """
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    if min(workers, len(items)) <= 1:
        for item in items:
            yield work(item)
        return
    context = multiprocessing.get_context(start_method)
    others = set(multiprocessing.active_children())
    processes = ProcessPoolExecutor(min(workers, len(items)), context, _begin, (os.getpid(),))
    with _environment(single_threaded()), processes as pool:
        try:
            # No list of the futures is kept, so that each result can be freed once it was used.
            for future in as_completed([pool.submit(work, item) for item in items]):
                yield future.result()
        except BrokenProcessPool as error:
            raise ValueError("a worker process was killed, probably for lack of memory; use fewer --workers") from error
        except BaseException:
            # Nothing may go on in the background, nor be waited for: the caller may start anew at once.
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.kill()
            raise


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    """Processes started meanwhile inherit these variables."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _begin(parent: int) -> None:
    """One thread, and an end when `parent` ends, by a signal too."""
    die_with_parent(parent)
    # The environment comes too late for the torch that a forked process finds loaded.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
