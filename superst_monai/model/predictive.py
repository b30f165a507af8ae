"""How probable observed counts are under a mixture of negative binomials: likelihood, PIT, coverage and quantiles.

The mixture has one component a posterior sample, N in all, weighted equally. A component is written as torch writes it:
mean = total_count * exp(logits), chance of counting on p = sigmoid(logits), so that
P(X = 0) = (1 - p)^total_count and P(X <= x) = I_{1-p}(total_count, x + 1), the regularised incomplete beta function.
Parameters are `(N, S, G)` (logits any shape that broadcasts to it); memory is that of a few `(S, G)` arrays, so pass
a few genes at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, expit, gammaln, log_expit

from superst_monai.errors import RunError, ShapeError

Floats = NDArray[np.float64]
_STEP = 0.75  # of the trapezoid rule of `expected_lognorm`, in log t
_WALK = 32  # counts up to which a quantile is looked for by adding up probabilities; larger ones are bisected


class CountScores(NamedTuple):
    """What the mixture says of each observed count, all `(S, G)`; their PIT lies in [lower, upper]."""

    log_mass: Floats  # log P(X = x) [nats]
    lower: Floats  # P(X < x)
    upper: Floats  # P(X <= x)


def score_counts(observed: NDArray[Any], total_count: NDArray[Any], logits: NDArray[Any]) -> CountScores:
    """Score counts by their probability and distribution function under the mixture.

    Args:
        observed: counts `(S, G)`.
        total_count: parameter `(N, S, G)`, not negative; 0 puts all mass on zero.
        logits: parameter, broadcasts to `(N, S, G)`.

    Raises:
        ShapeError: the three do not fit each other.
        RunError: a parameter is not finite or a total count is negative.
    """
    observed = np.asarray(observed, dtype=np.float64)
    some = observed > 0
    x = observed[some]  # (M,), the counts that need the beta function
    below = np.zeros(x.shape)
    log_mass = np.full(observed.shape, -np.inf)
    n_samples = len(total_count)
    for size, logit in _samples(total_count, logits, observed.shape):
        term = size * log_expit(-logit)  # (S, G), log P(X = 0)
        r, odds = size[some], logit[some]
        term[some] += gammaln(x + r) - gammaln(x + 1) - gammaln(r) + x * log_expit(odds)
        np.logaddexp(log_mass, term, out=log_mass)
        below += betainc(r, x, expit(-odds))
    log_mass -= np.log(n_samples)
    lower = np.zeros(observed.shape)
    lower[some] = np.minimum(below / n_samples, 1.0)
    return CountScores(log_mass, lower, np.minimum(lower + np.exp(log_mass), 1.0))


def nb_log_likelihood(observed: NDArray[Any], total_count: NDArray[Any], logits: NDArray[Any]) -> Floats:
    """Log of the mean over samples of the probability of each count `(S, G)` [nats]; arguments of `score_counts`."""
    return score_counts(observed, total_count, logits).log_mass


def randomised_pit(
    observed: NDArray[Any], total_count: NDArray[Any], logits: NDArray[Any], rng: np.random.Generator
) -> Floats:
    """Draw the probability integral transform of each count `(S, G)`, uniform on [0, 1] if the mixture is right.

    Source: Czado, Gneiting & Held 2009, doi:10.1111/j.1541-0420.2009.01191.x, Section 2.1: u = F(x - 1) +
    v (F(x) - F(x - 1)) with v uniform. Arguments of `score_counts`, and the generator of v.
    """
    scores = score_counts(observed, total_count, logits)
    return scores.lower + rng.random(scores.lower.shape) * (scores.upper - scores.lower)


def expected_lognorm(mean: NDArray[Any], odds: NDArray[Any], whole: NDArray[Any]) -> Floats:
    """Expectation of log(1 + 1e4 X / whole) of negative binomial counts X: what log-normalised counts will be.

    It lies below the log-normalised expectation, the more so the fewer the counts, so that counts of one composition
    are log-normalised to higher values in deep spots than in shallow ones. A trapezoid rule, with an error below 1e-5
    for means up to `whole`, of Frullani's integral log(1 + c x) = int_0^inf (1 - exp(-c x t)) exp(-t) / t dt, with
    E exp(-s X) = (1 + odds (1 - exp(-s)))^(-mean / odds).

    Args:
        mean: of the counts `(S, G)`.
        odds: variance over mean less 1, positive; broadcasts to `(S, G)`.
        whole: UMIs of each spot `(S,)`; where they are 0 so is the expectation.

    Source: Frullani's integral as in Gradshteyn & Ryzhik, Table of Integrals, 3.434.2; the Laplace transform of a gamma
        mixture of Poisson laws.
    """
    mean = np.asarray(mean, dtype=np.float64)
    spread = np.broadcast_to(np.asarray(odds, dtype=np.float64), mean.shape)
    whole = np.asarray(whole, dtype=np.float64)[:, None]
    factor = np.divide(1e4, whole, out=np.zeros_like(whole), where=whole > 0)
    size, found = mean / spread, np.zeros(mean.shape)
    for log_t in np.arange(-24.0, 4.0, _STEP):
        t = math.exp(log_t)
        found -= math.exp(-t) * np.expm1(-size * np.log1p(-spread * np.expm1(-factor * t)))
    return _STEP * found


def coverage(lower: Floats, upper: Floats, levels: Sequence[float]) -> Floats:
    """How far central predictive intervals cover the counts, exactly and without random numbers.

    A discrete law has no interval of exactly 90 %. The randomised PIT has: it is uniform on [lower, upper], and is
    uniform on [0, 1] if the law is right. The chance that it falls in the central interval [(1 - level) / 2,
    (1 + level) / 2] is the share of [lower, upper] in there; this is returned, so its mean over counts is the
    level if the law is right.

    Args:
        lower: P(X < x), any shape `(...)`.
        upper: P(X <= x) `(...)`.
        levels: nominal coverages in (0, 1), L of them.

    Returns:
        Chances `(L, ...)`. A count of probability 0 (in floating point) is inside or outside as a whole.

    Raises:
        ShapeError: lower and upper differ in shape.
        RunError: a level lies outside (0, 1).
    Source: the non-randomised PIT of Czado, Gneiting & Held 2009, doi:10.1111/j.1541-0420.2009.01191.x, Eq. 2.
    """
    if lower.shape != upper.shape:
        raise ShapeError(f"lower and upper must have one shape, got {lower.shape} and {upper.shape}; pass both ends.")
    level = _probabilities(levels, "levels").reshape(-1, *(1,) * lower.ndim)
    low, high = (1 - level) / 2, (1 + level) / 2
    width = upper - lower
    overlap = (np.minimum(upper, high) - np.maximum(lower, low)).clip(0, None)
    point = (low <= lower) & (upper <= high)
    return np.asarray(np.where(width > 0, overlap / np.where(width > 0, width, 1.0), point))


def mean_pit(lower: Floats, upper: Floats, at: Sequence[float]) -> Floats:
    """Distribution function of the PIT of counts, the mean over spots, exactly and without random numbers.

    The PIT of a count is uniform on [lower, upper]; over counts that follow the law it is uniform on [0, 1].

    Args:
        lower: P(X < x) `(S, G)`, with S > 0.
        upper: P(X <= x) `(S, G)`.
        at: places in [0, 1], A of them.

    Returns:
        `(A, G)`; differences of neighbours are the heights of a PIT histogram.
    Source: Czado, Gneiting & Held 2009, doi:10.1111/j.1541-0420.2009.01191.x, Eqs. 2 and 3.
    """
    width = upper - lower
    some = np.where(width > 0, width, 1.0)
    parts = [np.where(width > 0, ((u - lower) / some).clip(0, 1), upper <= u).mean(axis=0) for u in at]
    return np.stack(parts)


def nb_quantiles(total_count: NDArray[Any], logits: NDArray[Any], q: Sequence[float]) -> NDArray[np.int64]:
    """Quantiles of the mixture: the least integer x with P(X <= x) >= q.

    Args:
        total_count: parameter `(N, S, G)`, not negative.
        logits: parameter, broadcasts to `(N, S, G)`.
        q: probabilities in (0, 1), Q of them.

    Returns:
        Counts `(Q, S, G)`.

    Raises:
        ShapeError: the parameters do not fit each other.
        RunError: a probability lies outside (0, 1), or a parameter is not finite or negative.
    """
    wanted = _probabilities(q, "q")[:, None]
    parameters = list(_samples(total_count, logits, np.shape(total_count)[1:]))
    size, logit = (np.stack([pair[i].ravel() for pair in parameters]) for i in range(2))  # (N, S G)
    small = np.flatnonzero((size * np.exp(logit)).max(axis=0) < _WALK)
    found = np.full((len(wanted), size.shape[1]), -1, np.int64)
    found[:, small] = _walk(size[:, small], logit[:, small], wanted)
    rest = np.flatnonzero((found < 0).any(axis=0))
    found[:, rest] = _bisect(size[:, rest], logit[:, rest], wanted)
    return found.reshape(len(wanted), *np.shape(total_count)[1:])


def _walk(size: Floats, logit: Floats, wanted: Floats) -> NDArray[np.int64]:
    """Quantiles `(Q, M)` below `_WALK`, by adding up the mass function from zero on; -1 where they are larger.

    P(X = 0) = (1 - p)^r and P(X = x + 1) = P(X = x) (x + r) / (x + 1) p; entries that are done are left behind.
    """
    found = np.full((len(wanted), size.shape[1]), -1, np.int64)
    entry, cdf, chance = np.arange(size.shape[1]), np.zeros(size.shape[1]), expit(logit)
    mass = np.exp(size * log_expit(-logit))  # (N, M)
    for x in range(_WALK):
        cdf += mass.mean(axis=0)
        found[:, entry] = np.where((found[:, entry] < 0) & (cdf >= wanted), x, found[:, entry])
        going = np.flatnonzero(cdf < wanted.max())
        if len(going) == 0:
            break
        entry, cdf = entry[going], cdf[going]
        size, chance, mass = size[:, going], chance[:, going], mass[:, going]
        mass *= (size + x) / (x + 1) * chance
    return found


def _bisect(size: Floats, logit: Floats, wanted: Floats) -> NDArray[np.int64]:
    """Quantiles `(Q, M)` of all entries at once, by bisection of the distribution function."""
    failure = expit(-logit)

    def cdf(x: Floats) -> Floats:
        values = sum(betainc(r, x + 1.0, p) for r, p in zip(size, failure, strict=True))
        return np.where(x < 0, 0.0, np.asarray(values) / len(size))

    high = np.broadcast_to(np.ceil((size * np.exp(logit)).max(axis=0)) + 1.0, (len(wanted), size.shape[1])).copy()
    while (short := cdf(high) < wanted).any():
        high[short] *= 2
    low = np.full(high.shape, -1.0)
    while (high - low > 1).any():
        middle = np.floor((low + high) / 2)
        enough = cdf(middle) >= wanted
        high, low = np.where(enough, middle, high), np.where(enough, low, middle)
    return high.astype(np.int64)


def _samples(
    total_count: NDArray[Any], logits: NDArray[Any], shape: tuple[int, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """Check the parameters and yield those of each posterior sample, float64 `(S, G)`."""
    total_count, logits = np.asarray(total_count), np.asarray(logits)
    if total_count.ndim != 3 or len(total_count) == 0 or total_count.shape[1:] != tuple(shape):
        raise ShapeError(
            f"total_count must be (N, S, G) with at least one sample and (S, G) = {tuple(shape)} as the counts, "
            f"got {total_count.shape}; take both from the same spots and genes."
        )
    try:
        every = np.broadcast_to(logits, total_count.shape)
    except ValueError as exc:
        raise ShapeError(
            f"logits must broadcast to total_count {total_count.shape}, got {logits.shape}; "
            "insert the axis of spots: logits[:, None, :]."
        ) from exc
    n_bad = int((~np.isfinite(total_count)).sum() + (total_count < 0).sum() + (~np.isfinite(logits)).sum())
    if n_bad:
        raise RunError(
            f"total_count must be finite and not negative and logits finite, got {n_bad} that are not; "
            "use a checkpoint from before the training diverged."
        )
    for size, logit in zip(total_count, every, strict=True):
        yield size.astype(np.float64), logit.astype(np.float64)


def _probabilities(values: Sequence[float], name: str) -> Floats:
    """Return probabilities as an array `(L,)`, refusing those outside (0, 1)."""
    array = np.asarray(values, dtype=np.float64)
    if not ((array > 0) & (array < 1)).all():
        raise RunError(f"{name} must lie in (0, 1), got {list(values)}; write 90 % as 0.9.")
    return array
