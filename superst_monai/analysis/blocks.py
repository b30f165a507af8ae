"""Maps reduced for display while their tiles are read: sums over square blocks of pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from superst_monai.inference.maps import Maps
from superst_monai.inference.sample_tiles import Place


class BlockSums:
    """Sums of C channels over blocks of `factor` x `factor` pixels; those at the far borders may hold less.

    Attributes:
        factor: side of a block [px].
        sums: `(C, h, w)` float32.
    """

    def __init__(self, n_channels: int, shape: tuple[int, int], *, longest_px: int) -> None:
        """Start with zeros; blocks are as small as at most `longest_px` of them along the longer side allow."""
        self.factor = max(1, -(-max(shape) // longest_px))
        self.sums = np.zeros((n_channels, *(-(-side // self.factor) for side in shape)), np.float32)

    def add(self, place: Place, values: NDArray[Any]) -> None:
        """Add the channels `(C, h, w)` of a tile at its place [px of the whole map]."""
        starts = [np.arange(part.start // self.factor, -(-part.stop // self.factor)) for part in place]
        edges = [np.maximum(start * self.factor - part.start, 0) for start, part in zip(starts, place, strict=True)]
        by_rows = np.add.reduceat(values, edges[0], axis=1, dtype=np.float32)
        blocks = np.add.reduceat(by_rows, edges[1], axis=2)
        rows, cols = (slice(start[0], start[-1] + 1) for start in starts)
        self.sums[:, rows, cols] += blocks


def tissue_blocks(maps: Maps, *, longest_px: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Tissue pixels of each block `(h, w)`, and whether they are half of its pixels or more."""
    blocks = BlockSums(2, maps.shape, longest_px=longest_px)
    whole = (slice(0, maps.shape[0]), slice(0, maps.shape[1]))
    blocks.add(whole, np.stack([maps.tissue, np.ones(maps.shape, np.bool_)]))
    n_tissue, n_px = blocks.sums
    return n_tissue, 2 * n_tissue >= n_px


def activity_blocks(maps: Maps, *, longest_px: int) -> tuple[NDArray[np.float32], NDArray[np.float32], int]:
    """Mean activity and scale of blocks of pixels, over posterior samples and the tissue of the block.

    Returns:
        Activity `(K, h, w)`, shares that sum to 1, pixels weighted by their scale; scale `(h, w)` [1/px of the maps];
        both zero where less than half of the block is tissue; and the side of a block [px].
    """
    blocks = BlockSums(maps.n_metagenes, maps.shape, longest_px=longest_px)
    for place, tile in maps.mean_tiles():
        blocks.add(place, tile * maps.tissue[place])
    n_tissue, kept = tissue_blocks(maps, longest_px=longest_px)
    size = blocks.sums.sum(axis=0)
    kept &= size > 0
    activity = np.divide(blocks.sums, size, out=np.zeros_like(blocks.sums), where=kept)
    return activity, np.divide(size, n_tissue, out=np.zeros_like(size), where=kept), blocks.factor
