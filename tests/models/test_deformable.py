from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mmdet3d.models.deformable import DeformConv, ModulatedDeformConv, MultiScaleDeformableAttention


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 8, 7, 6)


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.state_dict().items()}


def test_names_of_published_checkpoints():
    assert shapes_of(DeformConv(512, 512, 3, padding=1, groups=4)) == {
        "weight": (512, 128, 3, 3),
        "conv_offset.weight": (18, 512, 3, 3),
        "conv_offset.bias": (18,),
    }
    assert shapes_of(ModulatedDeformConv(8, 4, 3, deform_groups=2)) == {
        "weight": (4, 8, 3, 3),
        "bias": (4,),
        "conv_offset.weight": (54, 8, 3, 3),
        "conv_offset.bias": (54,),
    }
    assert "bias" not in shapes_of(ModulatedDeformConv(8, 4, 3, bias=False))
    assert shapes_of(MultiScaleDeformableAttention(80, levels=1, heads=8, points=20)) == {
        "sampling_offsets.weight": (320, 80),
        "sampling_offsets.bias": (320,),
        "attention_weights.weight": (160, 80),
        "attention_weights.bias": (160,),
        "value_proj.weight": (80, 80),
        "value_proj.bias": (80,),
        "output_proj.weight": (80, 80),
        "output_proj.bias": (80,),
    }


def test_untrained_layers_are_convolutions(image):
    settings = {"stride": 2, "padding": 2, "dilation": 2, "groups": 2}
    plain = DeformConv(8, 6, 3, **settings)
    torch.testing.assert_close(plain(image), F.conv2d(image, plain.weight, None, **settings))
    scaled = ModulatedDeformConv(8, 6, 3, **settings)
    torch.nn.init.normal_(scaled.bias)
    torch.testing.assert_close(scaled(image), F.conv2d(image, scaled.weight / 2, scaled.bias, **settings))


def test_offsets_are_y_then_x_and_masks_follow_all_offsets(image):
    layer = ModulatedDeformConv(8, 6, 3, padding=1, deform_groups=2)
    with torch.no_grad():
        bias = layer.conv_offset.bias
        bias[:18:2], bias[1:18:2] = 1.0, -2.0  # the first four channels read one row lower, two columns to the left
        bias[36:45], bias[45:] = 50.0, -50.0  # and count in full; the others do not count
    moved = F.pad(image, (4, 4, 4, 4))[:, :4, 4:-2, 1:-5]
    expected = F.conv2d(moved, layer.weight[:, :4])
    torch.testing.assert_close(layer(image), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [DeformConv, ModulatedDeformConv])
def test_offsets_learn(image, kind):
    layer = kind(8, 6, 3, padding=1)
    layer(image).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())


def test_half_precision(image):
    for layer in (DeformConv(8, 6, 3, padding=1), ModulatedDeformConv(8, 6, 3, padding=1)):
        with torch.autocast("cpu", torch.bfloat16):
            got = layer(image.bfloat16())
        assert got.dtype == torch.bfloat16
        torch.testing.assert_close(got.float(), layer(image), rtol=0.03, atol=0.03)


def test_attention_starts_as_published():
    layer = MultiScaleDeformableAttention(16, levels=2, heads=8, points=3)
    offsets = layer.sampling_offsets.bias.detach().view(8, 2, 3, 2)
    compass = torch.tensor([(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]).float()
    for point in range(3):
        for level in range(2):
            torch.testing.assert_close(offsets[:, level, point], compass * (point + 1))
    assert not layer.sampling_offsets.weight.any() and not layer.attention_weights.weight.any()
    assert layer.value_proj.weight.abs().max() <= math.sqrt(6 / 32) and not layer.value_proj.bias.any()


def test_attention_of_one_head_by_hand():
    layer = MultiScaleDeformableAttention(1, levels=2, heads=1, points=1)
    with torch.no_grad():
        layer.sampling_offsets.bias.copy_(torch.tensor([1.0, 0.5, 0.0, 0.0]))
        layer.attention_weights.bias.copy_(torch.tensor([0.0, math.log(3.0)]))
        for projection in (layer.value_proj, layer.output_proj):
            projection.weight.fill_(1.0)
    first = torch.arange(12.0)  # 3 x 4
    second = torch.tensor([100.0, 200.0])  # 1 x 2
    reference = torch.tensor([[0.25, 0.5], [0.5, 0.5]]).view(1, 1, 2, 2)
    got = layer(torch.zeros(1, 1, 1), reference, torch.cat([first, second]).view(1, 14, 1), [(3, 4), (1, 2)])
    # Level 0: x = 0.25 * 4 + 1 - 0.5 = 1.5, y = 0.5 * 3 + 0.5 - 0.5 = 1.5; level 1: between its two pixels.
    assert got.item() == pytest.approx(0.25 * (1.5 * 4 + 1.5) + 0.75 * 150)


def test_attention_of_the_published_program():
    """Values that the published SimDistill program gives for a 16-channel block on a 6 x 9 map."""
    c, h, w = 16, 6, 9
    prefix = "el.0.self_attn."

    def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        k = torch.arange(math.prod(shape), dtype=torch.float64)
        return (0.3 * torch.sin(0.7 * k + len(name))).view(shape).float()

    layer = MultiScaleDeformableAttention(c, levels=1, heads=8, points=4)
    layer.load_state_dict({n: fill(prefix + n, s) for n, s in shapes_of(layer).items()})
    columns, rows = fill("pe.0.row_embed.weight", (w, c // 2)), fill("pe.0.col_embed.weight", (h, c // 2))
    position = torch.cat([columns.expand(h, -1, -1), rows[:, None].expand(-1, w, -1)], -1).flatten(0, 1)
    y, x = torch.meshgrid(torch.arange(h) / h, torch.arange(w) / w, indexing="ij")
    reference = torch.stack([x, y], -1).view(1, h * w, 1, 2).expand(2, -1, -1, -1)
    value = torch.cos(0.05 * torch.arange(2 * c * h * w, dtype=torch.float64)).float().view(2, c, h * w).transpose(1, 2)
    got = layer(value + position, reference, value, [(h, w)]).transpose(1, 2).reshape(2, c, h, w)
    assert got.sum().item() == pytest.approx(-12.19989, abs=1e-3)
    assert got.abs().sum().item() == pytest.approx(736.93176, abs=1e-3)
    assert got[0, 0, 0, 0].item() == pytest.approx(-0.289479, abs=2e-6)
    assert got[1, 7, 3, 4].item() == pytest.approx(0.441101, abs=2e-6)
    assert got[1, 15, 5, 8].item() == pytest.approx(-0.126450, abs=2e-6)


def test_attention_gradients_and_wrong_widths():
    layer = MultiScaleDeformableAttention(8, levels=1, heads=2, points=2)
    torch.nn.init.normal_(layer.sampling_offsets.weight, std=0.1)
    query, reference = torch.randn(2, 5, 8), torch.rand(2, 5, 1, 2)
    layer(query, reference, torch.randn(2, 12, 8), [(3, 4)]).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in layer.parameters())
    with pytest.raises(ValueError, match="cannot divide 10 channels among 4 heads"):
        MultiScaleDeformableAttention(10, heads=4)
