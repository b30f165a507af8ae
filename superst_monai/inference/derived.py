"""Maps that derive from others: of quantities that, like a gene, sum over metagenes, or with another law of counts."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from superst_monai.errors import ShapeError
from superst_monai.inference.maps import Maps


def with_rates(maps: Maps, names: Sequence[str], rates: NDArray[np.floating]) -> Maps:
    """Maps of the same slide whose genes are other quantities, such as the expression by cell types.

    What is expected of quantity t in pixel p and sample n is sum_k activity_nkp rates_nkt. Only expectations and their
    spread over the samples have a meaning, not the law of a count.

    Args:
        maps: stays as it is; pixels and cache are shared.
        names: of the T quantities.
        rates: amount of each in a unit of scale of each metagene `(N, K, T)`, not negative.

    Raises:
        ShapeError: rates are not of the samples and metagenes of the maps, or not of the names.
    """
    wanted = (maps.n_samples, maps.n_metagenes, len(names))
    if rates.shape != wanted:
        raise ShapeError(f"rates must be (N, K, T) = {wanted} as the maps and names, got {rates.shape}.")
    changed = copy.copy(maps)
    changed.genes, changed.gene_ids = list(names), list(names)
    with np.errstate(divide="ignore"):
        changed.log_rate = np.log(rates).astype(np.float32)  # minus infinity where there is none
    changed.logit = np.zeros((maps.n_samples, len(names)), np.float32)
    changed._index = {name: i for i, name in enumerate(names)}
    return changed


def without_calibration(maps: Maps) -> Maps:
    """The same maps with the laws of counts that the model has, before the run's recalibration.

    Args:
        maps: stays as it is; pixels and cache are shared.
    """
    changed = copy.copy(maps)
    changed.record = {**maps.record, "calibration": None}
    return changed
