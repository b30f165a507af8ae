"""First values: moments against a plain version and a known truth; profiles against a planted factorisation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import sparse

from superst_monai.errors import AssayError
from superst_monai.model.first_values import fit_baseline, inverse_softplus, set_first_values
from superst_monai.model.metagenes import factorised_profiles


def test_baseline_equals_the_plain_moments():
    """The sparse formula is the mean of (x - m f)^2 / (m f), less one, gene by gene."""
    rng = np.random.default_rng(0)
    dense = rng.poisson(rng.gamma(0.8, 3.0, (60, 7)))
    dense[3] = 0
    got = fit_baseline(sparse.csr_matrix(dense), least_odds=1e-6, most_odds=1e6)
    factor = dense.sum(1) / dense.sum(1).mean()
    used = factor > 0
    mean = dense.sum(0) / factor.sum()
    fit = factor[used, None] * mean
    odds = ((dense[used] - fit) ** 2 / fit).mean(0) - 1
    np.testing.assert_allclose(np.exp(got.logit), odds, rtol=1e-9)
    np.testing.assert_allclose(np.exp(got.log_rate + got.logit), mean, rtol=1e-12)


def test_baseline_recovers_a_known_law():
    """Counts drawn from the law give back its odds within sampling error."""
    rng = np.random.default_rng(1)
    rate, odds = np.array([4.0, 20.0, 1.0]), np.array([1.5, 0.5, 3.0])
    depth = rng.uniform(0.5, 1.5, (40_000, 1))
    filler = rng.poisson(2000 * depth, (40_000, 1))
    counts = np.hstack([rng.poisson(rng.gamma(depth * rate, odds)), filler])
    got = fit_baseline(sparse.csr_matrix(counts))
    np.testing.assert_allclose(np.exp(got.logit[:3]), odds, rtol=0.1)


def test_a_gene_without_counts_has_finite_first_values():
    """All-zero genes get the mean of half a count over all spots."""
    got = fit_baseline(sparse.csr_matrix(np.array([[3, 0], [5, 0]])))
    assert np.exp(got.log_rate + got.logit)[1] == pytest.approx(0.25)


@pytest.mark.parametrize("value", [1e-6, 0.03, 1.0, 40.0])
def test_inverse_softplus_inverts(value):
    """softplus(inverse_softplus(v)) = v over the range of scales."""
    assert math.log1p(math.exp(inverse_softplus(value))) == pytest.approx(value, rel=1e-9)


def test_planted_metagenes_are_found():
    """Spots mixed from three profiles give back log fold changes that correlate with the planted ones."""
    rng = np.random.default_rng(2)
    planted = np.exp(rng.normal(0, 1, (3, 40)))
    share = rng.dirichlet([0.3] * 3, 400)
    counts = rng.poisson(share @ planted * 30)
    counts[:, -1] = 0
    got = factorised_profiles(sparse.csr_matrix(counts), np.arange(400) // 200, 3, seed=0)
    mean = (share @ planted).mean(0)
    match = np.corrcoef(np.vstack([got, np.log(planted / mean)])[:, :-1])[:3, 3:]
    assert (match.max(axis=0) > 0.9).all()
    np.testing.assert_allclose(got[:, -1], 0, atol=1e-6)  # a gene without counts changes nowhere


def test_a_section_effect_is_no_metagene():
    """Two copies of a section, one with a gene ten times as high, give the profiles of the plain one."""
    rng = np.random.default_rng(3)
    planted = np.exp(rng.normal(0, 1, (2, 20)))
    counts = rng.poisson(rng.dirichlet([0.3] * 2, 300) @ planted * 50)
    shifted = np.vstack([counts, counts * np.where(np.arange(20) == 4, 10, 1)])
    got = factorised_profiles(sparse.csr_matrix(shifted), np.repeat([0, 1], 300), 2, seed=0)
    plain = factorised_profiles(sparse.csr_matrix(counts), np.zeros(300, int), 2, seed=0)
    others = np.arange(20) != 4
    match = np.corrcoef(np.vstack([got, plain])[:, others])[:2, 2:]
    assert (match.max(axis=1) > 0.98).all()


def test_fewer_spots_than_metagenes_leave_flat_ones():
    """The metagenes that cannot be fitted start at the mean spot."""
    got = factorised_profiles(sparse.csr_matrix(np.array([[3, 1, 0], [0, 2, 9]])), np.zeros(2, int), 5, seed=0)
    assert got.shape == (5, 3)
    assert (got[2:] == 0).all()


def test_metagenes_without_counts_are_refused():
    """Nothing can be factorised from empty spots."""
    with pytest.raises(AssayError, match="without a single UMI"):
        factorised_profiles(sparse.csr_matrix((3, 4), dtype=np.int32), np.zeros(3, int), 2, seed=0)


def test_first_scale_gives_a_mean_spot_size_one(make_case):
    """The expected counts of a spot of the mean area are the mean counts, up to the flattened scale weights."""
    network, batch = make_case()
    baseline = fit_baseline(sparse.csr_matrix(np.random.default_rng(0).poisson(3.0, (50, 5))))
    set_first_values(network, baseline, np.zeros((3, 5)), spot_area_px=32.0, flatten_scale=0.0)
    size = network.eval()(batch.image).sum(1)
    np.testing.assert_allclose(size.detach().numpy(), 1 / 32, rtol=1e-4)
    np.testing.assert_allclose(network.generative.log_rate.detach().numpy(), baseline.log_rate, rtol=1e-6)
