"""The score of held-out counts: what it is the sum of, and what a share of the counts does to it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from superst_monai.model.evidence import spot_log_likelihood
from superst_monai.model.likelihood import nb_log_prob


class Sharp(nn.Module):
    """An encoder without a spread, so that every draw is its mean."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, image: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Means as they are, standard deviations near zero."""
        return [(mean, torch.full_like(sd, 1e-7)) for mean, sd in self.encoder(image)]


@pytest.fixture
def case(make_case):
    """A network whose guide has no spread, and a batch whose spots hold different shares of their UMIs."""
    network, batch = make_case()
    network.eval().requires_grad_(False)
    network.guide.encoder = Sharp(network.guide.encoder)
    network.guide.profile.log_sd.fill_(-20.0)
    return network, replace(batch, share=torch.tensor([1.0, 0.05, 0.95, 0.5]))


def test_each_spot_has_the_law_of_its_share(case):
    """Against the law written in plain torch: total_count times the share, one logit."""
    network, batch = case
    model, guide = network.generative, network.guide
    activity, scale = model.expression(model.decode([mean for mean, _ in guide.encoder(batch.image)]))
    weight = activity * scale
    size = torch.stack([(weight * (batch.label == s + 1)[:, None]).sum((0, 2, 3)) for s in range(4)])  # (S, K)
    total = size @ (guide.profile.mean + model.log_rate).exp() * batch.share[:, None]
    plain = nb_log_prob(batch.counts, total, model.logit).sum(1)
    torch.testing.assert_close(spot_log_likelihood(network, batch), plain, rtol=1e-4, atol=1e-4)


def test_the_spots_sum_to_the_expression_part_of_the_objective(case):
    """What is scored is what is optimised: the objective gives it per patch, negative."""
    network, batch = case
    total = spot_log_likelihood(network, batch).sum()
    torch.testing.assert_close(total, -network(batch.image, batch)["expression"] * 2, rtol=1e-4, atol=1e-3)


def test_a_share_acts_like_a_rate(case):
    """Half of the UMIs of every spot have the likelihood of whole counts under half the rates."""
    network, batch = case
    half = network(batch.image, replace(batch, share=torch.full((4,), 0.5)))["loss"]
    network.generative.log_rate -= torch.tensor(2.0).log()
    whole = network(batch.image, replace(batch, share=torch.ones(4)))["loss"]
    torch.testing.assert_close(half, whole, rtol=1e-4, atol=1e-3)


def test_a_batch_without_spots_has_no_evidence(case):
    """No spot, no number."""
    network, batch = case
    none = replace(
        batch, counts=torch.zeros(0, 5), share=torch.zeros(0), spot_section=torch.zeros(0, dtype=torch.int64)
    )
    assert spot_log_likelihood(network, none).shape == (0,)
