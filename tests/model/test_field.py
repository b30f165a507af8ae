"""Section fields against dense linear algebra: precision, determinant, divergence, samples and interpolation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from superst_monai.errors import ShapeError
from superst_monai.model.field import RIDGE, FieldGrid, field_divergence

GRID = FieldGrid(10.0, -20.0, 50.0, 4, 6)


def dense_precision(grid: FieldGrid) -> np.ndarray:
    """L + ridge I, node by node, from the neighbours of each node."""
    n = grid.n_nodes
    precision = RIDGE * np.eye(n)
    for i in range(n):
        row, col = divmod(i, grid.width)
        for r, c in ((row + 1, col), (row, col + 1)):
            if r < grid.height and c < grid.width:
                j = r * grid.width + c
                precision[i, i] += 1
                precision[j, j] += 1
                precision[i, j] -= 1
                precision[j, i] -= 1
    return precision


def test_eigenvalues_determinant_and_diagonal_are_those_of_the_dense_precision():
    """The cosine basis diagonalises the Laplacian with free borders."""
    dense = dense_precision(GRID)
    np.testing.assert_allclose(np.sort(GRID.eigenvalues.ravel()), np.linalg.eigvalsh(dense), rtol=1e-9)
    assert GRID.log_determinant == pytest.approx(np.linalg.slogdet(dense)[1], rel=1e-12)
    np.testing.assert_allclose(GRID.diagonal.numpy().ravel(), np.diag(dense), rtol=1e-6)


def test_energy_is_the_quadratic_form():
    """u^T (L + ridge I) u channel by channel."""
    u = np.random.default_rng(0).standard_normal((3, GRID.height, GRID.width))
    expected = [x.ravel() @ dense_precision(GRID) @ x.ravel() for x in u]
    np.testing.assert_allclose(GRID.energy(torch.from_numpy(u)).numpy(), expected, rtol=1e-9)


def test_divergence_is_that_of_torch_multivariate_normals():
    """KL(q || prior) equals torch's, summed over channels with precisions of their own."""
    torch.manual_seed(0)
    shape = (2, GRID.height, GRID.width)
    mean, log_sd = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    log_precision = torch.tensor([0.3, -1.2], dtype=torch.float64)
    dense = torch.from_numpy(dense_precision(GRID))
    expected = torch.zeros((), dtype=torch.float64)
    for m, s, t in zip(mean, log_sd, log_precision, strict=True):
        q = torch.distributions.MultivariateNormal(m.flatten(), covariance_matrix=torch.diag((2 * s).exp().flatten()))
        p = torch.distributions.MultivariateNormal(torch.zeros(GRID.n_nodes).double(), precision_matrix=t.exp() * dense)
        expected = expected + torch.distributions.kl_divergence(q, p)
    torch.testing.assert_close(field_divergence(mean, log_sd, log_precision, GRID), expected, rtol=1e-6, atol=1e-5)


def test_prior_samples_have_the_covariance_of_the_prior():
    """The covariance of many draws is the inverse of tau (L + ridge I)."""
    tau = 4.0
    rng = np.random.default_rng(0)
    drawn = np.stack([GRID.prior_sample(np.log([tau]), rng)[0].ravel() for _ in range(20_000)])
    expected = np.linalg.inv(tau * dense_precision(GRID))
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.03 * expected.max())


def test_weights_interpolate_bilinearly_and_hold_the_border_beyond_it():
    """A field that is linear in x and y is met exactly inside; rows sum to 1; outside the nearest border counts."""
    x, y = np.array([10.0, 85.0, 260.0, 123.4, 400.0]), np.array([-20.0, 3.0, 130.0, 77.7, -100.0])
    weights = GRID.weights(x, y).to_dense().numpy()
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
    row, col = np.mgrid[: GRID.height, : GRID.width]
    field = 2 * (GRID.x_um + col * GRID.spacing_um) - 3 * (GRID.y_um + row * GRID.spacing_um) + 1
    inside_x, inside_y = np.clip(x, 10, 10 + 5 * 50), np.clip(y, -20, -20 + 3 * 50)
    np.testing.assert_allclose(weights @ field.ravel(), 2 * inside_x - 3 * inside_y + 1, rtol=1e-5)


def test_a_raster_is_interpolated_as_its_points_are() -> None:
    """Rows and columns one after the other give what the sparse weights give point by point."""
    field = torch.randn(3, GRID.height, GRID.width)
    x, y = np.linspace(-20, 300, 9), np.linspace(-60, 170, 7)
    points = GRID.weights(*(axis.ravel() for axis in np.meshgrid(x, y))) @ field.flatten(1).T
    torch.testing.assert_close(GRID.on_raster(field, x, y), points.T.reshape(3, 7, 9), rtol=1e-4, atol=1e-5)


def test_a_grid_reaches_one_pitch_beyond_the_spots_with_two_nodes_a_pitch():
    """Spacing is half the pitch, and every spot lies a pitch or more inside."""
    x, y = (part.ravel() * 200.0 + 1000.0 for part in np.mgrid[:5, :7].astype(float))
    grid = FieldGrid.over_spots(x, y)
    assert grid.spacing_um == 100.0
    assert (grid.x_um, grid.y_um) == (800.0, 800.0)
    assert grid.x_um + (grid.width - 1) * grid.spacing_um >= x.max() + 200.0
    assert grid.y_um + (grid.height - 1) * grid.spacing_um >= y.max() + 200.0
    assert FieldGrid.over_spots(np.array([5.0]), np.array([6.0])).n_nodes > 1
    with pytest.raises(ShapeError, match="needs at least one spot, got none"):
        FieldGrid.over_spots(np.empty(0), np.empty(0))


def test_posterior_noise_has_the_covariance_that_the_mean_field_implies():
    """Data of known precision: from the best independent normals alone the draws regain the exact covariance."""
    rng = np.random.default_rng(0)
    tau, said = 1.7, np.where(rng.random(GRID.n_nodes) < 0.4, 3.0, 0.0)
    precision = tau * dense_precision(GRID) + np.diag(said)
    sd = (1 / np.sqrt(np.diag(precision))).reshape(1, GRID.height, GRID.width).astype(np.float32)
    streams = [np.random.default_rng((1, n)) for n in range(20_000)]
    noise = GRID.posterior_noise(sd, np.log([tau]), streams)[:, 0].reshape(len(streams), -1)
    exact = np.linalg.inv(precision)
    spread = np.sqrt(np.outer(np.diag(exact), np.diag(exact)))
    np.testing.assert_allclose(np.cov(noise.T) / spread, exact / spread, atol=0.04)
    assert np.diag(exact)[said == 0].mean() > 1.5 * np.square(sd.ravel())[said == 0].mean()


def test_posterior_noise_without_data_is_the_prior():
    """Where the guide is as narrow as the prior's own diagonal nothing was learnt."""
    sd = (1 / np.sqrt(np.exp(0.5) * GRID.diagonal.numpy()))[None]
    streams = [np.random.default_rng((2, n)) for n in range(20_000)]
    noise = GRID.posterior_noise(sd, np.array([0.5]), streams)[:, 0]
    exact = np.diag(np.linalg.inv(dense_precision(GRID))).reshape(GRID.height, GRID.width)
    np.testing.assert_allclose(noise.var(0), np.exp(-0.5) * exact, rtol=0.06)
