"""Draws of a field: posterior and prior against their laws, and their part in a map of histology alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from superst_monai.inference.field_draws import FieldDraws, FieldPrior
from superst_monai.inference.field_store import load_prior, save_field
from superst_monai.inference.maps import open_maps
from superst_monai.inference.section_field import SectionField
from superst_monai.inference.slide_map import predict
from superst_monai.model.field import FieldGrid

SHAPE, MPP = (40, 60), 2.0


def prior(k: int = 2, log_precision: float = 1.0) -> FieldPrior:
    """Of k metagenes."""
    return FieldPrior(np.full(k + 1, log_precision, np.float32), 20.0)


def flat(k: int = 2) -> np.ndarray:
    """Even activity `(K, H, W)`."""
    return np.full((k, *SHAPE), 0.5, np.float32)


def test_the_prior_changes_no_expected_size_and_pairs_mirror_each_other():
    """Over many draws the mean size stays; the fields of a pair are opposite but for the correction of the scale."""
    draws = FieldDraws.of_prior(prior(), SHAPE, samples=600, seed=0, mpp=MPP)
    sizes = np.array([draws.over(n, flat(), row=0, col=0).sum(0)[::20, ::20] for n in range(600)])  # at nodes
    grid = prior().grid_over(SHAPE, MPP)
    sd = np.sqrt(np.expm1(np.exp(-1.0) * grid.variance.max()))
    assert abs(sizes.mean() - 1.0) < 4 * sd / np.sqrt(600)
    shares = [np.log(draws.over(n, flat(), row=0, col=0)) for n in (0, 1)]
    first, second = (share[0] - share[1] for share in shares)
    np.testing.assert_allclose(first, -second, atol=2e-5)
    assert np.abs(first).max() > 0.1


def test_the_spread_of_the_prior_is_that_of_its_precision():
    """The variance of the log size over draws is that of the dense covariance, node by node."""
    draws = FieldDraws.of_prior(prior(), SHAPE, samples=800, seed=1, mpp=MPP)
    grid = prior().grid_over(SHAPE, MPP)
    logs = np.array([np.log(draws.over(n, flat(), row=0, col=0).sum(0)) for n in range(0, 800, 2)])
    y, x = (np.arange(1, k - 1) for k in (grid.height, grid.width))
    rows, cols = (np.round(v * grid.spacing_um / MPP - 0.5).astype(int) for v in (y, x))
    inside = (rows < SHAPE[0]), (cols < SHAPE[1])
    seen = logs[:, rows[inside[0]]][:, :, cols[inside[1]]].var(0)
    expected = np.exp(-1.0) * grid.variance[np.ix_(y[inside[0]], x[inside[1]])]
    assert 0.85 < seen.mean() / expected.mean() < 1.1  # between nodes, half a pixel off, it is a little smaller


def test_draws_of_a_section_have_the_moments_of_its_posterior():
    """Mean and standard deviation at the nodes, and sample n whatever N."""
    rng, grid = np.random.default_rng(0), FieldGrid(1.0, 1.0, 20.0, 3, 4)
    mean, sd = rng.standard_normal((3, 3, 4)).astype(np.float32), np.full((3, 3, 4), 0.2, np.float32)
    field = SectionField(grid, mean, sd, np.zeros(3, np.float32), np.zeros(5, np.float32), np.ones(5, np.float32))
    draws = FieldDraws.of_section(field, samples=400, seed=3, mpp=MPP)
    logs = np.array([np.log(draws.over(n, flat(), row=0, col=0).sum(0)[::10, ::10][:3, :4]) for n in range(400)])
    np.testing.assert_allclose(logs.mean(0), mean[-1], atol=5 * 0.2 / 20)
    np.testing.assert_allclose(logs.std(0), 0.2, atol=0.05)
    few = FieldDraws.of_section(field, samples=2, seed=3, mpp=MPP)
    np.testing.assert_array_equal(few.over(1, flat(), row=4, col=2), draws.over(1, flat(), row=4, col=2))


def test_a_prior_is_the_mean_over_sections():
    """Log precision and spacing are averaged."""
    parts = [
        SectionField(FieldGrid(0, 0, s, 2, 2), *(np.zeros(1, np.float32),) * 2, np.full(3, p, np.float32), 0.0, 0.0)
        for s, p in ((10.0, 1.0), (30.0, 2.0))
    ]
    found = FieldPrior.of(parts)
    assert found.spacing_um == pytest.approx(20.0)
    np.testing.assert_allclose(found.log_precision, 1.5)


def test_histology_alone_is_told_with_the_variance_of_the_prior(run, section, tmp_path):
    """With the fields of its training sections the run modulates each sample of a map by a draw of the prior."""
    plain = predict(run, section, tmp_path / "plain.zarr", samples=2, use_field=False)
    assert load_prior(run) is None
    k, n_genes = run.network.arch.n_metagenes, run.network.arch.n_genes
    grid = FieldGrid.over_spots(*(section.spots[c].to_numpy(float) for c in ("x_um", "y_um")))
    zeros = np.zeros((k + 1, grid.height, grid.width), np.float32)
    effects = np.zeros(n_genes, np.float32)
    field = SectionField(grid, zeros, zeros + 0.1, np.full(k + 1, 1.0, np.float32), effects, effects)
    own = replace(run, path=tmp_path / "run", record={"sections": [{"name": section.name}]})
    own.path.mkdir()
    save_field(own, section, field)
    found = predict(own, section, tmp_path / "prior.zarr", samples=2, use_field=False)
    one, other = open_maps(plain), open_maps(found)
    prior_of = load_prior(own)
    assert prior_of is not None
    draws = FieldDraws.of_prior(prior_of, one.shape, samples=2, seed=0, mpp=run.mpp)
    for (place, before), (_, after) in zip(one.tiles(), other.tiles(), strict=True):
        for n in range(2):
            expected = draws.over(n, before[n], row=place[0].start, col=place[1].start)
            np.testing.assert_allclose(after[n], expected, rtol=4e-3, atol=1e-6)  # both are stored as float16
