"""The count law: metagene sizes of supports and the additive negative binomial."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from superst_monai.errors import ShapeError

TINY = 1e-10
"""Least total_count of a count above 0, so that its logarithm is finite."""


def sum_over_spots(activity: Tensor, scale: Tensor, spot: Tensor, *, n_spots: int) -> Tensor:
    """Sum the scaled metagene activity over the pixels of each spot of a batch.

    Args:
        activity: metagene shares of each pixel `(P, K)`, each row summing to 1.
        scale: size factor of each pixel `(P, 1)`, positive [1/px].
        spot: batch-wide spot of each pixel `(P,)`, int64; 0 is no spot, i is spot i - 1.
        n_spots: S, so that a spot without pixels keeps its (zero) row.

    Returns:
        Metagene size of each spot `(S, K)` [1].

    Raises:
        ShapeError: the three differ in their number of pixels.
    """
    if not len(activity) == len(scale) == len(spot):
        raise ShapeError(
            f"activity, scale and spot must hold the same pixels, got {len(activity)}, {len(scale)} and {len(spot)}; "
            "take all three of one label image."
        )
    total = activity.new_zeros(n_spots + 1, activity.shape[1])  # row 0 gathers what is in no spot
    return total.index_add(0, spot, scale * activity)[1:]  # (S, K)


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


def spot_log_prob(counts: Tensor, size: Tensor, rate: Tensor, logits: Tensor) -> Tensor:
    """Log probability of the counts of spots of one section, by `nb_log_prob` but without its dense (S, G) terms.

    A count of 0 contributes r_sg log(1 - p_g) alone, and these add up over genes to size_s . (rate @ log(1 - p)). The
    gamma functions are left to the counts above 0, a tenth of them, and cancel for a count of 1:
    Gamma(r + x) / Gamma(r) = r Gamma(r + x) / Gamma(r + 1).

    Args:
        counts: `(S, G)`, non-negative integers, sparse COO, coalesced.
        size: metagene size of each spot `(S, K)` [1].
        rate: rate of each metagene on this section `(K, G)`; total_count is size @ rate.
        logits: of the section `(G,)`.

    Returns:
        Log probability [nat] of each spot `(S,)`.
    """
    (spot, gene), x = counts.indices(), counts.values()
    r = _ProductAt.apply(size, rate, spot, gene) + TINY  # type: ignore[no-untyped-call]
    choose = r.log() - _log_factorial(x) + x * F.logsigmoid(logits).index_select(0, gene)
    many = (x > 1).nonzero().squeeze(1)
    of_many = r.index_select(0, many)
    choose = choose.index_add(0, many, torch.lgamma(of_many + x[many]) - torch.lgamma(of_many + 1.0))
    return (size @ (rate @ F.logsigmoid(-logits))).index_add(0, spot, choose)


def _log_factorial(x: Tensor) -> Tensor:
    """log x! of integers, from a table: they are few and small."""
    if not x.numel():
        return x
    table = torch.lgamma(torch.arange(1.0, float(x.max()) + 2.0, device=x.device, dtype=x.dtype))
    return table[x.long()]


_BLOCK = 1_000_000  # elements of a matrix that the C library keeps for the next step


class _ProductAt(torch.autograd.Function):
    """Elements `(n,)` of size @ rate at some places, row by row.

    Product and gradients are dense, some rows at a time: products of sparse matrices are slower at a tenth of the
    places and half as fast at 0.4 of them, and a large matrix that is allocated anew in each step costs more than what
    is computed with it.
    """

    @staticmethod
    def forward(ctx: Any, size: Tensor, rate: Tensor, row: Tensor, column: Tensor) -> Tensor:
        starts = torch.searchsorted(row, torch.arange(len(size) + 1, device=row.device))
        ctx.save_for_backward(size, rate, row, column, starts)
        found = size.new_empty(len(row))
        for rows, places, at, dense in _blocks(size, rate, row, column, starts):
            block = torch.mm(size[rows], rate, out=dense)
            torch.index_select(block.view(-1), 0, at, out=found[places])
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        size, rate, *where = ctx.saved_tensors
        of_size, of_rate = torch.empty_like(size), torch.zeros_like(rate)
        for rows, places, at, dense in _blocks(size, rate, *where):
            dense.zero_().view(-1).scatter_(0, at, gradients[0][places])
            of_size[rows] = dense @ rate.T
            of_rate += size[rows].T @ dense
        return of_size, of_rate, None, None


def _blocks(
    size: Tensor, rate: Tensor, row: Tensor, column: Tensor, starts: Tensor
) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
    """Blocks of rows: which, their places, these in the block as a line, and memory `(rows, G)` for it."""
    n_spots, n_genes = len(size), rate.shape[1]
    many = max(1, _BLOCK // n_genes if size.device.type == "cpu" else n_spots)
    dense = size.new_empty(min(many, n_spots), n_genes)
    ends = [*range(0, n_spots, many), n_spots]
    bounds = starts[ends].tolist()
    for first, last, low, high in zip(ends, ends[1:], bounds, bounds[1:], strict=False):
        at = (row[low:high] - first) * n_genes + column[low:high]
        yield slice(first, last), slice(low, high), at, dense[: last - first]
