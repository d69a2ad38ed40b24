from __future__ import annotations

import pytest
import torch

from mmdet3d.interop.simdistill import student_state
from mmdet3d.models.compensation import GeometryCompensation


def published(module: GeometryCompensation) -> dict[str, torch.Tensor]:
    """Published names and shapes of the parameters, filled as for the conformance values."""
    rows, columns = module.row_embed.weight, module.column_embed.weight
    # The published names of the tables are swapped.
    named = {"pe.0.col_embed.weight": rows, "pe.0.row_embed.weight": columns}
    named |= {f"el.0.self_attn.{name}": p for name, p in module.attention.named_parameters()}

    def filled(name: str, p: torch.Tensor) -> torch.Tensor:
        k = torch.arange(p.numel(), dtype=torch.float64)
        return (0.3 * torch.sin(0.7 * k + len(name))).view(p.shape).float()

    return {name: filled(name, p) for name, p in named.items()}


def test_published_block():
    """Values of the published block, with its truncated reference points, on published names."""
    block = GeometryCompensation(16, (6, 9), heads=8, points=4, legacy_reference_points=True)
    renamed = student_state({f"deformAttn.{k}": v for k, v in published(block).items()}, [])
    block.load_state_dict({k.removeprefix("encoders.simulated.compensation."): v for k, v in renamed.items()})
    x = torch.cos(0.05 * torch.arange(2 * 16 * 6 * 9, dtype=torch.float64)).view(2, 16, 6, 9).float()
    gathered = (block(x) - x).double()
    assert gathered.sum().item() == pytest.approx(-12.19989, rel=1e-4)
    assert gathered.abs().sum().item() == pytest.approx(736.93176, rel=1e-5)
    for place, value in (((0, 0, 0, 0), -0.289479), ((1, 7, 3, 4), 0.441101), ((1, 15, 5, 8), -0.126450)):
        assert gathered[place].item() == pytest.approx(value, abs=2e-5)


def without_offsets(legacy: bool) -> GeometryCompensation:
    """Samples at the reference point alone, and passes the values on as they are."""
    block = GeometryCompensation(4, (5, 7), heads=2, points=3, legacy_reference_points=legacy)
    for name, p in block.attention.named_parameters():
        torch.nn.init.zeros_(p)
        if name.endswith("_proj.weight"):
            torch.nn.init.eye_(p)
    return block


def test_cells_look_at_themselves():
    """The published half cell of bias is gone: without offsets a cell gathers its own feature."""
    x = torch.randn(2, 4, 5, 7)
    assert torch.allclose(without_offsets(legacy=False)(x), 2 * x, atol=1e-5)
    shifted = without_offsets(legacy=True)(x) - x
    corner = (x[:, :, 1, 2] + x[:, :, 2, 2] + x[:, :, 1, 3] + x[:, :, 2, 3]) / 4
    assert torch.allclose(shifted[:, :, 2, 3], corner, atol=1e-5)


def test_position_tells_row_and_column():
    block = GeometryCompensation(4, (2, 3), heads=2, points=1)
    position = block.position().view(2, 3, 4)
    for row in range(2):
        for column in range(3):
            parts = block.column_embed.weight[column], block.row_embed.weight[row]
            assert torch.equal(position[row, column], torch.cat(parts))


def test_everything_is_trained_and_nothing_is_dead():
    torch.manual_seed(0)
    block = GeometryCompensation(8, (6, 5), heads=4, points=3)
    # At first all offsets of a head are equal at every cell and the weights are uniform: place does not matter yet.
    torch.nn.init.normal_(block.attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(block.attention.attention_weights.weight, std=0.1)
    block(torch.randn(2, 8, 6, 5)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())
    # Two tables of the map's sides; the published tables of 6 * 5 queries are not there.
    assert {k: v.shape[0] for k, v in block.state_dict().items() if "embed" in k} == {
        "row_embed.weight": 6,
        "column_embed.weight": 5,
    }


def test_gradcheck():
    torch.manual_seed(0)
    block = GeometryCompensation(4, (3, 4), heads=2, points=2).double()
    torch.nn.init.normal_(block.attention.sampling_offsets.weight, std=0.1)
    torch.nn.init.normal_(block.attention.sampling_offsets.bias, std=0.3)
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, x, fast_mode=True)


def test_runs_in_single_precision_under_autocast():
    block = GeometryCompensation(8, (6, 5), heads=4, points=3)
    x = torch.randn(1, 8, 6, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        half = block(x)
    assert half.dtype == torch.float32
    assert torch.equal(half, block(x.float()))


def test_rejects():
    for channels in (9, 20):
        with pytest.raises(ValueError, match=f"multiple of 8 heads, got {channels}"):
            GeometryCompensation(channels, (4, 4))
    with pytest.raises(ValueError, match=r"maps of \(4, 5\).*\(5, 4\)"):
        GeometryCompensation(8, (4, 5))(torch.zeros(1, 8, 5, 4))
