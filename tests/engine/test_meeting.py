"""Ranks meet in a store that outlives them, as torchrun's does, and read nothing that earlier ones have left there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed as dist

from mmdet3d.engine import meeting
from mmdet3d.engine.meeting import fresh_part


@pytest.fixture()
def agent() -> Iterator[dist.TCPStore]:
    """The store of a launcher."""
    yield dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def connected(agent: dist.TCPStore) -> dist.TCPStore:
    return dist.TCPStore("127.0.0.1", agent.port, is_master=False)


def start(agent: dist.TCPStore, name: str, size: int, late: int) -> list[str]:
    """Each rank leaves an address; returns what each finds as that of the rank before it. Rank `late` comes last."""

    def meet(rank: int) -> str:
        time.sleep(0.3 * (rank == late))
        part = fresh_part(connected(agent), rank, size, timedelta(seconds=30))
        assert not part.check([f"address {rank}"])
        part.set(f"address {rank}", f"{rank} of {name}")
        return part.get(f"address {(rank - 1) % size}").decode()

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(meet, range(size)))


def test_no_start_reads_what_another_has_left(agent: dist.TCPStore) -> None:
    store = connected(agent)
    for late in range(3):
        assert start(agent, f"start {late}", 3, late) == [f"{rank} of start {late}" for rank in (2, 0, 1)]
        store.add(meeting._TICKETS, 1)  # of a start that is killed before its rank 0 has come
    store.add(meeting._STARTS, 1)  # one whose rank 0 came alone
    assert start(agent, "the last", 2, late=1) == ["1 of the last", "0 of the last"]
    assert start(agent, "one rank", 1, late=0) == ["0 of one rank"]


@pytest.mark.parametrize(
    ("rank", "message"), [(0, "2 of 3 ranks did not come within 1 s"), (1, "rank 0 did not come within 1 s")]
)
def test_who_does_not_come_is_said(agent: dist.TCPStore, rank: int, message: str) -> None:
    with pytest.raises(TimeoutError, match=message):
        fresh_part(connected(agent), rank, 3, timedelta(seconds=1))
