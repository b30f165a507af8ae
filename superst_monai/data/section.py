"""A section: a slide, or a slide and its assay, brought to one working resolution in micrometres."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.platforms.assay import Assay
from superst_monai.data.resample import resample, to_uint8
from superst_monai.data.slide import Slide
from superst_monai.errors import AlignmentError, AssayError, ResolutionError, ShapeError
from superst_monai.types import Region

SPOT_COLUMNS = ("x_um", "y_um", "radius_um")
SECOND_PART = ("x2_um", "y2_um")
SHAPES = ("circle", "square")
_ROUNDING = 1e-6  # of float32: half a pixel of tissue is not more than half
TissueFinder = Callable[[NDArray[np.uint8], float], NDArray[np.bool_]]


@dataclass(frozen=True, eq=False)
class Section:
    """A tissue section at one working resolution. Its arrays are read-only: derive, do not edit.

    Attributes:
        name: what the user calls it.
        mpp: um per section pixel, both axes; pixel i covers [i, i + 1) * mpp.
        image: `(H, W, 3)` uint8.
        tissue: `(H, W)` bool.
        counts: raw counts `(S, G)` int32; S = G = 0 for a slide alone.
        spots: S rows named by barcode: x_um, y_um, radius_um (half the side of a square) and further columns. With
            the columns of SECOND_PART a spot has two parts of that size, counted together: merged spots.
        genes: G rows named by gene, column gene_id.
        slide: properties of the slide.
        platform: "visium", "st", "h5ad", or "slide" for a slide alone.
        shape: "circle" or "square".
    Raises:
        ShapeError: arrays and tables do not fit together.
        ResolutionError: mpp is not a positive number.
    """

    name: str
    mpp: float
    image: NDArray[np.uint8]
    tissue: NDArray[np.bool_]
    counts: sparse.csr_matrix
    spots: pd.DataFrame
    genes: pd.DataFrame
    slide: Mapping[str, Any]
    platform: str = "slide"
    shape: str = "circle"

    def __post_init__(self) -> None:
        """Check that the parts fit together and make the rasters read-only."""
        _check_mpp(self.mpp)
        if faults := self._faults():
            raise ShapeError(f"section {self.name}: {'; '.join(faults)}; build it with join_section.")
        for field in ("image", "tissue"):
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    def _faults(self) -> list[str]:
        """What does not fit together, one sentence each."""
        height, width = self.image.shape[:2]
        n_spots, n_genes = self.counts.shape
        missing = [column for column in SPOT_COLUMNS if column not in self.spots]
        rules = {
            f"image must be (H, W, 3) uint8, got {self.image.shape} {self.image.dtype}": self.image.ndim == 3
            and self.image.shape[2] == 3
            and self.image.dtype == np.uint8,
            f"tissue must be ({height}, {width}) bool as the image, got {self.tissue.shape} {self.tissue.dtype}": (
                self.tissue.shape == (height, width) and self.tissue.dtype == np.bool_
            ),
            f"counts must be integers, spots x genes = ({len(self.spots)}, {len(self.genes)}), "
            f"got ({n_spots}, {n_genes}) {self.counts.dtype}": (n_spots, n_genes) == (len(self.spots), len(self.genes))
            and self.counts.dtype.kind == "i",
            f"spots must have the columns {', '.join(SPOT_COLUMNS)}, missing {', '.join(missing)}": not missing,
            "genes must have the column gene_id": "gene_id" in self.genes,
            f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}": self.shape in SHAPES,
        }
        return [rule for rule, holds in rules.items() if not holds]

    @property
    def n_spots(self) -> int:
        """S, the number of spots; 0 for a slide alone."""
        return len(self.spots)

    @property
    def n_genes(self) -> int:
        """G, the number of genes; 0 for a slide alone."""
        return len(self.genes)

    @property
    def has_counts(self) -> bool:
        """Whether the section was sequenced."""
        return self.n_spots > 0

    @property
    def px0_per_px(self) -> tuple[float, float]:
        """Level-0 pixels of the slide per section pixel, x and y."""
        return self.mpp / float(self.slide["mpp_x"]), self.mpp / float(self.slide["mpp_y"])

    def at(self, mpp: float) -> Section:
        """Resample to coarser pixels; micrometres, spots and counts stay.

        Args:
            mpp: um per pixel of the result, not below that of the section.
        Returns:
            The section with area-averaged image and the tissue mask where more than half of a pixel is tissue.
        Raises:
            ResolutionError: mpp is finer than the section's, or not a positive number.
        """
        _check_mpp(mpp)
        if abs(mpp / self.mpp - 1) < 1e-6:
            return self
        if mpp < self.mpp:
            raise ResolutionError(
                f"section {self.name} holds {self.mpp:g} um per pixel and cannot be made finer, got mpp={mpp:g}; "
                f"build it again from the slide with mpp={mpp:g}."
            )
        step = mpp / self.mpp
        rows, columns = (max(1, round(length / step)) for length in self.tissue.shape)
        image, share = (
            resample(raster, start=(0.0, 0.0), step=(step, step), shape=(rows, columns))
            for raster in (self.image, self.tissue[..., None])
        )
        return replace(self, mpp=float(mpp), image=to_uint8(image), tissue=share[..., 0] > 0.5 + _ROUNDING)


def join_section(
    slide: Slide,
    assay: Assay | None,
    *,
    mpp: float = 4.0,
    name: str,
    find_tissue: TissueFinder,
    columns: Mapping[str, str] | None = None,
) -> Section:
    """Bring a slide, and the assay measured on it, to one working resolution.

    Args:
        slide: open slide; its level-0 pixels are the frame of the assay's spots.
        assay: counts and spots; None for a slide alone.
        mpp: um per section pixel; at most a tenth finer than the slide's own.
        name: name of the section, also its column "section" of the spots.
        find_tissue: tissue mask `(H, W)` of an image `(H, W, 3)` and its mpp.
        columns: further columns of the spots with one value for the whole section, such as patient.
    Returns:
        The section. Whether spots and slide share a frame is the matter of `preflight`.
    Raises:
        ResolutionError: mpp is not positive or finer than the slide.
        AssayError: there are no spots, no counts, or a column's name is taken.
        AlignmentError: no tissue was found.
    """
    _check_mpp(mpp)
    if mpp < 0.9 * max(slide.mpp_x, slide.mpp_y):
        finest = max(slide.mpp_x, slide.mpp_y)
        coarser = math.ceil(finest * 10) / 10
        raise ResolutionError(
            f"slide {slide.name} has {finest:.4g} um per pixel, a section cannot be finer, got mpp={mpp:g}; "
            f"pass --mpp {coarser:g} (CLI) / mpp={coarser:g} (Python) or more, or an image of higher resolution."
        )
    image = _whole_image(slide, mpp)
    tissue = np.asarray(find_tissue(image, mpp), dtype=np.bool_)
    _require_tissue(tissue, slide, assay, mpp)
    spots, counts, genes = _spot_tables(slide, assay, name, dict(columns or {}))
    return Section(
        name=name,
        mpp=float(mpp),
        image=image,
        tissue=tissue,
        counts=counts,
        spots=spots,
        genes=genes,
        slide=dict(slide.properties),
        platform="slide" if assay is None else assay.platform,
        shape="circle" if assay is None else assay.shape,
    )


def _check_mpp(mpp: float) -> None:
    if not (math.isfinite(mpp) and mpp > 0):
        raise ResolutionError(f"mpp must be a positive number of um per pixel, got {mpp}; pass for example mpp=4.")


def _require_tissue(tissue: NDArray[np.bool_], slide: Slide, assay: Assay | None, mpp: float) -> None:
    """Refuse a slide without tissue; spots that lie off it tell that the image, not the tissue, is the wrong one."""
    if tissue.any():
        return
    height, width = tissue.shape
    advice = "check that it is a brightfield H&E image and that its mpp is right"
    if assay is not None:
        size = (slide.width_px0, slide.height_px0)
        off = int((assay.spots[["x_px0", "y_px0"]].to_numpy() > size).any(axis=1).sum())
        known = "".join(f", {name} is {factor:.4g}" for name, factor in assay.scale_factors.items())
        if off:
            advice = (
                f"{off} of {len(assay.spots)} spots lie off it, so their coordinates may be those of a larger image: "
                f"pass that image, or its factor to this one with --image-scale{known}"
            )
    raise AlignmentError(f"no tissue found on slide {slide.name} ({width} x {height} px at {mpp:g} um); {advice}.")


def _whole_image(slide: Slide, mpp: float) -> NDArray[np.uint8]:
    """Read the whole slide in pixels of exactly `mpp`: the last one may end half a pixel beyond or before the slide."""
    columns = max(1, round(slide.width_px0 * slide.mpp_x / mpp))
    rows = max(1, round(slide.height_px0 * slide.mpp_y / mpp))
    return slide.read(Region(0.0, 0.0, columns * mpp / slide.mpp_x, rows * mpp / slide.mpp_y), mpp)


def _spot_tables(
    slide: Slide, assay: Assay | None, name: str, columns: dict[str, str]
) -> tuple[pd.DataFrame, sparse.csr_matrix, pd.DataFrame]:
    """Spots in um, counts and genes of the assay; empty ones for a slide alone."""
    if assay is None:
        spots, counts, genes = empty_tables(name)
    else:
        _check_not_empty(assay, name)
        frame = assay.spots
        spots = frame.drop(columns=["x_px0", "y_px0", "diameter_px0"])
        spots.insert(0, "x_um", frame["x_px0"].to_numpy(np.float64) * slide.mpp_x)
        spots.insert(1, "y_um", frame["y_px0"].to_numpy(np.float64) * slide.mpp_y)
        mean_mpp = math.sqrt(slide.mpp_x * slide.mpp_y)
        spots.insert(2, "radius_um", frame["diameter_px0"].to_numpy(np.float64) / 2 * mean_mpp)
        genes, counts = assay.genes.copy(), assay.counts
    taken = sorted({*spots.columns, "section"} & columns.keys())
    if taken:
        raise AssayError(f"section {name} already has the spot column(s) {', '.join(taken)}; choose other names.")
    return spots.assign(section=name, **columns), counts, genes


def empty_tables(name: str) -> tuple[pd.DataFrame, sparse.csr_matrix, pd.DataFrame]:
    """Spots, counts and genes of a slide alone: no rows, the columns of any section."""
    spots = pd.DataFrame({c: np.zeros(0) for c in SPOT_COLUMNS}, index=pd.Index([], name="barcode", dtype=object))
    genes = pd.DataFrame({"gene_id": np.zeros(0, object)}, index=pd.Index([], name="gene", dtype=object))
    return spots.assign(section=name), sparse.csr_matrix((0, 0), dtype=np.int32), genes


def _check_not_empty(assay: Assay, name: str) -> None:
    n_spots, n_genes = assay.counts.shape
    if n_spots == 0 or n_genes == 0 or assay.counts.count_nonzero() == 0:
        raise AssayError(
            f"section {name} needs spots with counts, got {n_spots} spots, {n_genes} genes and "
            f"{int(assay.counts.sum())} counts; check which barcodes and genes were kept."
        )
