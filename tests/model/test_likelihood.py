"""The count law against plain versions, torch's own distribution and the law of additivity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from superst_monai.errors import ShapeError
from superst_monai.model.generative import AdditiveNegativeBinomial
from superst_monai.model.likelihood import nb_log_prob, sum_over_spots, total_counts


def random_maps(k: int, h: int, w: int, n_spots: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Activity, scale and labels of two patches."""
    torch.manual_seed(0)
    return torch.rand(2, k, h, w).softmax(1), torch.rand(2, 1, h, w), torch.randint(0, n_spots + 1, (2, h, w))


def test_every_pixel_is_counted_once():
    """Each spot holds the sum over its own pixels, of whichever patch (against a plain mask)."""
    activity, scale, label = random_maps(k=3, h=6, w=5, n_spots=4)
    got = sum_over_spots(activity, scale, label, n_spots=4)
    weight = (activity * scale).movedim(1, -1)
    torch.testing.assert_close(got, torch.stack([weight[label == s + 1].sum(0) for s in range(4)]))


def test_a_spot_without_pixels_keeps_a_zero_row():
    """Spots that no pixel belongs to have size zero, and no spots at all give no rows."""
    activity, scale, label = random_maps(k=2, h=4, w=4, n_spots=2)
    assert sum_over_spots(activity, scale, label, n_spots=5)[2:].eq(0).all()
    assert sum_over_spots(activity, scale, torch.zeros_like(label), n_spots=0).shape == (0, 2)


def test_maps_of_different_sizes_are_refused():
    """Activity, scale and label must share batch, height and width."""
    activity, scale, label = random_maps(k=2, h=4, w=4, n_spots=2)
    with pytest.raises(ShapeError, match=r"must share \(B, H, W\)"):
        sum_over_spots(activity, scale, label[:, :3], n_spots=2)


def test_total_counts_equals_the_sum_over_metagenes():
    """r_sg is the sum over metagenes of size times exponentiated rate (against loops)."""
    torch.manual_seed(1)
    size, profile, log_rate = torch.rand(4, 3), torch.randn(3, 5), torch.randn(4, 5)
    plain = [
        [sum(size[s, k] * torch.exp(log_rate[s, g] + profile[k, g]) for k in range(3)) for g in range(5)]
        for s in range(4)
    ]
    torch.testing.assert_close(total_counts(size, profile, log_rate), torch.tensor(plain))


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


def test_samples_have_the_mean_and_variance_of_the_law():
    """Draws have mean r exp(l) and variance mean (1 + exp(l)), within Monte Carlo error."""
    torch.manual_seed(0)
    law = AdditiveNegativeBinomial(torch.tensor([[2.0, 5.0]]), torch.tensor([[0.5, -1.0]]))
    draws = law.sample((200_000,))
    torch.testing.assert_close(draws.mean(0), law.mean, rtol=0.02, atol=0)
    torch.testing.assert_close(draws.var(0), law.mean * (1 + law.logits.exp()), rtol=0.03, atol=0)
