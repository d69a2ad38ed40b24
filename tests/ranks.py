"""A function on several ranks of gloo, each a forked process."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

__all__ = ["on_ranks"]


def on_ranks(count: int, work: Callable[[], object], folder: Path) -> None:
    """Run `work` on `count` ranks at once; fails if any of them does."""
    folder.mkdir(exist_ok=True)
    store = folder / f"store{len(list(folder.glob('store*')))}"
    children = [_begin(rank, count, work, store) for rank in range(count)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * count, codes


def _begin(rank: int, count: int, work: Callable[[], object], store: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=count, timeout=timedelta(seconds=240)
        )
        work()
        dist.destroy_process_group()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
