from __future__ import annotations

import pytest
import torch
from published import tensors

from mmdet3d.models.fusers import AddFuser, ConvFuser, GatedFuser


@pytest.fixture
def inputs() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, 6, 5), torch.randn(2, 4, 6, 5)]


def test_gated_fuser_by_hand(inputs: list) -> None:
    fuser = GatedFuser([3, 4], 5).eval()
    fused, used = fuser(inputs)
    both = torch.cat(inputs, 1)
    first = inputs[0] * torch.sigmoid(fuser.input_conv_sensor_1(both))
    second = inputs[1] * torch.sigmoid(fuser.input_conv_sensor_2(both))
    torch.testing.assert_close(used[0], first)
    torch.testing.assert_close(used[1], second)
    conv, norm = fuser.output_fuser_conv_norm
    torch.testing.assert_close(fused, norm(conv(torch.cat([first, second], 1))).clamp(min=0))


def test_gates_close(inputs: list) -> None:
    fuser = GatedFuser([3, 4], 5)
    torch.nn.init.zeros_(fuser.input_conv_sensor_1.weight)
    torch.nn.init.constant_(fuser.input_conv_sensor_1.bias, -50.0)
    _, (closed, opened) = fuser(inputs)
    assert closed.abs().max() < 1e-12 and opened.abs().max() > 0.1


def test_gated_fuser_joins_two() -> None:
    with pytest.raises(ValueError, match="joins two sensors, in_channels names 3"):
        GatedFuser([1, 2, 3], 4)


def test_conv_fuser(inputs: list) -> None:
    fuser = ConvFuser([3, 4], 5).eval()
    fused, used = fuser(inputs)
    torch.testing.assert_close(fused, fuser[1](fuser[0](torch.cat(inputs, 1))).relu())
    assert all(a is b for a, b in zip(used, inputs, strict=True))


def test_add_fuser_averages(inputs: list) -> None:
    fuser = AddFuser([3, 4], 5, dropout=1.0)
    one, other = (t(x) for t, x in zip(fuser.eval().transforms, inputs, strict=True))
    torch.testing.assert_close(fuser(inputs)[0], (one + other) / 2)


def test_add_fuser_drops_one_sensor_in_training(inputs: list) -> None:
    fuser = AddFuser([3, 4], 5, dropout=1.0).train()
    one, other = (t(x) for t, x in zip(fuser.transforms, inputs, strict=True))
    seen = set()
    for _ in range(20):
        fused, _ = fuser(inputs)
        seen.add("first" if torch.allclose(fused, one, atol=1e-5) else "second")
        assert torch.allclose(fused, one, atol=1e-5) or torch.allclose(fused, other, atol=1e-5)
    assert seen == {"first", "second"}


def test_add_fuser_of_one_sensor_has_nothing_to_drop() -> None:
    with pytest.raises(ValueError, match="would leave no sensor"):
        AddFuser([3], 5, dropout=0.1)


def test_state_dict_is_the_published_one() -> None:
    have = {k: tuple(v.shape) for k, v in GatedFuser([80, 256], 256).state_dict().items()}
    assert have == tensors("c_student_CR_swint_default", "fuser.")
    assert ConvFuser([80, 256], 256).state_dict()["0.weight"].shape == (256, 336, 3, 3)
