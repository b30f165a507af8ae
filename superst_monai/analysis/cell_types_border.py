"""Composition of the tissue as a function of the distance to the border of a region."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from superst_monai.analysis.cell_types import Decomposition, composition
from superst_monai.analysis.credible import summarise
from superst_monai.analysis.several_maps import Named
from superst_monai.errors import RunError

Mask = NDArray[np.bool_]


def signed_distance_um(region: Mask, tissue: Mask, mpp: float) -> NDArray[np.float32]:
    """Distance of each pixel's centre to the border between a region and the other tissue, negative inside.

    The border is where pixels of the region meet pixels of other tissue; that of the tissue with the glass is none. It
    lies half a pixel from the centres on either side, so that to swap the region and the other tissue swaps the sign.

    Args:
        region: `(H, W)`; what is not tissue does not count.
        tissue: `(H, W)`.
        mpp: um per pixel.

    Returns:
        `(H, W)` [um]; NaN outside the tissue.

    Raises:
        RunError: the region holds no tissue, or all of it.
    """
    inside, outside = region & tissue, ~region & tissue
    if not inside.any() or not outside.any():
        raise RunError(
            f"a region must have a border within the tissue, but it holds {int(inside.sum())} of {int(tissue.sum())} "
            "tissue pixels; draw it on a part of the tissue."
        )
    found = np.full(tissue.shape, np.nan, np.float32)
    for part, other, sign in ((outside, inside, 1), (inside, outside, -1)):
        found[part] = sign * (distance_transform_edt(~other)[part] - 0.5) * mpp
    return found


def composition_by_distance(
    several: Sequence[Named],
    regions: Sequence[Mask],
    decomposition: Decomposition,
    *,
    width_um: float = 50.0,
    reach_um: float = 500.0,
) -> pd.DataFrame:
    """Composition of the tissue in bands along the border of a region, over all sections together.

    Args:
        several: the sections.
        regions: the region on each, `(H, W)`; one that is empty leaves the section out.
        decomposition: of `cell_types.decompose`.
        width_um: width of a band [um]; the border lies between two of them.
        reach_um: how far the bands go on either side [um].

    Returns:
        A row for each band with tissue and cell type: distance_um (middle of the band, negative inside), cell_type,
        share, sd, low, high (95 % credible interval), area_um2.

    Raises:
        RunError: the widths are not positive, no section has a border, or nothing is predicted near it.
    """
    if not 0 < width_um <= reach_um < np.inf:
        raise RunError(
            f"bands must be wider than 0 and reach at least one width, got {width_um:g} and {reach_um:g} um; "
            "pass for example 50 and 500."
        )
    n_side = round(reach_um / width_um)
    first = several[0].maps
    sizes = np.zeros((first.n_samples, 2 * n_side, first.n_metagenes))
    area = np.zeros(2 * n_side)
    for one, region in zip(several, regions, strict=True):
        if not region.any():
            continue
        distance = signed_distance_um(region, one.maps.tissue, one.maps.mpp)
        band = np.floor(np.nan_to_num(distance, nan=np.inf).clip(-2 * reach_um, 2 * reach_um) / width_um) + n_side + 1
        label = np.where((band >= 1) & (band <= 2 * n_side), band, 0).astype(np.int32)
        sizes += one.maps.size_of(label, n_supports=2 * n_side)
        area += np.bincount(label.ravel(), minlength=2 * n_side + 1)[1:] * one.maps.mpp**2
    score = decomposition.score(sizes)  # (N, bands, T)
    kept = np.flatnonzero((area > 0) & (score.sum(axis=2) > 0).all(axis=0))
    if kept.size == 0:
        raise RunError("the region must have a border within the tissue of a section, but it is on none; check it.")
    middle = (kept - n_side + 0.5) * width_um
    found = summarise(composition(score[:, kept]))
    index = pd.MultiIndex.from_product([middle, decomposition.cell_types], names=["distance_um", "cell_type"])
    columns = {"share": found.mean, "sd": found.sd, "low": found.low.clip(0, 1), "high": found.high.clip(0, 1)}
    table = pd.DataFrame({name: values.ravel() for name, values in columns.items()}, index=index)
    return table.assign(area_um2=np.repeat(area[kept], len(decomposition.cell_types)))
