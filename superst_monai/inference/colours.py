"""The second reading: what the colours round a place say of its UMIs and metagenes, beside what the network says.

A network learns expression from some hundred spots and extrapolates differently from one training to the next. A
regression on the colours round a spot (`transforms/stain_moments.py`) is coarser, but errs otherwise. Of two forecasts
whose errors differ the mean is better than either (Bates & Granger 1969, doi:10.1057/jors.1969.103), so the maps have
the geometric mean of both, for the size of each metagene k round pixel p:

    A'_kp = c_p A_kp (P_kp / p_kp)^q' (T_p / S_p)^q,      S = sum_k umis_k G * A_k,      p_k = G * A_k / sum_j G * A_j,

with A the scaled activity of a sample, T the UMIs per area and P_k the shares of the metagenes that the regression
says, G a Gaussian as wide as a spot, q and q' the regression's parts, and c_p such that P changes no pixel's UMIs.
Pixels keep their contrast to their surroundings, which is the network's.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor
from torch.nn import functional as F

from superst_monai.errors import RunError
from superst_monai.inference.canvas import Canvas
from superst_monai.inference.colour_basis import likeness, standardised
from superst_monai.inference.run import Run
from superst_monai.model.field import FieldGrid
from superst_monai.transforms.stain_moments import N_FEATURES, StainMoments

Floats = NDArray[np.float32]
FILE = "colours.json"
MOST = 2.0
"""Most that the second reading changes a log size."""
_CELLS_AT_ONCE = 16_384  # whose likeness to all landmarks is in memory
_TRUNCATE = 3.0  # standard deviations after which the Gaussian ends
_TABLES = ("composition_weights", "landmarks", "composition_kernel")
_LISTS = ("weights", "mean", "sd", "composition_intercept", "umis")


@dataclass(frozen=True)
class ColourReading:
    """A regression of UMIs per um^2 and of metagenes' shares on the colours round a place, and how much it counts.

    Attributes:
        depth_share: q, the regression's part in the UMIs; the rest is the network's.
        composition_share: q', its part in the metagenes' shares.
        sigma_um: of the Gaussian over which the network's UMIs are averaged.
        intercept: log UMIs per um^2 of a place with mean features.
        weights: of the standardised features `(F,)`.
        composition_intercept: logits of the metagenes at mean features `(K,)`.
        composition_weights: of the standardised features on these `(K, F)`.
        landmarks: standardised features of J of the spots that it was fitted to `(J, F)`.
        composition_kernel: weights of the `likeness` to these on the logits of the metagenes `(K, J)`.
        mean: of the features over the training spots `(F,)`.
        sd: the same `(F,)`.
        umis: UMIs of one unit of each metagene's scaled activity, in an average training section `(K,)`.
        n_spots: it was fitted to.
        n_withheld: spots that decided the share.
    """

    depth_share: float
    composition_share: float
    sigma_um: float
    intercept: float
    weights: tuple[float, ...]
    composition_intercept: tuple[float, ...]
    composition_weights: tuple[tuple[float, ...], ...]
    landmarks: tuple[tuple[float, ...], ...]
    composition_kernel: tuple[tuple[float, ...], ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    umis: tuple[float, ...]
    n_spots: int
    n_withheld: int

    @property
    def parts(self) -> dict[str, float]:
        """What of the maps is the regression's, for their record."""
        return {"depth": round(self.depth_share, 4), "composition": round(self.composition_share, 4)}

    def to_json(self, weights_sha256: str) -> str:
        """Write it down, with the hash of the weights that it belongs to."""
        return json.dumps({"weights_sha256": weights_sha256, **asdict(self)}) + "\n"

    def said(self, stains: StainMoments) -> Floats:
        """The regression over a slide: log UMIs per um^2, then the log shares of the metagenes `(1 + K, h, w)`."""
        weights = np.asarray([self.weights, *self.composition_weights], np.float32)  # (1 + K, F)
        start = np.asarray([self.intercept, *self.composition_intercept], np.float32)
        landmarks, kernel = (np.asarray(part, np.float32) for part in (self.landmarks, self.composition_kernel))
        features = np.stack([plane.ravel() for plane in stains.features()], axis=1)  # (h w, F)
        found = np.empty((len(features), len(start)), np.float32)
        for first in range(0, len(features), _CELLS_AT_ONCE):
            rows = slice(first, first + _CELLS_AT_ONCE)
            far = standardised(features[rows], np.asarray(self.mean, np.float32), np.asarray(self.sd, np.float32))
            found[rows] = start + far @ weights.T
            found[rows, 1:] += likeness(far, landmarks) @ kernel.T
        found[:, 1:] = log_softmax(found[:, 1:], axis=1)
        return found.T.reshape(-1, *stains.planes.shape[1:])

    def over(self, stains: StainMoments, mpp: float) -> ColourPlane:
        """The reading of one slide, for a map of `mpp` um per pixel."""
        return ColourPlane(self, stains, mpp)


def cell_grid(stains: StainMoments) -> FieldGrid:
    """The centres of the cells of a slide, to interpolate between."""
    half, shape = stains.cell_um / 2, stains.planes.shape[1:]
    return FieldGrid(half, half, stains.cell_um, *shape)


