"""Every op is tested in each of its implementations."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

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
