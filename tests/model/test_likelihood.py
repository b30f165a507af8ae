"""The count law against plain versions, torch's own distribution and the law of additivity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from superst_monai.errors import ShapeError
from superst_monai.model import likelihood
from superst_monai.model.generative import SpotCounts
from superst_monai.model.likelihood import nb_log_prob, spot_log_prob, sum_over_spots


def random_pixels(k: int, n_spots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activity, scale and spot of 60 pixels."""
    torch.manual_seed(0)
    return torch.rand(60, k).softmax(1), torch.rand(60, 1), torch.randint(0, n_spots + 1, (60,))


def test_every_pixel_is_counted_once():
    """Each spot holds the sum over its own pixels (against a plain mask)."""
    activity, scale, spot = random_pixels(k=3, n_spots=4)
    got = sum_over_spots(activity, scale, spot, n_spots=4)
    torch.testing.assert_close(got, torch.stack([(activity * scale)[spot == s + 1].sum(0) for s in range(4)]))


def test_a_spot_without_pixels_keeps_a_zero_row():
    """Spots that no pixel belongs to have size zero, and no spots at all give no rows."""
    activity, scale, spot = random_pixels(k=2, n_spots=2)
    assert sum_over_spots(activity, scale, spot, n_spots=5)[2:].eq(0).all()
    assert sum_over_spots(activity, scale, torch.zeros_like(spot), n_spots=0).shape == (0, 2)


def test_pixels_of_different_number_are_refused():
    """Activity, scale and spot must hold the same pixels."""
    activity, scale, spot = random_pixels(k=2, n_spots=2)
    with pytest.raises(ShapeError, match="must hold the same pixels, got 60, 60 and 59"):
        sum_over_spots(activity, scale, spot[1:], n_spots=2)


def test_log_prob_equals_torch_negative_binomial():
    """The law is torch's NegativeBinomial(total_count, logits), counts of zero and large ones included."""
    total, logits = torch.rand(6, 4) * 5 + 0.01, torch.randn(4)
    counts = torch.tensor([0.0, 1.0, 3.0, 1000.0]).expand(6, 4)
    expected = torch.distributions.NegativeBinomial(total, logits=logits).log_prob(counts)
    torch.testing.assert_close(nb_log_prob(counts, total, logits), expected, rtol=1e-4, atol=1e-4)


def test_negative_binomials_with_one_logit_add_over_pixels():
    """Convolving the laws of two pixels gives the law of their union, entry by entry."""
    logits = torch.tensor(0.3, dtype=torch.float64)
    k = torch.arange(60.0, dtype=torch.float64)
    first, second, both = (
        nb_log_prob(k, torch.tensor(r, dtype=torch.float64), logits).exp().numpy() for r in (0.7, 1.6, 2.3)
    )
    np.testing.assert_allclose(np.convolve(first, second)[:60], both, rtol=1e-9)


def random_spots() -> tuple[SpotCounts, torch.Tensor]:
    """Law of 7 spots on 3 sections with 3 metagenes and 5 genes, float64 and with gradients; and counts, many zero."""
    torch.manual_seed(1)
    parameters = (torch.rand(7, 3), torch.randn(3, 5), torch.randn(3, 5), torch.randn(3, 5))
    size, profile, log_rate, logits = (p.double().requires_grad_() for p in parameters)
    section = torch.tensor([2, 0, 0, 2, 0, 2, 2])
    counts = torch.tensor([0.0, 0.0, 1.0, 2.0, 40.0]).double()[torch.randint(0, 5, (7, 5))]
    return SpotCounts(size, section, profile, log_rate, logits), counts


def test_total_count_of_a_spot_is_the_sum_over_metagenes():
    """r_sg is the sum over metagenes of size times exponentiated rate of the spot's section (against loops)."""
    law, _ = random_spots()
    plain = [
        [
            sum(law.size[s, k] * torch.exp(law.log_rate[law.section[s], g] + law.profile[k, g]) for k in range(3))
            for g in range(5)
        ]
        for s in range(7)
    ]
    torch.testing.assert_close(law.total_count, torch.stack([torch.stack(row) for row in plain]))


@pytest.mark.parametrize("block", [1, 12, 10**6])
def test_spots_have_the_log_prob_and_gradients_of_the_dense_law(monkeypatch, block):
    """Leaving zeros to a sum over genes changes neither the log probability of a spot nor any gradient."""
    monkeypatch.setattr(likelihood, "_BLOCK", block)  # one, two or all of the rows at a time
    law, counts = random_spots()
    parameters = (law.size, law.profile, law.log_rate, law.logits)
    plain = nb_log_prob(counts, law.total_count, law.logits[law.section]).sum(1)
    weight = torch.rand(7).double()
    got = law.log_prob(counts)
    torch.testing.assert_close(got, plain, rtol=1e-7, atol=1e-7)
    gradients = (torch.autograd.grad((value * weight).sum(), parameters) for value in (got, plain))
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-7)


def test_empty_spots_and_spots_of_size_zero_have_finite_log_prob():
    """A spot without counts or without size, as of inactive metagenes, spoils no gradient."""
    size = torch.tensor([[0.0, 0.0], [0.5, 0.0]], requires_grad=True)
    rate, logits = torch.ones(2, 3), torch.zeros(3)
    found = spot_log_prob(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 3.0]]).to_sparse(), size, rate, logits)
    found.sum().backward()
    assert found[0] == 0
    assert torch.isfinite(found).all()
    assert torch.isfinite(size.grad).all()


def test_samples_have_the_mean_and_variance_of_the_law():
    """Draws have mean r exp(l) and variance mean (1 + exp(l)), within Monte Carlo error."""
    law, _ = random_spots()
    draws = law.sample((200_000,))
    torch.testing.assert_close(draws.mean(0), law.mean, rtol=0.03, atol=0)
    torch.testing.assert_close(draws.var(0), law.variance, rtol=0.1, atol=0)
