from __future__ import annotations

import json
import sys
from argparse import Namespace
from datetime import datetime
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmdet3d.interop.checkpoints import load_checkpoint, load_state, published_options
from mmdet3d.io.weights import metadata_path, read_weights, save_weights
from mmdet3d.registry import MODELS


class Part(nn.Module):
    """A module tree with the given parameters."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        super().__init__()
        for key, shape in shapes.items():
            node: nn.Module = self
            *path, name = key.split(".")
            for part in path:
                if part not in dict(node.named_children()):
                    node.add_module(part, nn.Module())
                node = node.get_submodule(part)
            node.register_parameter(name, nn.Parameter(torch.zeros(shape)))


def state_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=generator) for k, s in shapes.items()}


STUDENT = {
    "encoders.radar.backbone.caliber.0.weight": (2, 3),
    "fuser.input_conv_sensor_1.weight": (4,),
    "decoder.neck.weight": (2,),
    "heads.object.task_heads.0.bias": (1,),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_reads_back_what_was_saved(tmp_path, suffix):
    state, path = state_of(STUDENT), tmp_path / f"w{suffix}"
    if suffix == ".pth":
        meta = {"epoch": 3, "best": np.float64(0.5)}
        torch.save({"meta": meta, "state_dict": {f"module.{k}": v for k, v in state.items()}, "optimizer": {}}, path)
    else:
        save_file(state, path)
        metadata_path(path).write_text(json.dumps({"epoch": 3}))
    read, meta = read_weights(path)
    assert read.keys() == state.keys() and all(torch.equal(read[k], state[k]) for k in state)
    assert meta["epoch"] == 3


def test_a_file_of_another_kind_is_refused_without_torchs_advice_to_trust_it(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"config": "a.yaml"}')
    with pytest.raises(ValueError, match=r"card.json is damaged or holds more .*not written by torch.save") as caught:
        read_weights(tmp_path / "card.json")
    assert "weights_only" not in str(caught.value)


def test_unreadable_files_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        read_weights(tmp_path / "absent.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a weight file")
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights"):
        read_weights(tmp_path / "empty.pth")


def test_code_in_a_pickle_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"state_dict": {}, "meta": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="more than weights"):
        read_weights(tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_what_is_refused_is_named_without_terminal_codes(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": Fraction(1, 2)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"more than weights .*an object of fractions\.Fraction, which") as caught:
        read_weights(tmp_path / "w.pth")
    assert "\x1b" not in str(caught.value) and "\n" not in str(caught.value)


class HistoryBuffer:
    """As mmengine's: arrays, and statistics that are named by getattr."""

    __module__ = "mmengine.logging.history_buffer"

    def __init__(self):
        self.history, self.least = np.arange(3.0), HistoryBuffer.min

    def min(self):
        raise AssertionError("code of the file ran")


def test_records_beside_the_weights_are_left_alone(tmp_path, monkeypatch):
    name = "mmengine.logging.history_buffer"
    modules = {part: ModuleType(part) for part in ("mmengine", "mmengine.logging", name)}
    modules[name].HistoryBuffer = HistoryBuffer
    content = {
        "state_dict": {"w": torch.ones(1)},
        "message_hub": {"log_scalars": {"train/loss": HistoryBuffer()}},
        "hyper_parameters": Namespace(lr=1e-3),
        "meta": {"epoch": 2, "when": datetime(2023, 1, 1), "work_dir": PurePosixPath("/x")},
    }
    with monkeypatch.context() as patch:
        for part, module in modules.items():
            patch.setitem(sys.modules, part, module)
        torch.save(content, tmp_path / "w.pth")
    state, meta = read_weights(tmp_path / "w.pth")
    assert state.keys() == {"w"} and meta["epoch"] == 2


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict_ema": s, "state_dict": {k: torch.zeros_like(v) for k, v in s.items()}},
        lambda s: {"model_ema": {f"module.{k}": v for k, v in s.items()} | {"steps": 7}, "model": {}},
        lambda s: {"state_dict": s, "ema_state_dict": {f"module.{k}": torch.zeros_like(v) for k, v in s.items()}},
        lambda s: {"state_dict": {f"module.module.{k}": v for k, v in s.items()}},
        lambda s: {f"_orig_mod.{k}": v for k, v in s.items()},
        lambda s: {k.replace("fuser.", "fuser._orig_mod."): v for k, v in s.items()},
        lambda s: {"state_dict": {f"model.{k}": v for k, v in s.items()}, "epoch": 3},
        lambda s: {"state_dict": {f"model.module.{k}": v for k, v in s.items()}},
    ],
    ids=[
        "averaged",
        "averaged-deit",
        "averaged-mmengine",
        "parallel-twice",
        "compiled",
        "part-compiled",
        "lightning",
        "lightning-parallel",
    ],
)
def test_wrapped_weights_are_found(tmp_path, wrap):
    state, module = state_of(STUDENT), Part(STUDENT)
    torch.save(wrap(state), tmp_path / "w.pth")
    load_checkpoint(module, tmp_path / "w.pth")
    assert all(torch.equal(module.get_parameter(k), v) for k, v in state.items())


