"""Writes posterior maps into a store, tile by tile: samples, their means, and the distance from the training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray

from superst_monai.errors import RunError
from superst_monai.inference.posterior import Window
from superst_monai.inference.unfinished import Tile, Unfinished

ATTRS = "superst_monai"
MULTIPLIER = 256.0
"""Samples are stored in float16 times this power of two: 11 bits down to 2.4e-7 / px, and up to 255 / px."""
_LARGEST = float(np.finfo(np.float16).max) / MULTIPLIER
DOMAIN_CHANNELS = ("distance", "loglik", "kl")
"""Of the image `domain`: distance from the training in units of its 99th percentile, log p(image | z) and
KL(q(z) || p(z)) of all levels [nat/px]; zero where a block is not tissue by half or more."""


class MapsWriter:
    """Writes tiles into a store whose arrays exist already.

    Args:
        group: root of the store, writable.
        under_way: keeps account of the tiles that are written.

    Attributes:
        domain: the image `domain`, if the layout has one.
    """

    def __init__(self, group: zarr.Group, under_way: Unfinished) -> None:
        """Look up the arrays."""
        self._group = group
        self._under_way = under_way
        self.domain = array_of(group, "images/domain/s0") if "images/domain" in group else None
        self._samples = array_of(group, "posterior/activity")
        self._activity = array_of(group, "images/activity/s0")
        self._scale = array_of(group, "images/scale/s0")
        self._computed = array_of(group, "posterior/computed")
        meta = meta_of(group)
        self._tile_px, self._block_px = int(meta["tile_px"]), meta["block_px"]

    def left(self, windows: Iterable[Window]) -> list[Window]:
        """Those of some tiles that are not on disk yet."""
        return [window for window in windows if self._key(window) not in self._under_way.done]

    def write(self, window: Window, samples: NDArray[np.float32], domain: NDArray[np.float32] | None = None) -> None:
        """Write a whole tile at once; see `write_sample` and `finish_tile`.

        Args:
            window: the tile, cut at the border of the map.
            samples: scaled activity `(N, K, h, w)` [1/px].
            domain: `DOMAIN_CHANNELS` of its blocks.

        Raises:
            RunError: a value is no finite number of at most 255 / px.
        """
        for n, sample in enumerate(samples):
            self.write_sample(window, n, sample)
        self.finish_tile(window, samples.mean(axis=0), domain)

    def write_sample(self, window: Window, n: int, sample: NDArray[np.float32]) -> None:
        """Write one sample of a tile, in float16.

        Args:
            window: the tile, cut at the border of the map.
            n: number of the sample.
            sample: scaled activity `(K, h, w)` [1/px].

        Raises:
            RunError: a value is no finite number of at most 255 / px.
            StoreError: the store belongs to another prediction by now.
        """
        self._under_way.require_own()
        if not float(sample.max()) < _LARGEST:
            raise RunError(
                f"a pixel must have a finite size below that of {_LARGEST:.0f} mean spots, got {sample.max()} at row "
                f"{window.row}, column {window.col}; the training diverged, take an earlier checkpoint."
            )
        stored = np.empty(sample.shape, np.float16)
        np.multiply(sample, np.float32(MULTIPLIER), out=stored, casting="same_kind")
        self._samples[(n, slice(None), *_place(window))] = stored

    def finish_tile(self, window: Window, mean: NDArray[np.float32], domain: NDArray[np.float32] | None = None) -> None:
        """Write what all samples of a tile tell together, and take account of the tile: all of it is on disk now.

        Args:
            window: the tile, cut at the border of the map.
            mean: of its samples `(K, h, w)` [1/px].
            domain: `DOMAIN_CHANNELS` of its blocks `(3, h / block, w / block)`, rounded up.

        Raises:
            StoreError: the store belongs to another prediction by now.
        """
        self._activity[(slice(None), *_place(window))] = mean
        self._scale[(slice(None), *_place(window))] = mean.sum(axis=0, keepdims=True)  # shares sum to 1 over K
        if self.domain is not None and domain is not None:
            row, col = window.row // self._block_px, window.col // self._block_px
            self.domain[:, row : row + domain.shape[1], col : col + domain.shape[2]] = domain
        self._under_way.add(self._key(window))

    def add_record(self, **more: Any) -> None:
        """Add what is known only once all tiles are written to the record."""
        meta = meta_of(self._group)
        self._group.attrs[ATTRS] = meta | {"record": {**meta["record"], **more}}

    def finish(self) -> None:
        """Mark the tiles that are written."""
        computed = np.zeros(self._computed.shape, np.bool_)
        for tile in self._under_way.done:
            computed[tile] = True
        self._computed[...] = computed

    def _key(self, window: Window) -> Tile:
        """Place of a tile in the grid of tiles."""
        return window.row // self._tile_px, window.col // self._tile_px


def _place(window: Window) -> tuple[slice, slice]:
    """Rows and columns of a tile."""
    return slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)


def meta_of(group: zarr.Group) -> dict[str, Any]:
    """Attributes under the project's name, if there are any."""
    meta = group.attrs.get(ATTRS)
    return dict(meta) if isinstance(meta, Mapping) else {}


def array_of(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """An array of a group."""
    return cast("zarr.Array[Any]", group[name])
