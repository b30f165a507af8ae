"""What is held out of training to watch it: blocks of spots, and a share of the UMIs of the other spots."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.spatial import cKDTree

from superst_monai.errors import RunError
from superst_monai.model.first_values import fit_baseline
from superst_monai.model.thinning import thin_counts

Ints = NDArray[np.int64]
BLOCK = 4
"""Withheld spots in one block, if nothing else is asked for."""


def withheld_spots(
    xy_um: Sequence[NDArray[np.float64]], share: float, *, block: int = BLOCK, seed: int
) -> list[list[Ints]]:
    """The blocks of spots of each section that a run of this seed withholds.

    Args:
        xy_um: centres of the spots of each section `(S, 2)` [um], in the order of the run.
        share: of the spots of each, in [0, 1).
        block: spots in a block.
        seed: of the run.

    Returns:
        For each section the row numbers of each block, see `held_out_blocks`.
    """
    rng = np.random.default_rng(seed)
    return [held_out_blocks(xy, share, block=block, rng=rng) for xy in xy_um]


def held_out_blocks(xy_um: NDArray[np.float64], share: float, *, block: int, rng: np.random.Generator) -> list[Ints]:
    """Draw blocks of neighbouring spots, so that neighbours do not give a spot away, until `share` is held out.

    Args:
        xy_um: centres of the spots `(S, 2)` [um].
        share: of the spots, in [0, 1).
        block: spots in a block.
        rng: source of randomness.

    Returns:
        Row numbers of each block, disjoint; together round(share * S) spots, but at least one spot is in no block.
    """
    wanted = min(round(share * len(xy_um)), len(xy_um) - 1)
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


def split_counts(
    counts: Sequence[sparse.csr_matrix], trained: Sequence[NDArray[np.bool_]], share: float, *, rng: np.random.Generator
) -> tuple[list[sparse.csr_matrix], list[sparse.csr_matrix]]:
    """Tell the counts to train on from those to score with: withheld spots whole, of other spots a share of the UMIs.

    The share is set aside by `thin_counts` with the baseline and the relative depths of the spots to train on.

    Args:
        counts: of each section `(S, G)`.
        trained: which spots are not withheld `(S,)`, of each section.
        share: of the UMIs to set aside, in [0, 1).
        rng: source of randomness.

    Returns:
        Counts to train on and counts to score with, each `(S, G)` for each section; together they are `counts`.

    Raises:
        RunError: the spots to train on hold no UMI.
    """
    whole, kept = sparse.vstack(counts, format="csr"), np.concatenate(trained)
    left = whole[kept]
    depth = np.asarray(left.sum(axis=1), dtype=np.float64).ravel()
    if not depth.any():
        raise RunError(
            f"the spots to train on need counts, but {len(depth)} spots hold no UMI of the {whole.shape[1]} genes "
            f"({len(kept) - len(depth)} more are withheld); check the tables, or pass a smaller --val-share."
        )
    if share:
        rate = np.exp(fit_baseline(left).log_rate)
        left, _ = thin_counts(left, share, size=depth / depth.mean(), rate=rate, rng=rng)
    place = sparse.identity(len(kept), dtype=whole.dtype, format="csc")[:, kept]
    left = sparse.csr_matrix(place @ left)
    aside = sparse.csr_matrix(whole - left)
    rows = [slice(a, b) for a, b in pairwise(np.cumsum([0, *map(len, trained)]))]
    return [left[part] for part in rows], [aside[part] for part in rows]
