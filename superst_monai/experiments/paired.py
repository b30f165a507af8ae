"""Paired comparisons over genes: the Wilcoxon signed-rank test and the genes it is made over."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from superst_monai.analysis.evaluation import TOP


def highest(scores: pd.DataFrame) -> pd.DataFrame:
    """The rows of the 100 genes with most UMIs, by the column `total` of `evaluation.score_genes`."""
    return scores.nlargest(TOP, "total", keep="first")


def median(values: NDArray[Any] | pd.Series | Sequence[float | None]) -> float | None:
    """Median of what is neither NaN nor None; None where nothing is."""
    known = np.asarray(values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(np.median(known)) if known.size else None


def paired_test(one: NDArray[Any] | pd.Series, other: NDArray[Any] | pd.Series) -> dict[str, float | int | None]:
    """Test whether two scores of the same genes differ: Wilcoxon's signed-rank test, two-sided.

    Args:
        one, other: scores `(G,)` in one order of genes; a gene where either is NaN is left out.

    Returns:
        `n` genes compared, `median_difference` of one minus other, and `p`; None: not defined. Equal scores give p = 1.
    """
    difference = np.asarray(one, dtype=np.float64) - np.asarray(other, dtype=np.float64)
    difference = difference[~np.isnan(difference)]
    if difference.size == 0:
        return {"n": 0, "median_difference": None, "p": None}
    p = float(wilcoxon(difference).pvalue) if difference.any() else 1.0
    return {
        "n": len(difference),
        "median_difference": float(np.median(difference)),
        "p": p if math.isfinite(p) else None,
    }
