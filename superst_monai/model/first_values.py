"""First values of the gene parameters and the scale, from the counts of the training spots."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.model.objective import FusionVAE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Baseline:
    """Negative-binomial baseline of each gene for a support of size 1 (a mean spot).

    Args:
        log_rate: log r_g `(G,)`.
        logit: l_g `(G,)`, so that r_g exp(l_g) is the mean count of a mean spot.
    """

    log_rate: Floats
    logit: Floats


def fit_baseline(counts: sparse.csr_matrix, *, least_odds: float = 0.02, most_odds: float = 20.0) -> Baseline:
    """Method-of-moments fit of r_g and l_g with the spots' depth as size factor.

    With f_s the depth of spot s over the mean depth, X_sg ~ NegativeBinomial(f_s r_g, l_g) has mean m_g f_s and
    variance m_g f_s (1 + exp(l_g)); hence exp(l_g) = mean_s((X_sg - m_g f_s)^2 / (m_g f_s)) - 1.

    Args:
        counts: `(S, G)`.
        least_odds: smallest exp(l_g) (nearly Poisson).
        most_odds: largest exp(l_g).

    Returns:
        The baseline; genes without counts get the mean of half a count over all spots.

    Source: design of xfuse (doi:10.1038/s41587-021-01075-3), negative-binomial moments.
    """
    depth = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    factor = depth / depth.mean()
    used = factor > 0
    total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    mean = np.maximum(total, 0.5) / factor.sum()
    # sum_s (x - m f)^2 / (m f) = sum_s x^2 / (m f) - 2 sum_s x + m sum_s f, so only the stored entries are touched
    squared = counts[used].astype(np.float64).power(2)
    over = np.asarray(squared.T @ (1.0 / factor[used]))
    ratio = (over / mean - 2.0 * total + mean * factor.sum()) / used.sum()
    odds = np.clip(ratio - 1.0, least_odds, most_odds)
    return Baseline(log_rate=np.log(mean / odds), logit=np.log(odds))


def inverse_softplus(value: float) -> float:
    """x with log(1 + exp(x)) = value > 0, right for tiny and large values."""
    return value + math.log(-math.expm1(-value))


def set_first_values(
    network: FusionVAE, baseline: Baseline, profiles: Floats, *, spot_area_px: float, flatten_scale: float = 0.1
) -> None:
    """Write baselines, metagene profiles and the first scale into a network, in place.

    Args:
        network: freshly built.
        baseline: of the G genes.
        profiles: first log fold changes `(K, G)`.
        spot_area_px: mean pixels of a spot; the scale starts at 1 / spot_area_px, so that a spot has size 1.
        flatten_scale: factor on the first weights of the scale head, so that the first scale is nearly constant.
    """
    model, guide = network.generative, network.guide
    with torch.no_grad():
        model.log_rate.copy_(torch.as_tensor(baseline.log_rate))
        model.logit.copy_(torch.as_tensor(baseline.logit))
        guide.profile.mean.copy_(torch.as_tensor(profiles))
        head = model.expression_decoder.scale
        head.weight.mul_(flatten_scale)
        if head.bias is not None:
            head.bias.fill_(inverse_softplus(1.0 / spot_area_px))
