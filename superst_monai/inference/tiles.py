"""The tiles of a map: which are computed, what is read for one, and how it is drawn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from superst_monai.errors import SlideError
from superst_monai.inference.canvas import Canvas, Plane
from superst_monai.inference.colours import ColourPlane
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
        colours: second reading of the slide; None if the run has none.
        margin: pixels round the window that are drawn with it, since `colours` looks at them; on the same grid.
        reach: which pixels of the window and its margin get a prediction.
        image: of the window grown by the margin and the whole halo, `(3, H, W)`.
    """

    tile: Window
    window: Window
    place: Place
    covered: NDArray[np.bool_]
    tissue: NDArray[np.bool_]
    colours: ColourPlane | None
    margin: int
    reach: NDArray[np.bool_]
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


def read_part(canvas: Canvas, sampler: TileSampler, tile: Window, colours: ColourPlane | None = None) -> Part:
    """Read what a tile is drawn from; threads may do so for several tiles at once.

    Args:
        canvas: section or slide.
        sampler: tells grid and halo.
        tile: with a covered pixel; its corner is on the grid of the deepest level.
        colours: second reading of the slide.

    Raises:
        SlideError: the slide is damaged there.
    """
    covered = _box(canvas.covered, tile)
    (top, height), (left, width) = (_extent(np.asarray(covered.any(axis)), sampler.multiple) for axis in (1, 0))
    window = Window(tile.row + top, tile.col + left, height, width)
    place = (slice(top, min(top + height, tile.height)), slice(left, min(left + width, tile.width)))
    margin = 0 if colours is None else -(-colours.reach_px // sampler.multiple) * sampler.multiple
    drawn = window.grown(margin)
    try:
        image = canvas.image(drawn.grown(sampler.halo.whole))
    except SlideError as exc:
        bottom, right = tile.row + tile.height, tile.col + tile.width
        exc.add_note(f"It was read for rows {tile.row} to {bottom}, columns {tile.col} to {right} of the map.")
        raise
    planes = covered[place], _box(canvas.tissue, tile)[place]
    return Part(tile, window, place, *planes, colours, margin, _padded_box(canvas.covered, drawn), image)


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
    row, col = part.window[:2]
    reach = part.reach.astype(np.float32)
    for n, sample in sampler.draw(part.image, part.window.grown(part.margin), look):
        drawn = sample.numpy() * reach
        if part.colours is not None:
            drawn = part.colours.over(drawn, row=row, col=col, margin=part.margin)
        yield n, drawn[:, :height, :width] * part.covered


def _box(plane: Plane, tile: Window) -> NDArray[np.bool_]:
    """A tile of a plane."""
    return plane[tile.row : tile.row + tile.height, tile.col : tile.col + tile.width]


def _padded_box(plane: Plane, window: Window) -> NDArray[np.bool_]:
    """A window of a plane, False beyond it."""
    height, width = plane.shape
    top, left = max(window.row, 0), max(window.col, 0)
    bottom, right = min(window.row + window.height, height), min(window.col + window.width, width)
    found = np.zeros((window.height, window.width), np.bool_)
    found[top - window.row : bottom - window.row, left - window.col : right - window.col] = plane[
        top:bottom, left:right
    ]
    return found


def _extent(used: NDArray[np.bool_], multiple: int) -> tuple[int, int]:
    """First index and length of the stretch of a line that holds all used pixels, in whole `multiple`s."""
    first, last = np.flatnonzero(used)[[0, -1]]
    start = int(first) // multiple * multiple
    return start, -(-(int(last) + 1 - start) // multiple) * multiple
