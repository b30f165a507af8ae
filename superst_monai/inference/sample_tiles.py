"""The pixels of posterior maps: samples of scaled activity, read tile by tile or box by box, tiles kept decoded."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, cast

import numpy as np
import zarr
from numpy.typing import NDArray

Place: TypeAlias = tuple[slice, slice]
Floats = NDArray[np.float32]


class SampleTiles:
    """Samples of one store; what no tile holds is zero.

    Attributes:
        shape: `(N, K, H, W)`.
        unit: what a stored number is multiplied by to give the scaled activity [1/px].
    """

    def __init__(self, group: zarr.Group, meta: Mapping[str, Any], *, cache_bytes: int) -> None:
        """Look up the arrays; `meta` are the attributes of the store."""
        self._activity = cast("zarr.Array[Any]", group["posterior/activity"])
        self.shape: tuple[int, ...] = tuple(int(n) for n in self._activity.shape)
        self.unit = np.float32(1 / meta["multiplier"])
        self._side = int(meta["tile_px"])
        self._keys = {(int(i), int(j)) for i, j in np.argwhere(np.asarray(group["posterior/computed"]))}
        self._cache: OrderedDict[tuple[int, int], NDArray[np.float16]] = OrderedDict()
        self._cache_bytes = cache_bytes

    def __iter__(self) -> Iterator[tuple[Place, NDArray[np.float16]]]:
        """Yield the place and the stored samples `(N, K, h * w)` of each computed tile, row by row.

        Where not all tiles have room in the cache none is kept: it would be gone when the next pass comes to it.
        """
        all_bytes = 2 * len(self._keys) * self._side**2 * self.shape[0] * self.shape[1]
        for key in sorted(self._keys):
            tile = self._tile(key, keep=all_bytes <= self._cache_bytes)
            yield self._place(key), tile.reshape(*tile.shape[:2], -1)

    def places(self) -> list[Place]:
        """Places of the computed tiles, row by row."""
        return [self._place(key) for key in sorted(self._keys)]

    def read(self, place: Place) -> Floats:
        """Scaled activity of a box of pixels within the map, `(N, K, h, w)` [1/px]."""
        rows, cols = place
        box = np.zeros((*self.shape[:2], rows.stop - rows.start, cols.stop - cols.start), np.float32)
        down, across = (range(part.start // self._side, -(-part.stop // self._side)) for part in place)
        for key in self._keys.intersection(itertools.product(down, across)):
            to, within = zip(*(_overlap(*pair) for pair in zip(place, self._place(key), strict=True)), strict=True)
            box[(..., *to)] = self._tile(key)[(..., *within)]
        box *= self.unit
        return box

    def _place(self, key: tuple[int, int]) -> Place:
        """Rows and columns of a tile, cut at the border of the map."""
        (top, left), side = (i * self._side for i in key), self._side
        return slice(top, min(top + side, self.shape[2])), slice(left, min(left + side, self.shape[3]))

    def _tile(self, key: tuple[int, int], *, keep: bool = True) -> NDArray[np.float16]:
        """Stored samples `(N, K, h, w)` of a tile; the ones used last stay in memory, this one if it is to be kept."""
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        tile: NDArray[np.float16] = np.asarray(self._activity[(slice(None), slice(None), *self._place(key))])
        if keep:
            self._cache[key] = tile
        while sum(kept.nbytes for kept in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return tile


def _overlap(one: slice, other: slice) -> tuple[slice, slice]:
    """What two stretches of a line share, counted from the start of each."""
    start, stop = max(one.start, other.start), min(one.stop, other.stop)
    return slice(start - one.start, stop - one.start), slice(start - other.start, stop - other.start)
