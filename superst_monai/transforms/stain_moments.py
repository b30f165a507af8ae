"""Colour of a slide in coarse cells, and round any place at several scales: what a regression reads depths from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from superst_monai.transforms.balance import GLASS_LEVEL

Floats = NDArray[np.float32]
CELL_UM = 32.0
"""Side of a cell [um], as near as whole pixels come to it."""
SCALES_UM = (32.0, 64.0, 128.0, 256.0, 512.0)
"""Standard deviations of the Gaussians that weigh the surroundings of a place [um]."""
N_FEATURES = 7 * len(SCALES_UM)
_LEAST_TISSUE = 1e-3  # share of tissue below which a place counts as glass
_STRIP_CELLS = 16  # rows of cells that are looked at together


@dataclass(frozen=True, eq=False)
class StainMoments:
    """Sums over the tissue of each cell of a slide, over the pixels of the cell.

    Attributes:
        planes: share of tissue, and over the tissue the sums of optical density and of its square in each colour
            channel, by the number of pixels in a cell; `(7, h, w)` float32. Base e, 0 for the glass.
        cell_um: side of a cell; cell (i, j) reaches from (i, j) to (i + 1, j + 1) sides in the slide's frame.
    """

    planes: Floats
    cell_um: float

    def features(self) -> Iterator[Floats]:
        """N_FEATURES planes `(h, w)`: for each scale share of tissue, then mean and sd of each channel's density.

        Means and deviations are over the tissue under a Gaussian of that scale, glass and what is beyond the slide
        left out; without tissue they are 0.
        """
        for scale_um in SCALES_UM:
            tissue, *sums = (
                gaussian_filter(plane, scale_um / self.cell_um, mode="constant", truncate=3.0) for plane in self.planes
            )
            whole = tissue + np.float32(_LEAST_TISSUE)
            yield tissue
            for total, squares in zip(sums[:3], sums[3:], strict=True):
                mean = total / whole
                yield mean
                yield np.sqrt(np.maximum(squares / whole - mean**2, 0))


def stain_moments(
    image: NDArray[np.uint8], tissue: NDArray[np.bool_], glass: Sequence[float] | NDArray[np.float64], mpp: float
) -> StainMoments:
    """Sum up an image in cells of CELL_UM; what lies beyond its border is glass.

    Args:
        image: `(H, W, 3)` uint8.
        tissue: `(H, W)` bool.
        glass: colour of the empty glass `(3,)`, 0..255.
        mpp: um per pixel.
    """
    side = max(1, round(CELL_UM / mpp))
    level = np.minimum(np.arange(256)[:, None] * (GLASS_LEVEL / np.asarray(glass, np.float64)), 255.0)
    density = -np.log((level + 1) / (GLASS_LEVEL + 1)).astype(np.float32)  # (256, 3)
    height, width = (-(-n // side) for n in tissue.shape)
    planes = np.empty((7, height, width), np.float32)
    for first in range(0, height, _STRIP_CELLS):
        rows = slice(first * side, (first + _STRIP_CELLS) * side)
        strip, mask = image[rows], tissue[rows].astype(np.float32)
        edge = ((0, -strip.shape[0] % side), (0, -strip.shape[1] % side))
        sums = [mask]
        parts = [density[:, channel].take(strip[..., channel]) * mask for channel in range(3)]
        sums += parts + [part**2 for part in parts]
        for plane, values in zip(planes, sums, strict=True):
            cells = np.pad(values, edge).reshape(-1, side, width, side).mean(axis=(1, 3))
            plane[first : first + len(cells)] = cells
    return StainMoments(planes, side * mpp)
