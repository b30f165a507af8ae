"""Fusion network: joins the latent variables of all levels into features of the image's size, h = decode(z)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superst_monai.networks.encoder import Factory, block


class Fusion(nn.Module):
    """From the deepest level up: up-sample, join the next finer z, convolve.

    Beside these fused features runs a linear path: the context, a weighted sum of the latent variables of all levels,
    up-sampled without convolutions. It starts at zero and learns in few steps what a regression would.

    Args:
        depth: D, number of levels.
        width: C_0; level d has C_d = width * 2^d channels.
        n_context: M, channels of the context.
        norm: MONAI normalisation factory.
        act: MONAI activation factory.
    """

    def __init__(
        self, depth: int, width: int, *, n_context: int, norm: Factory = "batch", act: Factory = "leakyrelu"
    ) -> None:
        super().__init__()
        channels = [width * 2**d for d in range(depth)]
        self.deepest = block(channels[-1], channels[-1], norm=norm, act=act)
        rising = range(depth - 2, -1, -1)
        self.lifts = nn.ModuleList(nn.Conv2d(channels[d + 1], channels[d], 1, bias=False) for d in rising)
        self.joins = nn.ModuleList(
            nn.Sequential(
                block(2 * channels[d], channels[d], norm=norm, act=act),
                block(channels[d], channels[d], norm=norm, act=act),
            )
            for d in rising
        )

        self.context = nn.ModuleList(_first_zero(nn.Conv2d(c, n_context, 1)) for c in channels)

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """Decode z_0..z_{D-1}, each `(B, C_d, H / 2^d, W / 2^d)`, into features `(B, C_0 + M, H, W)`, float32."""
        h: Tensor = self.deepest(latents[-1])
        for lift, join, latent in zip(self.lifts, self.joins, latents[-2::-1], strict=True):
            h = F.interpolate(lift(h), scale_factor=2.0, mode="nearest")  # (B, C_d, H_d, W_d)
            h = join(torch.cat((h, latent.to(h.dtype)), dim=1))
        context: Tensor = self.context[-1](latents[-1]).float()
        for weigh, latent in zip(self.context[-2::-1], latents[-2::-1], strict=True):
            context = F.interpolate(context, scale_factor=2.0, mode="bilinear") + weigh(latent)
        return torch.cat((h.float(), context), dim=1)


def _first_zero(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with weights of zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
