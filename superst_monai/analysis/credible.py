"""From posterior samples of a quantity to its mean, spread, credible interval and local false sign rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit

from superst_monai.errors import RunError

Floats = NDArray[np.float64]
COLUMNS = ("sd", "low", "high", "inverse_cv", "lfsr")
LEVEL = 0.95
"""Probability of the credible intervals."""


@dataclass(frozen=True, eq=False)
class Credible:
    """What N posterior samples say of quantities; all fields have their shape.

    Attributes:
        mean: over the samples.
        sd: of the samples, divided by N - 1.
        low: lower end of the central credible interval.
        high: upper end.
        inverse_cv: |mean| / sd; 0 where both are 0.
        lfsr: local false sign rate, the probability that the quantity has not the sign of `mean`; at most 1/2.
    """

    mean: Floats
    sd: Floats
    low: Floats
    high: Floats
    inverse_cv: Floats
    lfsr: Floats

    def table(self, name: str, index: pd.Index) -> pd.DataFrame:
        """Rows of `index`, the mean as column `name` and then the others; of one-dimensional quantities."""
        return pd.DataFrame({name: self.mean} | {column: getattr(self, column) for column in COLUMNS}, index=index)


def summarise(samples: NDArray[Any], *, level: float = LEVEL) -> Credible:
    """Summarise samples, also when they are few: by the law of one more draw of a normal posterior.

    With N samples of mean m and standard deviation s from a normal law, (x - m) / (s sqrt(1 + 1/N)) of a further draw x
    follows the t law with N - 1 degrees of freedom. If the posterior is right, the truth is one more draw, so that the
    interval m -+ t_{N-1, (1 + level) / 2} s sqrt(1 + 1/N) holds it with probability `level` for every N, and
    lfsr = T_{N-1}(-|m| / (s sqrt(1 + 1/N))). With many samples these are the normal interval and Phi(-|m| / s).

    Args:
        samples: `(N, ...)`, at least two.
        level: probability of the interval, in (0, 1).

    Raises:
        RunError: fewer than two samples, or a level outside (0, 1).

    Source: local false sign rate: Stephens 2017, doi:10.1093/biostatistics/kxw041, Eq. 2; law of one more draw: Gelman
        et al., Bayesian Data Analysis, 3rd edition, section 3.2.
    """
    values = np.asarray(samples, dtype=np.float64)
    n_samples = len(values)
    if n_samples < 2:
        raise RunError(f"uncertainty needs at least 2 posterior samples, got {n_samples}; predict with --samples 10.")
    if not 0 < level < 1:
        raise RunError(f"level must lie in (0, 1), got {level}; write 95 % as 0.95.")
    mean, sd = values.mean(axis=0), values.std(axis=0, ddof=1)
    spread = sd * np.sqrt(1 + 1 / n_samples)
    reach = spread * stdtrit(n_samples - 1, (1 + level) / 2)
    return Credible(mean, sd, mean - reach, mean + reach, _ratio(mean, sd), stdtr(n_samples - 1, -_ratio(mean, spread)))


def _ratio(mean: Floats, spread: Floats) -> Floats:
    """|mean| / spread; 0 where both are 0, infinite where only the spread is."""
    known = np.where(mean == 0, 0.0, np.inf)
    return np.divide(np.abs(mean), spread, out=known, where=spread > 0)
