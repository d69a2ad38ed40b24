"""Networks on tensors alone and their exported forms answer as the detectors do."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path

import pytest
import test_simulated_fusion
import test_temporal
import torch
from bev_models import CAMERA, CENTER_HEAD, TRANSFUSION_HEAD, make_batch, model_config

from mmdet3d.engine import inductor
from mmdet3d.engine.export import Facts, export_detector, open_exported
from mmdet3d.models import build_model
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.network import Interface, Network
from mmdet3d.ops import build as kernels
from mmdet3d.structures import Batch

FACTS = Facts(("car",), ("camera",), {}, None, "none", "", "0")
WITHOUT_ONNX = [n for n in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(n) is None]
needs_onnx = pytest.mark.skipif(bool(WITHOUT_ONNX), reason=f"{', '.join(WITHOUT_ONNX)} not installed (extra `export`)")
SENSORS = ("camera", "lidar", "radar")


def build(*sensors: str, vtransform: str = "LSSTransform", head: dict = CENTER_HEAD) -> Detector:
    torch.manual_seed(0)
    config = model_config(*sensors, fuser="ConvFuser" if sensors[1:] else None, head=head)
    if "camera" in sensors:
        config["encoders"]["camera"]["vtransform"] = {**CAMERA["vtransform"], "type": vtransform}
    return build_model(config).eval()


def another_car(batch: Batch) -> Batch:
    """Cameras of other lenses that look elsewhere."""
    turn = torch.eye(4)
    turn[:2, :2] = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    calibration = dataclasses.replace(
        batch.calibration,
        camera2lidar=turn @ batch.calibration.camera2lidar,
        intrinsics=batch.calibration.intrinsics * torch.tensor([0.9, 1.1, 1, 1])[:, None],
    )
    return dataclasses.replace(batch, calibration=calibration)


def agree(model: Detector, interface: Interface, found: dict[str, torch.Tensor], batch: Batch) -> None:
    """What they say is close, and equal values are decoded alike: of two equal peaks, chance would take one in each."""
    (tap,) = model.predict_taps
    with torch.no_grad():
        features = model.extract(batch, [tap])
    value = features[tap]
    wanted = [v for each in (value if isinstance(value, list) else [value]) for v in each.values()]
    assert len(found) == len(wanted) and max(v.abs().max() for v in wanted) > 0.01
    for (name, one), want in zip(found.items(), wanted, strict=True):
        torch.testing.assert_close(one, want, atol=1e-4, rtol=0, msg=name)
    (ours,) = interface.decode(dict(zip(interface.outputs, wanted, strict=True)), batch)
    (theirs,) = model.predictions(features, batch)
    assert len(ours) == len(theirs) > 0 and torch.equal(ours.labels, theirs.labels)
    assert torch.equal(ours.boxes.tensor, theirs.boxes.tensor) and torch.equal(ours.scores, theirs.scores)


@pytest.mark.parametrize("fixed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"vtransform": "DepthLSSTransform"},
        {"vtransform": "AwareBEVDepth"},
        {"vtransform": "AwareDBEVDepth"},
    ],
    ids=str,
)
def test_a_network_of_tensors_answers_as_its_detector(options: dict, fixed: bool) -> None:
    model, batch = build(*SENSORS, **options), make_batch(1)
    network = Network(model, batch, fixed)
    interface = Interface(**network.interface.as_dict())
    for one in (batch, make_batch(1, seed=1)) if fixed else (batch, another_car(make_batch(1, seed=1))):
        with torch.no_grad():
            found = network(*interface.prepare(one).values())
        agree(model, interface, dict(zip(interface.outputs, found, strict=True)), one)
    named = {name.partition(".")[0] for name in interface.inputs}
    assert named == {"images", "encoders"} | (set() if fixed else {"calibration"})


def test_proposals_are_decoded_without_their_head() -> None:
    """Without cameras, whose pooling rounds otherwise: proposals of nearly one height would change places."""
    model, batch = build("lidar", "radar", head=TRANSFUSION_HEAD), make_batch(1)
    network = Network(model, batch)
    interface = Interface(**network.interface.as_dict())
    with torch.no_grad():
        found = network(*interface.prepare(batch).values())
    agree(model, interface, dict(zip(interface.outputs, found, strict=True)), batch)


def test_what_a_network_reads_is_what_its_stages_declare() -> None:
    """A matrix that is read without being declared would be NaN."""
    network = Network(build("camera", vtransform="AwareBEVDepth"), make_batch(1))
    assert set(network.interface.reads) == {
        "images",
        *(f"calibration.{n}" for n in ("image_aug", "intrinsics", "camera2lidar", "lidar_aug", "camera2ego")),
    }


def test_one_frame_at_a_time() -> None:
    interface = Network(build("camera"), make_batch(1)).interface
    with pytest.raises(ValueError, match="one frame at a time, got 2"):
        interface.prepare(make_batch(2))


def test_sparse_convolutions_are_refused() -> None:
    config = model_config("lidar", fuser=None)
    config["encoders"]["lidar"] = {
        "voxelize_reduce": True,
        "voxelize": config["encoders"]["lidar"]["voxelize"] | {"voxel_size": [0.1, 0.1, 0.2]},
        "backbone": {
            "type": "SparseEncoder",
            "in_channels": 5,
            "sparse_shape": [512, 512, 41],
            "base_channels": 2,
            "output_channels": 4,
            "encoder_channels": [[2, 2], [2, 2], [2, 2], [2, 2]],
            "encoder_paddings": [[0, 1], [0, 1], [0, [1, 1, 0]], [0, 1]],
            "block_type": "basicblock",
        },
    }
    config["decoder"]["backbone"]["in_channels"] = 8
    with pytest.raises(ValueError, match=r"SparseEncoder \(encoders.lidar.backbone\) cannot be exported: its sparse"):
        Network(build_model(config).eval(), make_batch(1))


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .onnx or .pt2"):
        export_detector(build("camera"), make_batch(1), tmp_path / "student.trt", FACTS)


@needs_onnx
def test_onnx_answers_as_pytorch_for_another_car(tmp_path: Path) -> None:
    """Depth from drawn points, pillars of two sensors, frames of other numbers of points, one without any."""
    import onnx

    model, batch = build(*SENSORS, vtransform="DepthLSSTransform"), make_batch(1)
    differences = export_detector(model, batch, tmp_path / "model.onnx", FACTS)
    assert max(differences.values()) < 1e-4
    domains = {node.domain for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert domains <= {"", "ai.onnx"}
    exported = open_exported(tmp_path / "model.onnx")
    assert exported.facts == FACTS
    few = another_car(make_batch(1, seed=1))
    few.points, few.radar = [few.points[0][:70]], [few.radar[0][:1]]
    none = dataclasses.replace(few, clouds={"points": few.points, "radar": [few.radar[0][:0]]})
    for one in (batch, few, none):
        agree(model, exported.interface, exported.run(exported.interface.prepare(one)), one)
    (found,), (wanted,) = exported.predict(few), model.predict(few)
    torch.testing.assert_close(found.scores, wanted.scores, atol=1e-5, rtol=0)


def test_a_program_with_the_calibration_built_in(tmp_path: Path) -> None:
    model, batch = build("camera", "radar"), make_batch(1)
    facts = dataclasses.replace(FACTS, fixed_calibration=True)
    assert max(export_detector(model, batch, tmp_path / "model.pt2", facts).values()) < 1e-4
    exported = open_exported(tmp_path / "model.pt2")
    other = make_batch(1, seed=1)
    agree(model, exported.interface, exported.run(exported.interface.prepare(other)), other)
    assert not [name for name in exported.interface.inputs if name.startswith("calibration")]


@pytest.mark.slow
@pytest.mark.skipif(kernels.compiler("cpu") is None, reason="no C++ compiler")
def test_machine_code_answers_as_pytorch_for_another_car(tmp_path: Path) -> None:
    """Frames of other numbers of points, one without any. A small one, since every layer takes the compiler a while."""
    torch.manual_seed(0)
    config = model_config("camera", "radar", head=CENTER_HEAD | {"tasks": [["car"]]})
    config["encoders"]["camera"]["backbone"] |= {"num_stages": 2, "out_indices": [1]}
    config["encoders"]["camera"]["neck"] |= {"in_channels": [8], "out_channels": [12], "upsample_strides": [1]}
    model, batch = build_model(config).eval(), make_batch(1)
    facts = dataclasses.replace(FACTS, compiled=inductor.machine())
    assert max(export_detector(model, batch, tmp_path / "model.pt2", facts).values()) < 1e-4
    exported = open_exported(tmp_path / "model.pt2")
    assert exported.facts.compiled == inductor.machine()
    few = another_car(make_batch(1, seed=1))
    few.radar = [few.radar[0][:1]]
    none = dataclasses.replace(few, clouds={"points": few.points, "radar": [few.radar[0][:0]]})
    for one in (batch, few, none):
        agree(model, exported.interface, exported.run(exported.interface.prepare(one)), one)


CAMERA_STUDENTS = {
    "over time": (lambda: test_temporal.model().eval(), lambda seed: test_temporal.make_batch(seed=seed).alone(0)),
    "simulated LiDAR": (lambda: test_simulated_fusion.build().eval(), lambda seed: make_batch(1, seed=seed)),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAMERA_STUDENTS)
@needs_onnx
def test_students_that_see_cameras_alone(kind: str, tmp_path: Path) -> None:
    """Earlier frames as inputs, deformable attention, two view transforms."""
    make, frame = CAMERA_STUDENTS[kind]
    model = make()
    assert max(export_detector(model, frame(0), tmp_path / "model.onnx", FACTS).values()) < 1e-4
    exported = open_exported(tmp_path / "model.onnx")
    other = another_car(frame(1))
    agree(model, exported.interface, exported.run(exported.interface.prepare(other)), other)


def test_simulated_lidar_that_is_lifted_once() -> None:
    model, batch = test_simulated_fusion.shared({"heads": 2, "points": 4}).eval(), make_batch(1)
    network = Network(model, batch)
    other = another_car(make_batch(1, seed=1))
    with torch.no_grad():
        found = network(*network.interface.prepare(other).values())
    agree(model, network.interface, dict(zip(network.interface.outputs, found, strict=True)), other)
