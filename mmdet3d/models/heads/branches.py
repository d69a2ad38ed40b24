"""The branches of CenterHead: one small stack of convolutions per task and predicted quantity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from mmdet3d.models.layers import ConvModule, PointwiseConv2d, batch_norm_together, convolve_together

__all__ = ["SeparateHead", "run_together"]


class SeparateHead(nn.Module):
    """One small branch of convolutions per predicted quantity.

    Args:
        channels: of the input and of hidden layers.
        branches: per name (output channels, number of convolutions).
        final_kernel: kernel of every convolution.
        init_bias: first bias of `heatmap`: the logit of an object's prior probability.
    """

    def __init__(
        self, channels: int, branches: Mapping[str, tuple[int, int]], final_kernel: int, init_bias: float
    ) -> None:
        super().__init__()
        for name, (out_channels, convolutions) in branches.items():
            hidden = [ConvModule(channels, channels, final_kernel) for _ in range(convolutions - 1)]
            if final_kernel == 1:
                final: nn.Conv2d = PointwiseConv2d(channels, out_channels)
            else:
                final = nn.Conv2d(channels, out_channels, final_kernel, padding=final_kernel // 2)
            if name == "heatmap":
                nn.init.constant_(final.bias, init_bias)
            self.add_module(name, nn.Sequential(*hidden, final))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: branch(x) for name, branch in self.named_children()}


def run_together(heads: Sequence[SeparateHead] | nn.ModuleList, x: Tensor) -> list[dict[str, Tensor]]:
    """What each of `heads` says of the same map (B, C, X, Y), their first layers as one wide layer.

    Equal to `[head(x) for head in heads]`, with fewer and larger operations.
    """
    branches = {(t, name): branch for t, head in enumerate(heads) for name, branch in head.named_children()}
    outputs: list[dict[str, Tensor]] = [{} for _ in heads]
    shallow = {key: branch[0] for key, branch in branches.items() if len(branch) == 1}
    if shallow:
        layers = list(shallow.values())
        maps = convolve_together(layers, x).split([conv.out_channels for conv in layers], dim=1)
        for (t, name), value in zip(shallow, maps, strict=True):
            outputs[t][name] = value
    deep = {key: branch for key, branch in branches.items() if len(branch) > 1}
    if deep:
        hidden = _hidden_together([branch[0] for branch in deep.values()], x)
        for ((t, name), branch), value in zip(deep.items(), hidden, strict=True):
            outputs[t][name] = branch[1:](value)
    return outputs


def _hidden_together(layers: Sequence[ConvModule], x: Tensor) -> tuple[Tensor, ...]:
    wide = batch_norm_together([layer.bn for layer in layers], convolve_together([layer.conv for layer in layers], x))
    return wide.relu_().chunk(len(layers), dim=1)
