"""Sections: the join of slide and assay in micrometres, and their resampling."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.platforms.assay import Assay
from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.errors import AlignmentError, AssayError, ResolutionError, ShapeError

Finder = Callable[[NDArray[np.uint8], float], NDArray[np.bool_]]


def test_a_joined_section_is_in_micrometres(
    make_assay: Callable[..., Assay], make_section: Callable[..., Section]
) -> None:
    """Centres and radii are level-0 pixels times mpp; counts, genes and further columns are those of the assay."""
    assay = make_assay()
    section = make_section(columns={"patient": "p1"})
    np.testing.assert_allclose(section.spots["x_um"], assay.spots["x_px0"] * 2)
    np.testing.assert_allclose(section.spots["y_um"], assay.spots["y_px0"] * 2)
    np.testing.assert_allclose(section.spots["radius_um"], 27.5)
    assert list(section.spots.columns) == ["x_um", "y_um", "radius_um", "array_row", "section", "patient"]
    assert set(section.spots["section"]) == {"P"}
    assert set(section.spots["patient"]) == {"p1"}
    assert (section.counts != assay.counts).nnz == 0
    assert (section.platform, section.shape, section.mpp) == ("visium", "circle", 4.0)
    assert (section.n_spots, section.n_genes, section.has_counts) == (len(assay.spots), 3, True)
    assert section.image.shape == (300, 400, 3)
    assert section.px0_per_px == (2.0, 2.0)
    assert section.slide["width_px0"] == 800


def test_the_tissue_under_a_spot_stays_under_it(make_section: Callable[..., Section]) -> None:
    """Every spot, divided by the mpp, lies on a purple pixel."""
    section = make_section()
    column, row = np.floor(section.spots[["x_um", "y_um"]].to_numpy().T / section.mpp).astype(int)
    assert section.tissue[row, column].all()


def test_a_pixel_that_is_not_square_keeps_both_axes(find_purple: Finder, make_assay: Callable[..., Assay]) -> None:
    """With another mpp in x and y the two axes are scaled each by its own, the radius by their geometric mean."""
    assay = make_assay()
    slide = Slide.from_array(assay.image, mpp=2.0, name="s")
    slide.mpp_x = 1.0
    section = join_section(slide, assay, mpp=4.0, name="P", find_tissue=find_purple)
    assert section.image.shape == (300, 200, 3)
    np.testing.assert_allclose(section.spots["x_um"], assay.spots["x_px0"])
    np.testing.assert_allclose(section.spots["y_um"], assay.spots["y_px0"] * 2)
    np.testing.assert_allclose(section.spots["radius_um"], 13.75 * np.sqrt(2))


def test_a_slide_alone_is_a_section_without_spots(make_section: Callable[..., Section]) -> None:
    """Without assay there are no spots and no genes, and the columns are those of any section."""
    section = make_section(alone=True)
    assert (section.n_spots, section.n_genes, section.has_counts, section.platform) == (0, 0, False, "slide")
    assert section.counts.shape == (0, 0)
    assert list(section.spots.columns) == ["x_um", "y_um", "radius_um", "section"]


def test_spots_and_genes_without_counts_are_kept(make_section: Callable[..., Section]) -> None:
    """Zero rows and zero columns are data."""
    section = make_section()
    assert section.counts[0].nnz == 0
    assert section.counts[:, 2].nnz == 0


@pytest.mark.parametrize("mpp", [4.0, 8.0, 10.0, 17.0, 40.0])
def test_coarser_pixels_keep_the_mean_and_the_micrometres(mpp: float, make_section: Callable[..., Section]) -> None:
    """Resampling conserves the mean colour and the area of tissue; spots and counts are the same objects."""
    section = make_section()
    coarse = section.at(mpp)
    height, width = section.tissue.shape
    assert coarse.tissue.shape == (round(height * 4 / mpp), round(width * 4 / mpp))
    inner = section.image[: int(coarse.tissue.shape[0] * mpp / 4), : int(coarse.tissue.shape[1] * mpp / 4)]
    np.testing.assert_allclose(coarse.image.mean((0, 1)), inner.mean((0, 1)), atol=0.5)
    np.testing.assert_allclose(coarse.tissue.sum() * mpp**2, section.tissue.sum() * 16, rtol=0.05)
    assert coarse.spots is section.spots
    assert coarse.mpp == mpp


def test_a_mask_pixel_needs_more_than_half_tissue(make_section: Callable[..., Section]) -> None:
    """Of four pixels three make tissue, two do not."""
    section = make_section()
    tissue = np.zeros_like(section.tissue)
    tissue[0:2, 0:2] = [[True, True], [True, False]]
    tissue[0:2, 2:4] = [[True, True], [False, False]]
    np.testing.assert_array_equal(replace(section, tissue=tissue).at(8.0).tissue[0, :3], [True, False, False])


def test_the_same_resolution_is_the_same_section(make_section: Callable[..., Section]) -> None:
    """Within float noise nothing is resampled; finer pixels cannot be made."""
    section = make_section()
    assert section.at(4.0 * (1 + 1e-9)) is section
    with pytest.raises(ResolutionError, match="cannot be made finer, got mpp=2"):
        section.at(2.0)
    with pytest.raises(ResolutionError, match="positive number of um per pixel, got -1"):
        section.at(-1.0)


def test_a_section_is_read_only(make_section: Callable[..., Section]) -> None:
    """Neither its fields nor its pixels can be set; the caller's own array stays writable."""
    section = make_section()
    with pytest.raises(ValueError, match="read-only"):
        section.image[0, 0] = 0
    with pytest.raises(FrozenInstanceError, match="mpp"):
        section.mpp = 1.0  # type: ignore[misc]
    mask = np.ones_like(section.tissue)
    replace(section, tissue=mask)
    mask[0, 0] = False


