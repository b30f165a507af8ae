"""Metagene profiles: first values by factorisation of the spot counts, and which metagenes are in use."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.decomposition import NMF
from sklearn.exceptions import ConvergenceWarning

from superst_monai.errors import AssayError

Floats = NDArray[np.float64]


def factorised_profiles(
    counts: sparse.csr_matrix,
    section: NDArray[np.int64],
    n_metagenes: int,
    *,
    seed: int,
    n_genes_fitted: int = 2000,
    n_spots_fitted: int = 2000,
    pseudo_spots: float = 3.0,
) -> Floats:
    """Log fold change of each metagene against the mean spot, from a non-negative matrix factorisation.

    The counts of the highest genes, each brought to the same mean on every section so that a section effect does not
    become a metagene, are factorised under the Poisson likelihood. The shares of the factors in each spot are then
    kept, and the profiles of all genes fitted to them by expectation-maximisation, shrunken towards the mean spot.

    Args:
        counts: `(S, G)`.
        section: section of each spot `(S,)`.
        n_metagenes: K.
        seed: of the choice of spots and of the factorisation.
        n_genes_fitted: genes that enter the factorisation, the highest first.
        n_spots_fitted: spots that enter the factorisation, drawn at random from more.
        pseudo_spots: weight of the mean profile in each metagene [spots].

    Returns:
        `(K, G)`; with fewer spots or genes than metagenes the rest are zero.

    Raises:
        AssayError: no counts at all.

    Source: Lee & Seung, Algorithms for non-negative matrix factorization, NIPS 2000 (Kullback-Leibler updates).
    """
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    if not total.sum():
        raise AssayError(f"metagenes need counts, got {counts.shape[0]} spots without a single UMI; check the table.")
    k = min(n_metagenes, *counts.shape)
    top = np.argsort(-total, kind="stable")[:n_genes_fitted]
    balanced = _balance_sections(counts[:, top].toarray().astype(np.float64), section)
    fitted = np.random.default_rng(seed).permutation(len(balanced))[:n_spots_fitted]
    factors = NMF(k, init="nndsvda", solver="mu", beta_loss="kullback-leibler", max_iter=200, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # first values need no converged factors
        factors.fit(balanced[fitted])
        share = factors.transform(balanced)
    share = share * factors.components_.sum(axis=1) + 1e-4
    share /= share.sum(axis=1, keepdims=True)  # (S, k)
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    weight = share * (depth / depth.mean())[:, None]  # metagene size of each spot
    found = np.zeros((n_metagenes, counts.shape[1]))
    found[:k] = _refit_profiles(counts, weight, pseudo_spots)
    return found


def _refit_profiles(
    counts: sparse.csr_matrix, weight: Floats, pseudo_spots: float, *, n_steps: int = 30, chunk: int = 1000
) -> Floats:
    """Log fold change `(k, G)` of each factor, given its size in each spot `(S, k)`, under the Poisson likelihood."""
    columns = counts.tocsc()
    size = weight.sum(axis=0)[:, None]  # (k, 1)
    found = []
    for start in range(0, counts.shape[1], chunk):
        x = columns[:, start : start + chunk].toarray().astype(np.float64)
        mean = np.maximum(x.sum(axis=0), 0.5) / weight.sum()
        profile = np.tile(mean, (weight.shape[1], 1))
        for _ in range(n_steps):
            profile = profile * (weight.T @ (x / np.maximum(weight @ profile, 1e-12))) / size
        fold = np.log((profile * size + pseudo_spots * mean) / (size + pseudo_spots) / mean)
        found.append(np.where(x.any(axis=0), fold, 0.0))  # a gene without counts changes nowhere
    return np.concatenate(found, axis=1)


def _balance_sections(dense: Floats, section: NDArray[np.int64]) -> Floats:
    """Scale each gene on each section to its mean over all spots, `(S, G)`; genes absent from a section stay zero."""
    ids, row = np.unique(section, return_inverse=True)
    member = sparse.csr_matrix((np.ones(len(row)), (row, np.arange(len(row)))), shape=(len(ids), len(row)))
    means = (member @ dense) / np.bincount(row)[:, None]  # (N, G)
    factor = np.divide(dense.mean(axis=0), means, out=np.zeros_like(means), where=means > 0)
    return np.asarray(dense * np.clip(factor, 0.0, 10.0)[row])
