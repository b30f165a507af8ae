"""Cell types of tissue from predicted expression: each metagene is split among the types, and so is every support."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares, nnls

from superst_monai.analysis.cell_types_reference import Reference, shared_columns
from superst_monai.analysis.counted_regions import expected_rates
from superst_monai.analysis.metagene_summary import metagene_name
from superst_monai.errors import AssayError
from superst_monai.inference.derived import with_rates
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float64]
_MIN_SHARE = 1.25e-4  # of a gene in a type of which it is typical, as in RCTD
_TRACE = 1e-5  # of the commonest type; no type is given less of the tissue's mean, so that logarithms are finite
_MIN_LOG_FOLD = 0.5  # natural log, against the mean of the other types, as in RCTD


@dataclass(frozen=True, eq=False)
class Decomposition:
    """How T cell types share out what each metagene expresses.

    Attributes:
        cell_types: names.
        weight: samples of the UMIs of each type in a unit of scale of each metagene `(N, K, T)`; of a marker table, of
            how often it has the type's markers compared with the mean of the tissue.
        n_genes: genes that were informative of each type `(T,)`.
    """

    cell_types: list[str]
    weight: Floats
    n_genes: NDArray[np.int64]

    def score(self, sizes: NDArray[np.floating]) -> Floats:
        """Score of each type in supports of metagene sizes `(N, S, K)`, `(N, S, T)`; scores of supports add up."""
        return np.asarray(np.einsum("nsk,nkt->nst", sizes, self.weight))

    def share(self, sizes: NDArray[np.floating]) -> Floats:
        """Composition of supports `(N, S, T)`: scores divided by their sum; 0 where that is 0."""
        return composition(self.score(sizes))

    def maps(self, maps: Maps) -> Maps:
        """Posterior maps whose genes are the cell types: score and its spread in any pixel, bin, spot or outline."""
        return with_rates(maps, self.cell_types, self.weight)

    def table(self, scale: Floats) -> pd.DataFrame:
        """Composition of each metagene in use: metagene, cell_type, share (mean over samples) and its sd.

        Args:
            scale: of each metagene on the tissue `(N, K)`.
        """
        used = np.flatnonzero(scale.max(axis=0) > 0)
        share = composition(self.weight)[:, used]  # (N, k, T)
        index = pd.MultiIndex.from_product(
            [[metagene_name(int(k)) for k in used], self.cell_types], names=["metagene", "cell_type"]
        )
        values = {"share": share.mean(axis=0).ravel(), "sd": share.std(axis=0, ddof=1).ravel()}
        return pd.DataFrame(values, index=index)


def composition(score: Floats) -> Floats:
    """Scores `(..., T)` divided by their sum over the types; 0 where that is 0."""
    total = score.sum(axis=-1, keepdims=True)
    return np.asarray(np.divide(score, total, out=np.zeros_like(score), where=total > 0))


def decompose(maps: Maps, share: Floats, reference: Reference) -> Decomposition:
    """Split the expression of each metagene among cell types by weighted non-negative least squares.

    A unit of scale of metagene k expects rho_kg UMIs of gene g. Its weights minimise sum_g (rho_kg - sum_t beta_kt
    mu_tg)^2 / v_g with beta >= 0. Here v_g = m_g (1 + exp(logit_g)) is the variance of a count with the mean m_g of the
    tissue under the model's own law. Since a pixel is a sum of metagenes, its scores are sum_k size_k beta_kt: additive
    over pixels, and the product of a K-vector and a small matrix.

    For profiles, mu_tg is the share of gene g in cells of type t times a factor of the gene that makes the profiles fit
    the tissue's mean (the platform effect: the mean is split among unscaled profiles by the likelihood of log-normal
    factors, then m_g is divided by that fit). Genes that are typical of no type are left out. For a marker table, mu_tg
    is m_g times the marker's weight, 0 for all others: a type scores 1 where its markers are as frequent as on average
    over the tissue, so that scores tell where a type is enriched, not how frequent it is.

    Args:
        maps: of the run, without effects of covariates.
        share: of each metagene in the scale of all sections `(N, K)`, which says what the tissue's mean is.
        reference: of `read_reference` or `read_markers`.

    Raises:
        AssayError: reference and run share no gene, or no informative gene of some types; all of them.

    Source: platform effects and choice of genes: Cable et al. 2022, doi:10.1038/s41587-021-00830-w (RCTD), Methods;
        weighted non-negative least squares for compositions: Wang et al. 2019, doi:10.1038/s41467-018-08023-x (MuSiC).
    """
    columns = shared_columns(reference, [maps.genes, maps.gene_ids])
    shared = np.flatnonzero(columns >= 0)
    profile = reference.profile[:, columns[shared]]  # (T, g)
    if not reference.is_table:
        profile = composition(profile)
    rates = expected_rates(maps, shared)  # (N, K, g)
    tissue = np.einsum("nk,nkg->g", share, rates) / len(share)
    variance = tissue * (1 + np.exp(maps.logit[:, shared].mean(axis=0, dtype=np.float64)))
    typical = profile > 0 if reference.is_table else _typical(profile)  # (T, g)
    n_genes = typical.sum(axis=1)
    without = [name for name, n in zip(reference.cell_types, n_genes, strict=True) if n == 0]
    if without:
        raise AssayError(
            f"every cell type must have a gene that is typical of it and in the maps, but {', '.join(without)} have "
            f"none among the {len(shared)} genes shared; leave them out or join them with similar types."
        )
    kept = typical.any(axis=0)
    profile, tissue, variance = profile[:, kept], tissue[kept], variance[kept]
    scaled = profile * tissue if reference.is_table else _to_platform(profile, tissue)
    weight = _split(rates[:, :, kept], scaled, variance)
    return Decomposition(reference.cell_types, weight, n_genes)


def _typical(profile: Floats) -> NDArray[np.bool_]:
    """Genes that tell a type from the mean of the others `(T, g)`."""
    others = (profile.sum(axis=0) - profile) / (len(profile) - 1)
    fold = np.log(profile + 1e-9) - np.log(others + 1e-9)
    return np.asarray((profile > _MIN_SHARE) & (fold > _MIN_LOG_FOLD))


def _to_platform(profile: Floats, tissue: Floats) -> Floats:
    """Scale each gene of the profiles so that a mixture of them is the tissue's mean.

    The mixture is that of highest likelihood if the factors of the genes are log-normal: it minimises sum_g (log m_g -
    log sum_t beta_t mu_tg)^2.
    """
    fitted = nnls((profile / tissue).T, np.ones(len(tissue)))[0]
    start = np.log(np.maximum(fitted, 1e-3 * fitted.sum()))

    def residual(log_weight: Floats) -> Floats:
        return np.asarray(np.log(np.exp(log_weight) @ profile) - np.log(tissue))

    def slope(log_weight: Floats) -> Floats:
        parts = np.exp(log_weight)[:, None] * profile  # (T, g)
        return np.asarray((parts / parts.sum(axis=0)).T)

    bounds = (start.max() + np.log(_TRACE), start.max() + 5.0)
    mixture = np.exp(least_squares(residual, start, slope, bounds=bounds).x) @ profile  # (g,)
    return np.asarray(profile * (tissue / mixture))


def _split(rates: Floats, profile: Floats, variance: Floats) -> Floats:
    """Weights `(N, K, T)` of profiles `(T, g)` that fit rates `(N, K, g)`, least squares weighted by 1 / variance.

    The least-squares problem is first reduced to T equations by a QR decomposition, which changes no solution.
    """
    deviation = np.sqrt(np.maximum(variance, np.finfo(np.float64).tiny))
    unit = np.maximum(np.sqrt(((profile / deviation) ** 2).sum(axis=1)), np.finfo(np.float64).tiny)  # (T,)
    q, r = np.linalg.qr((profile / deviation / unit[:, None]).T)  # (g, T), (T, T)
    wanted = (rates / deviation) @ q  # (N, K, T)
    solved = [nnls(r, row)[0] for row in wanted.reshape(-1, wanted.shape[-1])]
    return np.asarray(np.reshape(solved, (*rates.shape[:2], len(unit))) / unit)
