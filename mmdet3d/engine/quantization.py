"""Exported ONNX files in fewer bits: eight-bit integers, by ONNX Runtime's static quantisation, and half precision."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmdet3d.engine.export import open_exported
from mmdet3d.io.files import atomic_write
from mmdet3d.structures import Batch, Sample

__all__ = ["halve", "quantize"]


def quantize(path: str | Path, target: str | Path, frames: Iterable[Sample]) -> None:
    """Write the ONNX file `path` with convolutions and products of weights in int8.

    Weights are quantised per channel. The ranges of what flows between layers are those that `frames` bring about, so
    they had better be a few dozen that are unlike each other. Geometry, pooling, and the rest stay as they are.

    Args:
        target: `.onnx`.
        frames: as the detector in the file reads them.

    Raises:
        ValueError: see `open_exported`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    interface = open_exported(path).interface

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = _feeds(interface, frames)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(path), str(prepared), skip_symbolic_shape=True)
        integers = Path(folder) / "integers.onnx"
        quantize_static(
            str(prepared),
            str(integers),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_weighted(onnx.load(prepared)),
            extra_options={"ActivationSymmetric": False},
        )
        model = onnx.load(integers)
    known = {entry.key for entry in model.metadata_props}
    for entry in onnx.load(path).metadata_props:
        if entry.key not in known:
            model.metadata_props.add(key=entry.key, value=entry.value)
    with atomic_write(target, "wb") as file:
        file.write(model.SerializeToString())


def halve(path: str | Path, target: str | Path) -> None:
    """Write the ONNX file `path` with convolutions and products of weights in float16, inputs and outputs in float32.

    Geometry, pooling, and the rest stay as they are: calibration in half precision would put points metres away.

    Args:
        target: `.onnx`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph = model.graph
    weights = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
    chosen = set(_weighted(model))
    nodes, halves, cast = [], {}, set()
    for node in graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        for i, name in enumerate(node.input):
            if name in weights:
                halves[name] = numpy_helper.to_array(weights[name]).astype("float16")
            elif name and name not in cast:
                nodes.append(helper.make_node("Cast", [name], [f"{name}.half"], to=TensorProto.FLOAT16))
                cast.add(name)
            node.input[i] = f"{name}.half" if name else ""
        (name,) = node.output
        node.output[0] = f"{name}.wide"
        nodes += [node, helper.make_node("Cast", [f"{name}.wide"], [name], to=TensorProto.FLOAT)]
    read = {name for node in nodes for name in node.input}
    kept = [each for each in graph.initializer if each.name in read]
    kept += [numpy_helper.from_array(value, f"{name}.half") for name, value in halves.items()]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    onnx.checker.check_model(model)
    with atomic_write(target, "wb") as file:
        file.write(model.SerializeToString())


def _feeds(interface: Any, frames: Iterable[Sample]) -> Iterator[dict[str, Any]]:
    for frame in frames:
        inputs = interface.prepare(Batch.collate([frame]))
        yield {name: value.numpy() for name, value in inputs.items()}


def _weighted(model: Any) -> list[str]:
    """Names of convolutions and of products whose one factor is a float32 weight."""
    weights = {each.name for each in model.graph.initializer if each.data_type == 1}
    return [n.name for n in model.graph.node if n.op_type in ("Conv", "MatMul") and n.input[1] in weights]
