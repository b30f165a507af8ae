"""Pixels and square bins: a grid of squares of any size over the slide."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from superst_monai.analysis.supports import Floats, Piece, Supports
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps

_BLOCK_PX = 256  # pixels along a side that are summed at once
CHUNK = 256  # bins along a side of the squares that blocks come in, a power of two
_MOST = 2**28  # bins of a grid whose supports are counted


class Block(NamedTuple):
    """Sums over some bins that lie together."""

    rows: slice  # of the grid
    cols: slice
    sizes: Floats  # (N, K, h, w), metagene sizes
    covered_px: Floats  # (h, w), area that was predicted [px]
    done: float  # share of the slide that is summed


class Grid(Supports):
    """Squares that start at the slide's upper left corner; bin (i, j) covers [j, j + 1) x [i, i + 1) times `size_um`.

    A pixel that lies in several bins is shared out by area, so that the sum over all bins is the sum over all pixels
    whatever the size. A bin smaller than a pixel is a share of it and knows no more. Only bins with a predicted pixel
    are supports; their order is row by row.

    Attributes:
        shape: rows and columns of the whole grid.
        size_um: side of a bin [um].
        block: bins along a side of what `blocks` yields, a power of two.

    Args:
        maps: the maps to lay it on.
        size_um: side of a bin [um]; that of a pixel if not given.

    Raises:
        RunError: the size is not a positive number, or more than the slide.
    """

    def __init__(self, maps: Maps, size_um: float | None = None) -> None:
        """Lay the grid."""
        self.kind = "pixels" if size_um is None else "bins"
        self.size_um: float = maps.mpp if size_um is None else float(size_um)
        longest = max(maps.shape) * maps.mpp
        if not 0 < self.size_um <= longest:
            raise RunError(
                f"bins must be larger than 0 and at most as long as the slide, {longest:g} um, got {size_um:g} um; "
                "pass for example 8."
            )
        self._pitch = self.size_um / maps.mpp  # [px]
        self._maps = maps
        rows, cols = (math.ceil(round(side / self._pitch, 6)) for side in maps.shape)
        self.shape = (rows, cols)
        self.block = min(CHUNK, 2 ** max(0, math.floor(math.log2(_BLOCK_PX / self._pitch))))
        if self._pitch < 1:
            self.notes = (
                f"bins of {self.size_um:g} um are smaller than the pixels of {maps.mpp:g} um: each is a share of one.",
            )

    def blocks(self) -> Iterator[Block]:
        """Yield the sums over the bins, block by block; blocks without a predicted pixel are left out.

        Those within one square of `CHUNK` bins follow each other.
        """
        for rows, cols, covered_px, done in self._coverage():
            parts = itertools.product(self._overlap(rows, 0).parts(), self._overlap(cols, 1).parts())
            sums = [_pool(self._maps.read((down.pixels, across.pixels)), down, across) for down, across in parts]
            yield Block(rows, cols, functools.reduce(np.add, sums), covered_px, done)

    def pieces(self, maps: Maps) -> Iterator[Piece]:
        """Yield the sums over the bins that hold a predicted pixel; `maps` are those it was laid on."""
        for block in self.blocks():
            rows = self._number[block.rows, block.cols].astype(np.int64)
            some = rows >= 0
            sizes = block.sizes[:, :, some].transpose(0, 2, 1)  # (N, s, K)
            yield Piece(rows[some], sizes, block.covered_px[some], block.done)

    def __len__(self) -> int:
        """Number of bins with a predicted pixel."""
        return int(self._number.max(initial=-1)) + 1

    def table(self) -> pd.DataFrame:
        """S rows named by size, row and column: array_row, array_col, x_um, y_um, area_um2."""
        row, col = np.nonzero(self._number >= 0)
        height, width = (
            np.minimum((at + 1) * self.size_um, side * self._maps.mpp) - at * self.size_um
            for at, side in zip((row, col), self._maps.shape, strict=True)
        )
        names = [f"{self.size_um:g}um_{i}_{j}" for i, j in zip(row.tolist(), col.tolist(), strict=True)]
        columns = {
            "array_row": row,
            "array_col": col,
            "x_um": (col + 0.5) * self.size_um,
            "y_um": (row + 0.5) * self.size_um,
            "area_um2": height * width,
        }
        return pd.DataFrame(columns, index=pd.Index(names, name="bin"))

    def outlines_um(self) -> NDArray[Any]:
        """Squares `(S,)` [um]."""
        row, col = np.nonzero(self._number >= 0)
        size = self.size_um
        squares: NDArray[Any] = shapely.box(col * size, row * size, (col + 1) * size, (row + 1) * size)
        return squares

    @cached_property
    def _number(self) -> NDArray[np.int32]:
        """Number of each bin of the grid as a support, row by row; -1 where nothing was predicted.

        Raises:
            RunError: there are too many bins to count.
        """
        rows, cols = self.shape
        if rows * cols > _MOST:
            raise RunError(
                f"{self.kind} of {self.size_um:g} um are {rows:,} x {cols:,} on this slide, but a table holds at most "
                f"{_MOST / 1e6:.0f} million; pass larger bins, or write an image (.ome.tif, .ome.zarr)."
            )
        some = np.zeros(self.shape, bool)
        for down, across, covered_px, _ in self._coverage():
            some[down, across] = covered_px > 0
        number = np.full(self.shape, -1, np.int32)
        number[some] = np.arange(some.sum())
        return number

    def _coverage(self) -> Iterator[tuple[slice, slice, Floats, float]]:
        """Yield blocks of bins with the area in each that was predicted [px], those that have some, and progress."""
        corners = [
            (top, left)
            for chunk in itertools.product(*(range(0, side, CHUNK) for side in self.shape))
            for top, left in itertools.product(*(range(at, at + CHUNK, self.block) for at in chunk))
            if top < self.shape[0] and left < self.shape[1]
        ]
        for number, corner in enumerate(corners, start=1):
            rows, cols = (slice(at, min(at + self.block, side)) for at, side in zip(corner, self.shape, strict=True))
            down, across = self._overlap(rows, 0), self._overlap(cols, 1)
            covered = self._maps.covered[down.pixels, across.pixels]
            if covered.any():
                yield rows, cols, _pool(covered.astype(np.float32), down, across), number / len(corners)

    def _overlap(self, bins: slice, axis: int) -> _Overlap:
        """How bins of an axis share out its pixels."""
        edges = np.round(np.arange(bins.start, bins.stop + 1) * self._pitch, 9).clip(max=self._maps.shape[axis])
        pixels = slice(math.floor(edges[0]), math.ceil(edges[-1]))
        lines = np.arange(pixels.start + 1, pixels.stop)
        cuts = np.union1d(edges, lines)
        middle = (cuts[1:] + cuts[:-1]) / 2
        bin_ = np.searchsorted(edges, middle)
        first = np.flatnonzero(np.diff(bin_, prepend=0))
        return _Overlap(pixels, np.floor(middle).astype(np.int64) - pixels.start, np.diff(cuts), first)


class _Overlap(NamedTuple):
    """Pixels of one axis cut at the borders of bins, in order."""

    pixels: slice  # that the bins touch
    pixel: NDArray[np.int64]  # of each cut stretch, from the first of `pixels` on
    length: NDArray[np.float64]  # of each stretch [px]
    first: NDArray[np.int64]  # the stretch that each bin begins with

    def parts(self) -> Iterator[_Overlap]:
        """Split what one large bin touches into boxes that fit in memory; they add up to the bin."""
        start, stop = self.pixels.start, self.pixels.stop
        if stop - start <= 2 * _BLOCK_PX:
            yield self
            return
        for low in range(0, stop - start, _BLOCK_PX):
            some = (self.pixel >= low) & (self.pixel < low + _BLOCK_PX)
            pixels = slice(start + low, min(start + low + _BLOCK_PX, stop))
            yield _Overlap(pixels, self.pixel[some] - low, self.length[some], self.first)


def _pool(values: Floats, down: _Overlap, across: _Overlap) -> Floats:
    """Sum a raster `(..., h, w)` over bins."""
    return _pool_last(_pool_last(values, across).swapaxes(-1, -2), down).swapaxes(-1, -2)


def _pool_last(values: Floats, over: _Overlap) -> Floats:
    """Sum the last axis over bins."""
    if len(over.first) == len(over.pixel) == values.shape[-1]:  # a bin a pixel
        return values * over.length.astype(np.float32)
    cut = values[..., over.pixel] * over.length.astype(np.float32)
    return np.add.reduceat(cut, over.first, axis=-1)
