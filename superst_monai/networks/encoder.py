"""Encoder pyramid: what the image says about the latent variables of each level, q(z_d | image)."""

from __future__ import annotations

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn
from torch.nn import functional as F

from superst_monai.errors import ShapeError
from superst_monai.networks.statistics import N_STATISTICS, StainStatistics

Factory = str | tuple[str, dict[str, object]]
"""Name of a MONAI layer factory (`Act`, `Norm`), with its arguments if it takes any."""


def block(
    in_channels: int, out_channels: int, *, norm: Factory, act: Factory, stride: int = 1, dilation: int = 1
) -> nn.Module:
    """One convolution with normalisation and activation, `(B, in, H, W)` to `(B, out, H / stride, W / stride)`."""
    return Convolution(
        2,
        in_channels,
        out_channels,
        strides=stride,
        kernel_size=3,
        dilation=dilation,
        adn_ordering="NA",
        norm=norm,
        act=act,
        bias=False,
    )


class Encoder(nn.Module):
    """Bottom-up convolutional pyramid with one Gaussian head a level.

    It sees colours and stains, and each head also the statistics of the stains at its level.

    Args:
        depth: D, number of levels; level d works at 1 / 2^d of the image's resolution.
        width: C_0, channels of level 0; level d has C_d = width * 2^d.
        norm: MONAI normalisation factory; one without spatial statistics at inference keeps tiles seamless.
        act: MONAI activation factory.
        first_spread: first logit of the standard deviations; below 0 the first draws follow the image closely, so
            that expression is learnt from the first steps on.
    """

    def __init__(
        self, depth: int, width: int, *, norm: Factory = "batch", act: Factory = "leakyrelu", first_spread: float = -2.5
    ) -> None:
        super().__init__()
        if depth < 1 or width < 1:
            raise ShapeError(f"depth and width must be at least 1, got {depth} and {width}; xfuse uses 5 or 6 and 16.")
        channels = [width * 2**d for d in range(depth)]
        self.depth = depth
        self.channels = channels
        self.statistics = StainStatistics(depth)
        self.steps = nn.ModuleList(
            nn.Sequential(
                block(channels[d - 1] if d else 6, channels[d], norm=norm, act=act, stride=2 if d else 1),
                block(channels[d], channels[d], norm=norm, act=act),
            )
            for d in range(depth)
        )
        self.heads = nn.ModuleList(_head(c, first_spread) for c in channels)

    def forward(self, image: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Mean and standard deviation of q(z_d | image) for each level.

        Args:
            image: `(B, 3, H, W)` in [-0.9, 0.9], H and W multiples of 2^(D-1).
        Returns:
            D pairs of `(B, C_d, H / 2^d, W / 2^d)`, float32, finest level first.
        Raises:
            ShapeError: H or W is no multiple of 2^(D-1).
        """
        multiple = 2 ** (self.depth - 1)
        if image.shape[-2] % multiple or image.shape[-1] % multiple:
            raise ShapeError(
                f"an encoder of depth {self.depth} needs sides that are multiples of {multiple} px, "
                f"got {tuple(image.shape[-2:])}; choose another patch or tile size."
            )
        with torch.autocast(image.device.type, enabled=False):
            stains = self.statistics.stains(image)
            statistics = self.statistics(stains)
        found, h = [], torch.cat((image, stains), dim=1)
        for step, head, statistic in zip(self.steps, self.heads, statistics, strict=True):
            h = step(h)
            seen = torch.cat((h, statistic.to(h.dtype)), dim=1)
            mean, spread = head(seen).float().chunk(2, dim=1)  # (B, C_d, H_d, W_d)
            found.append((mean, F.softplus(spread) + 1e-4))
        return found


def _head(channels: int, first_spread: float) -> nn.Module:
    """Convolution to mean and spread of `channels` latent variables a pixel, of as many features and the statistics."""
    head = nn.Conv2d(channels + N_STATISTICS, 2 * channels, 3, padding=1)
    if head.bias is not None:
        nn.init.zeros_(head.bias)
        nn.init.constant_(head.bias[channels:], first_spread)
    return head


def latent_shapes(depth: int, width: int, height: int, breadth: int) -> list[torch.Size]:
    """Shapes (C_d, H / 2^d, W / 2^d) of the latent variables of an image of `height` x `breadth` pixels."""
    return [torch.Size((width * 2**d, height // 2**d, breadth // 2**d)) for d in range(depth)]
