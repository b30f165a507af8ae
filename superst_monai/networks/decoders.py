"""Decoders: what the features say about the image, p(image | h), and about expression, activity and scale."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from superst_monai.networks.encoder import Factory, block

DILATIONS = (1, 2, 4)
"""Dilations of the expression decoder's 3 x 3 convolutions; their sum is how far it sees [px]."""
SCALE_GRADIENT = 0.1
"""Share of the scale's gradient that reaches the features. The depth of a spot is thousands of UMIs and weighs more
than its composition, but a section has a few hundred spots: with the whole gradient the features learn their depths by
heart, and both depth and composition of other sections are read worse (docs/benchmarks.md)."""


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
        mean, spread = self.head(self.hidden(_parts(h, self.width)[0])).float().chunk(2, dim=1)
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
        features, context = _parts(h, self.width)
        hidden = self.hidden(features)
        return _with_context(self.activity(hidden), self.scale(_damped(hidden)), context)

    def at(self, h: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The same at some pixels alone, which spares the heads and all that follows them the rest.

        Args:
            h: features `(B, C_0 + K + 1, H, W)`.
            pixels: `(P,)` int64, numbers of pixels counted through patches, rows and columns, each once.

        Returns:
            Activity logits `(P, K)` and raw scale `(P, 1)`, float32.
        """
        features, context = _parts(h, self.width)
        hidden, context = (_AtPixels.apply(part, pixels) for part in (self.hidden(features), context))  # type: ignore[no-untyped-call]
        logits, raw = (
            F.linear(seen, head.weight.flatten(1), head.bias)
            for seen, head in ((hidden, self.activity), (_damped(hidden), self.scale))
        )
        return _with_context(logits, raw, context)


def _parts(h: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Fused features `(B, width, H, W)` and context; one split has a gradient, two slices fill and add two of them."""
    features, context = torch.split(h, [width, h.shape[1] - width], dim=1)
    return features, context


def _with_context(logits: Tensor, raw: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """What the heads say, added to the context `(B or P, K + 1, ...)`: activity logits and raw scale, float32."""
    return logits.float() + context[:, :-1], raw.float() + _damped(context[:, -1:])


def _damped(x: Tensor) -> Tensor:
    """The same values, of whose gradient SCALE_GRADIENT goes on."""
    return cast(Tensor, _Damped.apply(x)) if x.requires_grad else x  # type: ignore[no-untyped-call]


class _Damped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return SCALE_GRADIENT * gradients[0]


class _AtPixels(torch.autograd.Function):
    """Channels of some pixels `(P, C)` of a map `(B, C, H, W)`, each pixel once; the gradient has the map's layout.

    That of torch's indexing has channels last whatever the map, and all layers before it would mix two layouts.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, pixels: Tensor) -> Tensor:
        height, width = h.shape[-2:]
        place = pixels // (height * width), pixels // width % height, pixels % width
        ctx.shape, ctx.place = h.shape, place
        ctx.last = h.is_contiguous(memory_format=torch.channels_last) and not h.is_contiguous()
        return h.movedim(1, -1)[place]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        layout = torch.channels_last if ctx.last else torch.contiguous_format
        spread = torch.empty(ctx.shape, dtype=gradients[0].dtype, device=gradients[0].device, memory_format=layout)
        spread.zero_().movedim(1, -1)[ctx.place] = gradients[0]
        return spread, None
