"""Draws of a field: posterior and prior against their laws, and their part in a map of histology alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from superst_monai.inference.field_draws import COMPOSITION_SHARE, FieldDraws, FieldPrior
from superst_monai.inference.field_store import load_prior, save_field
from superst_monai.inference.maps import open_maps
from superst_monai.inference.section_field import SectionField
from superst_monai.inference.slide_map import predict
from superst_monai.model.field import RIDGE, FieldGrid

SHAPE, MPP = (40, 60), 2.0


def prior(k: int = 2, log_precision: float = 1.0) -> FieldPrior:
    """Of k metagenes."""
    return FieldPrior(np.full(k + 1, log_precision, np.float32), 20.0)


def flat(k: int = 2) -> np.ndarray:
    """Even activity `(K, H, W)`."""
    return np.full((k, *SHAPE), 0.5, np.float32)


def precision(grid: FieldGrid) -> np.ndarray:
    """L + ridge I, dense."""
    return (grid.differences.T @ grid.differences).toarray() + RIDGE * np.eye(grid.n_nodes)


def log_ratio(draws: FieldDraws, n: int) -> np.ndarray:
    """Log of the first metagene's share over the second's, where they were even `(H, W)`."""
    first, second = np.log(draws.over(n, flat(), row=0, col=0))
    return first - second


def test_the_prior_changes_no_mean_size_and_pairs_mirror_each_other():
    """At the nodes the sizes of all samples have the mean 1; the compositions of a pair are opposite."""
    grid = FieldGrid(1.0, 1.0, 20.0, 4, 6)  # nodes at centres of pixels
    shifted = FieldDraws.of_prior(prior(), SHAPE, samples=6, seed=0, mpp=MPP)
    nodes = shifted._nodes
    np.testing.assert_allclose(np.exp([field[-1] for field in nodes]).mean(0), 1.0, rtol=1e-5)
    at_nodes = FieldDraws(grid, [field[:, :4, :6] for field in nodes], mpp=MPP)
    sizes = [at_nodes.over(n, flat(), row=0, col=0).sum(0)[::10, ::10] for n in range(6)]
    np.testing.assert_allclose(np.mean(sizes, axis=0), 1.0, rtol=1e-4)
    np.testing.assert_allclose(log_ratio(shifted, 0), -log_ratio(shifted, 1), atol=2e-5)
    assert np.abs(log_ratio(shifted, 0)).max() > 0.1


def test_the_spread_of_the_prior_is_that_of_its_precision():
    """Over draws the fields vary as the covariance of the prior says, those of the logits by their share of it."""
    nodes = np.stack(FieldDraws.of_prior(prior(), SHAPE, samples=1200, seed=1, mpp=MPP)._nodes)
    grid = prior().grid_over(SHAPE, MPP)
    expected = np.exp(-1.0) * np.diag(np.linalg.inv(precision(grid))).reshape(grid.height, grid.width)
    np.testing.assert_allclose(nodes[:, -1].var(0), expected, rtol=0.2)
    np.testing.assert_allclose(nodes[:, 0].var(0), COMPOSITION_SHARE**2 * expected, rtol=0.2)


def test_draws_of_a_section_have_the_moments_of_its_posterior():
    """Mean and deviation at the nodes; pairs mirror each other about the mean; sample n is the same whatever N."""
    rng, grid = np.random.default_rng(0), FieldGrid(1.0, 1.0, 20.0, 3, 4)
    mean, sd = rng.standard_normal((3, 3, 4)).astype(np.float32), np.full((3, 3, 4), 0.2, np.float32)
    effects = np.zeros((2, 5), np.float32), np.ones(5, np.float32)
    field = SectionField(grid, mean, sd, np.zeros(3, np.float32), *effects)
    draws = FieldDraws.of_section(field, samples=800, seed=3, mpp=MPP)
    logs = np.array([np.log(draws.over(n, flat(), row=0, col=0).sum(0)[::10, ::10][:3, :4]) for n in range(800)])
    np.testing.assert_allclose((logs[::2] + logs[1::2]) / 2, np.broadcast_to(mean[-1], (400, 3, 4)), atol=1e-4)
    smooth = precision(grid)
    exact = np.linalg.inv(smooth + np.diag(1 / 0.04 - np.diag(smooth)))
    np.testing.assert_allclose(logs.std(0).ravel(), np.sqrt(np.diag(exact)), rtol=0.12)
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
    field = SectionField(grid, zeros, zeros + 0.1, np.full(k + 1, 1.0, np.float32), np.tile(effects, (k, 1)), effects)
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
