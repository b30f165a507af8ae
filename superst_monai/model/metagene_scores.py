"""What the counts lose without each metagene: all reduced models from one pass of the network."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from monai.networks.utils import eval_mode
from torch import Tensor
from torch.nn import functional as F

from superst_monai.errors import RunError
from superst_monai.model.generative import Batch, as_sparse
from superst_monai.model.guide import MeanField
from superst_monai.model.likelihood import TINY
from superst_monai.model.objective import FusionVAE

LEAST_SHARE = 1e-40
"""Least activity of an active metagene in a pixel, so that the others have one to share where a removed one has all."""

MOST_FACTORS = 6
"""Largest count whose gamma functions are written as a product, Gamma(r + x) / Gamma(r) = r (r + 1) ... (r + x - 1)."""


def removal_losses(network: FusionVAE, batch: Batch, removed: Tensor) -> tuple[Tensor, Tensor]:
    """Expression log-likelihood that is lost without sets of metagenes.

    The softmax without the rows R is the activity renormalised over the others, a_j / sum_{i not in R} a_i; so the
    sizes of spot l under the model without R are sum_{p in l} s_p a_jp / sum_{i not in R} a_ip for the j that are left.
    The latent variables, profiles and effects are at their posterior means.

    Args:
        network: scored in evaluation mode, whatever mode it is in.
        batch: patches.
        removed: sets of metagenes `(M, K)` bool; each leaves an active one.

    Returns:
        Loss of each set `(M,)` [nat], positive where the metagenes are missed, and the size of each metagene summed
        over the spots `(K,)` [1]; both float64, summed over the batch.

    Raises:
        RunError: a set leaves no active metagene.

    Source: xfuse, `metagene_eval.py::purge_metagenes` (doi:10.1038/s41587-021-01075-3), there one pass a model.
    """
    model = network.generative
    left = model.active & ~F.pad(removed, (0, 0, 1, 0))  # (M + 1, K), the whole model first
    if not left.any(dim=1).all():
        raise RunError("a reduced model must keep an active metagene; leave the last one out of the sets to remove.")
    with eval_mode(network), torch.autocast(batch.image.device.type, torch.bfloat16, enabled=model.mixed_precision):
        h = model.decode([mean for mean, _ in network.guide.encoder(batch.image)])
        activity, scale, spot = model.expression_in_spots(h, batch.label)
    with torch.no_grad():
        size = batch.share[:, None, None] * _reduced_sizes(activity, scale, spot, left, n_spots=len(batch.counts))
        found = _log_likelihoods(network, batch, size)
    return found[0] - found[1:], size[:, 0].sum(dim=0)


def posterior_mean_laws(network: FusionVAE) -> tuple[Tensor, Tensor]:
    """Log baseline rate and logit of each training section, effects included, at the posterior mean; `(N, G)` each."""
    model, guide = network.generative, network.guide
    names = network.arch.covariates
    levels = {c: model.one_hot(c, guide.condition_logits[c].softmax(dim=1)) for c in names}
    empty = model.log_rate.new_zeros(network.arch.n_sections, 1)
    rate, logit = (
        model.effects(levels, {c: cast(MeanField, part[c]).mean for c in names})
        for part in (guide.rate_effect, guide.logit_effect)
    )
    return model.log_rate + rate + empty, model.logit + logit + empty


def _reduced_sizes(activity: Tensor, scale: Tensor, spot: Tensor, left: Tensor, *, n_spots: int) -> Tensor:
    """Metagene sizes of each spot under models that keep the metagenes `left` `(M, K)`; `(S, M, K)` float64."""
    size = activity.new_zeros(n_spots, *left.shape, dtype=torch.float64)
    keep = left.T.double()
    order = spot.argsort(stable=True)
    for place, inside, owner in _blocks(spot[order] - 1, n_spots):
        pixel = order[place]  # (C, block)
        share = activity[pixel].double().clamp_min(LEAST_SHARE)  # (C, block, K)
        weight = (scale[pixel] * inside[..., None]) / (share @ keep)  # (C, block, M)
        size.index_add_(0, owner, weight.mT @ share)
    return size * left


def _log_likelihoods(network: FusionVAE, batch: Batch, size: Tensor) -> Tensor:
    """Log-likelihood of the counts for sizes `(S, M, K)`, up to what the M share; `(M,)` [nat], float64.

    What is linear in the total_count, r log(1 - p), is summed over genes once for each metagene and section. The gamma
    functions are evaluated at the counts above 0 alone.
    """
    log_rate, logit = posterior_mean_laws(network)
    fold, section = network.guide.profile.mean.exp().T.contiguous(), batch.spot_section  # (G, K)
    failed = (log_rate.exp() * F.logsigmoid(-logit)).double() @ fold.double()  # (N, K)
    found = (size * failed[section][:, None]).sum(dim=(0, 2))  # (M,)
    counts = as_sparse(batch.counts)
    (spot, gene), x = counts.indices(), counts.values()
    rate = log_rate.exp().flatten().index_select(0, section[spot] * len(fold) + gene)
    single = size.to(fold.dtype).mT.contiguous()  # (S, K, M)
    kind = x.clamp_max(MOST_FACTORS + 1).to(torch.uint8)
    alike = torch.bincount(kind, minlength=MOST_FACTORS + 2).tolist()
    for factors, chosen in enumerate(torch.split(kind.argsort(stable=True), alike)):
        for place, inside, owner in _blocks(spot[chosen], len(size)):
            entry = chosen[place]  # (C, block)
            total = (fold[gene[entry]] * rate[entry][..., None]) @ single[owner] + TINY  # (C, block, M)
            growth = _log_rising(total, x[entry][..., None], factors)
            found += (growth * inside[..., None]).sum(dim=(0, 1), dtype=torch.float64)
    return found


def _log_rising(r: Tensor, x: Tensor, factors: int) -> Tensor:
    """Log of Gamma(r + x) / Gamma(r); all x are `factors`, or larger where that is beyond MOST_FACTORS."""
    if factors > MOST_FACTORS:
        return torch.lgamma(r.double() + x) - torch.lgamma(r.double())
    product = r.clone()
    for i in range(1, factors):
        product *= r + i
    return product.log_()


def _blocks(
    owner: Tensor, n_owners: int, *, length: int = 128, at_once: int = 128
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Cut the items of each owner into blocks of equal length, the last one padded, so that matrices multiply.

    Args:
        owner: of each item `(I,)`, ascending.
        n_owners: number of owners.
        length: items of a block.
        at_once: C, most blocks that come together, which bounds the memory.

    Yields:
        Items `(C, length)`, which of them are no padding, and the owner of each block `(C,)`.
    """
    items = torch.bincount(owner, minlength=n_owners)
    blocks = (items + length - 1) // length
    of_block = torch.arange(n_owners, device=owner.device).repeat_interleave(blocks)  # (C,)
    number = torch.arange(len(of_block), device=owner.device) - (blocks.cumsum(0) - blocks)[of_block]
    offset = number[:, None] * length + torch.arange(length, device=owner.device)  # (C, length), within the owner
    inside = offset < items[of_block][:, None]
    item = torch.where(inside, (items.cumsum(0) - items)[of_block][:, None] + offset, 0)
    for start in range(0, len(of_block), at_once):
        yield tuple(part[start : start + at_once] for part in (item, inside, of_block))  # type: ignore[misc]
