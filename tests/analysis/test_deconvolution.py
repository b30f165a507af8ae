"""Area under the ROC curve of pixels, and the baseline that spreads spots evenly."""

from __future__ import annotations

import numpy as np
import pytest

from superst_monai.analysis.deconvolution import pixel_auc, spread_evenly
from superst_monai.data.synthetic import make_tissue
from superst_monai.errors import ShapeError


def test_auc_is_the_share_of_ordered_pairs():
    """The area is the share of (in, out) pairs of judged pixels ranked right, ties half (against all pairs)."""
    rng = np.random.default_rng(0)
    score = rng.integers(0, 5, (9, 8)).astype(float)
    truth, mask = rng.random((2, 9, 8)) < 0.5
    inner, outer = score[mask & truth][:, None], score[mask & ~truth][None]
    assert pixel_auc(score, truth, mask) == pytest.approx(((inner > outer) + 0.5 * (inner == outer)).mean())


def test_auc_ignores_what_is_not_judged():
    """Scores off the mask may be anything, NaN included."""
    score = np.array([[1.0, 2.0, np.nan]])
    truth = np.array([[False, True, True]])
    assert pixel_auc(score, truth, np.array([[True, True, False]])) == 1.0
    with pytest.raises(ShapeError, match="finite, got 1 that are not of 3"):
        pixel_auc(score, truth, np.ones((1, 3), dtype=bool))


def test_auc_refuses_what_it_cannot_judge():
    """Maps of different shape and pixels of one kind raise."""
    ones = np.ones((2, 3), dtype=bool)
    with pytest.raises(ShapeError, match=r"\(2, 3\), \(3, 2\) and \(2, 3\)"):
        pixel_auc(np.ones((2, 3)), ones.T, ones)
    with pytest.raises(ShapeError, match="got 6 in it of 6"):
        pixel_auc(np.ones((2, 3)), ones, ones)
    with pytest.raises(ShapeError, match="got 0 in it of 6"):
        pixel_auc(np.ones((2, 3)), ~ones, ones)


@pytest.mark.parametrize("varying", [False, True], ids=["one radius", "two radii"])
def test_spread_gives_the_spot_whose_edge_is_nearest(varying):
    """Every pixel takes the value of the spot with the nearest edge (against all distances)."""
    rng = np.random.default_rng(1)
    x, y = rng.uniform(0, 20, (2, 7))
    radius = np.where(np.arange(7) % 2, 4.0, 2.0) if varying else 3.0
    values = rng.random(7).astype(np.float32)
    row, col = np.indices((15, 22))
    gap = np.hypot(col[..., None] + 0.5 - x, row[..., None] + 0.5 - y) - radius
    got = spread_evenly(values, x, y, radius, (15, 22))
    np.testing.assert_array_equal(got, values[gap.argmin(-1)])
    assert got.dtype == np.float32


def test_spread_needs_spots_and_one_number_each():
    """No spot, or columns of different length, raise."""
    with pytest.raises(ShapeError, match="got 0, 0, 0 and 0"):
        spread_evenly(np.ones(0), np.ones(0), np.ones(0), 2.0, (3, 3))
    with pytest.raises(ShapeError, match="got 2, 2, 3 and 2"):
        spread_evenly(np.ones(2), np.ones(2), np.ones(3), 2.0, (3, 3))


def test_spots_alone_do_not_find_the_cells_of_the_synthetic_tissue():
    """Markers spread evenly leave the subtypes mixed (AUC 0.6-0.85) where their true maps separate them (AUC 1)."""
    tissue = make_tissue(seed=0, size_px=400, mpp=4.0, n_genes=40)
    for kind, name in enumerate(("circle", "square", "triangle"), start=1):
        mine = (tissue.genes["subtype"] == name).to_numpy()
        total = tissue.counts.toarray()[:, mine].sum(1)
        place = tissue.spots["x_px0"].to_numpy(), tissue.spots["y_px0"].to_numpy()
        even = spread_evenly(total.astype(float), *place, 7.5, tissue.tissue.shape)
        exact = np.add.reduce([tissue.expected(gene) for gene in tissue.genes.index[mine]])
        assert pixel_auc(exact, tissue.truth(kind), tissue.tissue) > 0.999
        assert 0.6 < pixel_auc(even, tissue.truth(kind), tissue.tissue) < 0.85
