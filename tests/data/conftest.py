"""A section whose every part is known: a stained triangle, spots on a grid under it, counts by their number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.platforms.assay import Assay
from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide

MakeAssay = Callable[..., Assay]
MakeSection = Callable[..., Section]


def paint(height: int, width: int) -> NDArray[np.uint8]:
    """White glass with a purple, speckled right-angled triangle that no flip maps onto itself."""
    row, column = np.mgrid[:height, :width] + 0.5
    x, y = column / width - 0.08, row / height - 0.15
    inside = (x >= 0) & (y >= 0) & (x / 0.8 + y / 0.75 <= 1)
    image = np.full((height, width, 3), 240, np.uint8)
    speckle = np.random.default_rng(0).integers(-30, 30, (height, width, 1))
    return np.where(inside[..., None], np.array([150, 90, 170]) + speckle, image).astype(np.uint8)


def purple(image: NDArray[np.uint8], mpp: float) -> NDArray[np.bool_]:
    """Tissue is what is darker than glass in green."""
    return image[..., 1] < 190


@pytest.fixture(scope="session")
def find_purple() -> Callable[[NDArray[np.uint8], float], NDArray[np.bool_]]:
    """The tissue finder of the painted slide."""
    return purple


@pytest.fixture(scope="session")
def make_assay() -> MakeAssay:
    """Spots of 55 um on a 100 um grid under the tissue of a 800 x 600 px slide of 2 um per pixel."""

    def make(*, mpp: float | None = 2.0, factor: float = 1.0, **changes: Any) -> Assay:
        image = paint(600, 800)
        x, y = (grid.ravel() for grid in np.meshgrid(np.arange(25.0, 800, 50), np.arange(25.0, 600, 50)))
        under = image[y.astype(int), x.astype(int), 1] < 190
        x, y = x[under], y[under]
        spots = pd.DataFrame(
            {"x_px0": x * factor, "y_px0": y * factor, "diameter_px0": 27.5 * factor, "array_row": np.arange(len(x))},
            index=pd.Index([f"S{i}" for i in range(len(x))], name="barcode"),
        )
        genes = pd.DataFrame({"gene_id": ["g1", "g2", "g3"]}, index=pd.Index(["A", "B", "C"], name="gene"))
        counts = sparse.csr_matrix(np.arange(len(x))[:, None] * np.array([1, 2, 0]), dtype=np.int32)
        assay = Assay(counts, spots, genes, "visium", image, mpp, {"tissue_hires_scalef": 0.25})
        return replace(assay, **changes) if changes else assay

    return make


@pytest.fixture(scope="session")
def make_section(make_assay: MakeAssay) -> MakeSection:
    """The painted slide joined with an assay, its own by default, at 4 um."""

    def make(
        assay: Assay | None = None, *, alone: bool = False, slide_mpp: float = 2.0, source: str = "", **kwargs: Any
    ) -> Section:
        own = make_assay()
        assert isinstance(own.image, np.ndarray)
        with Slide.from_array(own.image, mpp=slide_mpp, name="painted") as slide:
            joined = None if alone else (assay or own)
            section = join_section(slide, joined, **({"name": "P", "find_tissue": purple, "mpp": 4.0} | kwargs))
        return replace(section, slide=section.slide | {"mpp_source": source}) if source else section

    return make
