"""What docs/scaling.md counts and predicts: counts against PyTorch's own, the simulated loader against the real one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import scaling
from benchmarks.feeding import loader_steps, simulate
from benchmarks.ledger import KeptBytes, Ledger
from mmdet3d.ops.sparse_conv import SparseTensor, SubMConv3d


def network() -> nn.Sequential:
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Conv2d(16, 8, 3), nn.Flatten(2), nn.Linear(62 * 62, 40), nn.LayerNorm(40))


@pytest.mark.parametrize("half", [False, True])
def test_counts_are_those_of_a_step_that_is_carried_out(half: bool) -> None:
    model, images = network(), torch.randn(4, 3, 128, 128)
    found = []
    for counter in (Ledger(), FlopCounterMode(display=False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=half), counter:
            with KeptBytes([*model.parameters(), *model.buffers()]) as kept:
                total = model(images).sum()
            total.backward()
        found.append((counter.flops if isinstance(counter, Ledger) else counter.get_total_flops(), kept.total))
        if isinstance(counter, Ledger):
            assert kept.total <= counter.most_held < 3 * kept.total
            gradients = sum(p.grad.nbytes for p in model.parameters())
            assert gradients <= counter.held < gradients + 2 * images.nbytes
    assert found[0] == found[1] and found[0][0] > 2 * 4 * 128 * 128 * 16 * 27


def test_a_sparse_convolution_counts_the_pairs_of_sites() -> None:
    """Two neighbours and one alone: three centres and two pairs, 4 x 8 channels; backward takes twice that."""
    sites = torch.tensor([[0, 1, 1, 1], [0, 1, 1, 2], [0, 5, 5, 5]], dtype=torch.int32)
    features = torch.randn(3, 4, requires_grad=True)
    layer = SubMConv3d(4, 8)
    with Ledger() as ledger:
        out = layer(SparseTensor(features, sites, (8, 8, 8), 1))
        forward = ledger.flops
        out.features.sum().backward()
    assert forward == 2 * 5 * 4 * 8 and ledger.flops == 3 * forward


def test_an_operation_takes_as_long_as_what_it_takes_most_of() -> None:
    ledger = Ledger()
    ledger.operations = [(100, 10), (0, 50), (1, 1)]
    assert ledger.seconds(rate=10, bandwidth=5, launch=1) == 10 + 10 + 1
    assert ledger.seconds(rate=10, bandwidth=5, launch=1, batch=10) == 100 + 100 + 2


def test_the_simulated_loader() -> None:
    """The slower of loading and computing sets the pace; ranks wait for the slowest; few cores slow all down."""
    pace = {"steps": 200, "load": 0.1, "batch": 2}
    assert simulate(ranks=1, workers=1, step=0.05, **pace)["seconds"] == pytest.approx(0.2)
    assert simulate(ranks=4, workers=8, step=0.05, **pace) == pytest.approx({"seconds": 0.05, "waiting": 0}, abs=1e-9)
    assert simulate(ranks=1, workers=2, step=0.05, **pace) == pytest.approx({"seconds": 0.1, "waiting": 0.5}, rel=0.02)
    few = simulate(ranks=4, workers=2, step=0.05, cores=6, **pace)["seconds"]
    assert few == pytest.approx(0.2, rel=0.02)
    uneven = [simulate(ranks=n, workers=2, step=0.05, spread=0.3, **pace)["seconds"] for n in (1, 8)]
    assert uneven[1] > uneven[0] > 0.09


def test_the_simulated_loader_is_like_the_real_one() -> None:
    """Bounded by loading: two workers, 60 ms a batch. The real one has its own work, and other processes beside it."""
    said = simulate(20, 1, 2, 0.03, 0.001, 2)["seconds"]
    assert said == pytest.approx(0.03, rel=0.1)
    assert 0.8 * said < loader_steps(20, 2, 0.03, 0.001, 2) < 4 * said


def test_what_is_predicted_of_ranks() -> None:
    row = {
        "trained": 10**8,
        "parameters": 10**8,
        "most_held": 5 * 10**9,
        "seconds": {"A100 SXM 80 GB": {"1": 0.1, "2": 0.2}},
    }
    alone, many, shared = (
        scaling.predicted(row, "A100 SXM 80 GB", ranks, 2, share)
        for ranks, share in ((1, False), (8, False), (8, True))
    )
    assert alone["bytes"] == scaling.CONTEXT + 16 * 10**8 + 10**10
    assert many["bytes"] - alone["bytes"] == 4 * 10**8
    assert shared["bytes"] == scaling.CONTEXT + (8 + 16 / 8) * 10**8 + 10**10
    assert many["seconds"] - alone["seconds"] == pytest.approx(2 * 7 / 8 * 4 * 10**8 / (300e9 * scaling.LINKS))
    assert scaling.largest_batch(row, "A100 SXM 80 GB", 1) == 15


@pytest.mark.slow
def test_a_report_has_its_tables(tmp_path: Path) -> None:
    out = tmp_path / "scaling.json"
    report = scaling.main(["--small", "--only", "MonoSKD", "--skip", "check", "feeding", "size", "--out", str(out)])
    assert json.loads(out.read_text()) == json.loads(json.dumps(report))
    steps = ["MonoSKD teacher", "MonoSKD student", "MonoSKD distiller"]
    assert list(report["counts"]) == [name + again for name in steps for again in ("", ", checkpointed")]
    for name in steps:
        plain, again = (report["counts"][name + suffix] for suffix in ("", ", checkpointed"))
        assert again["kept"] < 0.6 * plain["kept"] and plain["flops"] < again["flops"] < 1.5 * plain["flops"]
    found = scaling.tables(report)
    assert all(name in found["scaling_counts"] and name in found["scaling_time"] for name in steps)
