"""Maps of cell types: the composition of blocks of pixels, and one colour for their mixture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib import colormaps
from numpy.typing import NDArray

from superst_monai.analysis.blocks import BlockSums, tissue_blocks
from superst_monai.analysis.cell_types import Decomposition, composition
from superst_monai.analysis.panels import FULL_PERCENTILE
from superst_monai.data.section import Section
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float64]
_FLOOR_PERCENTILE = 5.0


class TypeMaps(NamedTuple):
    """Cell types of one section in blocks of pixels."""

    share: Floats  # (T, h, w), mean over the tissue of a block and the samples, sums to 1 where `inside`
    score: Floats  # (h, w), sum of the scores of a tissue pixel, mean over the same
    inside: NDArray[np.bool_]  # (h, w), half of the block is tissue and has a score
    factor: int  # side of a block [px]


def type_maps(maps: Maps, decomposition: Decomposition, *, longest_px: int) -> TypeMaps:
    """Compute scores of all pixels, tile by tile, and sum them up over blocks.

    A pixel's score of type t in sample n is sum_k activity_nkp scale_np beta_nkt: the scores of pixels add up to those
    of a block, a spot or a region.

    Args:
        maps: of the section.
        decomposition: of its run.
        longest_px: blocks are as small as at most so many along the longer side allow.
    """
    weight = (decomposition.weight / maps.n_samples).astype(np.float32)
    blocks = BlockSums(len(decomposition.cell_types), maps.shape, longest_px=longest_px)
    for place, tile in maps.tiles():
        n_px = tile.shape[-2] * tile.shape[-1]
        flat = tile.transpose(2, 3, 0, 1).reshape(n_px, -1)  # (P, N K)
        score = (flat @ weight.reshape(flat.shape[1], -1)).T.reshape(-1, *tile.shape[-2:])  # (T, h, w)
        blocks.add(place, score * maps.tissue[place])
    n_tissue, inside = tissue_blocks(maps, longest_px=longest_px)
    total = blocks.sums.sum(axis=0)
    inside &= total > 0
    share = composition(np.moveaxis(blocks.sums.astype(np.float64), 0, -1)) * inside[..., None]
    return TypeMaps(
        np.moveaxis(share, -1, 0), np.where(inside, total / np.maximum(n_tissue, 1), 0.0), inside, blocks.factor
    )


def spot_table(maps: Maps, section: Section, decomposition: Decomposition) -> pd.DataFrame:
    """Composition of the spots of a section.

    Returns:
        S rows named by barcode: x_um, y_um, the share of each cell type (mean over samples), and its sd in a column
        with the ending `_sd`; NaN where a spot has no pixel on the maps.
    """
    share = decomposition.share(maps.size_of(maps.spot_label(section), n_supports=section.n_spots))  # (N, S, T)
    share[:, share.sum(axis=(0, 2)) == 0] = np.nan
    table = section.spots[["x_um", "y_um"]].copy()
    table[decomposition.cell_types] = share.mean(axis=0)
    table[[f"{name}_sd" for name in decomposition.cell_types]] = share.std(axis=0, ddof=1)
    return table


def type_colours(n_types: int) -> Floats:
    """Colours of T cell types that are told apart as well as so many can be, `(T, 3)` in 0 ... 1."""
    if n_types <= 10:
        return np.asarray(colormaps["tab10"](np.arange(n_types)))[:, :3]
    if n_types <= 20:
        return np.asarray(colormaps["tab20"](np.arange(n_types)))[:, :3]
    return np.asarray(colormaps["turbo"](np.linspace(0.02, 0.98, n_types)))[:, :3]


class Mixing(NamedTuple):
    """What the colours of a mixture mean, the same on all sections that are compared."""

    floor: Floats  # (T,), share of a type that has none of its colour
    full_score: float  # score from which on a colour is full


def fit_mixing(several: Sequence[TypeMaps]) -> Mixing:
    """Choose the floor of each type, the 5th percentile of its share, and the score from which on colours are full.

    Shares from a marker table are never near 0, and without a floor every mixture of colours would be grey.
    """
    share = np.concatenate([found.share[:, found.inside] for found in several], axis=1)  # (T, P)
    score = np.concatenate([found.score[found.inside] for found in several])
    return Mixing(np.percentile(share, _FLOOR_PERCENTILE, axis=1), float(np.percentile(score, FULL_PERCENTILE)))


def mix_colours(found: TypeMaps, mixing: Mixing) -> NDArray[np.uint8]:
    """Colour of each block `(h, w, 3)`: types mixed by their share above the floor, and with white the lower the score.

    Args:
        found: of `type_maps`.
        mixing: of `fit_mixing`.
    """
    above = np.moveaxis(np.maximum(found.share - mixing.floor[:, None, None], 0), 0, -1)  # (h, w, T)
    amount = composition(above)
    grey = 0.5 * (1 - amount.sum(axis=-1, keepdims=True))  # where no type is above its floor
    mixed = amount @ type_colours(len(found.share)) + grey  # (h, w, 3)
    opacity = (found.score / mixing.full_score).clip(0, 1)[..., None]
    return np.asarray(np.rint(255 * (1 - opacity * (1 - mixed))), dtype=np.uint8)
