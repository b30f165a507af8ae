"""Predicted counts of supports: pixels, bins, spots, cells or regions, each with its own negative binomial law."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import RunError
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

    def interval(self, level: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ends of the central predictive interval of the counts, each `(S, G)` [UMI].

        Args:
            level: probability in (0, 1) that a count lies within, at least (counts are whole).

        Raises:
            RunError: level outside (0, 1).
        """
        if not 0 < level < 1:
            raise RunError(f"level must lie in (0, 1), got {level}; write 90 % as 0.9.")
        low, high = nb_quantiles(self.total_count, self.logits[:, None], [(1 - level) / 2, (1 + level) / 2])
        return low, high

    @property
    def _variance_of_mean(self) -> Floats:
        """Variance over the samples of the expected count `(S, G)`; one sample at a time bounds the memory."""
        total = np.zeros_like(self.mean)
        for size, logit in zip(self.total_count, self.logits, strict=True):
            total += (size * np.exp(logit) - self.mean) ** 2
        return total / np.float32(len(self.logits))
