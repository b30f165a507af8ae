"""The mixture of negative binomials: its mass, distribution function, quantiles, and coverage of what it predicts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest, nbinom

from superst_monai.errors import RunError, ShapeError
from superst_monai.model.predictive import (
    coverage,
    mean_pit,
    nb_log_likelihood,
    nb_quantiles,
    randomised_pit,
    score_counts,
)


def parameters(rng, n_samples=4, n_spots=30, n_genes=5):
    """Samples of a predictive law: total counts `(N, S, G)` and one logit a gene `(N, 1, G)`."""
    total_count = rng.gamma(2.0, 3.0, (n_samples, n_spots, n_genes))
    return total_count, rng.normal(0.0, 0.7, (n_samples, 1, n_genes))


def draw(rng, total_count, logits):
    """Counts `(S, G)` from the mixture: each entry from one sample's negative binomial."""
    pick = rng.integers(0, len(total_count), total_count.shape[1:])[None]
    size = np.take_along_axis(total_count, pick, 0)[0]
    logit = np.take_along_axis(np.broadcast_to(logits, total_count.shape), pick, 0)[0]
    return rng.poisson(rng.standard_gamma(size) * np.exp(logit))


def plain_cdf(x, total_count, logits):
    """P(X <= x) of the mixture by scipy, which counts failures: its p is 1 - sigmoid(logits)."""
    return nbinom.cdf(x, total_count, 1 / (1 + np.exp(logits))).mean(0)


def test_log_likelihood_is_that_of_torch():
    """The log of the mean probability over samples agrees with torch's NegativeBinomial, zeros and large counts too."""
    rng = np.random.default_rng(0)
    total_count, logits = parameters(rng)
    x = draw(rng, total_count, logits)
    x[0] = [0, 1, 50, 1000, 100_000]
    law = torch.distributions.NegativeBinomial(torch.tensor(total_count), logits=torch.tensor(logits))
    wanted = torch.logsumexp(law.log_prob(torch.tensor(x, dtype=torch.float64)), 0) - np.log(4)
    np.testing.assert_allclose(nb_log_likelihood(x, total_count, logits), wanted.numpy(), rtol=1e-9)


