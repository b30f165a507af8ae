"""Differential expression between two regions of tissue: log2 fold change of every gene, with its uncertainty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.counted_regions import CountedRegions, expected_rates
from superst_monai.analysis.credible import LEVEL, summarise
from superst_monai.errors import RunError, ShapeError
from superst_monai.inference.maps import Maps

Mask = NDArray[np.bool_]
Per: TypeAlias = Literal["scale", "area"]
UNITS = {"scale": "UMIs per unit of scale", "area": "UMIs per 1000 um2"}
AREA_UM2 = 1000.0  # of the unit of "area"
_CHUNK = 1024  # genes at once


@dataclass(frozen=True, eq=False)
class Region:
    """One region on one section.

    Attributes:
        sizes: metagene sizes `(N, K)`.
        area_um2: of its pixels [um2].
    """

    sizes: NDArray[np.float64]
    area_um2: float


def measure_regions(maps: Maps, a: Mask, b: Mask) -> tuple[Region, Region]:
    """Sum the scaled activity over two regions, which may overlap, in one pass over the pixels.

    Args:
        maps: of the section.
        a: pixels of the one `(H, W)`.
        b: pixels of the other `(H, W)`.

    Raises:
        ShapeError: a mask has not the shape of the maps.
    """
    for mask in (a, b):
        if mask.shape != tuple(maps.shape):
            raise ShapeError(
                f"regions must be (H, W) = {maps.shape} as the maps, got {mask.shape}; draw them on these."
            )
    label = a.astype(np.uint8) + 2 * b.astype(np.uint8)  # 1 in a alone, 2 in b alone, 3 in both
    sizes = maps.size_of(label, n_supports=3).astype(np.float64)  # (N, 3, K)
    one, other = (
        Region(sizes[:, rows].sum(axis=1), float(mask.sum()) * maps.mpp**2) for mask, rows in ((a, [0, 2]), (b, [1, 2]))
    )
    return one, other


def differential(
    several: Sequence[Maps],
    regions: Sequence[tuple[Mask, Mask]],
    *,
    per: Per = "scale",
    level: float = LEVEL,
    counted: CountedRegions | None = None,
) -> pd.DataFrame:
    """Compare the expected expression of all genes in two regions, each of which may lie on several sections.

    In sample n the expression of gene g in region A is E_nAg = sum_k m_nAk exp(log_rate_nkg + logit_ng) / D_nA, summed
    over the sections, with m the metagene sizes of the region and D its scale sum_k m_nAk, or its area. The log2 fold
    change is log2 E_nAg - log2 E_nBg. Divided by scale it compares what a region consists of; divided by area, also how
    much there is.

    Args:
        several: maps of one run, seed and number of samples (`require_one_run`), with the conditions to compare under.
        regions: pixels of A and B on each of them, `(H, W)`.
        per: divide by "scale" or by "area".
        level: probability of the credible interval.
        counted: counts of the spots in both regions. Fold changes then follow them as far as they tell, and the
            intervals hold what the model misses; see `counted_regions`. Without, they are the model's alone.

    Returns:
        G rows, the surest first (by `inverse_cv`): gene_id; `expression_a`, `expression_b` (mean over samples, see
        `UNITS`); log2_fold_change, sd, low, high, inverse_cv, lfsr as in `credible.Credible`.

    Raises:
        RunError: a region has no pixel with predicted expression, or there are fewer than two samples.
        ShapeError: a mask does not fit its maps.

    Source: Bergenstråhle et al. 2022, doi:10.1038/s41587-021-01075-3, differential expression by posterior samples,
        ranked by the inverted coefficient of variation.
    """
    pairs = [measure_regions(maps, *masks) for maps, masks in zip(several, regions, strict=True)]
    sides = [[pair[side] for pair in pairs] for side in range(2)]
    _require_expression(sides)
    divisors = [_divisor(side, per) for side in sides]  # (N,) each
    moves: NDArray[np.float64] | None = None
    if counted is not None:
        moves, _ = counted.moves(composition=per == "scale", seed=int(several[0].record.get("seed") or 0))
    parts = []
    for columns, rates in _rates(several):
        values = [
            sum(np.einsum("nk,nkg->ng", region.sizes, rate) for region, rate in zip(side, rates, strict=True))
            / divisor[:, None]
            for side, divisor in zip(sides, divisors, strict=True)
        ]  # (N, g) each
        fold = np.log2(values[0]) - np.log2(values[1])
        found = summarise(fold if moves is None else fold + moves[:, columns], level=level)
        table = found.table("log2_fold_change", pd.Index(several[0].genes[columns], name="gene"))
        table.insert(0, "gene_id", several[0].gene_ids[columns])
        table.insert(1, "expression_a", values[0].mean(axis=0))
        table.insert(2, "expression_b", values[1].mean(axis=0))
        parts.append(table)
    return pd.concat(parts).sort_values("inverse_cv", ascending=False, kind="stable")


def _rates(several: Sequence[Maps]) -> Iterator[tuple[slice, list[NDArray[np.float64]]]]:
    """Expected UMIs of a unit of each metagene on each section `(N, K, g)`, some genes at a time."""
    for start in range(0, len(several[0].genes), _CHUNK):
        columns = slice(start, start + _CHUNK)
        yield columns, [expected_rates(maps, columns) for maps in several]


def _divisor(regions: Sequence[Region], per: Per) -> NDArray[np.float64]:
    """What the counts of a region are divided by in each sample `(N,)`."""
    if per == "scale":
        return np.asarray(sum(region.sizes.sum(axis=1) for region in regions))
    area = sum(region.area_um2 for region in regions) / AREA_UM2
    return np.full(len(regions[0].sizes), area)


def _require_expression(sides: Sequence[Sequence[Region]]) -> None:
    """Refuse regions without a pixel, or with nothing predicted on them."""
    faults = []
    for name, regions in zip("AB", sides, strict=True):
        if not sum(region.area_um2 for region in regions):
            faults.append(f"region {name} has no pixel")
        elif not (sum(region.sizes.sum(axis=1) for region in regions) > 0).all():
            faults.append(f"on region {name} no expression is predicted, it lies off the tissue")
    if faults:
        raise RunError(f"both regions must hold tissue, but {' and '.join(faults)}; draw them on the tissue.")
