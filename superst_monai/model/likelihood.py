"""The count law: metagene sizes of supports and the additive negative binomial."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from superst_monai.errors import ShapeError


def sum_over_spots(activity: Tensor, scale: Tensor, label: Tensor, *, n_spots: int) -> Tensor:
    """Sum the scaled metagene activity over the pixels of each spot of a batch.

    Args:
        activity: metagene shares `(B, K, H, W)`, each pixel summing to 1 over K.
        scale: size factor of one pixel `(B, 1, H, W)`, positive [1/px].
        label: batch-wide spot of each pixel `(B, H, W)`, int64; 0 is no spot, i is spot i - 1.
        n_spots: S, so that a spot without pixels keeps its (zero) row.

    Returns:
        Metagene size of each spot `(S, K)` [1].

    Raises:
        ShapeError: the three maps differ in number, height or width.
    """
    if not (activity.shape[0], *activity.shape[-2:]) == (scale.shape[0], *scale.shape[-2:]) == tuple(label.shape):
        raise ShapeError(
            f"activity, scale and label must share (B, H, W), got {tuple(activity.shape)}, {tuple(scale.shape)} "
            f"and {tuple(label.shape)}; crop them with the same Region."
        )
    weight = (scale * activity).movedim(1, -1).flatten(0, 2)  # (BHW, K)
    total = weight.new_zeros(n_spots + 1, weight.shape[1])  # row 0 gathers what is in no spot
    return total.index_add(0, label.flatten(), weight)[1:]  # (S, K)


def total_counts(size: Tensor, profile: Tensor, log_rate: Tensor) -> Tensor:
    """Negative-binomial `total_count` of each support and gene.

    Args:
        size: metagene size of each support `(S, K)` [1].
        profile: log fold change of each metagene `(K, G)`.
        log_rate: log baseline rate with the effects of the support's section `(S, G)` or `(1, G)`.

    Returns:
        r_sg = sum_k size_sk exp(profile_kg) exp(log_rate_sg), `(S, G)`.
    """
    return (size @ profile.exp()) * log_rate.exp()


def nb_log_prob(counts: Tensor, total_count: Tensor, logits: Tensor) -> Tensor:
    """Log probability of counts under NegativeBinomial(total_count, logits), mean total_count * exp(logits).

    The supports of a section share one logit a gene, hence their sum is again negative binomial with the sum of
    their `total_count`: the law that makes pixels, spots and regions agree.

    Args:
        counts: `(..., G)`, non-negative.
        total_count: `(..., G)`, positive.
        logits: broadcastable to `(..., G)`.

    Returns:
        Log probability [nat] of each entry.
    """
    log_choose = torch.lgamma(total_count + counts) - torch.lgamma(total_count) - torch.lgamma(counts + 1.0)
    return log_choose + total_count * F.logsigmoid(-logits) + counts * F.logsigmoid(logits)
