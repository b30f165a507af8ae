"""Metagenes of a run: what genes each stands for, with uncertainty, and how much of the tissue it makes up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.credible import LEVEL, summarise
from superst_monai.analysis.several_maps import Named, tissue_sizes
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float64]


def section_shares(several: Sequence[Named]) -> tuple[Floats, pd.DataFrame]:
    """How the expression of the tissue is shared out among metagenes.

    Returns:
        Share of each metagene in the scale of all sections together, by sample `(N, K)`; and a table with a row for
        each metagene and section: share (mean over samples) and its sd.

    Raises:
        RunError: nothing is predicted on the tissue of a section.
    """
    sizes = [tissue_sizes(one.maps) for one in several]  # (N, K) each
    rows = []
    for one, size in zip(several, sizes, strict=True):
        share = size / size.sum(axis=1, keepdims=True)
        for k, values in enumerate(share.T):
            rows.append((metagene_name(k), one.name, values.mean(), values.std(ddof=1) if len(values) > 1 else np.nan))
    table = pd.DataFrame(rows, columns=["metagene", "section", "share", "sd"])
    whole = np.sum(sizes, axis=0)
    return whole / whole.sum(axis=1, keepdims=True), table


def metagene_name(k: int) -> str:
    """Name of metagene k, counted from 0, as in the store."""
    return f"metagene_{k + 1}"


def profiles(maps: Maps, share: Floats, *, level: float = LEVEL) -> Iterator[tuple[int, pd.DataFrame]]:
    """Yield the profile of each metagene in use: log2 fold change of every gene against the mean of the tissue.

    In sample n it is log2 r_nkg - log2 sum_j share_nj r_njg, with r the rates. Effects of covariates, the same in all
    metagenes, cancel; and the numbers do not depend on how the rates are split into baseline and profile.

    Args:
        maps: of the run.
        share: of each metagene, from `section_shares`, `(N, K)`; a metagene without any share is not in use.
        level: probability of the credible interval.

    Yields:
        k, and G rows: gene_id, log2_fold_change (mean), sd, low, high, inverse_cv, lfsr as in `credible.Credible`.

    Raises:
        RunError: fewer than two samples.
    """
    top = maps.log_rate.max(axis=1).astype(np.float64)  # (N, G); kept out of the exponential
    mixed = np.einsum("nk,nkg->ng", share, np.exp(maps.log_rate - top[:, None]))
    mean = np.log(mixed) + top  # (N, G)
    index = pd.Index(maps.genes, name="gene")
    for k in np.flatnonzero(share.max(axis=0) > 0):
        found = summarise((maps.log_rate[:, k] - mean) / np.log(2), level=level)
        table = found.table("log2_fold_change", index)
        table.insert(0, "gene_id", maps.gene_ids)
        yield int(k), table


def top_genes(profile: pd.DataFrame, n: int) -> pd.DataFrame:
    """Genes of a profile that are surely furthest from the mean of the tissue: highest first, then the lowest.

    Upward genes are ordered by the lower end of their interval and downward genes by the upper end, so that neither a
    large but uncertain change nor a certain but small one comes first. Only genes whose interval leaves out 0 are kept.

    Args:
        profile: of `profiles`, or of `differential`.
        n: at most so many of each direction.
    """
    up = profile[profile["low"] > 0].nlargest(n, "low")
    down = profile[profile["high"] < 0].nsmallest(n, "high")
    return pd.concat([up, down.iloc[::-1]])
