"""One factor that makes the intervals of predicted counts as wide as they have to be.

Sample n says that a count is NB(total_count t, logit l): mean t e^l, variance t e^l (1 + e^l). The part of the variance
that exceeds that of a Poisson law of this mean, t e^(2 l), is multiplied by a factor c:

    NB(t / c, l + log c),   mean t e^l,   variance t e^l (1 + c e^l).

Each support keeps a mixture of negative binomials of the same means. There still is one logit for each gene and slide,
so they still add over pixels; and every statement on expectations stays as it is.
"""

from __future__ import annotations

import math
from typing import Any

from numpy.typing import NDArray

from superst_monai.model.predictive import coverage, score_counts

FARTHEST = 64.0
"""Factors are looked for between 1 / 64 and 64."""
_HALVINGS = 12  # of a factor of 2: the result is exact to 0.02 %


def disperse(total_count: NDArray[Any], logits: NDArray[Any], factor: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Parameters of the law whose variance in excess of Poisson's is `factor` times as large, and the mean the same.

    Args:
        total_count: any shape.
        logits: any shape.
        factor: c, positive.

    Returns:
        The two in their shapes and types.
    """
    return total_count / total_count.dtype.type(factor), logits + logits.dtype.type(math.log(factor))


def interval_coverage(
    observed: NDArray[Any], total_count: NDArray[Any], logits: NDArray[Any], level: float, factor: float = 1.0
) -> float:
    """Share of counts within their central predictive intervals, by randomised PIT (see `predictive.coverage`).

    Args:
        observed: counts `(S, G)`.
        total_count: of the mixture `(N, S, G)`.
        logits: broadcasts to it.
        level: nominal, in (0, 1).
        factor: of the dispersion.
    """
    scores = score_counts(observed, *disperse(total_count, logits, factor))
    return float(coverage(scores.lower, scores.upper, [level]).mean())


def fit_dispersion(
    observed: NDArray[Any], total_count: NDArray[Any], logits: NDArray[Any], *, level: float = 0.9
) -> float:
    """The factor with which central intervals cover counts as often as they say.

    It is the crossing nearest to 1, found by doubling or halving and then by bisection, all on the log scale: far
    beyond it the coverage falls again, as nearly all of such a law lies on zero.

    Args:
        observed: counts `(S, G)` that the law has not seen.
        total_count: of the mixture of N samples `(N, S, G)`.
        logits: broadcasts to it.
        level: nominal coverage, in (0, 1).

    Returns:
        c to four digits; where no factor covers `level`, the tried one that comes nearest.

    Raises:
        ShapeError: the arrays do not fit each other.
        RunError: a parameter is not finite.
    """

    def excess(factor: float) -> float:
        return interval_coverage(observed, total_count, logits, level, factor) - level

    tried = {1.0: excess(1.0)}
    below = tried[1.0] < 0
    near = far = 1.0
    while (tried[far] < 0) == below:
        if not 1 / FARTHEST < far < FARTHEST:
            return min(tried, key=lambda factor: abs(tried[factor]))
        near, far = far, far * (2.0 if below else 0.5)
        tried[far] = excess(far)
    for _ in range(_HALVINGS):
        middle = math.sqrt(near * far)
        near, far = (middle, far) if (excess(middle) < 0) == below else (near, middle)
    return float(f"{math.sqrt(near * far):.4g}")
