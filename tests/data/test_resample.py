"""Laws of conservative resampling."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.data.resample import resample, to_uint8, weights


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random image `(height, width, 3)`, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_aligned_ratio_one_is_a_crop():
    """Whole pixels at ratio 1 are the stored values, bit for bit, in their own dtype."""
    image = noise(9, 11)
    got = resample(image, start=(2.0, 3.0), step=(1.0, 1.0), shape=(5, 6))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, image[2:7, 3:9])
    np.testing.assert_array_equal(weights(2.0, 1.0, 5, 9).toarray(), np.eye(9)[2:7])


def test_half_pixel_shift_is_cubic_convolution():
    """At ratio 1 and half a pixel the weights are Keys' (-1, 9, 9, -1) / 16."""
    np.testing.assert_allclose(weights(2.5, 1.0, 1, 6).toarray()[0], np.array([0, -1, 9, 9, -1, 0]) / 16, atol=1e-7)


@pytest.mark.parametrize("ratio", [2, 3, 7])
def test_whole_ratios_are_block_means(ratio):
    """Aligned blocks of k x k pixels give their plain mean."""
    image = noise(6 * ratio, 5 * ratio)
    got = resample(image, start=(0, 0), step=(ratio, ratio), shape=(6, 5))
    np.testing.assert_allclose(got, image.reshape(6, ratio, 5, ratio, 3).mean((1, 3)), atol=1e-4)


@pytest.mark.parametrize("n_out", [3, 13, 29, 90])
def test_the_sum_is_kept(n_out):
    """Any partition of the image keeps its sum, reduced or enlarged."""
    image = noise(31, 29)
    got = resample(image, start=(0, 0), step=(31 / n_out, 29 / n_out), shape=(n_out, n_out))
    area = 31 * 29 / n_out**2
    np.testing.assert_allclose(got.sum((0, 1), dtype=np.float64) * area, image.sum((0, 1)), rtol=1e-5)


@pytest.mark.parametrize(("start", "step"), [(3.3, 0.37), (2.71, 1.3), (4.0, 2.564), (5.25, 1.0)])
def test_ramps_are_exact_at_any_place(start, step):
    """A linear image stays linear: no sub-pixel bias at any ratio or offset."""
    ramp = (3.0 * np.arange(60) + 10)[:, None, None] * np.ones((1, 1, 1))
    got = resample(ramp, start=(start, 0), step=(step, 1), shape=(15, 1))[:, 0, 0]
    np.testing.assert_allclose(got, 3.0 * (start + step * (np.arange(15) + 0.5) - 0.5) + 10, rtol=1e-5)


def test_rule_equals_the_integral_of_the_spline():
    """The weights are the differences of scipy's cubic Hermite spline through the cumulative sum."""
    from scipy.interpolate import CubicHermiteSpline

    values = np.random.default_rng(1).normal(size=20)
    slopes = np.concatenate([[0], (values[:-1] + values[1:]) / 2, [0]])
    spline = CubicHermiteSpline(np.arange(21), np.concatenate([[0], values.cumsum()]), slopes)
    edges = 3.1 + 1.7 * np.arange(8)
    np.testing.assert_allclose(weights(3.1, 1.7, 7, 20) @ values, np.diff(spline(edges)) / 1.7, atol=1e-6)


def test_edge_pixels_repeat_beyond_the_image():
    """Beyond the image the edge pixel goes on, so that a constant stays constant everywhere."""
    rule = weights(-5.2, 1.9, 12, 7)
    np.testing.assert_allclose(rule.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(rule.toarray()[0], np.eye(7)[0], atol=1e-6)
    np.testing.assert_allclose(rule.toarray()[-1], np.eye(7)[6], atol=1e-6)


def test_rounding_clips_to_eight_bits():
    """Overshoot is clipped, halves are rounded to even, uint8 passes through untouched."""
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 0.6, 254.5, 260.0], np.float32)), [0, 1, 254, 255])
    image = noise(2, 2)
    assert to_uint8(image) is image