def test_an_empty_section_is_refused(
    make_assay: Callable[..., Assay], make_section: Callable[..., Section], find_purple: Finder
) -> None:
    """No spots, no counts or no tissue: each is an error that says what came."""
    assay = make_assay()
    none = replace(assay, counts=assay.counts[:0], spots=assay.spots[:0])
    with pytest.raises(AssayError, match="got 0 spots, 3 genes and 0 counts"):
        make_section(none)
    with pytest.raises(AssayError, match=r"got \d+ spots, 3 genes and 0 counts"):
        make_section(replace(assay, counts=assay.counts * 0))
    no_tissue = {"find_tissue": lambda image, mpp: np.zeros(image.shape[:2], bool)}
    with pytest.raises(AlignmentError, match=r"no tissue found on slide painted \(400 x 300 px at 4 um\); check that"):
        make_section(**no_tissue)
    far = replace(assay, spots=assay.spots.assign(x_px0=5000.0), scale_factors={"tissue_hires_scalef": 0.1})
    with pytest.raises(
        AlignmentError, match=r"(\d+) of \1 spots lie off it.*--image-scale, tissue_hires_scalef is 0.1"
    ):
        make_section(far, **no_tissue)


def test_resolution_finer_than_the_slide_is_refused(make_section: Callable[..., Section]) -> None:
    """A working mpp below the slide's is empty magnification; a tenth is let pass."""
    assert make_section(mpp=1.9).image.shape == (632, 842, 3)
    with pytest.raises(ResolutionError, match=r"slide painted has 2 um per pixel.*got mpp=1; pass --mpp 2 .* or more"):
        make_section(mpp=1.0)
    with pytest.raises(ResolutionError, match="got nan"):
        make_section(mpp=float("nan"))


@pytest.mark.parametrize("column", ["x_um", "array_row", "section"])
def test_a_column_cannot_replace_one_of_the_section(column: str, make_section: Callable[..., Section]) -> None:
    """The caller's columns are further columns."""
    with pytest.raises(AssayError, match=f"already has the spot column\\(s\\) {column}"):
        make_section(columns={column: "x", "patient": "p"})


WRONG: dict[str, Any] = {
    r"image must be \(H, W, 3\) uint8": {"image": np.zeros((300, 400, 4), np.uint8)},
    r"tissue must be \(300, 400\) bool": {"tissue": np.zeros((300, 399), bool)},
    "counts must be integers": {"counts": sparse.csr_matrix((2, 3), dtype=np.int32)},
    r"columns x_um, y_um, radius_um, missing y_um, radius_um": {"spots": pd.DataFrame({"x_um": np.zeros(5)})},
    "genes must have the column gene_id": {"genes": pd.DataFrame(index=["a", "b", "c"])},
    "shape must be one of circle, square, got 'hexagon'": {"shape": "hexagon"},
}


@pytest.mark.parametrize("fault", WRONG)
def test_parts_that_do_not_fit_are_refused(fault: str, make_section: Callable[..., Section]) -> None:
    """Shapes and columns are checked whenever a section is built."""
    with pytest.raises(ShapeError, match=fault):
        replace(make_section(), **WRONG[fault])


def test_a_whole_section_joins_in_seconds(shared_data: Path, find_purple: Finder) -> None:
    """A slide of 92 megapixels comes down to 4 um within half a minute on one core."""
    start = time.perf_counter()
    with Slide.open(shared_data / "her2st" / "C2.jpg", mpp=0.69) as slide:
        section = join_section(slide, None, mpp=4.0, name="C2", find_tissue=find_purple)
    assert time.perf_counter() - start < 30
    assert section.image.shape == (1710, 1600, 3)
    assert 0.1 < section.tissue.mean() < 0.3
