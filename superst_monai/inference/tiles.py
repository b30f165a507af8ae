"""The tiles of a map: which are computed, what is read for one, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from superst_monai.errors import SlideError
from superst_monai.inference.canvas import Canvas, Plane
from superst_monai.inference.posterior import Look, TileSampler, Window

Floats = NDArray[np.float32]
Place = tuple[slice, slice]


@dataclass(frozen=True, eq=False)
class Part:
    """The part of a tile that is computed: the box round its covered pixels.

    Attributes:
        tile: the tile, cut at the border of the map.
        window: the box, its corner and sides on the grid of the deepest level; it may go on beyond the map.
        place: rows and columns of the box in the tile, `(h, w)` pixels.
        covered: which of them get a prediction `(h, w)`.
        tissue: which of them are tissue `(h, w)`.
        image: of the window grown by the whole halo, `(3, window.height + 2 whole, window.width + 2 whole)`.
    """

    tile: Window
    window: Window
    place: Place
    covered: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    image: Tensor


def tissue_tiles(covered: Plane, tile_px: int) -> list[Window]:
    """Tiles with at least one covered pixel, cut at the border of the map, row by row."""
    height, width = covered.shape
    grid = (
        Window(row, col, min(tile_px, height - row), min(tile_px, width - col))
        for row in range(0, height, tile_px)
        for col in range(0, width, tile_px)
    )
    return [tile for tile in grid if _box(covered, tile).any()]


def read_part(canvas: Canvas, sampler: TileSampler, tile: Window) -> Part:
    """Read what a tile is drawn from; threads may do so for several tiles at once.

    Args:
        canvas: section or slide.
        sampler: tells grid and halo.
        tile: with a covered pixel; its corner is on the grid of the deepest level.

    Raises:
        SlideError: the slide is damaged there.
    """
    covered = _box(canvas.covered, tile)
    (top, height), (left, width) = (_extent(np.asarray(covered.any(axis)), sampler.multiple) for axis in (1, 0))
    window = Window(tile.row + top, tile.col + left, height, width)
    place = (slice(top, min(top + height, tile.height)), slice(left, min(left + width, tile.width)))
    try:
        image = canvas.image(window.grown(sampler.halo.whole))
    except SlideError as exc:
        bottom, right = tile.row + tile.height, tile.col + tile.width
        exc.add_note(f"It was read for rows {tile.row} to {bottom}, columns {tile.col} to {right} of the map.")
        raise
    return Part(tile, window, place, covered[place], _box(canvas.tissue, tile)[place], image)


def draw_part(sampler: TileSampler, part: Part, look: Look | None = None) -> Iterator[tuple[int, Floats]]:
    """Draw a part of a tile, sample by sample.

    Args:
        sampler: of the run.
        part: of `read_part`.
        look: see `TileSampler.draw`.

    Yields:
        Number of the sample and its scaled activity `(K, h, w)` [1/px] in `part.place`, zero where not covered.
    """
    height, width = part.covered.shape
    mask = part.covered.astype(np.float32)
    for n, sample in sampler.draw(part.image, part.window, look):
        yield n, sample.numpy()[:, :height, :width] * mask


def _box(plane: Plane, tile: Window) -> NDArray[np.bool_]:
    """A tile of a plane."""
    return plane[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]


def _extent(used: NDArray[np.bool_], multiple: int) -> tuple[int, int]:
    """First index and length of the stretch of a line that holds all used pixels, in whole `multiple`s."""
    first, last = np.flatnonzero(used)[[0, -1]]
    start = int(first) // multiple * multiple
    return start, -(-(int(last) + 1 - start) // multiple) * multiple
