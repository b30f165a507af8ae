"""Spot labels against a slow plain version and the laws of areas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.section import Section
from superst_monai.errors import ShapeError
from superst_monai.transforms.labels import add_outside, draw_spots, spot_labels


def plainly(
    x: NDArray[np.float64], y: NDArray[np.float64], radius: NDArray[np.float64], shape: tuple[int, int], square: bool
) -> NDArray[np.int64]:
    """Ask each pixel for its nearest covering spot, one after the other."""
    label = np.zeros(shape, np.int64)
    for row in range(shape[0]):
        for column in range(shape[1]):
            best = np.inf
            for i in range(len(x)):
                dx, dy = column + 0.5 - x[i], row + 0.5 - y[i]
                inside = max(abs(dx), abs(dy)) <= radius[i] if square else dx**2 + dy**2 <= radius[i] ** 2
                inside |= (row, column) == (np.floor(y[i]), np.floor(x[i]))
                if inside and dx**2 + dy**2 < best:
                    best, label[row, column] = dx**2 + dy**2, i + 1
    return label


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("chunk_px", [1, 500, 4_000_000])
def test_labels_agree_with_the_plain_version(square: bool, chunk_px: int) -> None:
    """Overlapping, tiny and cut spots are drawn as the definition says, in chunks of any size."""
    rng = np.random.default_rng(3)
    x, y = rng.uniform(-6, 36, 40), rng.uniform(-6, 30, 40)
    radius = rng.choice([0.05, 0.4, 2.0, 3.3, 5.0], 40)
    got = draw_spots(x, y, radius, (24, 30), square=square, chunk_px=chunk_px)
    np.testing.assert_array_equal(got, plainly(x, y, radius, (24, 30), square))
    assert got.dtype == np.int64


@pytest.mark.parametrize("radius", [6.0, 6.875, 12.5])
def test_the_mean_area_of_a_circle_is_pi_r2(radius: float) -> None:
    """Over random places the pixels of a spot number pi r^2 within 0.5 %; no single one is off by more than 6 %."""
    rng = np.random.default_rng(0)
    x, y = (np.stack(np.meshgrid(np.arange(20), np.arange(20))).reshape(2, -1) + 1) * 30 + rng.random((2, 400))
    area = np.bincount(draw_spots(x, y, radius, (630, 630)).ravel(), minlength=401)[1:]
    assert abs(area.mean() / (np.pi * radius**2) - 1) < 0.005
    assert np.abs(area / (np.pi * radius**2) - 1).max() < 0.06


def test_squares_that_touch_share_out_the_plane() -> None:
    """Bins of four pixels a side tile the image without gap or overlap."""
    x, y = np.meshgrid(np.arange(5) * 4 + 2.0, np.arange(3) * 4 + 2.0)
    label = draw_spots(x.ravel(), y.ravel(), 2.0, (12, 20), square=True)
    np.testing.assert_array_equal(label, np.kron(np.arange(1, 16).reshape(3, 5), np.ones((4, 4), np.int64)))


def test_overlap_goes_to_the_nearest_centre_and_ties_to_the_first() -> None:
    """Two spots meet halfway; the column that is as near to both belongs to the first."""
    label = draw_spots([2.5, 6.5], [0.5, 0.5], 4.0, (1, 9))
    np.testing.assert_array_equal(label, [[1, 1, 1, 1, 1, 2, 2, 2, 2]])


def test_spots_are_cut_at_the_border_and_never_wrap() -> None:
    """A spot over the right border leaves nothing at the left one, and one off the slide nothing at all."""
    label = draw_spots([9.0, 50.0, -50.0], [5.0, 5.0, -50.0], [3.0, 4.0, 4.0], (10, 10))
    assert not label[:, :6].any()
    assert set(np.unique(label)) == {0, 1}
    np.testing.assert_array_equal(draw_spots([9.0], [5.0], 3.0, (10, 20))[:, :10], label)


def test_a_spot_smaller_than_a_pixel_keeps_its_pixel() -> None:
    """The pixel that holds the centre counts as covered."""
    label = draw_spots([3.05], [1.95], 0.1, (4, 5))
    np.testing.assert_array_equal(np.argwhere(label), [[1, 3]])


def test_no_spots_give_an_empty_label() -> None:
    """A slide alone, and spots that all lie off it, have labels too."""
    assert not draw_spots([], [], [], (3, 4)).any()
    assert draw_spots([99.0], [99.0], 1.0, (3, 4)).shape == (3, 4)


def test_a_wrong_radius_does_not_exhaust_memory() -> None:
    """A spot far larger than the image costs no more than the image."""
    assert (draw_spots([5.0], [5.0], 1e7, (20, 30)) == 1).all()


def test_impossible_spots_are_refused() -> None:
    """Lengths must agree, centres be finite and radii positive; the first fault is named."""
    with pytest.raises(ShapeError, match=r"got \(2,\), \(1,\) and \(\)"):
        draw_spots([1.0, 2.0], [1.0], 1.0, (4, 4))
    with pytest.raises(ShapeError, match=r"2 of 3 do not \(first: spot 1, x_px=nan"):
        draw_spots([1.0, np.nan, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 0.0], (4, 4))


def test_ground_outside_tissue_is_one_more_support() -> None:
    """Pixels off tissue become S + 1 unless a spot holds them; tissue between spots stays 0."""
    label = np.array([[1, 0, 0], [0, 2, 0]])
    tissue = np.array([[False, True, False], [True, True, False]])
    np.testing.assert_array_equal(add_outside(label, tissue, 2), [[1, 0, 3], [0, 2, 3]])
    np.testing.assert_array_equal(label, [[1, 0, 0], [0, 2, 0]])


def test_labels_that_do_not_fit_are_refused() -> None:
    """Label and mask share a shape, and no label exceeds the number of spots."""
    with pytest.raises(ShapeError, match=r"got \(2, 2\) and \(2, 3\)"):
        add_outside(np.zeros((2, 2), np.int64), np.ones((2, 3), bool), 1)
    with pytest.raises(ShapeError, match=r"in 0\.\.1 .*got 0\.\.2"):
        add_outside(np.array([[0, 2]]), np.ones((1, 2), bool), 1)


@pytest.mark.parametrize("shape", ["circle", "square"])
def test_labels_of_a_section_are_drawn_in_its_pixels(shape: str) -> None:
    """Micrometres are divided by the mpp of the section, and the outside follows the mask."""
    tissue = np.zeros((20, 30), bool)
    tissue[:, :20] = True
    spots = pd.DataFrame({"x_um": [20.0, 60.0], "y_um": [20.0, 44.0], "radius_um": 12.0}, index=["a", "b"])
    section = Section(
        name="s",
        mpp=4.0,
        image=np.zeros((20, 30, 3), np.uint8),
        tissue=tissue,
        counts=sparse.csr_matrix(np.ones((2, 1), np.int32)),
        spots=spots,
        genes=pd.DataFrame({"gene_id": ["g"]}, index=["g"]),
        slide={"mpp_x": 1.0, "mpp_y": 1.0},
        shape=shape,
    )
    label = spot_labels(section)
    drawn = draw_spots([5.0, 15.0], [5.0, 11.0], 3.0, (20, 30), square=shape == "square")
    np.testing.assert_array_equal(label, np.where((drawn == 0) & ~tissue, 3, drawn))
    assert (label == 1).sum() == (36 if shape == "square" else 32)
