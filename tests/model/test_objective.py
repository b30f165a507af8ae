"""Pyro's objective against a bound written in plain torch, and the laws of its parts."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine
from torch.distributions import NegativeBinomial, Normal, OneHotCategorical, kl_divergence

from superst_monai.model.generative import UNKNOWN
from superst_monai.model.objective import PARTS, FusionVAE

LEVELS = {"section": ["A", "B"], "patient": ["p", "q", "r"]}


def plain_objective(network: FusionVAE, batch, n_patches: int) -> torch.Tensor:
    """-ELBO per patch with analytic divergences, without Pyro; draws noise in the order of the guide."""
    model, guide, size = network.generative, network.guide, len(batch.image)
    share = size / n_patches

    def draw(law: Normal) -> torch.Tensor:
        return law.loc + law.scale * torch.normal(torch.zeros_like(law.loc), torch.ones_like(law.scale))

    q_profile = Normal(guide.profile.mean, guide.profile.log_sd.exp())
    profile = draw(q_profile)
    divergence = share * kl_divergence(q_profile, Normal(0.0, model.log_tau.exp())).sum()
    log_rate, logit = model.log_rate.expand(2, -1), model.logit.expand(2, -1)
    for row, name in enumerate(network.arch.covariates):
        drawn = []
        for part, spread in ((guide.rate_effect, model.log_sigma), (guide.logit_effect, model.log_rho)):
            q = Normal(part[name].mean, part[name].log_sd.exp())
            drawn.append(draw(q))
            divergence = divergence + share * kl_divergence(q, Normal(0.0, spread[name].exp())).sum()
        condition = torch.eye(len(network.arch.covariates[name]))[model.condition[row].clamp_min(0)]
        log_rate, logit = log_rate + condition @ drawn[0], logit + condition @ drawn[1]
    latents = []
    for mean, sd in guide.encoder(batch.image):
        latents.append(draw(Normal(mean, sd)))
        divergence = divergence + (-sd.log() + (sd**2 + mean**2 - 1) / 2).sum()
    h = model.fusion(latents)
    mean, sd = model.image_decoder(h)
    image = (Normal(mean, sd).log_prob(batch.image) * ~batch.occluded).sum()
    logits, raw = model.expression_decoder(h)
    weight = logits.softmax(1) * (torch.nn.functional.softplus(raw) + 1e-8)
    counts = torch.zeros(())
    for s in range(len(batch.counts)):
        inside = (batch.label == s + 1)[:, None]
        metagene = (weight * inside).sum((0, 2, 3))
        n = batch.spot_section[s]
        total = (metagene[:, None] * (log_rate[n] + profile).exp()).sum(0) + 1e-10
        counts = counts + NegativeBinomial(total, logits=logit[n]).log_prob(batch.counts[s]).sum()
    return (divergence - image - counts) / size


@pytest.mark.parametrize("covariates", [{}, LEVELS])
def test_pyro_and_plain_objective_agree(make_case, covariates):
    """Two independent writings of the bound give one number and one gradient."""
    network, batch = make_case(covariates=covariates)
    if covariates:
        network.generative.set_conditions({"section": ["A", "B"], "patient": ["r", "p"]})
    torch.manual_seed(5)
    loss = network(batch.image, batch)["loss"]
    torch.manual_seed(5)
    plain = plain_objective(network, batch, network.n_patches)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-4)
    parameters = [p for p in network.parameters() if p.requires_grad]
    got = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.autograd.grad(plain, parameters, allow_unused=True)
    for a, b in zip(got, wanted, strict=True):
        if b is not None:
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_parts_sum_to_the_loss(make_case):
    """Image, expression, local and global divergence together are the loss."""
    network, batch = make_case(covariates=LEVELS)
    network.generative.set_conditions({"section": ["A", "B"], "patient": ["p", "q"]})
    out = network(batch.image, batch)
    torch.testing.assert_close(sum(out[name] for name in PARTS), out["loss"].detach(), rtol=1e-5, atol=1e-4)


def test_global_divergence_scales_with_the_epoch(make_case):
    """Twice as many patches in an epoch halve the share of the global divergence, the local one stays."""
    (few, batch), (many, _) = make_case(n_patches=5), make_case(n_patches=10)
    outs = []
    for network in (few, many):
        torch.manual_seed(1)
        outs.append(network(batch.image, batch))
    torch.testing.assert_close(outs[0]["kl_global"], 2 * outs[1]["kl_global"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(outs[0]["kl_local"], outs[1]["kl_local"])


def test_an_unknown_condition_is_a_latent_one_hot(make_case):
    """Its divergence is that of a categorical law from the uniform one, and its logits get a gradient."""
    network, batch = make_case(covariates={"patient": ["p", "q", "r"]})
    network.generative.set_conditions({"patient": ["p", None]})
    with torch.no_grad():
        network.guide.condition_logits["patient"].copy_(torch.tensor([[9.0, 0.0, 0.0], [1.0, 0.0, -1.0]]))
    with poutine.trace() as traced:
        network.guide(batch, network.n_patches, network.generative)
    drawn = traced.trace.nodes["condition_patient"]["value"]
    assert torch.equal(drawn.sum(1), torch.ones(2))
    known = network.generative.one_hot("patient", drawn)
    assert torch.equal(known[0], torch.tensor([1.0, 0.0, 0.0]))  # the known section keeps its level
    torch.testing.assert_close(known[1], drawn[1])
    torch.manual_seed(3)
    with_unknown = network(batch.image, batch)
    divergence = kl_divergence(
        OneHotCategorical(logits=torch.tensor([1.0, 0.0, -1.0])), OneHotCategorical(logits=torch.zeros(3))
    )
    q_all = sum(
        kl_divergence(Normal(q.mean, q.log_sd.exp()), Normal(0.0, prior.exp())).sum()
        for q, prior in (
            (network.guide.profile, network.generative.log_tau),
            (network.guide.rate_effect["patient"], network.generative.log_sigma["patient"]),
            (network.guide.logit_effect["patient"], network.generative.log_rho["patient"]),
        )
    )
    torch.testing.assert_close(
        with_unknown["kl_global"], (q_all + divergence) / network.n_patches, rtol=1e-4, atol=1e-3
    )
    with_unknown["loss"].backward()
    gradient = network.guide.condition_logits["patient"].grad
    assert gradient[0].abs().sum() == 0
    assert gradient[1].abs().sum() > 0
    assert network.generative.condition[0].tolist() == [0, UNKNOWN]


def test_a_batch_without_spots_is_legal(make_case):
    """No spots leave the image's part and both divergences."""
    network, batch = make_case()
    nothing = {"counts": torch.zeros(0, 5), "spot_section": torch.zeros(0, dtype=torch.int64), "share": torch.zeros(0)}
    empty = replace(batch, label=torch.zeros_like(batch.label), **nothing)
    out = network(empty.image, empty)
    assert float(out["expression"]) == 0.0
    assert torch.isfinite(out["loss"])


