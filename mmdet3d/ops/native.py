"""Which implementation an op takes, and how its compiled kernels are called.

One rule for all ops and devices: the library built at installation; else the one built at first use, if a compiler is
there; else the PyTorch twin. The choice is made once per op and kind of device and said once. `MMDET3D_OPS` forces it:

    auto        the rule above (default)
    reference   always the twin
    native      the compiled kernels, or an error that says what is missing
    emulated    for tests: the CUDA source compiled as plain C++ and run on CPU tensors
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet3d.ops import build

__all__ = ["DTYPE_CODES", "Kernels", "forced", "present_architectures", "setting"]

SETTINGS = ("auto", "reference", "native", "emulated")
# Storage types that kernels distinguish (csrc/scalar.h: by_dtype).
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}
_logger = logging.getLogger("mmdet3d")
_forced: list[str] = []


def setting() -> str:
    """The value in force: of `forced`, else of the environment variable MMDET3D_OPS.

    Raises:
        ValueError: MMDET3D_OPS holds an unknown word.
    """
    value = _forced[-1] if _forced else os.environ.get("MMDET3D_OPS", "auto")
    if value not in SETTINGS:
        raise ValueError(f"MMDET3D_OPS must be one of {', '.join(SETTINGS)}, got {value!r}")
    return value


@contextlib.contextmanager
def forced(value: str) -> Iterator[None]:
    """Overrule MMDET3D_OPS inside a `with` block, for tests and benchmarks."""
    _forced.append(value)
    try:
        yield
    finally:
        _forced.pop()


class Kernels:
    """The compiled kernels of one op.

    Args:
        op: folder name below `mmdet3d/ops`.
    """

    def __init__(self, op: str) -> None:
        self.op = op

    def available(self, tensor: Tensor) -> bool:
        """Whether a call with tensors like this one takes the kernels; otherwise the caller takes the twin.

        An exported program holds the twin: plain operations, which need nothing of this project where they run.

        Raises:
            RuntimeError: MMDET3D_OPS=native, and the kernels cannot be had; says why and how to mend it.
        """
        if torch.compiler.is_exporting():
            return False
        return _chosen(self.op, tensor.device.type, setting()) is not None

    def on_cpu(self, tensor: Tensor) -> bool:
        """Whether a call with tensors like this one takes `csrc/cpu.cpp`, which has more than CUDA needs."""
        return tensor.device.type == "cpu" and setting() != "emulated" and self.available(tensor)

    def call(self, function: str, *arguments: Any) -> None:
        """Run a kernel in place on its arguments.

        Args:
            function: exported name.
            arguments: contiguous tensors on one device, at least one of them; int, float and bool; None for a null
                pointer.

        Raises:
            RuntimeError: the kernel reports an error.
            ValueError: a tensor is not contiguous, or tensors lie on different devices.
        """
        tensors = [a for a in arguments if isinstance(a, Tensor)]
        device = tensors[0].device
        for tensor in tensors:
            if tensor.device != device or not tensor.is_contiguous():
                raise ValueError(f"{function} needs contiguous tensors on {device}, got one on {tensor.device}")
        path = _chosen(self.op, device.type, setting())
        if path is None:
            raise RuntimeError(f"{self.op} has no compiled kernels for {device.type} here")
        kernel = getattr(_load(path), function)
        if device.type == "cuda":
            stream = torch.cuda.current_stream(device).cuda_stream
            with torch.cuda.device(device):  # the kernel selects the device, and that would outlast the call
                code = kernel(*map(_pass, arguments), ctypes.c_int(device.index or 0), ctypes.c_void_p(stream))
        else:
            code = kernel(*map(_pass, arguments), ctypes.c_int(torch.get_num_threads()), ctypes.c_void_p(0))
        if code:
            raise RuntimeError(f"{self.op}: {function} failed on {device} with error {code}")

    def state(self, device: str) -> str:
        """One line for a report: what calls on this kind of device take, and why."""
        try:
            path = _chosen(self.op, device, setting())
        except RuntimeError as error:
            return f"error: {error}"
        if path is None:
            return f"PyTorch twin ({_obstacle(self.op, device) or 'MMDET3D_OPS=reference'})"
        return f"compiled ({path.name})"


def _pass(value: Any) -> Any:
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(int(value))


def _chosen(op: str, device: str, wish: str) -> Path | None:
    """The library that serves the op on this kind of device; None for the twin."""
    return _resolve(op, device, wish)


# All that torch.compiler.assume_constant_result does, after it has imported the compiler, which takes seconds.
_chosen._dynamo_marked_constant = True


@functools.cache
def _resolve(op: str, device: str, wish: str) -> Path | None:
    if wish == "reference" or device not in ("cpu", "cuda"):
        return None
    target = "emulated" if wish == "emulated" else device
    path = _prebuilt(op, target)
    reason = "" if path else _obstacle(op, target)
    if not path and not reason:
        try:
            path = build.build(op, target, build.cache_folder(), present_architectures() if target == "cuda" else ())
        except build.BuildError as error:
            reason = str(error)
    if not path and wish != "auto":
        raise RuntimeError(
            f"MMDET3D_OPS={wish}, but {op} has no kernels for {device}: {reason} (unset it to use the PyTorch twin)"
        )
    if path:
        _logger.info("%s on %s: compiled kernels", op, device)
    elif op in build.ops_with_kernels(target):
        _logger.warning("%s on %s: PyTorch twin, slower, because %s", op, device, reason)
    return path


def _prebuilt(op: str, target: str) -> Path | None:
    """A library that exists already: for CUDA one for these cards, or one for all cards."""
    if op not in build.ops_with_kernels(target):
        return None
    if target != "cuda":
        return build.prebuilt(op, target)
    choices = (present_architectures(), tuple(build.ALL_ARCHITECTURES.split(";")))
    return next(filter(None, (build.prebuilt(op, "cuda", c) for c in choices)), None)


def _obstacle(op: str, target: str) -> str:
    """Why the kernels cannot be built here, or an empty string."""
    if op not in build.ops_with_kernels(target):
        return "this op has no kernels for this kind of device"
    if build.compiler(target) is None:
        return (
            "there is no nvcc (install the CUDA toolkit)"
            if target == "cuda"
            else "there is no C++ compiler (install g++)"
        )
    return ""


def present_architectures() -> tuple[str, ...]:
    """Compute capabilities to compile for: TORCH_CUDA_ARCH_LIST, else those of the cards here."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(" ", ";").strip(";")
    if wanted:
        return tuple(wanted.split(";"))
    cards = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return tuple(f"{major}.{minor}" for major, minor in sorted(cards))


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    return ctypes.CDLL(str(path))
