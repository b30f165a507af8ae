"""The factor of the dispersion: what it does to a law, and that the fitted one makes intervals cover what they say."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.model.dispersion import FARTHEST, disperse, fit_dispersion, interval_coverage
from superst_monai.model.predictive import nb_quantiles, score_counts

N, S, G = 5, 150, 40


def law(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A mixture whose genes have from hardly any count to hundreds: total_count (N, S, G), logits (N, 1, G)."""
    rng = np.random.default_rng(seed)
    mean = rng.gamma(2.0, 0.5, (1, S, 1)) * np.geomspace(0.05, 200, G) * rng.lognormal(0, 0.2, (N, S, G))
    logits = rng.normal(0.5, 0.5, (1, 1, G)) + np.zeros((N, 1, 1))
    return mean / np.exp(logits), logits


def draw(total_count: np.ndarray, logits: np.ndarray, seed: int) -> np.ndarray:
    """Counts of the mixture, each of a sample of its own: Poisson mixed by a gamma law."""
    rng = np.random.default_rng(seed)
    chosen = rng.integers(len(total_count), size=total_count.shape[1:])[None]
    size = np.take_along_axis(total_count, chosen, axis=0)[0]
    odds = np.exp(np.take_along_axis(np.broadcast_to(logits, total_count.shape), chosen, axis=0)[0])
    return rng.poisson(rng.standard_gamma(size) * odds)


def test_the_mean_stays_and_the_variance_beyond_poisson_is_multiplied() -> None:
    """Mean and variance are those of the formula, and the types are kept."""
    total_count, logits = (part.astype(np.float32) for part in law(0))
    size, logit = disperse(total_count, logits, 3.0)
    assert size.dtype == logit.dtype == np.float32
    mean = total_count * np.exp(logits)
    np.testing.assert_allclose(size * np.exp(logit), mean, rtol=1e-5)
    beyond = size * np.exp(logit) ** 2
    np.testing.assert_allclose(beyond, 3.0 * total_count * np.exp(logits) ** 2, rtol=1e-5)


def test_dispersed_supports_still_add() -> None:
    """The law of the sum of supports is that of the summed total counts, against the convolution of their laws."""
    size, logit = disperse(np.array([0.7, 2.1]), np.array([0.3]), 2.5)
    counts = np.arange(60)

    def mass(r: float) -> np.ndarray:
        return np.exp(score_counts(counts[:, None], np.full((1, 60, 1), r), logit).log_mass[:, 0])

    np.testing.assert_allclose(np.convolve(mass(size[0]), mass(size[1]))[:60], mass(size.sum()), rtol=1e-10)


def test_counts_of_the_law_itself_need_no_factor() -> None:
    """Of counts drawn from the law 90 % are within its intervals, and the fitted factor is 1 within sampling error."""
    total_count, logits = law(1)
    counts = draw(total_count, logits, 2)
    assert interval_coverage(counts, total_count, logits, 0.9) == pytest.approx(0.9, abs=0.01)
    factor = fit_dispersion(counts, total_count, logits)
    assert factor == pytest.approx(1.0, abs=0.15)
    assert factor == fit_dispersion(counts, total_count, logits)


@pytest.mark.parametrize("truth", [0.25, 5.0])
def test_a_wrong_dispersion_is_found_and_fresh_counts_are_covered(truth: float) -> None:
    """Where counts vary more, or less, than the law says, the factor says by how much; fresh counts agree."""
    total_count, logits = law(3)
    real = disperse(total_count, logits, truth)
    fresh = draw(*real, 5)
    before = interval_coverage(fresh, total_count, logits, 0.9)
    assert not 0.88 <= before <= 0.92
    factor = fit_dispersion(draw(*real, 4), total_count, logits)
    assert factor == pytest.approx(truth, rel=0.25)
    assert 0.88 <= interval_coverage(fresh, total_count, logits, 0.9, factor) <= 0.92
    ends = nb_quantiles(*disperse(total_count, logits, factor), (0.05, 0.95))
    many = np.geomspace(0.05, 200, G) > 20
    inside = ((fresh >= ends[0]) & (fresh <= ends[1]))[:, many]
    assert 0.88 <= inside.mean() <= 0.93  # the whole-numbered interval holds a little more


def test_errors_of_the_mean_are_covered_too() -> None:
    """Where it is the expectation that is wrong, by a factor for each count, the intervals still come to cover 90 %."""
    total_count, logits = law(6)
    error = np.random.default_rng(7).lognormal(0, 0.5, (2, S, G))
    counts, fresh = (draw(total_count * part, logits, 8 + i) for i, part in enumerate(error))
    assert interval_coverage(fresh, total_count, logits, 0.9) < 0.85
    factor = fit_dispersion(counts, total_count, logits)
    assert factor > 1.5
    assert 0.88 <= interval_coverage(fresh, total_count, logits, 0.9, factor) <= 0.92


def test_where_no_factor_covers_the_nearest_is_taken() -> None:
    """Where coverage cannot come down to 90 % the law gets narrower; where nothing changes it, it stays."""
    total_count, logits = np.full((1, 100, 1), 1e3), np.zeros((1, 1, 1))  # mean 1000, sd 45, or 32 by Poisson
    counts = np.full((100, 1), 1000)
    assert fit_dispersion(counts, total_count, logits) == 1.0
    assert fit_dispersion(counts + 10**7, total_count, logits) == 1.0
    counts[:4] = 1060
    factor = fit_dispersion(counts, total_count, logits)
    assert 1 / FARTHEST <= factor <= 0.5
    assert interval_coverage(counts, total_count, logits, 0.9, factor) == pytest.approx(0.96)
