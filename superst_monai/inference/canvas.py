"""What is predicted on: a section or a slide as one plane of pixels at the run's resolution, read window by window."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from superst_monai.data.section import Section, TissueFinder
from superst_monai.data.slide import Slide
from superst_monai.data.store import read_section
from superst_monai.errors import AlignmentError, ResolutionError
from superst_monai.inference.posterior import Window
from superst_monai.transforms.balance import section_glass, white_balance
from superst_monai.transforms.crops import WHITE
from superst_monai.transforms.finish import to_network_range
from superst_monai.transforms.labels import spot_labels
from superst_monai.transforms.stain_moments import StainMoments, stain_moments
from superst_monai.types import Region

_OVERVIEW_MPP = 8.0
"""Resolution at which the tissue of a slide is looked for, if the run's is finer [um/px]."""
_OVERVIEW_PX = 12_000_000
"""Pixels that the tissue is looked for in, at most: 28 mm by 28 mm; larger slides get a coarser overview."""
_FINER = 0.9  # a slide may be a tenth coarser than what is read from it, as in `join_section`


class CoarseMask:
    """A bool plane `(H, W)` that is kept in squares of `factor` pixels, and expanded where it is sliced.

    Args:
        coarse: one entry a square; the last ones may reach beyond the plane.
        factor: side of a square [px].
        shape: H and W [px].
    """

    dtype, ndim = np.dtype(np.bool_), 2

    def __init__(self, coarse: NDArray[np.bool_], factor: int, shape: tuple[int, int]) -> None:
        self.coarse = coarse
        self.factor = factor
        self.shape = shape

    def __getitem__(self, place: tuple[slice, slice]) -> NDArray[np.bool_]:
        """Expand the part of the plane between two rows and two columns."""
        row, col = (np.arange(*part.indices(n)) // self.factor for part, n in zip(place, self.shape, strict=True))
        return self.coarse[row[:, None], col]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Expand the whole plane."""
        return np.asarray(self[:, :], dtype)

    def any(self) -> bool:
        """Whether a pixel is set."""
        return bool(self.coarse.any())


Plane: TypeAlias = NDArray[np.bool_] | CoarseMask
"""A bool plane; boxes of it are sliced."""


@dataclass(frozen=True, eq=False)
class Canvas:
    """A plane of H x W pixels at the resolution of a run.

    Attributes:
        name: of the section or slide.
        mpp: um per pixel.
        slide: properties of the slide.
        tissue: `(H, W)` bool.
        covered: pixels that get a prediction, `(H, W)` bool: tissue, and the spots of a measured section. Elsewhere
            the map is zero, as the model has it: glass between and around pieces of tissue carries no counts.
        read_inside: reads a window that lies within the plane, `(h, w, 3)` uint8; threads may call it.
        glass: colour of the empty glass `(3,)`, for the white balance.
        stains: colours of the tissue in coarse cells.
        sha256: of the planes and, for a section, of its image; the file of a slide has its own in `slide`.
    """

    name: str
    mpp: float
    slide: Mapping[str, Any]
    tissue: Plane
    covered: Plane
    read_inside: Callable[[Window], NDArray[np.uint8]]
    glass: NDArray[np.float64]
    stains: StainMoments
    sha256: str

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width [px]."""
        return self.tissue.shape[0], self.tissue.shape[1]

    def image(self, window: Window) -> Tensor:
        """Read a window, balanced, white beyond the plane, `(3, h, w)` float32 in [-0.9, 0.9]: as in training."""
        height, width = self.shape
        top, left = max(window.row, 0), max(window.col, 0)
        bottom, right = min(window.row + window.height, height), min(window.col + window.width, width)
        pixels = np.full((window.height, window.width, 3), WHITE, np.uint8)
        if top < bottom and left < right:
            inside = white_balance(self.read_inside(Window(top, left, bottom - top, right - left)), self.glass)
            pixels[top - window.row : bottom - window.row, left - window.col : right - window.col] = inside
        return to_network_range(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(WHITE))


@contextmanager
def open_source(path: str | Path, *, slide_mpp: float | None = None) -> Iterator[Section | Slide]:
    """Open what a path names: a section's `.zarr` store, else a slide, which is closed at the end.

    Args:
        path: store of `superst prepare`, or an image that `Slide.open` opens.
        slide_mpp: resolution of a slide whose file does not state it [um per level-0 px].

    Raises:
        StoreError: a folder that is no section.
        SlideError: a file that is no slide.
        ResolutionError: the slide's resolution is unknown.
    """
    path = Path(path)
    if path.suffix == ".zarr" or (path / "zarr.json").is_file():
        yield read_section(path)
        return
    with Slide.open(path, mpp=slide_mpp) as slide:
        yield slide


def canvas_of(source: Section | Slide, mpp: float, find_tissue: TissueFinder) -> Canvas:
    """Lay out a section or slide at a run's resolution.

    Args:
        source: the section, or an open slide.
        mpp: um per pixel.
        find_tissue: finds the tissue of a slide, on an overview; a section has its own.

    Raises:
        ResolutionError: the source is coarser than `mpp`.
        AlignmentError: no tissue.
    """
    canvas = _section_canvas(source, mpp) if isinstance(source, Section) else _slide_canvas(source, mpp, find_tissue)
    if not canvas.covered.any():
        height, width = canvas.shape
        raise AlignmentError(
            f"no tissue found on {canvas.name} ({width} x {height} px at {mpp:g} um); "
            "check that it is a brightfield H&E image and that its mpp is right."
        )
    return canvas


def _section_canvas(section: Section, mpp: float) -> Canvas:
    if section.mpp > mpp * (1 + 1e-6):
        raise ResolutionError(
            f"the run works at {mpp:g} um per pixel, but section {section.name} holds {section.mpp:g}; "
            f"prepare it again with --mpp {mpp:g} or smaller."
        )
    section = section.at(mpp)
    covered = section.tissue
    if section.has_counts:
        covered = spot_labels(section) <= section.n_spots  # 0 is tissue, 1 ... S spots, S + 1 glass

    def read(window: Window) -> NDArray[np.uint8]:
        row, col, height, width = window
        return section.image[row : row + height, col : col + width]

    glass = section_glass(section.image, section.tissue)
    digest = _digest(section.image, section.tissue, covered)
    stains = stain_moments(section.image, section.tissue, glass, mpp)
    return Canvas(section.name, mpp, section.slide, section.tissue, covered, read, glass, stains, digest)


def _slide_canvas(slide: Slide, mpp: float, find_tissue: TissueFinder) -> Canvas:
    """Find the tissue on a coarse read of the slide; the windows are read when they are asked for."""
    finest = max(slide.mpp_x, slide.mpp_y)
    if mpp < _FINER * finest:
        raise ResolutionError(
            f"the run works at {mpp:g} um per pixel, but slide {slide.name} has {finest:.4g}; "
            "take a scan of higher resolution, or a run trained with a larger --mpp."
        )
    width = max(1, round(slide.width_px0 * slide.mpp_x / mpp))
    height = max(1, round(slide.height_px0 * slide.mpp_y / mpp))

    def read(window: Window, factor: int = 1) -> NDArray[np.uint8]:
        step_x, step_y = factor * mpp / slide.mpp_x, factor * mpp / slide.mpp_y  # [level-0 px per px]
        row, col, n_rows, n_cols = window
        return slide.read(Region(col * step_x, row * step_y, n_cols * step_x, n_rows * step_y), factor * mpp)

    factor = max(1, round(_OVERVIEW_MPP / mpp), math.ceil(math.sqrt(height * width / _OVERVIEW_PX)))
    overview = read(Window(0, 0, math.ceil(height / factor), math.ceil(width / factor)), factor)
    coarse = np.asarray(find_tissue(overview, factor * mpp), dtype=np.bool_)
    tissue, glass = CoarseMask(coarse, factor, (height, width)), section_glass(overview, coarse)
    stains = stain_moments(overview, coarse, glass, factor * mpp)
    return Canvas(slide.name, mpp, slide.properties, tissue, tissue, read, glass, stains, _digest(coarse, glass))


def _digest(*arrays: NDArray[Any]) -> str:
    """Hash of what arrays hold."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
