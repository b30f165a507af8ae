"""Metagene profiles: first values by factorisation of the spot counts, and which metagenes are in use."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import NMF

from superst_monai.errors import AssayError

Floats = NDArray[np.float64]


def factorised_profiles(
    counts: sparse.csr_matrix,
    section: NDArray[np.int64],
    n_metagenes: int,
    *,
    seed: int,
    n_genes_fitted: int = 2000,
    pseudo_spots: float = 5.0,
) -> Floats:
    """Log fold change of each metagene against the mean spot, from a non-negative matrix factorisation.

    The square roots of the counts of the highest genes (variance-stabilised, each gene first brought to the same
    mean on every section, so that a section effect does not become a metagene) are factorised. The shares of the
    factors in each spot then weigh the counts of all genes into one profile a factor, shrunken towards the mean
    spot by `pseudo_spots` spots.

    Args:
        counts: `(S, G)`.
        section: section of each spot `(S,)`.
        n_metagenes: K.
        seed: of the factorisation.
        n_genes_fitted: genes that enter the factorisation, the highest first.
        pseudo_spots: weight of the mean profile in each metagene [spots].

    Returns:
        `(K, G)`; with fewer spots than metagenes the rest are zero.

    Raises:
        AssayError: no counts at all.
    """
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    if not total.sum():
        raise AssayError(f"metagenes need counts, got {counts.shape[0]} spots without a single UMI; check the table.")
    k = min(n_metagenes, *counts.shape)
    top = np.argsort(-total, kind="stable")[:n_genes_fitted]
    balanced = _balance_sections(counts[:, top].toarray().astype(np.float64), section)
    share = NMF(k, init="nndsvda", max_iter=300, tol=1e-3, random_state=seed).fit_transform(np.sqrt(balanced))
    share = share + 1e-6
    share /= share.sum(axis=1, keepdims=True)  # (S, k)
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    mean = np.maximum(total, 0.5) / counts.shape[0]  # (G,)
    weighted = np.asarray(counts.T.astype(np.float64) @ share).T  # (k, G)
    spots = share.T @ (depth / depth.mean())  # (k,)
    profile = (weighted + pseudo_spots * mean) / (spots + pseudo_spots)[:, None]
    found = np.zeros((n_metagenes, counts.shape[1]))
    found[:k] = np.log(profile / mean)
    return found


def _balance_sections(dense: Floats, section: NDArray[np.int64]) -> Floats:
    """Scale each gene on each section to its mean over all spots, `(S, G)`; genes absent from a section stay zero."""
    ids, row = np.unique(section, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(ids), len(row)))
    means = (member @ dense) / np.bincount(row)[:, None]  # (N, G)
    factor = np.divide(dense.mean(axis=0), means, out=np.zeros_like(means), where=means > 0)
    return np.asarray(dense * np.clip(factor, 0.0, 10.0)[row])
