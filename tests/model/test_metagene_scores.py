"""All reduced models from one pass of the network, against each of them evaluated on its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.distributions import NegativeBinomial

from superst_monai.errors import RunError
from superst_monai.model.metagene_scores import _blocks, removal_losses

LEVELS = {"section": ["A", "B"], "patient": ["p", "q", "r"]}


def plain_sizes(network, batch) -> torch.Tensor:
    """Metagene size of each spot `(S, K)` at the posterior mean of all latent variables, spot by spot."""
    model = network.generative
    with torch.no_grad():
        activity, scale = model.expression(model.decode([mean for mean, _ in network.guide.encoder(batch.image)]))
    weight = (activity * scale).double().movedim(1, -1)
    return torch.stack([batch.share[s] * weight[batch.label == s + 1].sum(0) for s in range(len(batch.counts))])


def plain_laws(network) -> tuple[torch.Tensor, torch.Tensor]:
    """Log rate and logit of section A with patient p and of section B whose patient is not known."""
    guide, found = network.guide, []
    chance = guide.condition_logits["patient"][1].softmax(0)
    for baseline, part in (
        (network.generative.log_rate, guide.rate_effect),
        (network.generative.logit, guide.logit_effect),
    ):
        section, patient = part["section"].mean, part["patient"].mean
        a, b = baseline + section[0] + patient[0], baseline + section[1] + (chance[:, None] * patient).sum(0)
        found.append(torch.stack([a, b]).detach().double())
    return found[0], found[1]


def plain_log_likelihood(network, batch) -> float:
    """Log-likelihood of the counts with the metagenes that are in use now."""
    log_rate, logit = plain_laws(network)
    rate = (plain_sizes(network, batch) @ network.guide.profile.mean.detach().double().exp()) + 1e-300
    total = rate * log_rate[batch.spot_section].exp() + 1e-10
    law = NegativeBinomial(total, logits=logit[batch.spot_section])
    return float(law.log_prob(batch.counts.double()).sum())


def plain_losses(network, batch, removed) -> torch.Tensor:
    """What is lost without each set, one model after the other."""
    active = network.generative.active
    before, whole, found = active.clone(), plain_log_likelihood(network, batch), []
    for gone in removed:
        active.copy_(before & ~gone)
        found.append(whole - plain_log_likelihood(network, batch))
        active.copy_(before)
    return torch.tensor(found, dtype=torch.float64)


@pytest.fixture
def case(make_case):
    """A network in evaluation mode and a batch with small and large counts, thinned spots and one without counts."""
    network, batch = make_case(covariates=LEVELS)
    network.generative.set_conditions({"section": ["A", "B"], "patient": ["p", None]})
    torch.manual_seed(1)
    with torch.no_grad():
        network.guide.condition_logits["patient"].normal_()
        network.guide.profile.mean.normal_(0.0, 1.0)
        network.generative.expression_decoder.activity.bias.normal_(0.0, 1.0)
        for parameter in network.generative.fusion.context.parameters():  # they start at zero
            parameter.normal_(0.0, 0.5)
    counts = torch.poisson(torch.tensor([0.3, 1.0, 3.0, 8.0, 40.0]).expand(4, 5))
    counts[3] = 0.0
    return network.eval(), replace(batch, counts=counts, share=torch.tensor([1.0, 0.95, 0.5, 1.0]))


def test_every_reduced_model_scores_as_if_it_were_evaluated_alone(case):
    """K reduced models from one pass lose what K evaluations with the metagene switched off lose."""
    network, batch = case
    each = torch.eye(3, dtype=torch.bool)
    found, size = removal_losses(network, batch, each)
    torch.testing.assert_close(found, plain_losses(network, batch, each), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(size, plain_sizes(network, batch).sum(0), rtol=1e-5, atol=1e-6)
    assert found.abs().min() > 0.01  # the comparison is not one of zeros


def test_several_metagenes_can_be_removed_together(case):
    """A set loses what the model without all of it loses; nothing removed loses nothing."""
    network, batch = case
    sets = torch.tensor([[True, True, False], [False, False, False], [False, True, True]])
    found, _ = removal_losses(network, batch, sets)
    torch.testing.assert_close(found, plain_losses(network, batch, sets), rtol=1e-4, atol=1e-3)
    assert float(found[1]) == 0.0


def test_metagenes_out_of_use_take_no_part(case):
    """The losses of the others are those of a model that does not have the inactive one."""
    network, batch = case
    network.generative.active[1] = False
    each = torch.eye(3, dtype=torch.bool)[[0, 2]]
    found, size = removal_losses(network, batch, each)
    torch.testing.assert_close(found, plain_losses(network, batch, each), rtol=1e-4, atol=1e-3)
    assert float(size[1]) == 0.0


@pytest.mark.parametrize("lead", [20.0, 60.0])
def test_a_metagene_with_nearly_all_of_the_activity_can_be_removed(case, lead):
    """The others are renormalised exactly, though their shares are as small as exp(-lead)."""
    network, batch = case
    with torch.no_grad():
        network.generative.expression_decoder.activity.bias[2] += lead
    each = torch.eye(3, dtype=torch.bool)
    found, _ = removal_losses(network, batch, each)
    torch.testing.assert_close(found, plain_losses(network, batch, each), rtol=1e-4, atol=1e-3)


def test_where_the_others_are_beyond_float_they_share_equally(case):
    """With shares of exactly zero the loss is that of an even mixture of the others, and no NaN."""
    network, batch = case
    head = network.generative.expression_decoder.activity
    with torch.no_grad():
        head.bias[2] += 500.0
    found, _ = removal_losses(network, batch, torch.eye(3, dtype=torch.bool)[2:])
    whole = plain_log_likelihood(network, batch)
    with torch.no_grad():
        for layer in (head, *network.generative.fusion.context):
            layer.weight[:3] = 0.0
            layer.bias[:3] = 0.0
    network.generative.active[2] = False
    torch.testing.assert_close(float(found), whole - plain_log_likelihood(network, batch), rtol=1e-4, atol=1e-3)


def test_one_pass_is_enough_and_leaves_no_trace(make_case):
    """However many models are scored the network runs once, in evaluation mode, and draws nothing."""
    network, batch = make_case()
    passes = []
    network.generative.fusion.register_forward_hook(lambda *_: passes.append(network.training))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    drawn = torch.get_rng_state()
    removal_losses(network, batch, torch.eye(3, dtype=torch.bool))
    assert passes == [False]
    assert network.training
    assert torch.equal(drawn, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_batch_without_spots_loses_nothing(case):
    """No counts, no loss."""
    network, batch = case
    none = torch.zeros(0, dtype=torch.int64)
    empty = replace(
        batch, label=torch.zeros_like(batch.label), counts=torch.zeros(0, 5), spot_section=none, share=none.float()
    )
    found, size = removal_losses(network, empty, torch.eye(3, dtype=torch.bool))
    assert found.tolist() == [0.0] * 3
    assert size.tolist() == [0.0] * 3


def test_the_last_metagene_cannot_be_removed(case):
    """A set that leaves nothing in use is refused."""
    network, batch = case
    network.generative.active[:2] = False
    with pytest.raises(RunError, match="must keep an active metagene; leave the last one out"):
        removal_losses(network, batch, torch.eye(3, dtype=torch.bool)[2:])


def test_blocks_hold_each_item_once_and_under_its_owner():
    """Padding aside, the blocks are a partition of the items, at most `at_once` together."""
    torch.manual_seed(0)
    owner = torch.randint(0, 7, (200,))
    owner[owner == 4] = 5  # one owner has none, one has many
    owner = owner.sort().values
    seen = []
    for item, inside, of_block in _blocks(owner, 7, length=8, at_once=3):
        assert item.shape == inside.shape == (len(of_block), 8)
        assert len(of_block) <= 3
        assert torch.equal(owner[item][inside], of_block[:, None].expand(-1, 8)[inside])
        seen += item[inside].tolist()
    assert seen == list(range(200))
