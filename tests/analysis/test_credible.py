"""Summaries of posterior samples hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

from superst_monai.analysis.credible import summarise
from superst_monai.errors import RunError


@pytest.mark.parametrize("n_samples", [2, 4, 10])
def test_intervals_hold_one_more_draw_as_often_as_they_say(n_samples: int) -> None:
    """Truth and samples drawn from one normal law each: coverage is nominal even with few samples."""
    rng = np.random.default_rng(0)
    middle, spread = rng.normal(0, 2, 20_000), rng.lognormal(0, 1, 20_000)
    truth = middle + spread * rng.standard_normal(20_000)
    samples = middle + spread * rng.standard_normal((n_samples, 20_000))
    for level in (0.5, 0.95):
        found = summarise(samples, level=level)
        assert np.mean((found.low <= truth) & (truth <= found.high)) == pytest.approx(level, abs=0.012)


def test_the_false_sign_rate_is_that_of_the_signs() -> None:
    """Within bins of lfsr the share of wrong signs is the lfsr, for effects and spreads of all sizes alike."""
    rng = np.random.default_rng(1)
    middle, spread = rng.uniform(-30, 30, 60_000), np.exp(rng.uniform(-3, 1.5, 60_000))  # flat, as the formula takes it
    truth = middle + spread * rng.standard_normal(60_000)
    found = summarise(middle + spread * rng.standard_normal((5, 60_000)))
    wrong = np.sign(found.mean) != np.sign(truth)
    for low, high in ((0.0, 0.01), (0.01, 0.1), (0.1, 0.3), (0.3, 0.5)):
        some = (found.lfsr >= low) & (found.lfsr < high)
        sd = np.sqrt(0.25 / some.sum())
        assert wrong[some].mean() == pytest.approx(found.lfsr[some].mean(), abs=0.005 + 2 * sd)


def test_many_samples_give_the_normal_law() -> None:
    """With many samples interval and rate are those of the normal law; the ratio is |mean| / sd."""
    samples = np.random.default_rng(2).normal(1.2, 0.7, (200_000, 1))
    found = summarise(samples, level=0.9)
    np.testing.assert_allclose(found.low, 1.2 + 0.7 * norm.ppf(0.05), atol=0.01)
    np.testing.assert_allclose(found.high, 1.2 + 0.7 * norm.ppf(0.95), atol=0.01)
    np.testing.assert_allclose(found.lfsr, norm.cdf(-1.2 / 0.7), rtol=0.02)
    np.testing.assert_allclose(found.inverse_cv, abs(samples.mean(0)) / samples.std(0, ddof=1))


def test_without_spread_signs_are_certain_or_unknown() -> None:
    """What is 0 in all samples has an lfsr of 1/2 and ratio 0; what is equal and not 0 is certain."""
    found = summarise(np.array([[0.0, 3.0], [0.0, 3.0]]))
    np.testing.assert_array_equal(found.lfsr, [0.5, 0.0])
    np.testing.assert_array_equal(found.inverse_cv, [0.0, np.inf])
    np.testing.assert_array_equal(found.low, [0.0, 3.0])
    table = found.table("x", pd.Index(["a", "b"]))
    assert list(table.columns) == ["x", "sd", "low", "high", "inverse_cv", "lfsr"]
    assert table.loc["b", "x"] == 3.0


def test_what_cannot_be_summarised_is_refused() -> None:
    """One sample has no spread; a level is a probability."""
    with pytest.raises(RunError, match="at least 2 posterior samples, got 1; predict with --samples 10"):
        summarise(np.zeros((1, 3)))
    with pytest.raises(RunError, match=r"level must lie in \(0, 1\), got 95"):
        summarise(np.zeros((2, 3)), level=95)
