"""The summarised expression map: activity of all sections reduced to three components, shown as one set of colours."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superst_monai.analysis.panels import FULL_PERCENTILE
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float64]
N_COMPONENTS = 3  # red, green, blue
_PERCENTILES = (1.0, 99.0)  # of the components: where a channel is empty and where it is full


@dataclass(frozen=True, eq=False)
class Colours:
    """How activity and scale of any pixel of a run become a colour.

    Attributes:
        mean: activity of the mean pixel `(K,)`.
        components: directions of most variance, orthonormal rows `(3, K)`; zero rows where K - 1 < 3.
        low: value of each component at which its channel is empty `(3,)`.
        high: value at which it is full `(3,)`.
        variance: share of the variance of the activity that each component has `(3,)`.
        full_scale: scale from which on a colour is full [1/px].
    """

    mean: Floats
    components: Floats
    low: Floats
    high: Floats
    variance: Floats
    full_scale: float

    def project(self, activity: NDArray[Any]) -> Floats:
        """Components `(3, ...)` of activity `(K, ...)`."""
        centred = activity - self.mean.reshape(-1, *(1,) * (activity.ndim - 1))
        return np.tensordot(self.components, centred, axes=1)

    def paint(self, activity: NDArray[Any], scale: NDArray[Any]) -> NDArray[np.uint8]:
        """Colour of pixels: the components as red, green and blue, mixed with white the smaller the scale.

        Args:
            activity: `(K, ...)`, summing to 1 over K.
            scale: `(...)` [1/px]; 0 is white.

        Returns:
            `(..., 3)`.
        """
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        shape = (-1, *(1,) * (activity.ndim - 1))
        channels = ((self.project(activity) - self.low.reshape(shape)) / span.reshape(shape)).clip(0, 1)
        opacity = (scale / self.full_scale).clip(0, 1)
        mixed = 1 - opacity * (1 - _DARKEST - (_LIGHTEST - _DARKEST) * channels)
        return np.asarray(np.rint(255 * np.moveaxis(mixed, 0, -1)), dtype=np.uint8)


_DARKEST, _LIGHTEST = 0.1, 0.9  # of a full colour: no section is black, and none is white but for its scale


def fit_colours(several: Sequence[Maps], *, n_pixels: int = 200_000) -> Colours:
    """Find the colours that all sections of a run share, by a principal component analysis of their activity.

    Components are ordered by variance; the sign is that in which the scores of the pixels are skewed to the right, so
    that a channel is bright where its pixels are few. Neither depends on the order of the metagenes or sections.

    Args:
        several: maps of one run.
        n_pixels: about so many tissue pixels, on a regular grid over all sections, enter the analysis.

    Raises:
        RunError: no tissue pixel has a positive scale.

    Source: Bergenstråhle et al. 2022, doi:10.1038/s41587-021-01075-3, summarised metagene activity.
    """
    stride = max(1, int(np.sqrt(sum(int(maps.tissue.sum()) for maps in several) / n_pixels)))
    found = [pixels for maps in several for pixels in _grid_pixels(maps, stride)]  # (K, P) each
    size = np.concatenate(found, axis=1).astype(np.float64) if found else np.zeros((1, 0))
    scale = size.sum(axis=0)
    if not (scale > 0).any():
        raise RunError("maps must expect expression on the tissue to be coloured, got none; predict again.")
    activity = size[:, scale > 0] / scale[scale > 0]
    mean = activity.mean(axis=1)
    variance, axes = np.linalg.eigh(np.cov(activity, bias=True).reshape(len(mean), -1))
    order = np.argsort(-variance, kind="stable")[:N_COMPONENTS]
    real = variance[order] > 1e-12 * max(float(variance.sum()), 1e-12)
    components = np.zeros((N_COMPONENTS, len(mean)))
    components[: len(order)][real] = axes[:, order[real]].T
    scores = components @ (activity - mean[:, None])  # (3, P)
    sign = np.where((scores**3).sum(axis=1) < 0, -1.0, 1.0)
    low, high = np.percentile(scores * sign[:, None], _PERCENTILES, axis=1)
    shares = np.zeros(N_COMPONENTS)
    shares[: len(order)] = np.where(real, variance[order] / max(float(variance.sum()), 1e-300), 0.0)
    full = float(np.percentile(scale[scale > 0], FULL_PERCENTILE))
    return Colours(mean, components * sign[:, None], low, high, shares, full)


def _grid_pixels(maps: Maps, stride: int) -> Iterator[NDArray[np.float32]]:
    """Mean scaled activity `(K, P)` of the tissue pixels in every `stride`-th row and column, tile by tile."""
    for (rows, cols), tile in maps.mean_tiles():
        first = (-rows.start % stride, -cols.start % stride)
        kept = maps.tissue[rows, cols][first[0] :: stride, first[1] :: stride]
        yield tile[:, first[0] :: stride, first[1] :: stride][:, kept]