def test_every_tensor_is_accounted_for():
    state = state_of(STUDENT)
    del state["decoder.neck.weight"]
    state["surplus"] = torch.zeros(1)
    state["fuser.input_conv_sensor_1.weight"] = torch.zeros(5)
    module = Part(STUDENT)
    with pytest.raises(ValueError) as error:
        load_state(module, state, source="w.pth")
    for part in ("w.pth", "1 missing (decoder.neck.weight)", "1 unexpected (surplus)", "(5,) instead of (4,)"):
        assert part in str(error.value)
    assert all(not p.any() for p in module.parameters()), "a refused file must leave the module as it was"


def test_allowed_missing_keep_their_values():
    state = {k: v for k, v in state_of(STUDENT).items() if "caliber" not in k}
    module = Part(STUDENT)
    load_state(module, state, allow_missing=["encoders.radar.backbone.caliber"])
    assert torch.equal(module.fuser.input_conv_sensor_1.weight, state["fuser.input_conv_sensor_1.weight"])
    assert not module.get_parameter("encoders.radar.backbone.caliber.0.weight").any()


def test_derived_geometry_is_dropped_and_counters_may_be_missing():
    module = nn.Sequential(nn.BatchNorm2d(2))
    state = {f"0.{k}": torch.ones(2) for k in ("weight", "bias", "running_mean", "running_var")}
    state |= {f"encoders.camera.vtransform.{k}": torch.ones(3) for k in ("dx", "bx", "nx", "frustum")}
    load_state(module, state)
    assert torch.equal(module[0].running_mean, torch.ones(2))


def test_student_comes_out_of_a_published_distillation_checkpoint():
    student = state_of(STUDENT)
    state = {k.replace(".", "_student.", 1): v for k, v in student.items()}
    state |= {k: torch.full_like(v, 9) for k, v in student.items() if not k.startswith("encoders")}
    adapter = torch.ones(3, 3)
    state["fused_feat_affinity_loss.adapt_modules.0.conv_channel_layer.0.weight"] = adapter
    plain = Part(STUDENT)
    load_state(plain, state)
    assert all(torch.equal(plain.get_parameter(k), v) for k, v in student.items())

    key = "losses.kin.adapt_modules.0.conv_channel_layer.0.weight"
    distiller = Part({f"student.{k}": s for k, s in STUDENT.items()} | {key: (3, 3)})
    load_state(distiller, state)
    assert torch.equal(distiller.get_parameter(key), adapter)
    assert torch.equal(distiller.get_parameter("student.decoder.neck.weight"), student["decoder.neck.weight"])


def test_student_comes_out_of_our_distiller():
    student = state_of(STUDENT)
    plain = Part(STUDENT)
    load_state(plain, {f"student.{k}": v for k, v in student.items()} | {"losses.relation.w": torch.ones(1)})
    assert all(torch.equal(plain.get_parameter(k), v) for k, v in student.items())


def test_spconv_2_kernels_are_permuted():
    kernel = torch.randn(3, 3, 3, 5, 16)
    module = Part({"encoders.lidar.backbone.conv_input.0.weight": (3, 3, 3, 5, 16)})
    load_state(module, {"encoders.lidar.backbone.conv_input.0.weight": kernel.permute(4, 0, 1, 2, 3).contiguous()})
    assert torch.equal(module.get_parameter("encoders.lidar.backbone.conv_input.0.weight"), kernel)


def test_prefix_takes_a_part_of_the_file(tmp_path):
    save_file({"backbone.weight": torch.ones(2), "head.weight": torch.ones(1)}, tmp_path / "w.safetensors")
    module = Part({"weight": (2,)})
    load_checkpoint(module, tmp_path / "w.safetensors", prefix="backbone.")
    assert torch.equal(module.weight, torch.ones(2))
    with pytest.raises(ValueError, match=r"nothing below 'neck\.'"):
        load_checkpoint(module, tmp_path / "w.safetensors", prefix="neck.")


