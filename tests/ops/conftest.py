"""Every op is tested in each of its implementations."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from mmdet3d.ops import build, native

# "emulated" is the CUDA source compiled as plain C++ and run on CPU tensors.
BACKENDS = ["reference", "native", "emulated"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per implementation; use it with `pytest.mark.usefixtures("backend")` or as an argument."""
    if request.param != "reference" and build.compiler("cpu") is None:
        pytest.skip("there is no C++ compiler on this machine")
    with native.forced(request.param):
        yield request.param


@pytest.fixture
def same_bits() -> Iterator[Callable[[Callable[[], Sequence[Tensor]]], None]]:
    """Asserts that a function returns the same with 1 to 4 threads; libraries divide work otherwise by 3 than by 2."""

    def check(function: Callable[[], Sequence[Tensor]]) -> None:
        results = []
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(function())
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))

    before = torch.get_num_threads()
    yield check
    torch.set_num_threads(before)
