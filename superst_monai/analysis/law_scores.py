"""How counts lie within the law that predicts them: likelihood, coverage of intervals and the PIT histogram."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from superst_monai.errors import ShapeError
from superst_monai.model.predictive import mean_pit, score_counts

Floats = NDArray[np.float64]
Counts: TypeAlias = csr_matrix | NDArray[Any]

LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # nominal coverages
PIT_BINS = 20  # their edges hold both ends of the central interval of each level


class GeneChunk(NamedTuple):
    """Samples of the negative binomial law of some genes at the observed spots; mean total_count * exp(logits)."""

    genes: slice | NDArray[np.int64]  # columns of the observed counts, g of them
    total_count: NDArray[Any]  # (N, S, g)
    logits: NDArray[Any]  # broadcasts to (N, S, g)


def law_blocks(samples: Iterable[GeneChunk], observed: Counts, top: NDArray[np.int64]) -> dict[str, Any]:
    """Score counts under a predictive law; the result is ready for JSON.

    Args:
        samples: parameters of the law, chunk by chunk; each gene once, or nothing at all.
        observed: counts `(S, G)`.
        top: genes that are reported apart as `top100`.

    Returns:
        `nb_loglik_per_spot` [nats, all genes], `coverage` and `coverage_top100` of the central 50 % and 90 % intervals,
        `coverage_curve` over LEVELS, and `pit`: share of the counts in each of PIT_BINS equal bins of [0, 1]. None, or
        no curve, without samples.

    Raises:
        ShapeError: the samples do not hold each gene once.
        RunError: a parameter is not finite.
    """
    likelihood, below = _score(samples, observed)
    parts = {} if below is None else {"all": below.mean(axis=1), "top100": below[:, top].mean(axis=1)}  # (J + 1,)
    middle = PIT_BINS // 2
    curve = {
        part: [float(cdf[middle + step] - cdf[middle - step]) for step in range(1, len(LEVELS) + 1)]
        for part, cdf in parts.items()
    }
    points = {
        name: {str(round(100 * level)): curve[part][LEVELS.index(level)] if curve else None for level in (0.5, 0.9)}
        for name, part in {"coverage": "all", "coverage_top100": "top100"}.items()
    }
    return {
        "nb_loglik_per_spot": likelihood if math.isfinite(likelihood) else None,
        **points,
        "coverage_curve": {"nominal": list(LEVELS), **curve},
        "pit": {part: np.diff(cdf).tolist() for part, cdf in parts.items()},
    }


def dense(counts: Counts, genes: slice | NDArray[np.int64]) -> Floats:
    """Some columns of the counts, dense `(S, g)`."""
    chunk = counts[:, genes]
    return np.asarray(chunk if isinstance(chunk, np.ndarray) else chunk.toarray(), dtype=np.float64)


def _score(samples: Iterable[GeneChunk], observed: Counts) -> tuple[float, Floats | None]:
    """Log likelihood of a spot [nats], and the distribution function of the PIT at the edges of the bins `(J + 1, G)`.

    Both are means over spots; NaN and None without samples.
    """
    n_spots, n_genes = observed.shape
    edges = np.arange(PIT_BINS + 1) / PIT_BINS
    likelihood, below, seen = 0.0, np.zeros((len(edges), n_genes)), np.zeros(n_genes, dtype=np.int64)
    below[-1] = 1.0
    for chunk in samples:
        scores = score_counts(dense(observed, chunk.genes), chunk.total_count, chunk.logits)
        likelihood += float(scores.log_mass.sum()) / n_spots
        below[1:-1, chunk.genes] = mean_pit(scores.lower, scores.upper, edges[1:-1].tolist())
        np.add.at(seen, np.arange(n_genes)[chunk.genes], 1)
    if not seen.any():
        return math.nan, None
    if (seen != 1).any():
        raise ShapeError(
            f"samples must hold each of the {n_genes} genes once, got {int((seen == 0).sum())} missing and "
            f"{int((seen > 1).sum())} repeated; chunk range(G) without gaps."
        )
    return likelihood, below
