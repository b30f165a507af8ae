"""Draws of a section field for the samples of a map: from its posterior where there are counts, else from its prior."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from superst_monai.inference.rates import RateSamples
from superst_monai.inference.section_field import SectionField, modulate
from superst_monai.model.field import FieldGrid

Floats = NDArray[np.float32]
COMPOSITION_SHARE = 0.5
"""Of the prior deviation of the logits on a slide without counts. The whole of it widens no interval that matters
(held-out log likelihood -10,682 nat against -10,687, docs/benchmarks.md) and makes the mean of ten samples noisy."""
_FIELD_STREAM = 2  # spawn key beside those of z and the global variables


@dataclass(frozen=True, eq=False)
class FieldPrior:
    """What the fields of the training sections say of the field of another one.

    Attributes:
        log_precision: log tau of each channel `(K + 1,)`, mean over the sections.
        spacing_um: of their nodes, mean over the sections.
    """

    log_precision: Floats
    spacing_um: float

    @classmethod
    def of(cls, fields: Sequence[SectionField]) -> FieldPrior:
        """The prior that fields have in common, at least one."""
        log_precision = np.mean([field.log_precision for field in fields], axis=0)
        return cls(log_precision, float(np.mean([field.grid.spacing_um for field in fields])))

    def grid_over(self, shape: tuple[int, int], mpp: float) -> FieldGrid:
        """Nodes over a map `(H, W)`."""
        height, width = (int(np.ceil(n * mpp / self.spacing_um)) + 1 for n in shape)
        return FieldGrid(0.0, 0.0, self.spacing_um, height, width)


class FieldDraws:
    """Samples of a field, as `predict` lays them over the samples of a slide.

    Args:
        grid: of the nodes.
        nodes: the samples, each `(K + 1, height, width)`.
        mpp: um per pixel of the map.
        rate_effect: of each metagene and gene on the log rate `(K, G)`.
        logit_effect: of each gene on the logit `(G,)`.
    """

    def __init__(
        self,
        grid: FieldGrid,
        nodes: Sequence[Floats],
        *,
        mpp: float,
        rate_effect: Floats | float = 0.0,
        logit_effect: Floats | float = 0.0,
    ) -> None:
        self._grid, self._nodes, self._mpp = grid, nodes, mpp
        self.rate_effect, self.logit_effect = rate_effect, logit_effect

    @classmethod
    def of_section(cls, field: SectionField, *, samples: int, seed: int, mpp: float) -> FieldDraws:
        """Draws from the posterior; sample n of a seed is the same whatever N, and 2i and 2i + 1 mirror each other."""
        streams = [_stream(seed, pair) for pair in range(-(-samples // 2))]
        noise = field.grid.posterior_noise(field.sd, field.log_precision.astype(np.float64), streams)
        nodes = [field.mean + (-1) ** n * noise[n // 2] for n in range(samples)]
        return cls(field.grid, nodes, mpp=mpp, rate_effect=field.rate_effect, logit_effect=field.logit_effect)

    @classmethod
    def of_prior(cls, prior: FieldPrior, shape: tuple[int, int], *, samples: int, seed: int, mpp: float) -> FieldDraws:
        """Draws from the prior over a map `(H, W)`: what no image tells, as uncertainty.

        Samples 2i and 2i + 1 see opposite fields, and at each node the sizes of all samples have the mean 1, so that
        the mean of the map hardly feels the draws. The field of the logits has COMPOSITION_SHARE of its deviation.
        """
        grid = prior.grid_over(shape, mpp)
        draws = (
            grid.prior_sample(prior.log_precision.astype(np.float64), _stream(seed, n // 2)) for n in range(samples)
        )
        nodes = np.stack([(-1) ** n * field for n, field in enumerate(draws)])  # (N, K + 1, height, width)
        nodes[:, :-1] *= COMPOSITION_SHARE
        nodes[:, -1] -= np.log(np.exp(nodes[:, -1]).mean(axis=0))
        return cls(grid, list(nodes), mpp=mpp)

    @property
    def sha256(self) -> str:
        """Hash of the draws, which tells two fits apart."""
        digest = hashlib.sha256()
        for field in self._nodes:
            digest.update(np.ascontiguousarray(field).tobytes())
        return digest.hexdigest()

    def over(self, n: int, scaled: Floats, *, row: int, col: int) -> Floats:
        """Sample n of the field over a box of a map.

        Args:
            n: number of the sample.
            scaled: scaled activity of the box `(K, h, w)` [1/px].
            row: first row of the box in the map [px].
            col: first column.

        Returns:
            Scaled activity under the field `(K, h, w)`.
        """
        y_um, x_um = (
            (np.arange(k) + first + 0.5) * self._mpp for k, first in zip(scaled.shape[1:], (row, col), strict=True)
        )
        field = self._grid.on_raster(torch.from_numpy(self._nodes[n]), x_um, y_um)  # (K + 1, h, w)
        tilted = modulate(torch.from_numpy(scaled).movedim(0, -1), field.movedim(0, -1))
        return tilted.movedim(-1, 0).numpy()

    def effects(self, rates: RateSamples) -> RateSamples:
        """Rates with the effects of the section."""
        log_rate, logit = rates.log_rate + self.rate_effect, rates.logit + self.logit_effect
        return replace(rates, log_rate=log_rate, logit=logit)


def _stream(seed: int, n: int) -> np.random.Generator:
    """Source of the noise of sample n."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(n, _FIELD_STREAM)))