def test_inactive_metagenes_take_no_part(make_case):
    """A switched-off metagene has no activity, no divergence and no gradient."""
    network, batch = make_case()
    network.generative.active[1] = False
    assert network(batch.image)[:, 1].eq(0).all()
    network(batch.image, batch)["loss"].backward()
    assert network.guide.profile.mean.grad[1].eq(0).all()
    assert network.guide.profile.mean.grad[0].abs().sum() > 0


def test_occluded_pixels_say_nothing(make_case):
    """An image that is occluded everywhere has no likelihood."""
    network, batch = make_case()
    network.eval()
    model, guide = network.generative, network.guide
    hidden = replace(batch, occluded=torch.ones_like(batch.occluded))
    traced = poutine.trace(poutine.replay(model, poutine.trace(guide).get_trace(hidden, 7, model))).get_trace(hidden, 7)
    traced.compute_log_prob()
    assert float(traced.nodes["image"]["log_prob_sum"].detach()) == 0.0


def test_expected_activity_of_an_image_is_that_of_the_posterior_mean(make_case):
    """Called with an image alone the network decodes the means of all levels."""
    network, batch = make_case()
    network.eval()
    activity, scale = network.generative.expression(
        network.generative.fusion([m for m, _ in network.guide.encoder(batch.image)])
    )
    torch.testing.assert_close(network(batch.image), activity * scale)
    torch.testing.assert_close(activity.sum(1), torch.ones(2, 8, 8))


def test_nothing_is_left_in_pyros_parameter_store(make_case):
    """All parameters belong to the network; the global store stays empty."""
    network, batch = make_case(covariates=LEVELS)
    network.generative.set_conditions({"section": ["A", "B"], "patient": ["p", None]})
    network(batch.image, batch)["loss"].backward()
    assert not list(pyro.get_param_store().keys())
