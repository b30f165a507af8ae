"""Which spots are held out of training to watch it: compact blocks, so that neighbours do not give them away."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Ints = NDArray[np.int64]


def held_out_blocks(xy_um: NDArray[np.float64], share: float, *, block: int, rng: np.random.Generator) -> list[Ints]:
    """Draw blocks of neighbouring spots until `share` of them is held out.

    Args:
        xy_um: centres of the spots `(S, 2)` [um].
        share: of the spots, in [0, 1).
        block: spots in a block.
        rng: source of randomness.

    Returns:
        Row numbers of each block, disjoint; together round(share * S) spots, none for a share of 0.
    """
    wanted = round(share * len(xy_um))
    free = np.ones(len(xy_um), dtype=bool)
    blocks: list[Ints] = []
    tree = cKDTree(xy_um) if len(xy_um) else None
    while wanted > 0 and tree is not None:
        centre = rng.choice(np.flatnonzero(free))
        near = np.atleast_1d(tree.query(xy_um[centre], k=min(block, len(xy_um)))[1])
        near = near[free[near]][:wanted]
        free[near] = False
        wanted -= len(near)
        blocks.append(near.astype(np.int64))
    return blocks
