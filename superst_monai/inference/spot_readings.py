"""The spots of a training section: what was counted, what the network says of them, and the colours round them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from superst_monai.data.section import Section
from superst_monai.inference.canvas import canvas_of
from superst_monai.inference.colours import cell_grid
from superst_monai.inference.rates import choose_conditions, mean_rates
from superst_monai.inference.run import Run
from superst_monai.inference.section_field import spot_pixels
from superst_monai.transforms.tissue import find_tissue

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SpotReadings:
    """What is known of the spots of one section.

    Attributes:
        counts: of the run's genes `(S, G)`.
        area_um2: of each spot `(S,)`.
        size: said by the network, scaled activity of each spot `(S, K)`.
        features: of the colours round each spot `(S, F)`.
        block: of neighbours that the training did not see, numbered from 0; -1 is a spot that it saw `(S,)` int64.
        log_rate: of the section's level, log r `(K, G)`.
        logit: of the section's level `(G,)`.
        sigma_um: standard deviation of the places in a spot, in x or y.
    """

    counts: csr_matrix
    area_um2: Floats
    size: Floats
    features: Floats
    block: NDArray[np.int64]
    log_rate: NDArray[np.float32]
    logit: NDArray[np.float32]
    sigma_um: float

    @property
    def withheld(self) -> NDArray[np.bool_]:
        """Spots that the training did not see `(S,)`."""
        return self.block >= 0

    @property
    def umis(self) -> Floats:
        """UMIs of one unit of each metagene's scaled activity `(K,)`."""
        return np.asarray(np.exp(self.log_rate.astype(np.float64) + self.logit).sum(axis=1))

    @property
    def total(self) -> Floats:
        """UMIs of each spot `(S,)`."""
        return np.asarray(self.counts.sum(axis=1), np.float64).ravel()

    @property
    def weight(self) -> Floats:
        """UMIs of each spot by the mean of the section `(S,)`."""
        return np.asarray(self.total / max(self.total.mean(), 1.0))

    @property
    def log_umis(self) -> Floats:
        """Observed log UMIs per um^2 `(S,)`."""
        return np.asarray(np.log(self.total + 0.5) - np.log(self.area_um2))

    @property
    def network(self) -> Floats:
        """Log UMIs per um^2 that the network says `(S,)`."""
        return np.asarray(np.log(np.maximum(self.size @ self.umis, 1e-9)) - np.log(self.area_um2))

    def shares(self) -> Floats:
        """Log shares of the metagenes that the network says `(S, K)`."""
        size = np.maximum(self.size, 1e-30)
        return np.asarray(np.log(size) - np.log(size.sum(axis=1, keepdims=True)))


def spot_readings(run: Run, section: Section, withheld: Sequence[NDArray[np.int64]]) -> SpotReadings:
    """What the network says of the spots of a training section, and the colours round them.

    Args:
        run: of `load_run`.
        section: with counts.
        withheld: rows of the spots of each block that the training did not see.
    """
    canvas = canvas_of(section, run.mpp, find_tissue)
    log_rate, logit = mean_rates(run.network, choose_conditions(run, section, None))
    pixels = spot_pixels(run.network, section, canvas, seed=int(run.record["seed"]))
    weights = cell_grid(canvas.stains).weights(pixels.x_um, pixels.y_um)
    planes = torch.from_numpy(np.stack([plane.ravel() for plane in canvas.stains.features()], axis=1))
    of_pixels = torch.cat([pixels.scaled, torch.sparse.mm(weights, planes)], dim=1).double()
    sums = torch.zeros(section.n_spots, of_pixels.shape[1], dtype=torch.double).index_add(0, pixels.spot - 1, of_pixels)
    n_px = np.bincount(pixels.spot.numpy() - 1, minlength=section.n_spots)
    seen = np.flatnonzero(n_px)
    size, features = np.split(sums.numpy()[seen], [pixels.scaled.shape[1]], axis=1)
    block = np.full(section.n_spots, -1, np.int64)
    for i, rows in enumerate(withheld):
        block[rows] = i
    columns = section.genes.index.get_indexer(pd.Index(run.genes))
    return SpotReadings(
        counts=section.counts[seen][:, columns].tocsr(),
        area_um2=np.asarray(n_px[seen] * canvas.mpp**2, np.float64),
        size=size,
        features=features / n_px[seen, None],
        block=block[seen],
        log_rate=log_rate,
        logit=logit,
        sigma_um=float(section.spots["radius_um"].mean()) / 2,
    )
