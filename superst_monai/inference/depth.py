"""The second reading of depth: how many UMIs a place should have by its colour, beside what the network says.

The depth of a spot is the hardest to carry over to another slide: the network learns it from some hundred spots and
extrapolates differently from one training to the next. A ridge regression of the spots' log UMIs on the colours round
them (`transforms/stain_moments.py`) is coarser, but errs otherwise. Of two forecasts whose errors differ the mean is
better than either (Bates & Granger 1969, doi:10.1057/jors.1969.103), so the maps have the geometric mean of both:

    A'_kp = A_kp (T_p / S_p)^q,     S = G * sum_k umis_k A_k,

with A the scaled activity of a sample, T the regression's UMIs per area, G a Gaussian as wide as a spot, and q the
share of the regression. The composition of a pixel and its contrast to its surroundings stay those of the network.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from superst_monai.errors import RunError
from superst_monai.inference.canvas import Canvas
from superst_monai.inference.run import Run
from superst_monai.model.field import FieldGrid
from superst_monai.transforms.stain_moments import N_FEATURES, StainMoments

Floats = NDArray[np.float32]
FILE = "depth.json"
MOST = 2.0
"""Most that the second reading changes a log size."""
FARTHEST = 4.0
"""Standard deviations of the training spots beyond which a feature counts as that far and no farther."""
_TRUNCATE = 3.0  # standard deviations after which the Gaussian ends


@dataclass(frozen=True)
class DepthReading:
    """A regression of log UMIs per um^2 on the colours round a place, and how much it counts.

    Attributes:
        share: q, of the regression; the rest is the network's.
        sigma_um: of the Gaussian over which the network's UMIs are averaged.
        intercept: log UMIs per um^2 of a place with mean features.
        weights: of the standardised features `(F,)`.
        mean: of the features over the training spots `(F,)`.
        sd: the same `(F,)`.
        umis: UMIs of one unit of each metagene's scaled activity, in an average training section `(K,)`.
        n_spots: it was fitted to.
        n_withheld: spots that decided the share.
    """

    share: float
    sigma_um: float
    intercept: float
    weights: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    umis: tuple[float, ...]
    n_spots: int
    n_withheld: int

    def to_json(self, weights_sha256: str) -> str:
        """Write it down, with the hash of the weights that it belongs to."""
        return json.dumps({"weights_sha256": weights_sha256, **asdict(self)}, indent=2) + "\n"

    def log_umis(self, stains: StainMoments) -> Floats:
        """The regression over a slide: log UMIs per um^2 of each cell `(h, w)`."""
        found = np.full(stains.planes.shape[1:], self.intercept, np.float32)
        for feature, weight, mean, sd in zip(stains.features(), self.weights, self.mean, self.sd, strict=True):
            found += np.float32(weight) * np.clip((feature - np.float32(mean)) / np.float32(sd), -FARTHEST, FARTHEST)
        return found

    def over(self, stains: StainMoments, mpp: float) -> DepthPlane:
        """The reading of one slide, for a map of `mpp` um per pixel."""
        return DepthPlane(self, stains, mpp)


class DepthPlane:
    """The second reading of one slide, laid over the samples of its map.

    Args:
        reading: of the run.
        stains: of the slide.
        mpp: um per pixel of the map.
    """

    def __init__(self, reading: DepthReading, stains: StainMoments, mpp: float) -> None:
        self.reading, self._mpp = reading, mpp
        self._log_umis = torch.from_numpy(reading.log_umis(stains))[None]
        half, shape = stains.cell_um / 2, stains.planes.shape[1:]
        self._grid = FieldGrid(half, half, stains.cell_um, *shape)
        self._sigma_px = reading.sigma_um / mpp

    @property
    def reach_px(self) -> int:
        """How far a pixel sees the network's map [px]."""
        return int(_TRUNCATE * self._sigma_px + 0.5)

    def over(self, scaled: Floats, *, row: int, col: int, margin: int) -> Floats:
        """Scale a sample so that its UMIs round each pixel are the geometric mean of both readings.

        Args:
            scaled: scaled activity of a box and of `margin` pixels round it, at least `reach_px`, zero where there is
                no prediction `(K, h + 2 margin, w + 2 margin)` [1/px].
            row: first row of the box in the map [px].
            col: first column.
            margin: [px].

        Returns:
            Scaled activity of the box `(K, h, w)`.
        """
        umis = np.tensordot(np.asarray(self.reading.umis, np.float32), scaled, axes=1) / np.float32(self._mpp**2)
        seen = gaussian_filter(umis, self._sigma_px, mode="constant", truncate=_TRUNCATE)
        seen, inner = _trimmed(seen, margin), _trimmed(scaled, margin)
        y_um, x_um = ((np.arange(n) + first + 0.5) * self._mpp for n, first in zip(seen.shape, (row, col), strict=True))
        said = self._grid.on_raster(self._log_umis, x_um, y_um)[0].numpy()
        change = self.reading.share * (said - np.log(np.maximum(seen, np.float32(1e-30))))
        return np.asarray(inner * np.exp(np.clip(change, -MOST, MOST)), np.float32)


def _trimmed(x: Floats, by: int) -> Floats:
    """Maps `(..., H, W)` without a margin on each side."""
    return x[..., by : x.shape[-2] - by, by : x.shape[-1] - by]


def in_words(reading: DepthReading) -> str:
    """Say what a second reading does."""
    return (
        f"depths are {100 * reading.share:.0f} % read from colours by a regression on {reading.n_spots} spots and the "
        f"rest by the network, as {reading.n_withheld} withheld spots have it"
    )


def depth_over(run: Run, canvas: Canvas) -> DepthPlane | None:
    """The second reading of a slide, if the run has one; raises as `read_depth`."""
    reading = read_depth(run)
    return None if reading is None else reading.over(canvas.stains, canvas.mpp)


def read_depth(run: Run) -> DepthReading | None:
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
        lists = {name: tuple(map(float, found[name])) for name in ("weights", "mean", "sd", "umis")}
        reading = DepthReading(**found | lists)
        numbers = [
            reading.share,
            reading.sigma_um,
            reading.intercept,
            *(v for values in lists.values() for v in values),
        ]
        sound = all(map(math.isfinite, numbers)) and 0 <= reading.share <= 1 and reading.sigma_um > 0
        sound = sound and min(reading.sd) > 0 and min(reading.umis) > 0
        lengths = [len(lists[name]) for name in ("weights", "mean", "sd", "umis")]
    except (ValueError, TypeError, KeyError) as exc:
        raise RunError(f"{file} is damaged ({exc}); restore it from a copy of the run, or delete it.") from exc
    needed = [N_FEATURES] * 3 + [run.network.arch.n_metagenes]
    if not sound or lengths != needed:
        raise RunError(
            f"{file} must hold finite numbers, a share in [0, 1], positive deviations and UMIs, and lists of {needed} "
            f"numbers, got lists of {lengths}; restore it from a copy of the run, or delete it."
        )
    return reading
