"""Predicted counts of supports: pixels, bins, spots, cells or regions, each with its own negative binomial law."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import RunError, ShapeError
from superst_monai.model.dispersion import disperse
from superst_monai.model.predictive import nb_quantiles

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sums:
    """Posterior samples of the count law of S supports and G genes.

    Sample n says that the count of support s and gene g is NegativeBinomial(total_count_nsg, logits_ng), mean
    total_count * exp(logits), variance mean * (1 + exp(logits)). The prediction is the mixture of the N samples,
    equally weighted.

    Attributes:
        genes: names of the G genes.
        total_count: `(N, S, G)`.
        logits: `(N, G)`.
    """

    genes: list[str]
    total_count: Floats
    logits: Floats

    @cached_property
    def mean(self) -> Floats:
        """Expected count `(S, G)` [UMI]."""
        total: Floats = np.einsum("nsg,ng->sg", self.total_count, np.exp(self.logits))
        return total / np.float32(len(self.logits))

    @property
    def sd_of_mean(self) -> Floats:
        """Posterior standard deviation of the expected count `(S, G)` [UMI]: what the model does not know."""
        found: Floats = np.sqrt(self._variance_of_mean)
        return found

    @property
    def sd(self) -> Floats:
        """Standard deviation of the predicted count `(S, G)` [UMI]: of the mixture that `interval` is taken from.

        Law of total variance: Var X = E[Var(X | n)] + Var(E[X | n]), with Var(X | n) = mean_n (1 + exp(logits_n)).
        """
        odds = np.exp(self.logits)
        within: Floats = np.einsum("nsg,ng->sg", self.total_count, odds * (1 + odds)) / np.float32(len(odds))
        found: Floats = np.sqrt(within + self._variance_of_mean)
        return found

    def dispersed(self, factor: float) -> Sums:
        """The law of the same means whose counts vary `factor` times as much beyond Poisson, see `model/dispersion`."""
        if factor == 1.0:
            return self
        total_count, logits = disperse(self.total_count, self.logits, factor)
        return replace(self, total_count=total_count, logits=logits)

    def interval(self, level: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ends of the central predictive interval of the counts, each `(S, G)` [UMI].

        Args:
            level: probability in (0, 1) that a count lies within, at least (counts are whole).

        Raises:
            RunError: level outside (0, 1).
        """
        low, high = nb_quantiles(self.total_count, self.logits[:, None], _ends(level))
        return low, high

    def mean_interval(self, level: float) -> tuple[Floats, Floats]:
        """Ends of the central posterior interval of the expected counts, each `(S, G)` [UMI], linear between samples.

        Args:
            level: probability in (0, 1) that the expected count lies within.

        Raises:
            RunError: level outside (0, 1).
        """
        ends = _ends(level)
        expected = self.total_count * np.exp(self.logits)[:, None]
        low, high = np.quantile(expected, ends, axis=0).astype(np.float32)
        return low, high

    @property
    def _variance_of_mean(self) -> Floats:
        """Variance over the samples of the expected count `(S, G)`; one sample at a time bounds the memory."""
        total = np.zeros_like(self.mean)
        for size, logit in zip(self.total_count, self.logits, strict=True):
            total += (size * np.exp(logit) - self.mean) ** 2
        return total / np.float32(len(self.logits))


def _ends(level: float) -> tuple[float, float]:
    """Probabilities at the ends of a central interval."""
    if not 0 < level < 1:
        raise RunError(f"level must lie in (0, 1), got {level}; write 90 % as 0.9.")
    return (1 - level) / 2, (1 + level) / 2


def checked_label(label: NDArray[Any], shape: tuple[int, int], n_supports: int | None) -> int:
    """Number of supports of a label image that fits maps of `shape`.

    Raises:
        ShapeError: it is not an integer image of that shape, or holds a number outside 0 ... n_supports.
    """
    if label.shape != shape or label.dtype.kind not in "iu":
        raise ShapeError(
            f"the label image must hold integers (H, W) = {shape} as the maps, got {label.shape} {label.dtype}; "
            "draw it on the maps' pixels (`mpp`, `from_px0`)."
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or (n_supports is not None and high > n_supports):
        most = "" if n_supports is None else f" ... {n_supports} (n_supports)"
        raise ShapeError(f"labels must lie in 0{most}, got {low} ... {high}; 0 is none, i is support i - 1.")
    return high if n_supports is None else n_supports
