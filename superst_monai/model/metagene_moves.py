"""Metagenes come and go in place: one becomes two, one leaves; weights and moments of the optimizer in step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from superst_monai.errors import RunError
from superst_monai.model.objective import FusionVAE


def metagene_rows(network: FusionVAE) -> list[Tensor]:
    """The parameters whose row k is of metagene k: mean and log sd of the profile, weights and biases of the logit."""
    model, profile = network.generative, network.guide.profile
    heads = (cast(nn.Conv2d, head) for head in (model.expression_decoder.activity, *model.fusion.context))
    return [profile.mean, profile.log_sd, *(cast(Tensor, part) for head in heads for part in (head.weight, head.bias))]


@torch.no_grad()
def split(
    networks: Sequence[FusionVAE], optimizer: Optimizer, parent: int, child: int, *, perturbation: float, seed: int
) -> None:
    """Make a row that is out of use a copy of a metagene, in place; each of the two then has half of its activity.

    Both get the logit of the parent less log 2, so that their activities sum to the parent's and no other changes. What
    tells them apart is added to one and subtracted from the other: e_g to the profile, and a draw relative to the root
    mean square of the weights to those of the activity head. Both profiles lose log cosh(e_g), so that their rates have
    the parent's as mean: while their activities are equal, no expected count changes.

    The likelihood's gradient in either row is half of that in the parent, so the optimizer's moments of both become
    those of a halved gradient, exp_avg / 2 and exp_avg_sq / 4, which leaves Adam's next step what it was.

    Args:
        networks: the trained one, whose parameters the optimizer holds, then those that follow it (moving average).
        optimizer: Adam, or another that keeps moments of the shape of a parameter.
        parent: metagene to split.
        child: row that becomes the copy; what it held is lost.
        perturbation: sd of e [log fold change] and of the relative change of the weights [1].
        seed: of the perturbation, which is drawn on the CPU whatever the device.
    """
    noise = torch.Generator().manual_seed(seed)
    weight, mean = networks[0].generative.expression_decoder.activity.weight, networks[0].guide.profile.mean
    sd = perturbation * float(weight.square().mean().sqrt())
    turn = (sd * torch.randn(weight.shape[1:], generator=noise)).to(weight.device)
    fold = (perturbation * torch.randn(mean.shape[1:], generator=noise)).to(mean.device)
    for network in networks:
        head, mean = network.generative.expression_decoder.activity, network.guide.profile.mean
        cast(Tensor, head.bias)[parent] -= math.log(2.0)
        mean[parent] -= fold.cosh().log()
        for rows in metagene_rows(network):
            rows[child] = rows[parent]
        for rows, change in ((head.weight, turn), (mean, fold)):
            rows[parent] += change
            rows[child] -= change
        network.generative.active[child] = True
    for name, moment in _moments(networks[0], optimizer):
        moment[parent] *= 0.25 if name.endswith("_sq") else 0.5
        moment[child] = moment[parent]


@torch.no_grad()
def drop(networks: Sequence[FusionVAE], optimizer: Optimizer | None, metagene: int) -> None:
    """Take a metagene out of use, in place: the others share out its activity, and its rows no longer move.

    Args:
        networks: as for `split`.
        optimizer: its moments of the rows become zero; None for a network that is not trained any more.
        metagene: to drop.

    Raises:
        RunError: it is the only one in use.
    """
    for network in networks:
        active = network.generative.active
        if active.sum() - active[metagene].int() < 1:
            raise RunError(f"metagene {metagene} is the only one in use and must stay; split it before dropping it.")
        active[metagene] = False
    for _, moment in _moments(networks[0], optimizer) if optimizer is not None else []:
        moment[metagene] = 0.0


def _moments(network: FusionVAE, optimizer: Optimizer) -> list[tuple[str, Tensor]]:
    """What an optimizer keeps of the rows of the metagenes, by name; nothing before its first step."""
    kept = [(rows, optimizer.state[rows]) for rows in metagene_rows(network) if rows in optimizer.state]
    return [
        (name, value)
        for rows, state in kept
        for name, value in state.items()
        if isinstance(value, Tensor) and value.shape == rows.shape
    ]
