"""Laws of predicted counts: moments and intervals are those of counts drawn from the law."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.errors import RunError
from superst_monai.inference.sums import Sums


@pytest.fixture
def sums() -> Sums:
    """Five samples of the law of two supports and three genes."""
    rng = np.random.default_rng(0)
    total = rng.gamma(4.0, 1.0, (5, 2, 3)).astype(np.float32)
    return Sums(["a", "b", "c"], total, rng.normal(0.5, 0.5, (5, 3)).astype(np.float32))


def simulate(sums: Sums, n: int) -> np.ndarray:
    """Counts `(n, N, S, G)` as Poisson mixed by a gamma law, n of each posterior sample."""
    rng = np.random.default_rng(1)
    odds = np.exp(sums.logits)[:, None]
    return rng.poisson(rng.standard_gamma(sums.total_count, (n, *sums.total_count.shape)) * odds)


def test_mean_and_sd_are_those_of_simulated_counts(sums: Sums) -> None:
    """The law of total variance gives the variance of counts drawn with all their uncertainty."""
    counts = simulate(sums, 40_000).reshape(-1, 2, 3)
    np.testing.assert_allclose(sums.mean, counts.mean(0), rtol=0.01)
    np.testing.assert_allclose(sums.sd, counts.std(0), rtol=0.01)


def test_the_sd_of_the_mean_is_that_over_the_samples(sums: Sums) -> None:
    """What the model does not know is the spread of the samples' means, and less than that of the counts."""
    means = sums.total_count * np.exp(sums.logits)[:, None]
    np.testing.assert_allclose(sums.sd_of_mean, means.std(0), rtol=1e-5)
    assert (sums.sd_of_mean < sums.sd).all()


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_an_interval_holds_its_share_of_counts(sums: Sums, level: float) -> None:
    """At least `level` of the counts lie within the interval, and at most half of the rest below or above."""
    low, high = sums.interval(level)
    counts = simulate(sums, 20_000).reshape(-1, 2, 3)
    assert ((counts >= low) & (counts <= high)).mean(0).min() > level - 0.01
    assert (counts < low).mean(0).max() < (1 - level) / 2 + 0.01
    assert (counts > high).mean(0).max() < (1 - level) / 2 + 0.01


def test_the_interval_of_the_mean_is_that_of_the_samples(sums: Sums) -> None:
    """Its ends are the quantiles of the samples' means (against sorting), and lie within those of the counts."""
    means = np.sort(sums.total_count * np.exp(sums.logits)[:, None], axis=0)  # 5 samples
    low, high = sums.mean_interval(0.5)
    np.testing.assert_allclose(low, means[1], rtol=1e-6)
    np.testing.assert_allclose(high, means[3], rtol=1e-6)
    low, high = sums.mean_interval(0.9)
    np.testing.assert_allclose(low, 0.8 * means[0] + 0.2 * means[1], rtol=1e-5)
    np.testing.assert_allclose(high, 0.8 * means[4] + 0.2 * means[3], rtol=1e-5)


def test_one_sample_has_the_law_itself(sums: Sums) -> None:
    """With one sample nothing but the negative binomial is uncertain."""
    one = Sums(sums.genes, sums.total_count[:1], sums.logits[:1])
    assert (one.sd_of_mean == 0).all()
    np.testing.assert_allclose(one.sd**2, one.mean * (1 + np.exp(one.logits[0])), rtol=1e-5)


@pytest.mark.parametrize("level", [0.0, 1.0, 90])
def test_impossible_levels_are_refused(sums: Sums, level: float) -> None:
    """A level is a probability strictly between 0 and 1."""
    with pytest.raises(RunError, match=f"level must lie in .0, 1., got {level}; write 90 % as 0.9"):
        sums.interval(level)
    with pytest.raises(RunError, match=f"level must lie in .0, 1., got {level}; write 90 % as 0.9"):
        sums.mean_interval(level)


def test_a_factor_of_the_dispersion_widens_counts_and_leaves_expectations(sums: Sums) -> None:
    """Expectations and their intervals stay, the variance beyond Poisson grows by the factor, supports still add."""
    wide = sums.dispersed(4.0)
    np.testing.assert_allclose(wide.mean, sums.mean, rtol=1e-5)
    np.testing.assert_allclose(wide.sd_of_mean, sums.sd_of_mean, rtol=1e-4)
    np.testing.assert_allclose(wide.mean_interval(0.9), sums.mean_interval(0.9), rtol=1e-5)
    beyond = np.einsum("nsg,ng->sg", sums.total_count, np.exp(2 * sums.logits)) / 5
    np.testing.assert_allclose(wide.sd**2 - sums.sd**2, 3.0 * beyond, rtol=1e-3)
    assert (wide.interval(0.9)[1] > sums.interval(0.9)[1]).all()
    together = Sums(sums.genes, sums.total_count.sum(1, keepdims=True), sums.logits).dispersed(4.0)
    np.testing.assert_allclose(wide.total_count.sum(1), together.total_count[:, 0], rtol=1e-6)
    np.testing.assert_array_equal(wide.logits, together.logits)
    assert sums.dispersed(1.0) is sums
