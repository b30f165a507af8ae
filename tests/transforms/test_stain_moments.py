"""Colours in coarse cells and at several scales: against a plain version, and on slides whose colours are known."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.transforms.balance import GLASS_LEVEL, white_balance
from superst_monai.transforms.stain_moments import N_FEATURES, SCALES_UM, stain_moments

GLASS = np.array([240.0, 250.0, 230.0])


def plain_moments(image: np.ndarray, tissue: np.ndarray, glass: np.ndarray, side: int) -> np.ndarray:
    """The planes, cell by cell, in double precision; the white balance here rounds no colour."""
    height, width = (-(-n // side) for n in tissue.shape)
    planes = np.zeros((7, height, width))
    level = np.minimum(image * (GLASS_LEVEL / glass), 255.0)
    density = -np.log((level + 1) / (GLASS_LEVEL + 1))
    for i in range(height):
        for j in range(width):
            box = (slice(i * side, (i + 1) * side), slice(j * side, (j + 1) * side))
            values, mask = density[box], tissue[box][..., None]
            sums = np.concatenate([[mask.sum()], (values * mask).sum((0, 1)), (values**2 * mask).sum((0, 1))])
            planes[:, i, j] = sums / side**2
    return planes


def test_cells_hold_the_sums_of_a_plain_loop() -> None:
    """Sides that are no multiple of a cell, and more rows of cells than are looked at together."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (8 * 18 + 3, 45, 3), dtype=np.uint8)
    tissue = rng.random(image.shape[:2]) < 0.6
    found = stain_moments(image, tissue, GLASS, 4.0)
    assert found.cell_um == 32.0
    np.testing.assert_allclose(found.planes, plain_moments(image, tissue, GLASS, 8), rtol=1e-4, atol=1e-6)


def test_the_glass_has_no_density_and_every_scanner_the_same() -> None:
    """A slide under another light, balanced, has the densities of the first."""
    rng = np.random.default_rng(1)
    image = rng.integers(60, 200, (64, 64, 3)).astype(np.uint8)
    tissue = np.ones((64, 64), np.bool_)
    balanced = white_balance(image, GLASS)
    glass = np.full(3, GLASS_LEVEL)
    np.testing.assert_allclose(
        stain_moments(image, tissue, GLASS, 8.0).planes, stain_moments(balanced, tissue, glass, 8.0).planes, rtol=0.02
    )
    empty = np.broadcast_to(np.rint(GLASS).astype(np.uint8), (8, 8, 3))
    density = stain_moments(empty, np.ones((8, 8), np.bool_), GLASS, 8.0).planes[1:4]
    np.testing.assert_allclose(density, 0, atol=1e-6)


def test_features_are_share_mean_and_deviation_at_each_scale() -> None:
    """Half of the slide is glass: means do not feel it, shares do; uniform tissue deviates by nothing."""
    image = np.full((512, 512, 3), 245, np.uint8)
    image[:, 256:] = (150, 80, 140)
    tissue = np.zeros((512, 512), np.bool_)
    tissue[:, 256:] = True
    found = stain_moments(image, tissue, np.full(3, GLASS_LEVEL), 8.0)
    features = np.stack(list(found.features()))
    assert len(features) == N_FEATURES == 7 * len(SCALES_UM)
    density = -np.log((np.array([150, 80, 140]) + 1) / (GLASS_LEVEL + 1))
    middle = features[:7, 64, 70:100]  # the smallest scale, far from the outer border
    np.testing.assert_allclose(middle[0, 10:], 1, atol=1e-4)
    np.testing.assert_allclose(middle[[1, 3, 5]], np.broadcast_to(density[:, None], (3, 30)), rtol=3e-3)
    assert middle[[2, 4, 6]].max() < 0.05
    edge = features[::7, 64, 64]  # the first column of cells with tissue
    np.testing.assert_allclose(edge, [0.69, 0.6, 0.55, 0.52, 0.5], atol=0.03)
    np.testing.assert_allclose(features[1::7, 64, 64], density[0], rtol=5e-3)


def test_deviation_is_that_of_the_pixels() -> None:
    """Tissue of two colours in a fine mixture has the deviation of a coin."""
    rng = np.random.default_rng(2)
    coin = rng.random((256, 256)) < 0.5
    image = np.where(coin[..., None], np.uint8(200), np.uint8(100)).repeat(3, axis=2)
    found = stain_moments(image, np.ones((256, 256), np.bool_), np.full(3, GLASS_LEVEL), 4.0)
    deviation = list(found.features())[2][8:-8, 8:-8].mean()
    assert deviation == pytest.approx(np.log(201 / 101) / 2, rel=0.01)
