"""Set a share of the UMIs of each spot aside, so that both halves are independent under the count law."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.errors import RunError, ShapeError


def thin_counts(
    counts: sparse.csr_matrix,
    share: float,
    *,
    size: NDArray[np.floating[Any]],
    rate: NDArray[np.floating[Any]],
    rng: np.random.Generator,
) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split counts into what to train on and a share to score them with.

    X_sg ~ NegativeBinomial(r_sg, l_g) with r_sg = size_s rate_g is split by A_sg | X_sg ~ BetaBinomial(X_sg, e r_sg,
    (1 - e) r_sg), e the share. Then A_sg ~ NegativeBinomial(e r_sg, l_g) and X_sg - A_sg ~ NegativeBinomial((1 - e)
    r_sg, l_g) are independent: a negative binomial is a sum of r parts, and this draws which of them go together. The
    logit l_g is not needed.

    If the law of X_sg has total_count R and not r, with mean m, the covariance of the halves is

        e (1 - e) m^2 (r - R) / (R (r + 1)):

    positive where r is too large (what was learned of the noise of one half then helps to tell the other: a score too
    good), negative where it is too small (a score too bad), and e (1 - e) m^2 / R for the binomial split, which is r
    -> infinity. `fit_baseline` takes what differs between tissues for noise, so its r is rather too small.

    Args:
        counts: `(S, G)`, integers.
        share: e, of the UMIs to set aside, between 0 and 1.
        size: of each spot `(S,)`, positive where there are counts (its depth over the mean depth) [1].
        rate: r_g, total_count of each gene for a spot of size 1 `(G,)`, positive.
        rng: source of randomness.

    Returns:
        What is left and what is set aside, each `(S, G)`, of the type of `counts`, only non-zero entries stored; their
        sum is `counts`.

    Raises:
        RunError: the share is not between 0 and 1, or a size or rate is not positive where there are counts.
        ShapeError: the lengths of size and rate are not S and G.

    Source: Neufeld et al., Data thinning for convolution-closed distributions, JMLR 25, 2024 (arXiv:2301.07276).
    """
    if not 0 < share < 1:
        raise RunError(f"the share of UMIs to set aside must lie between 0 and 1, got {share}; pass another one.")
    if (size.shape, rate.shape) != ((counts.shape[0],), (counts.shape[1],)):
        raise ShapeError(
            f"thinning needs a size for each spot and a rate for each gene of counts {counts.shape}, got {size.shape} "
            f"and {rate.shape}; fit the rates to the same genes."
        )
    whole = sparse.csr_matrix(counts, copy=True)
    whole.sum_duplicates()
    whole.eliminate_zeros()
    spot = np.repeat(np.arange(whole.shape[0]), np.diff(whole.indptr))
    total = size[spot] * rate[whole.indices]
    if not (total > 0).all():
        raise RunError(
            f"a count needs a positive size and rate, but {np.sum(~(total > 0))} of {len(total)} counts have none; "
            "take the size from the depth of the spots and the rate from fit_baseline."
        )
    chance = rng.beta(share * total, (1 - share) * total)
    taken = rng.binomial(whole.data.astype(np.int64), chance).astype(whole.dtype)
    left, aside = whole.copy(), whole
    left.data = whole.data - taken
    aside.data = taken
    for part in (left, aside):
        part.eliminate_zeros()
    return left, aside
