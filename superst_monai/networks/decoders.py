"""Decoders: what the features say about the image, p(image | h), and about expression, activity and scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superst_monai.networks.encoder import Factory, block

DILATIONS = (1, 2, 4)
"""Dilations of the expression decoder's 3 x 3 convolutions; their sum is how far it sees [px]."""


class ImageDecoder(nn.Module):
    """Mean and standard deviation of each pixel and colour channel.

    Args:
        width: C_0, channels of the features.
        norm: MONAI normalisation factory.
        act: MONAI activation factory.
    """

    def __init__(self, width: int, *, norm: Factory = "batch", act: Factory = "leakyrelu") -> None:
        super().__init__()
        self.width = width
        self.hidden = block(width, width, norm=norm, act=act)
        self.head = nn.Conv2d(width, 6, 1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, C_0 + M, H, W)` to mean in (-1, 1) and sd, both `(B, 3, H, W)`, float32."""
        mean, spread = self.head(self.hidden(h[:, : self.width])).float().chunk(2, dim=1)
        return torch.tanh(mean), F.softplus(spread) + 1e-2


class ExpressionDecoder(nn.Module):
    """Metagene activity and scale of each pixel.

    The context gives the first word, one channel a metagene and one for the scale, and convolutions of the fused
    features are added to it. These see 7 px around a pixel. They learn from the counts alone, whose gradients the image
    would drown in the layers that both share; so it is here that what a cell's shape says of its expression is learnt
    first.

    Args:
        width: C_0, channels of the features.
        n_metagenes: K, capacity.
        norm: MONAI normalisation factory.
        act: MONAI activation factory.
    """

    def __init__(self, width: int, n_metagenes: int, *, norm: Factory = "batch", act: Factory = "leakyrelu") -> None:
        super().__init__()
        self.width = width
        layers = zip((width, 2 * width, 2 * width), DILATIONS, strict=True)
        self.hidden = nn.Sequential(*(block(c, 2 * width, norm=norm, act=act, dilation=d) for c, d in layers))
        self.activity = nn.Conv2d(2 * width, n_metagenes, 1)
        self.scale = nn.Conv2d(2 * width, 1, 1)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Features `(B, C_0 + K + 1, H, W)` to activity logits `(B, K, H, W)` and raw scale `(B, 1, H, W)`, float32."""
        hidden, context = self.hidden(h[:, : self.width]), h[:, self.width :]
        return self.activity(hidden).float() + context[:, :-1], self.scale(hidden).float() + context[:, -1:]

    def at(self, h: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same at some pixels alone, which spares the heads and all that follows them the rest.

        Args:
            h: features `(B, C_0 + K + 1, H, W)`.
            pixels: `(P,)` int64, numbers of pixels counted through patches, rows and columns.

        Returns:
            Activity logits `(P, K)` and raw scale `(P, 1)`, float32.
        """
        hidden, context = (
            part.movedim(1, -1).flatten(0, 2).index_select(0, pixels)  # (P, channels)
            for part in (self.hidden(h[:, : self.width]), h[:, self.width :])
        )
        logits, raw = (F.linear(hidden, head.weight.flatten(1), head.bias) for head in (self.activity, self.scale))
        return logits.float() + context[:, :-1], raw.float() + context[:, -1:]
