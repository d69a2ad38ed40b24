"""Exported detectors that look through one camera."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from mono_inputs import CLASSES, make_batch, small_model

from mmdet3d.engine import inductor
from mmdet3d.engine.export import Facts, _program, export_detector, open_exported
from mmdet3d.models.detectors import MonoDetector
from mmdet3d.models.network import Interface, Network
from mmdet3d.structures import Batch

WITHOUT_ONNX = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]


def settled(model: MonoDetector, batch: Batch) -> MonoDetector:
    """With the statistics of the batch: random features without them grow until all peaks of the heat map are alike."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().extract(batch, model.predict_taps)
    return model.eval()


def test_networks_of_tensors_answer_as_their_detectors() -> None:
    for changes in ({}, {"exact_affine": False}, {"input": "depth"}):
        model = small_model(score_threshold=0.01, **changes).eval()
        batch = make_batch([[]], seed=3, crop=0.9)
        interface = Interface(**Network(model, batch).interface.as_dict())
        network = Network(model, batch)
        with torch.no_grad():
            found = network(*interface.prepare(batch).values())
        (ours,) = interface.decode(dict(zip(interface.outputs, found, strict=True)), batch)
        (theirs,) = model.predict(batch)
        assert len(ours) == len(theirs) > 0 and torch.equal(ours.boxes.tensor, theirs.boxes.tensor)
        assert any(name.startswith("crops") for name in interface.inputs) == bool(changes)


def test_what_is_compared_does_not_depend_on_the_order_of_equal_peaks() -> None:
    model, batch = small_model(score_threshold=0.3).eval(), make_batch([[]])
    cells = torch.tensor([[3, 1], [2, 1], [5, 5]])
    regions = {"scores": torch.tensor([0.9, 0.9, 0.2]), "labels": torch.tensor([1, 1, 0]), "cells": cells}
    decoder = model.decoder_step(batch)
    one, other = decoder.comparable(regions), decoder.comparable({k: v[[1, 0, 2]] for k, v in regions.items()})
    assert one["cells"].tolist() == other["cells"].tolist() == [[2, 1], [3, 1]]


def test_regions_are_cut_out_by_plain_operations_where_programs_are_compiled() -> None:
    """Machine code of the op as a whole would call Python."""
    batch = make_batch([[]], crop=0.9)
    network = Network(settled(small_model(score_threshold=0.01), batch), batch).eval()
    inputs = network.interface.prepare(batch)
    program = _program(network, inputs)
    plain = inductor.without_own_ops(program)
    held, left = ({n.target for n in p.graph.nodes if "mmdet3d" in str(n.target)} for p in (program, plain))
    assert held and not left
    with torch.no_grad():
        found, wanted = (
            network.interface.comparable(dict(zip(network.interface.outputs, run(*inputs.values()), strict=True)))
            for run in (plain.module(), network)
        )
    assert len(wanted) > 5
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


@pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"{', '.join(WITHOUT_ONNX)} not installed (extra `export`)")
def test_onnx_answers_as_pytorch(tmp_path: Path) -> None:
    """Regions are ONNX's RoiAlign, and what the training's depth branch needs is not in the file."""
    import onnx

    batch = make_batch([[]])
    model = settled(small_model(score_threshold=0.01, exact_affine=False, depth_branch={"width": 8}), batch)
    facts = Facts(CLASSES, ("camera",), {}, None, "none", "", "0")
    assert max(export_detector(model, batch, tmp_path / "mono.onnx", facts).values()) < 1e-4
    graph = onnx.load(tmp_path / "mono.onnx").graph
    assert "RoiAlign" in {node.op_type for node in graph.node}
    assert not [each.name for each in graph.initializer if "depth_branch" in each.name]
    exported = open_exported(tmp_path / "mono.onnx")
    for one in (batch, make_batch([[]], seed=5, crop=0.8, shift=(0.05, 0.02))):
        (found,), (wanted,) = exported.predict(one), model.predict(one)
        assert len(found) == len(wanted) > 0
        torch.testing.assert_close(found.boxes.tensor, wanted.boxes.tensor, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(found.scores, wanted.scores, atol=1e-4, rtol=0)