def test_a_file_that_does_not_fit_is_said_with_the_config_that_it_names(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights({"weight": torch.ones(2)}, path, {"config": "synthetic/lidar/demo.yaml"})
    with pytest.raises(ValueError, match=r"1 missing.*names synthetic/lidar/demo\.yaml as its config"):
        load_checkpoint(Part({"weight": (2,), "other": (1,)}), path)


def test_what_a_file_says_that_it_leaves_out_keeps_its_values(tmp_path):
    """Of a distiller, of the student in it, and of a part; nothing else may be missing."""
    path = tmp_path / "w.safetensors"
    facts = {"left_out": ["student.backbone.fc", "losses"]}
    save_weights({"student.backbone.weight": torch.ones(2)}, path, facts)
    whole = Part({"student.backbone.weight": (2,), "student.backbone.fc.weight": (3,), "losses.relation.w": (1,)})
    report = load_checkpoint(whole, path)
    assert report.missing == ("student.backbone.fc.weight", "losses.relation.w") and report.loaded == 1
    student = Part({"backbone.weight": (2,), "backbone.fc.weight": (3,)})
    assert load_checkpoint(student, path).missing == ("backbone.fc.weight",)
    part = Part({"weight": (2,), "fc.weight": (3,)})
    assert load_checkpoint(part, path, prefix="student.backbone").missing == ("fc.weight",)
    for module in (whole, student, part):
        assert torch.equal(next(module.parameters()), torch.ones(2))
    with pytest.raises(ValueError, match=r"1 missing.*backbone\.fc2\.weight"):
        load_checkpoint(Part({"backbone.weight": (2,), "backbone.fc2.weight": (3,)}), path)


@pytest.mark.parametrize(
    ("extra", "clue"),
    [
        ("encoders.lidar.backbone.w", "LiDAR branch"),
        ("encoders.camera.backbone.patch_embed.w", "Swin"),
        ("fuser.0.weight", "ConvFuser"),
    ],
)
def test_a_wrong_file_is_described(extra, clue):
    with pytest.raises(ValueError, match=f"the file has .*{clue}"):
        load_state(Part(STUDENT), {**state_of(STUDENT), extra: torch.ones(1)})


def test_distilled_checkpoint_in_a_plain_student_names_the_encoder():
    plain = {k: s for k, s in STUDENT.items() if "caliber" not in k}
    with pytest.raises(ValueError, match="RadarEncoderCalib"):
        load_state(Part(plain), state_of(STUDENT))


def test_plain_checkpoint_in_a_distiller_names_the_key():
    with pytest.raises(ValueError, match=r"model\.student\.checkpoint"):
        load_state(Part({f"student.{k}": s for k, s in STUDENT.items()}), state_of(STUDENT))


TINY = {
    "in_channels": 6,
    "out_channels": 5,
    "image_size": [32, 64],
    "feature_size": [4, 8],
    "xbound": [-12.0, 12.0, 1.0],
    "ybound": [-12.0, 12.0, 1.0],
    "zbound": [-10.0, 10.0, 20.0],
    "dbound": [1.0, 13.0, 1.0],
}


def test_what_published_weights_need_is_named():
    model = nn.ModuleDict({"encoders": MODELS.build({"type": "DepthLSSTransform", **TINY})})
    needed = {"model.encoders.pixel_depth": "last"}
    assert published_options(model, {}) == published_options(model, {"versions": None}) == needed
    assert published_options(model, {"versions": {"mmdet3d": "1"}}) == {}
    ready = nn.ModuleDict({"encoders": MODELS.build({"type": "DepthLSSTransform", "pixel_depth": "last", **TINY})})
    assert published_options(ready, {}) == {}


def test_loading_published_weights_says_what_they_need(tmp_path, caplog):
    model = nn.ModuleDict({"encoders": MODELS.build({"type": "DepthLSSTransform", **TINY})})
    for name, meta in (("theirs", {"epoch": 6}), ("ours", {"versions": {"mmdet3d": "1"}})):
        torch.save({"state_dict": model.state_dict(), "meta": meta}, tmp_path / f"{name}.pth")
        load_checkpoint(model, tmp_path / f"{name}.pth")
    assert {"theirs.pth" in m and "set model.encoders.pixel_depth to last" in m for m in caplog.messages} == {True}
    assert not any("ours.pth" in message for message in caplog.messages)