def test_distribution_function_is_that_of_scipy():
    """The ends of the PIT are P(X <= x - 1) and P(X <= x) of the mixture (against scipy's nbinom)."""
    rng = np.random.default_rng(1)
    total_count, logits = parameters(rng)
    x = draw(rng, total_count, logits)
    scores = score_counts(x, total_count, logits)
    np.testing.assert_allclose(scores.upper, plain_cdf(x, total_count, logits), rtol=1e-9)
    np.testing.assert_allclose(scores.lower, plain_cdf(x - 1, total_count, logits), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(np.exp(scores.log_mass), scores.upper - scores.lower, rtol=1e-6, atol=1e-12)


def test_a_support_of_no_size_counts_nothing():
    """A total count of 0 has probability 1 at zero and none elsewhere, and every quantile is 0."""
    nothing = np.zeros((2, 1, 2))
    scores = score_counts(np.array([[0, 3]]), nothing, np.zeros(2))
    np.testing.assert_array_equal(scores.log_mass, [[0.0, -np.inf]])
    np.testing.assert_array_equal(scores.lower, [[0.0, 1.0]])
    np.testing.assert_array_equal(scores.upper, [[1.0, 1.0]])
    assert (nb_quantiles(nothing, np.zeros(2), [0.01, 0.99]) == 0).all()


def test_pit_is_uniform_when_the_model_is_right():
    """The randomised PIT of counts drawn from the mixture is uniform (Kolmogorov-Smirnov), and only then."""
    rng = np.random.default_rng(2)
    total_count, logits = parameters(rng, n_spots=2000, n_genes=3)
    x = draw(rng, total_count, logits)
    right = randomised_pit(x, total_count, logits, np.random.default_rng(3))
    wrong = randomised_pit(x, total_count, logits - 0.3, np.random.default_rng(3))
    assert kstest(right.ravel(), "uniform").pvalue > 0.01
    assert kstest(wrong.ravel(), "uniform").pvalue < 1e-6
    np.testing.assert_array_equal(right, randomised_pit(x, total_count, logits, np.random.default_rng(3)))


@pytest.mark.parametrize("mean", [0.05, 1.0, 40.0])
def test_coverage_is_nominal_when_the_model_is_right(mean):
    """Central intervals cover their share of counts drawn from the law, even where nearly all counts are zero."""
    rng = np.random.default_rng(4)
    total_count = np.full((1, 20_000, 1), mean / 2)
    x = draw(rng, total_count, np.log([2.0]))
    scores = score_counts(x, total_count, np.log([2.0]))
    levels = (0.1, 0.5, 0.9)
    got = coverage(scores.lower, scores.upper, levels).mean((1, 2))
    np.testing.assert_allclose(got, levels, atol=0.01)


def test_coverage_shows_overconfidence():
    """Intervals of a law without overdispersion miss counts that have it; too wide a law covers too many."""
    rng = np.random.default_rng(5)
    x = rng.poisson(rng.gamma(5.0, 4.0, (5000, 1)))  # mean 20, variance 100
    narrow = score_counts(x, np.full((1, 5000, 1), 2e5), np.log([1e-4]))
    wide = score_counts(x, np.full((1, 5000, 1), 1.0), np.log([20.0]))
    assert coverage(narrow.lower, narrow.upper, [0.9]).mean() < 0.7
    assert coverage(wide.lower, wide.upper, [0.5]).mean() > 0.7


def test_coverage_is_the_mean_over_the_randomisation():
    """The exact chance agrees with the share of many randomised PITs in the interval."""
    rng = np.random.default_rng(6)
    total_count, logits = parameters(rng, n_spots=6)
    x = draw(rng, total_count, logits)
    scores = score_counts(x, total_count, logits)
    drawn = np.stack([randomised_pit(x, total_count, logits, rng) for _ in range(3000)])
    for level, exact in zip((0.5, 0.9), coverage(scores.lower, scores.upper, (0.5, 0.9)), strict=True):
        np.testing.assert_allclose(exact, (np.abs(drawn - 0.5) <= level / 2).mean(0), atol=0.05)


def test_impossible_counts_are_not_covered():
    """A count of probability zero lies outside every interval; a point in the middle lies inside."""
    point = np.array([1.0, 0.5])
    np.testing.assert_array_equal(coverage(point, point, [0.9]), [[0.0, 1.0]])


def test_quantiles_are_the_least_counts_that_reach_the_probability():
    """P(X <= x) >= q holds at the quantile and not one below it (by scipy), also for one sample (scipy's ppf)."""
    rng = np.random.default_rng(7)
    total_count, logits = parameters(rng)
    q = (0.05, 0.5, 0.95, 0.9999)
    got = nb_quantiles(total_count, logits, q)
    assert got.dtype == np.int64
    for x, wanted in zip(got, q, strict=True):
        assert (plain_cdf(x, total_count, logits) >= wanted - 1e-12).all()
        assert (plain_cdf(x - 1, total_count, logits) < wanted).all()
    single = nb_quantiles(total_count[:1], logits[:1], [0.3])[0]
    np.testing.assert_array_equal(single, nbinom.ppf(0.3, total_count[0], 1 / (1 + np.exp(logits[0]))))


@pytest.mark.parametrize("mean", [1e-6, 0.3, 5.0, 20.0, 31.0, 33.0, 400.0, 1e5])
def test_quantiles_of_any_size_are_those_of_scipy(mean):
    """Small counts, which are added up, and large ones, which are bisected, meet without a seam."""
    rng = np.random.default_rng(8)
    total_count, logits = rng.gamma(3.0, mean / 3, (3, 40, 2)), rng.normal(0.0, 0.3, (3, 1, 2))
    q = (0.001, 0.05, 0.5, 0.95, 0.999)
    for x, wanted in zip(nb_quantiles(total_count, logits, q), q, strict=True):
        assert (plain_cdf(x, total_count, logits) >= wanted - 1e-12).all()
        assert (plain_cdf(x - 1, total_count, logits) < wanted + 1e-12).all()
    assert nb_quantiles(total_count[:, :0], logits, q).shape == (5, 0, 2)


def test_parameters_must_fit_the_counts():
    """Samples of other spots, no samples, and logits without the axis of spots raise."""
    x = np.zeros((3, 2))
    with pytest.raises(ShapeError, match=r"\(S, G\) = \(3, 2\) as the counts, got \(5, 4, 2\)"):
        score_counts(x, np.ones((5, 4, 2)), np.zeros(2))
    with pytest.raises(ShapeError, match=r"at least one sample .* got \(0, 3, 2\)"):
        score_counts(x, np.ones((0, 3, 2)), np.zeros(2))
    with pytest.raises(ShapeError, match=r"insert the axis of spots: logits\[:, None, :\]"):
        score_counts(x, np.ones((5, 3, 2)), np.zeros((5, 2)))
    with pytest.raises(ShapeError, match="one shape"):
        coverage(np.zeros(2), np.ones(3), [0.5])


def test_parameters_and_probabilities_must_be_in_range():
    """NaN or negative parameters and probabilities outside (0, 1) raise with their number."""
    bad = np.array([[[np.nan, -1.0]], [[1.0, 1.0]]])
    with pytest.raises(RunError, match="got 3 that are not; use a checkpoint"):
        score_counts(np.zeros((1, 2)), bad, np.array([np.inf, 0.0]))
    with pytest.raises(RunError, match=r"q must lie in \(0, 1\), got \[0.5, 95\]"):
        nb_quantiles(np.ones((1, 1, 1)), np.zeros(1), [0.5, 95])
    with pytest.raises(RunError, match=r"levels must lie in \(0, 1\), got \[1.0\]"):
        coverage(np.zeros(2), np.ones(2), [1.0])


def test_the_pit_histogram_is_flat_when_the_model_is_right():
    """Bins hold equal shares of counts drawn from the law (chi-square; small counts vary less), and only then."""
    rng = np.random.default_rng(8)
    total_count, logits = parameters(rng, n_spots=3000, n_genes=2)
    x = draw(rng, total_count, logits)
    edges = np.linspace(0, 1, 11)
    for change, flat in ((0.0, True), (-0.3, False)):
        scores = score_counts(x, total_count, logits + change)
        share = np.diff(mean_pit(scores.lower, scores.upper, edges), axis=0).mean(axis=1)
        assert share.sum() == pytest.approx(1.0)
        assert (chisquare(share * x.size).pvalue > 0.01) == flat


def test_the_pit_histogram_tells_the_coverage():
    """Between the ends of a central interval lies what `coverage` says is covered; points count as a whole."""
    rng = np.random.default_rng(9)
    total_count, logits = parameters(rng)
    scores = score_counts(draw(rng, total_count, logits), total_count, logits)
    low, high = mean_pit(scores.lower, scores.upper, (0.05, 0.95))
    np.testing.assert_allclose(high - low, coverage(scores.lower, scores.upper, [0.9])[0].mean(0), atol=1e-12)
    point = np.array([[1.0, 0.5]])
    np.testing.assert_array_equal(mean_pit(point, point, (0.0, 0.4, 0.5, 1.0)), [[0, 0], [0, 0], [0, 1], [1, 1]])
