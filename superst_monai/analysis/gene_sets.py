"""How much of a pixel's expression some genes make up, with its posterior spread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray

from superst_monai.errors import RunError
from superst_monai.inference.maps import open_maps

_BLOCK_PX = 65_536  # pixels whose samples are in memory at once


class Share(NamedTuple):
    """Share of the expected UMIs of a pixel, over posterior samples; 0 where nothing is expected."""

    mean: NDArray[np.float32]  # (H, W)
    sd: NDArray[np.float32]  # (H, W)


def gene_set_shares(maps_path: Path | str, sets: Mapping[str, Sequence[str]]) -> dict[str, Share]:
    """Map the share of each set of genes among all genes of posterior maps, `(H, W)` each.

    In every posterior sample the expected UMIs of a pixel's set are divided by those of all genes, then the samples
    are averaged. Memory is that of the samples of a few rows of pixels.

    Args:
        maps_path: store of posterior maps.
        sets: genes by the name of the set, each at least one.

    Raises:
        RunError: a set is empty or holds genes that the maps do not have.
        StoreError: the maps cannot be read.
    """
    maps = open_maps(maps_path)
    order = {gene: column for column, gene in enumerate(maps.genes)}
    faults = [f"{name} lacks {g}" for name, genes in sets.items() for g in genes if g not in order]
    faults += [f"{name} is empty" for name, genes in sets.items() if not genes]
    if faults:
        raise RunError(f"gene sets must hold genes of the maps, but {'; '.join(faults[:10])}; choose others.")
    rate = np.exp(maps.log_rate + maps.logit[:, None])  # (N, K, G)
    part = np.stack([rate[..., [order[g] for g in genes]].sum(-1) for genes in sets.values()], axis=-1)  # (N, K, J)
    activity = zarr.open_array(str(maps_path), path="posterior/activity", mode="r")
    every = rate.sum(-1)[..., None]  # (N, K, 1)
    mean, sd = _share_of_samples(activity, part, every)
    return {name: Share(mean[j], sd[j]) for j, name in enumerate(sets)}


def _share_of_samples(
    activity: Any, part: NDArray[np.float32], every: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation over samples of the shares `(J, H, W)`.

    Args:
        activity: stored samples `(N, K, H, W)`, in any unit: it cancels.
        part: expected UMIs of the sets at unit activity `(N, K, J)`.
        every: of all genes `(N, K, 1)`.
    """
    _, _, height, width = activity.shape
    mean, sd = (np.empty((part.shape[-1], height, width), np.float32) for _ in range(2))
    rows = max(1, _BLOCK_PX // width)
    for start in range(0, height, rows):
        block = activity[:, :, start : start + rows].astype(np.float32)  # (N, K, h, W)
        some, whole = (np.einsum("nkhw,nkj->njhw", block, rates, optimize=True) for rates in (part, every))
        share = np.where(whole > 0, some / np.where(whole > 0, whole, 1.0), 0.0)  # (N, J, h, W)
        mean[:, start : start + rows], sd[:, start : start + rows] = share.mean(0), share.std(0)
    return mean, sd
