"""The baselines: colour histograms of spots, gene means, and the regression of counts on colours."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from superst_monai.analysis.baselines import (
    fit_gene_mean,
    fit_image_intensity,
    predict_image_intensity,
    spot_histograms,
)
from superst_monai.errors import ShapeError


def test_histograms_are_those_of_each_spots_pixels():
    """Shares agree with numpy's histogram of a spot's pixels; labels beyond S and spots without pixels are left out."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (20, 17, 3)).astype(np.uint8)
    label = rng.integers(0, 5, (20, 17))
    label[label == 3] = 4  # spot 2 has no pixel; label 5 is no spot
    label[0] = 5
    got = spot_histograms(image, label, 4)
    assert got.shape == (4, 15)
    for spot in (0, 1, 3):
        pixels = image[label == spot + 1]
        plain = [np.histogram(pixels[:, c], bins=5, range=(0, 255))[0] / len(pixels) for c in range(3)]
        np.testing.assert_allclose(got[spot], np.concatenate(plain))
    np.testing.assert_array_equal(got[2], 0.0)


def test_every_intensity_falls_in_one_of_the_equal_bins():
    """The 256 intensities fall into bins as numpy cuts 0..255, the last one closed."""
    ramp = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, axis=2)
    for bins in (1, 4, 5, 15):
        got = spot_histograms(ramp, np.ones((1, 256), dtype=np.int64), 1, bins=bins)
        wanted = np.histogram(np.arange(256), bins=bins, range=(0, 255))[0] / 256
        np.testing.assert_allclose(got[0], np.tile(wanted, 3))


def test_gene_mean_is_the_mean_over_spots():
    """Sparse and dense counts have the same mean."""
    counts = np.array([[0, 3, 1], [2, 0, 1]])
    np.testing.assert_allclose(fit_gene_mean(counts), [1.0, 1.5, 1.0])
    np.testing.assert_allclose(fit_gene_mean(csr_matrix(counts)), [1.0, 1.5, 1.0])


def test_regression_is_least_squares():
    """Coefficients agree with numpy's lstsq of each gene, sparse or dense, though the columns are dependent."""
    rng = np.random.default_rng(1)
    histograms = rng.dirichlet(np.ones(5), (40, 3)).reshape(40, 15)
    counts = rng.poisson(3.0, (40, 6))
    design = np.column_stack([np.ones(40), histograms])
    wanted = np.linalg.lstsq(design, counts.astype(float), rcond=None)[0]
    np.testing.assert_allclose(fit_image_intensity(histograms, counts), wanted, atol=1e-9)
    got = fit_image_intensity(histograms, csr_matrix(counts))
    np.testing.assert_allclose(got, wanted, atol=1e-9)
    assert type(got) is np.ndarray


def test_regression_recovers_a_linear_truth_and_clips_at_zero():
    """Counts linear in the colours are predicted exactly on new spots; what would be negative is 0."""
    rng = np.random.default_rng(2)
    histograms = rng.dirichlet(np.ones(5), (60, 3)).reshape(60, 15)
    effect = rng.normal(0.0, 5.0, (15, 4))
    truth = 1.0 + histograms @ effect
    predicted = predict_image_intensity(histograms[40:], fit_image_intensity(histograms[:40], truth[:40]))
    np.testing.assert_allclose(predicted, truth[40:].clip(0, None), atol=1e-9)
    assert (truth[40:] < 0).any()


def test_baselines_refuse_what_does_not_fit():
    """Maps of two sections, no training spots, other spots and other bins raise."""
    with pytest.raises(ShapeError, match=r"got \(4, 5, 3\) and \(5, 4\)"):
        spot_histograms(np.zeros((4, 5, 3), dtype=np.uint8), np.zeros((5, 4), dtype=np.int64), 2)
    with pytest.raises(ShapeError, match=r"at least one training spot, got \(0, 3\)"):
        fit_gene_mean(np.zeros((0, 3)))
    for n_spots in (0, 4):
        with pytest.raises(ShapeError, match=f"got {n_spots} and {n_spots and 3}; stack"):
            fit_image_intensity(np.zeros((n_spots, 15)), np.zeros((n_spots and 3, 2)))
    with pytest.raises(ShapeError, match="the 15 columns of the training, got 12"):
        predict_image_intensity(np.zeros((2, 12)), np.zeros((16, 3)))
