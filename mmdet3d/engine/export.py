"""A detector's network as an ONNX file, a `torch.export` program or machine code, with all that detecting needs."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet3d.engine import inductor
from mmdet3d.io.files import atomic_write
from mmdet3d.models.detectors.base import Detector, Trainable
from mmdet3d.models.network import Interface, Network
from mmdet3d.structures import Batch, Detections3D

__all__ = ["FORMAT", "ExportedDetector", "Facts", "export_detector", "open_exported"]

FORMAT = 1  # of the metadata
_KEY = "distill3d"  # of the metadata in the file
_OPSET = 18
_NEEDED = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Facts:
    """What an exported file says of itself, beside its interface.

    Args:
        classes: label -> name.
        sensors: whose data is read, such as camera, lidar and radar.
        data: block of the data set that reads frames for it: image size, normalisation, ranges.
        extent: half width of bird's-eye pictures, metres; None for as far as boxes reach.
        config: name of the config.
        weights: SHA-256 of the weight file.
        version: of this project.
        fixed_calibration: the calibration of one vehicle is built in.
        compiled: which machine the code in the file is for, see `inductor.machine`; None where it holds none.
    """

    classes: tuple[str, ...]
    sensors: tuple[str, ...]
    data: Mapping[str, Any]
    extent: float | None
    config: str
    weights: str
    version: str
    fixed_calibration: bool = False
    compiled: Mapping[str, Any] | None = None


class ExportedDetector(Trainable):
    """Detections by an exported network: what was raw is prepared, and raw outputs decoded, as its detector does.

    Args:
        run: the network, inputs by name to outputs by name.
        interface: what goes in and comes out.
        facts: what the file says.
    """

    def __init__(self, run: Any, interface: Interface, facts: Facts) -> None:
        super().__init__()
        self.run, self.interface, self.facts = run, interface, facts

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.facts.sensors

    def predict(self, batch: Batch) -> list[Detections3D]:
        """Detections of each sample of a batch on the CPU."""
        return [found for k in range(len(batch)) for found in self._predict(batch.alone(k))]

    def _predict(self, batch: Batch) -> list[Detections3D]:
        return self.interface.decode(self.run(self.interface.prepare(batch)), batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Raises ValueError: an exported network cannot be trained."""
        raise ValueError("an exported network cannot be trained; train the model that it was exported from")


def export_detector(detector: Detector, batch: Batch, path: str | Path, facts: Facts) -> dict[str, float]:
    """Write a detector as ONNX (`.onnx`) or as a `torch.export` program (`.pt2`), which is compiled if `facts` say so.

    Args:
        detector: on the CPU.
        batch: one sample, as evaluation reads it; it decides the sizes, and the calibration of a fixed one.
        path: `.onnx` or `.pt2`.

    Returns:
        By output the largest difference between what the file and PyTorch make of the sample.

    Raises:
        ValueError: another suffix, a part that cannot be exported or compiled, a package or a compiler that is missing.
    """
    path = Path(path)
    check_suffix(path, facts.compiled is not None)
    network = Network(detector, batch, facts.fixed_calibration).eval()
    inputs = network.interface.prepare(batch)
    program = _program(network, inputs)
    metadata = json.dumps({"format": FORMAT, "interface": network.interface.as_dict(), "facts": asdict(facts)})
    if path.suffix == ".onnx":
        _write_onnx(program, network.interface, path, metadata)
    elif facts.compiled is not None:
        inductor.write_package(program, path, facts.compiled, _KEY, metadata)
    else:
        _write_program(program, path, metadata)
    with torch.no_grad():
        outputs = dict(zip(network.interface.outputs, network(*inputs.values()), strict=True))
    wanted = network.interface.comparable(outputs)
    found = network.interface.comparable(open_exported(path).run(inputs))
    return {name: _difference(found[name], value) for name, value in wanted.items()}


