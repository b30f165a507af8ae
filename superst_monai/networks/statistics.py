"""Statistics of the stains at every scale: what a regression of counts on colour reads, ready for the encoder."""

from __future__ import annotations

import torch
from skimage.color import hed_from_rgb
from torch import Tensor, nn
from torch.nn import functional as F

N_STATISTICS = 6
"""Mean and standard deviation of haematoxylin, eosin and DAB."""
_DARKEST = 0.02  # transmittance that stands for black, whose optical density would be infinite
_LEAST_VARIANCE = 1e-4


class StainStatistics(nn.Module):
    """Mean and standard deviation of the stains over 3 x 3 pixels of each level, standardised over a batch.

    A network learns such statistics from its first layers up, which takes many steps; counts depend on them from the
    first. On sections of a breast tumour they alone, regressed linearly, explain as much as a trained network does.

    Args:
        depth: D, number of levels; a pixel of level d is 2^d image pixels wide.

    Source: stains by Ruifrok & Johnston, Anal. Quant. Cytol. Histol. 23:291 (2001), PMID 11531144.
    """

    unmix: Tensor

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.register_buffer(
            "unmix", torch.as_tensor(hed_from_rgb, dtype=torch.float32).T.contiguous(), persistent=False
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(N_STATISTICS) for _ in range(depth))

    def stains(self, image: Tensor) -> Tensor:
        """Concentrations [natural optical density] of the stains of an image in [-0.9, 0.9], both `(B, 3, H, W)`."""
        density = -(image.float() / 1.8 + 0.5).clamp(_DARKEST, 1.0).log()
        return torch.einsum("sc,bchw->bshw", self.unmix, density)

    def forward(self, stains: Tensor) -> list[Tensor]:
        """Statistics `(B, 6, H / 2^d, W / 2^d)` of each level, finest first, of concentrations `(B, 3, H, W)`."""
        found, square = [], stains.square()
        for level, norm in enumerate(self.norms):
            if level:
                stains, square = F.avg_pool2d(stains, 2), F.avg_pool2d(square, 2)
            mean, mean_square = (_smooth(part) for part in (stains, square))
            sd = (mean_square - mean.square()).clamp_min(_LEAST_VARIANCE).sqrt()
            found.append(norm(torch.cat((mean, sd), dim=1)))
        return found


def _smooth(x: Tensor) -> Tensor:
    """Mean over 3 x 3 pixels; beyond the border the outermost pixel goes on."""
    return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
