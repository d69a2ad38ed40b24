"""Compiled stages compute what plain ones do, and change nothing that checkpoints or evaluation see."""

from __future__ import annotations

import copy

import pytest
import torch
from engine_toy import EngineToyDataset, EngineToyModel, toy_config

from mmdet3d.engine.compilation import compile_dense_stages
from mmdet3d.engine.settings import Settings
from mmdet3d.engine.trainer import Trainer
from mmdet3d.models.detectors.base import Detector
from mmdet3d.models.layers import ConvModule, channels_last
from mmdet3d.structures import Batch, Calibration

CPU = torch.device("cpu")


class Maps(Detector):
    """One dense stage and one that is not."""

    loss_taps = predict_taps = ("sum",)

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(ConvModule(3, 8, 3), ConvModule(8, 8, 1))
        self.add_stage("dense", self._dense, dense=True)
        self.add_stage("sum", lambda batch, maps: maps.square().sum(), ("dense",))

    def _dense(self, batch):
        return self.layers(batch.images)

    def losses(self, features, batch):
        return {"loss/sum": features["sum"]}

    def predictions(self, features, batch):
        return features["sum"]


def batch_of(images: torch.Tensor) -> Batch:
    eyes = torch.eye(4).expand(len(images), 4, 4)
    tokens = [str(i) for i in range(len(images))]
    return Batch(tokens, Calibration(eyes, eyes, *[eyes[:, None]] * 4, eyes), images=images)


def test_only_dense_stages_are_compiled_and_only_training_runs_them(monkeypatch):
    compiled, calls = [], []

    def fake(run, backend):
        compiled.append(run)
        return lambda *values: (calls.append("compiled"), run(*values))[1]

    monkeypatch.setattr(torch, "compile", fake)
    model = Maps()
    names = list(model.state_dict())
    compile_dense_stages(torch.nn.Sequential(model), CPU)
    assert len(compiled) == 1 and list(model.state_dict()) == names
    batch = batch_of(torch.ones(1, 3, 4, 4))
    model.loss(batch)
    assert calls == ["compiled"]
    model.eval().predict(batch)
    assert calls == ["compiled"]


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(ValueError, match="Sequential has no detector, whose stages it is about; set compile: false"):
        compile_dense_stages(torch.nn.Sequential(), CPU)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compile is true, which on cpu needs a C\+\+ compiler"):
        compile_dense_stages(Maps(), CPU)


def test_the_trainer_reads_the_key(tmp_path):
    with pytest.raises(ValueError, match="config key compile must be true or false, got 'reduce'"):
        Settings.from_config(toy_config(compile="reduce"))
    with pytest.raises(ValueError, match="EngineToyModel has no detector"):
        Trainer(EngineToyModel(), EngineToyDataset(4), None, toy_config(compile=True), tmp_path)


@pytest.mark.slow
def test_losses_and_gradients_are_those_of_the_plain_model():
    """In double precision, where no activation is close enough to zero to change sides by rounding."""
    torch.manual_seed(0)
    plain = Maps().double().train()
    compiled = copy.deepcopy(plain)
    compile_dense_stages(compiled, CPU)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for images in torch.randn(2, 2, 3, 8, 12, dtype=torch.float64):
        expected, found = (m.loss(batch_of(channels_last(images)))["loss/sum"] for m in (plain, compiled))
        torch.testing.assert_close(found, expected)
        expected.backward()
        found.backward()
    for ours, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(compiled.state_dict(), plain.state_dict())  # running statistics of batch norm
