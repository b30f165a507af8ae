"""Count thinning against the laws that make it right, and against the naive way, which is not."""

from __future__ import annotations

import time

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import betabinom, nbinom

from superst_monai.errors import RunError, ShapeError
from superst_monai.model.thinning import thin_counts

N = 40_000
TOTAL = np.array([0.05, 0.4, 2.0, 8.0])  # total_count of each gene
ODDS = np.array([4.0, 1.5, 3.0, 0.5])  # exp(logit); mean = TOTAL * ODDS
SHARE = 0.3


def draw(seed: int) -> np.ndarray:
    """Counts of N like spots `(N, 4)`."""
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(TOTAL, ODDS, (N, len(TOTAL))))


def halves(counts: np.ndarray, total: np.ndarray, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """What is left and what is set aside, dense."""
    rng = np.random.default_rng(seed)
    left, aside = thin_counts(sparse.csr_matrix(counts), SHARE, size=np.ones(len(counts)), rate=total, rng=rng)
    return left.toarray(), aside.toarray()


def covariance(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariance of each gene over spots, and its standard error."""
    products = (a - a.mean(0)) * (b - b.mean(0))
    return products.mean(0), products.std(0) / len(a) ** 0.5


def test_halves_are_uncorrelated_negative_binomials():
    """With the right total_count each half has the mean, variance and histogram of its law, and tells nothing of the
    other: neither its value nor its square."""
    left, aside = halves(draw(0), TOTAL)
    for half, share in ((left, 1 - SHARE), (aside, SHARE)):
        mean = share * TOTAL * ODDS
        np.testing.assert_allclose(half.mean(0), mean, atol=4 * np.sqrt(mean * (1 + ODDS) / N).max())
        np.testing.assert_allclose(half.var(0), mean * (1 + ODDS), rtol=0.1)
        for g in range(len(TOTAL)):
            expected = nbinom.pmf(np.arange(4), share * TOTAL[g], 1 / (1 + ODDS[g]))
            got = [(half[:, g] == x).mean() for x in range(4)]
            np.testing.assert_allclose(got, expected, atol=4 * 0.5 / N**0.5)
    for a, b in ((left, aside), (left**2, aside), (left, aside**2), (left == 0, aside == 0)):
        found, error = covariance(a.astype(float), b.astype(float))
        assert (np.abs(found) < 4 * error).all()


def test_binomial_thinning_leaves_the_halves_correlated():
    """The naive way on the same counts is found out by the same test: covariance share (1 - share) mean^2 / r."""
    counts = draw(0)
    aside = np.random.default_rng(1).binomial(counts, SHARE)
    found, error = covariance(counts - aside, aside)
    expected = SHARE * (1 - SHARE) * (TOTAL * ODDS) ** 2 / TOTAL
    assert (found > 8 * error).all()
    assert (np.abs(found - expected) < 4 * error).all()


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_a_misjudged_total_count_correlates_by_the_stated_law(factor):
    """A total_count too large leaves a positive covariance, one too small a negative, of the size in the docstring."""
    wrong = factor * TOTAL
    found, error = covariance(*halves(draw(2), wrong))
    mean = TOTAL * ODDS
    expected = SHARE * (1 - SHARE) * mean**2 * (wrong - TOTAL) / (TOTAL * (wrong + 1))
    assert (np.sign(expected) == np.sign(factor - 1)).all()
    assert (np.abs(found - expected) < 4 * error).all()
    assert (np.abs(found) > 4 * error)[2:].all()


def test_a_count_is_split_by_the_beta_binomial():
    """Of X = 6 the number set aside has scipy's law, with size and rate of its own spot and gene multiplied."""
    rng = np.random.default_rng(3)
    counts = sparse.csr_matrix(np.full((N, 2), 6))
    size = np.where(np.arange(N) % 2, 0.5, 3.0)
    _, aside = thin_counts(counts, SHARE, size=size, rate=np.array([0.4, 2.0]), rng=rng)
    for s in (0.5, 3.0):
        for g, rate in enumerate((0.4, 2.0)):
            got = np.bincount(aside.toarray()[size == s, g], minlength=7) / (N / 2)
            expected = betabinom.pmf(np.arange(7), 6, SHARE * s * rate, (1 - SHARE) * s * rate)
            np.testing.assert_allclose(got, expected, atol=4 * 0.5 / (N / 2) ** 0.5)


def test_halves_add_up_and_stay_sparse():
    """Left and set aside are whole numbers of the same type that sum to the counts; only non-zero ones are stored, the
    same seed gives the same split, and the counts themselves stay."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(rng.gamma(0.2, 2.0, (50, 30))).astype(np.int32)
    dense[7] = dense[:, 11] = 0
    counts = sparse.csr_matrix(dense)
    size, rate = rng.uniform(0.5, 2.0, 50), rng.uniform(1e-9, 2.0, 30)
    first, second, other = (
        thin_counts(counts, 0.4, size=size, rate=rate, rng=np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    for half, again in zip(first, second, strict=True):
        assert half.dtype == np.int32
        assert (half.data > 0).all()
        assert (half != again).nnz == 0
    assert (first[0] + first[1] != counts).nnz == 0
    assert (first[1] != other[1]).nnz > 0
    np.testing.assert_array_equal(counts.toarray(), dense)


def test_a_whole_section_is_split_in_about_a_second():
    """700 spots x 18,000 genes with a tenth of the counts above zero."""
    rng = np.random.default_rng(0)
    counts = sparse.random(700, 18_000, density=0.1, format="csr", random_state=0)
    counts.data = rng.integers(1, 20, counts.nnz).astype(np.int32)
    began = time.process_time()
    left, aside = thin_counts(
        counts.astype(np.int32), 0.05, size=rng.uniform(0.5, 2, 700), rate=rng.gamma(0.5, 1.0, 18_000) + 1e-6, rng=rng
    )
    assert time.process_time() - began < 3
    assert aside.sum() / counts.sum() == pytest.approx(0.05, rel=0.05)
    assert left.sum() + aside.sum() == counts.sum()


def test_counts_that_cannot_be_split_are_refused():
    """The share, the lengths and the signs are checked; a spot and a gene without counts need no size or rate."""
    counts, rng = sparse.csr_matrix(np.array([[1, 2, 0], [0, 0, 0]])), np.random.default_rng(0)
    size, rate = np.array([1.0, 0.0]), np.array([1.0, 1.0, 0.0])
    assert sum(half.sum() for half in thin_counts(counts, 0.5, size=size, rate=rate, rng=rng)) == 3
    for share in (0.0, 1.0, float("nan")):
        with pytest.raises(RunError, match=f"must lie between 0 and 1, got {share}"):
            thin_counts(counts, share, size=size, rate=rate, rng=rng)
    with pytest.raises(ShapeError, match=r"counts \(2, 3\), got \(1,\) and \(3,\)"):
        thin_counts(counts, 0.5, size=size[:1], rate=rate, rng=rng)
    with pytest.raises(RunError, match="1 of 2 counts have none"):
        thin_counts(counts, 0.5, size=size, rate=np.array([0.0, 1.0, 1.0]), rng=rng)