class ColourPlane:
    """The second reading of one slide, laid over the samples of its map.

    Args:
        reading: of the run.
        stains: of the slide.
        mpp: um per pixel of the map.
    """

    def __init__(self, reading: ColourReading, stains: StainMoments, mpp: float) -> None:
        self.reading, self._mpp = reading, mpp
        self._said = torch.from_numpy(reading.said(stains))
        self._grid = cell_grid(stains)
        sigma_px = reading.sigma_um / mpp
        self.reach_px = int(_TRUNCATE * sigma_px + 0.5)
        steps = torch.arange(-self.reach_px, self.reach_px + 1)
        kernel = torch.exp(-(steps**2) / (2 * sigma_px**2))
        self._kernel = kernel / kernel.sum()
        self._umis = torch.tensor(reading.umis, dtype=torch.float32) / mpp**2

    def over(self, scaled: Floats, *, row: int, col: int, margin: int) -> Floats:
        """Change a sample so that UMIs and composition round each pixel are the geometric mean of both readings.

        Args:
            scaled: scaled activity of a box and of `margin` pixels round it, at least `reach_px`, zero where there is
                no prediction `(K, h + 2 margin, w + 2 margin)` [1/px].
            row: first row of the box in the map [px].
            col: first column.
            margin: [px].

        Returns:
            Scaled activity of the box `(K, h, w)`.
        """
        whole = torch.from_numpy(scaled)
        inner = _trimmed(whole, margin)
        around = self._smooth(_trimmed(whole, margin - self.reach_px)).clamp_min(1e-30)
        y_um, x_um = (
            np.asarray((np.arange(n) + first + 0.5) * self._mpp, np.float64)
            for n, first in zip(inner.shape[1:], (row, col), strict=True)
        )
        said = self._grid.on_raster(self._said, x_um, y_um)
        umis = torch.tensordot(self._umis, around, dims=1)
        change = (self.reading.depth_share * (said[0] - umis.log())).clamp(-MOST, MOST).exp()
        shares = around.log() - around.sum(0).log()
        tilted = inner * (self.reading.composition_share * (said[1:] - shares)).clamp(-MOST, MOST).exp()
        before, after = (torch.tensordot(self._umis, part, dims=1) for part in (inner, tilted))
        found: Floats = (tilted * (change * before / after.clamp_min(1e-30))).numpy()
        return found

    def _smooth(self, maps: Tensor) -> Tensor:
        """Average maps `(K, h + 2 reach, w + 2 reach)` under the Gaussian, where it lies within `(K, h, w)`."""
        kernel = self._kernel.expand(len(maps), 1, 1, -1)
        across = F.conv2d(maps[None], kernel, groups=len(maps))
        return F.conv2d(across, kernel.mT, groups=len(maps))[0]


def _trimmed(x: Tensor, by: int) -> Tensor:
    """Maps `(..., H, W)` without a margin on each side."""
    return x[..., by : x.shape[-2] - by, by : x.shape[-1] - by]


def in_words(reading: ColourReading) -> str:
    """Say what a second reading does."""
    return (
        f"a regression on colours has a part of {100 * reading.depth_share:.0f} % in depths and of "
        f"{100 * reading.composition_share:.0f} % in compositions, the network the rest; "
        f"{reading.n_withheld} withheld spots decided that"
    )


def colours_over(run: Run, canvas: Canvas) -> ColourPlane | None:
    """The second reading of a slide, if the run has one; raises as `read_colours`."""
    reading = read_colours(run)
    return None if reading is None else reading.over(canvas.stains, canvas.mpp)


def read_colours(run: Run) -> ColourReading | None:
    """The second reading of a run; None if it has none, or one of other weights.

    Raises:
        RunError: the file is damaged.
    """
    file = run.path / FILE
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = dict(json.loads(file.read_text()))
        if found.pop("weights_sha256") != run.weights_sha256:
            return None
        found |= {name: tuple(map(float, found[name])) for name in _LISTS}
        found |= {name: tuple(tuple(map(float, line)) for line in found[name]) for name in _TABLES}
        reading = ColourReading(**found)
        tables = [np.asarray(getattr(reading, name)) for name in (*_LISTS, *_TABLES)]
        numbers = [reading.depth_share, reading.composition_share, reading.sigma_um, reading.intercept]
        sound = all(np.isfinite(table).all() for table in [*tables, np.asarray(numbers)]) and reading.sigma_um > 0
        sound = sound and all(0 <= part <= 1 for part in numbers[:2]) and min(*reading.sd, *reading.umis) > 0
    except (ValueError, TypeError, KeyError) as exc:
        raise RunError(f"{file} is damaged ({exc}); restore it from a copy of the run, or delete it.") from exc
    k, shapes = run.network.arch.n_metagenes, [table.shape for table in tables]
    n = len(reading.landmarks)
    needed = [(N_FEATURES,)] * 3 + [(k,)] * 2 + [(k, N_FEATURES), (n, N_FEATURES), (k, n)]
    if not sound or shapes != needed:
        raise RunError(
            f"{file} must hold finite numbers, parts in [0, 1], positive deviations and UMIs, and lists of the sizes "
            f"{needed}, got {shapes}; restore it from a copy of the run, or delete it."
        )
    return reading
