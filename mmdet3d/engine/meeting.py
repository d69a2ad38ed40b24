"""Where the ranks of one start meet, in a store that may be older than they are.

`torchrun` keeps one store for a training and all its restarts. What the ranks of an earlier start have left there, such
as the addresses at which they listened, would be taken for that of their successors.
"""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist

__all__ = ["fresh_part"]

_STARTS, _TICKETS, _ANSWER, _HERE = "distill3d/starts", "distill3d/tickets", "distill3d/ticket {}", "here"
_EVERY = 0.05  # seconds


def fresh_part(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A part of `store` that the ranks of this start share and to which nobody has written before.

    Its name is a number that rank 0 draws. How often the launcher has started ranks is no such number: each machine's
    launcher counts for itself. The others draw a ticket each, and rank 0 tells every ticket the number, also those of
    ranks that are no more.

    Raises:
        TimeoutError: a rank did not come within `timeout`.
    """
    seconds = timeout.total_seconds()
    if rank != 0:
        answer = _ANSWER.format(store.add(_TICKETS, 1))
        try:
            store.wait([answer], timeout)
        except dist.DistStoreError as error:
            raise TimeoutError(f"rank 0 did not come within {seconds:.0f} s") from error
        part = dist.PrefixStore(f"distill3d/start {store.get(answer).decode()}", store)
        part.add(_HERE, 1)
        return part
    start = store.add(_STARTS, 1)
    part = dist.PrefixStore(f"distill3d/start {start}", store)
    answered, deadline = 0, time.monotonic() + seconds
    while (missing := size - 1 - part.add(_HERE, 0)) > 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{missing} of {size} ranks did not come within {seconds:.0f} s")
        tickets = store.add(_TICKETS, 0)
        for ticket in range(answered + 1, tickets + 1):
            store.set(_ANSWER.format(ticket), str(start))
        answered = tickets
        time.sleep(_EVERY)
    return part