def check_suffix(path: Path, compiled: bool = False) -> None:
    """Raises ValueError unless it is one that can be written here."""
    if path.suffix not in (".onnx", ".pt2"):
        raise ValueError(f"{path} must end in .onnx or .pt2")
    if compiled:
        if path.suffix != ".pt2":
            raise ValueError(f"--compile --to {path}: it needs a file .pt2")
        inductor.check_compiler()
    if path.suffix == ".onnx":
        _check_packages()


def open_exported(path: str | Path) -> ExportedDetector:
    """The detector in a file that `export_detector` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file, one that was compiled for another machine, or a package that is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    if path.suffix == ".onnx":
        run, text = _open_onnx(path)
    elif inductor.is_package(path):
        run, text = inductor.open_package(path, _KEY)
    else:
        run, text = _open_program(path)
    if not text:
        raise ValueError(f"{path} does not say how frames are read and boxes decoded; export it anew with this project")
    metadata = json.loads(text)
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path} has metadata of format {metadata['format']}, not {FORMAT}; export it anew")
    facts: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in metadata["facts"].items()}
    interface = Interface(**metadata["interface"])
    return ExportedDetector(_by_name(run, interface), interface, Facts(**facts))


def _by_name(run: Any, interface: Interface) -> Any:
    def named(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(zip(interface.outputs, run(*(inputs[name] for name in interface.inputs)), strict=True))

    return named


def _program(network: Network, inputs: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    """The traced network; rows of voxels, whose number differs from frame to frame, are free."""
    example = []
    sizes: list[dict[int, Any] | None] = []
    for name, value in inputs.items():
        free = any(name.startswith(f"{step}.") for step in network.interface.steps)
        # A number of rows below two would be taken for a constant.
        enough = value.new_zeros(2, *value.shape[1:]) if free and len(value) < 2 else value
        example.append(enough.contiguous())
        sizes.append({0: torch.export.Dim.DYNAMIC} if free else None)
    return torch.export.export(network, tuple(example), dynamic_shapes=(tuple(sizes),), strict=False)


def _write_onnx(program: torch.export.ExportedProgram, interface: Interface, path: Path, metadata: str) -> None:
    from mmdet3d.ops.onnx import translations

    onnx = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=_OPSET,
        input_names=list(interface.inputs),
        output_names=list(interface.outputs),
        custom_translation_table=translations(),
        verbose=False,
    )
    assert onnx is not None
    onnx.model.metadata_props[_KEY] = metadata
    with atomic_write(path, "wb") as file:
        file.write(onnx.model_proto.SerializeToString())


def _write_program(program: torch.export.ExportedProgram, path: Path, metadata: str) -> None:
    program.example_inputs = None  # as large as the frame
    with atomic_write(path, "wb") as file:
        torch.export.save(program, file, extra_files={f"{_KEY}.json": metadata})


def _open_onnx(path: Path) -> tuple[Any, str]:
    _check_packages(("onnxruntime",))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        found = session.run(None, {n: value.numpy() for n, value in zip(names, inputs, strict=True)})
        return [torch.from_numpy(value) for value in found]

    return run, session.get_modelmeta().custom_metadata_map.get(_KEY, "")


def _open_program(path: Path) -> tuple[Any, str]:
    import mmdet3d.ops.roi_align  # noqa: F401  (its op may be in the program)

    extra = {f"{_KEY}.json": ""}
    module = torch.export.load(path, extra_files=extra).module()

    def run(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            found: tuple[Tensor, ...] = module(*inputs)
            return found

    return run, extra[f"{_KEY}.json"]


def _check_packages(names: tuple[str, ...] = _NEEDED) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"ONNX needs {', '.join(missing)}: pip install 'distill3d[export]'")


def _difference(found: Tensor, wanted: Tensor) -> float:
    if found.shape != wanted.shape:
        return math.inf
    return float((found.double() - wanted.double()).abs().max()) if wanted.numel() else 0.0
