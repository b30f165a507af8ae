"""Splits and drops of metagenes: what they keep, what they change, and that the optimizer follows."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from superst_monai.errors import RunError
from superst_monai.model.metagene_moves import drop, metagene_rows, split


def predicted(network, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled activity `(B, K, H, W)` and expected rate of each gene in each pixel `(B, H, W, G)`."""
    scaled = network(batch.image)
    return scaled, scaled.movedim(1, -1) @ network.guide.profile.mean.exp()


@pytest.fixture
def case(make_case):
    """A network in evaluation mode with its last metagene out of use, an optimizer without steps, and a batch."""
    network, batch = make_case()
    network.generative.active[2] = False
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in network.generative.fusion.context.parameters():  # they start at zero
            parameter.normal_(0.0, 0.5)
    return network.eval(), torch.optim.Adam(network.parameters(), lr=0.01), batch


def test_a_split_shares_the_activity_in_halves(case):
    """Without perturbation each copy has half, the others what they had, and every expected rate stays."""
    network, optimizer, batch = case
    with torch.no_grad():
        before, rate = predicted(network, batch)
        split([network], optimizer, 0, 2, perturbation=0.0, seed=0)
        after, same_rate = predicted(network, batch)
    torch.testing.assert_close(after[:, 0], before[:, 0] / 2)
    torch.testing.assert_close(after[:, 2], before[:, 0] / 2)
    torch.testing.assert_close(after[:, 1], before[:, 1])
    torch.testing.assert_close(same_rate, rate)
    assert network.generative.active.tolist() == [True, True, True]


def test_perturbed_profiles_keep_the_mean_rate(case):
    """While both copies are equally active no expected rate changes, though the profiles differ by much."""
    network, optimizer, batch = case
    with torch.no_grad():
        network.generative.expression_decoder.activity.weight.zero_()  # their perturbation is relative to them
        _, rate = predicted(network, batch)
        split([network], optimizer, 0, 2, perturbation=1.0, seed=0)
        _, same_rate = predicted(network, batch)
    profile = network.guide.profile.mean
    assert float((profile[0] - profile[2]).detach().abs().max()) > 1.0
    torch.testing.assert_close(same_rate, rate)


def test_small_perturbations_change_expected_rates_by_their_square(case):
    """Ten times smaller, a hundred times less change: the first order cancels between the copies."""
    network, optimizer, batch = case
    with torch.no_grad():
        network.generative.expression_decoder.activity.weight.mul_(100.0)
    changes = []
    for size in (0.3, 0.03):
        other = copy.deepcopy(network)
        with torch.no_grad():
            _, rate = predicted(other, batch)
            split([other], optimizer, 0, 2, perturbation=size, seed=3)
            changes.append(float((predicted(other, batch)[1] / rate - 1).double().square().mean().sqrt()))
    assert 1e-4 < changes[0] < 0.01
    assert changes[0] / changes[1] == pytest.approx(100, rel=0.1)


def test_copies_differ_by_opposite_changes_of_the_seed(case):
    """Weights go apart by the same step in opposite directions; equal seeds give equal bits, in every network."""
    network, optimizer, _ = case
    average, again, other = (copy.deepcopy(network) for _ in range(3))
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.mul_(0.5)
    old, old_average = (copy.deepcopy(net) for net in (network, average))
    split([network, average], optimizer, 0, 2, perturbation=0.1, seed=7)
    split([again], optimizer, 0, 2, perturbation=0.1, seed=7)
    split([other], optimizer, 0, 2, perturbation=0.1, seed=8)
    for net, before in ((network, old), (average, old_average)):
        head, old_head = net.generative.expression_decoder.activity, before.generative.expression_decoder.activity
        torch.testing.assert_close(head.weight[0] + head.weight[2], 2 * old_head.weight[0])
        turn = network.generative.expression_decoder.activity.weight - old.generative.expression_decoder.activity.weight
        torch.testing.assert_close((head.weight - old_head.weight)[0], turn[0])
        assert float(turn[0].detach().abs().max()) > 0.0
        assert torch.equal(head.bias[[0, 2]], (old_head.bias[0] - math.log(2.0)).expand(2))
        fold, old_fold = net.guide.profile.mean.exp(), before.guide.profile.mean.exp()
        torch.testing.assert_close((fold[0] + fold[2]) / 2, old_fold[0])
        assert torch.equal(net.guide.profile.log_sd[[0, 2]], before.guide.profile.log_sd[[0, 0]])
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    assert not torch.equal(network.guide.profile.mean, other.guide.profile.mean)


def rows_in_use(network) -> list[torch.Tensor]:
    """All rows of metagenes but those of the standard deviations, which no expected rate depends on."""
    return [rows for rows in metagene_rows(network) if rows is not network.guide.profile.log_sd]


def expected_counts_loss(network, batch) -> torch.Tensor:
    """A smooth function of the expected rates alone, without anything random."""
    return predicted(network, batch)[1].sub(0.5).square().sum()


def test_the_next_step_of_a_copy_is_the_one_its_parent_would_have_made(case):
    """Gradients and moments are halved in step, so the first Adam step after a split is that without the split."""
    network, _, batch = case
    optimizer = torch.optim.Adam(rows_in_use(network), lr=0.01, eps=1e-20)

    def step(net, opt):
        opt.zero_grad()
        expected_counts_loss(net, batch).backward()
        before = [row.detach().clone() for row in rows_in_use(net)]
        opt.step()
        return [row.detach() - old for row, old in zip(rows_in_use(net), before, strict=True)]

    for _ in range(5):
        step(network, optimizer)
    whole = copy.deepcopy(network)
    other = torch.optim.Adam(rows_in_use(whole), lr=0.01, eps=1e-20)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    split([network], optimizer, 0, 2, perturbation=0.0, seed=0)
    for got, wanted in zip(step(network, optimizer), step(whole, other), strict=True):
        torch.testing.assert_close(got[[0, 2]], wanted[[0, 0]], rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(got[1], wanted[1], rtol=2e-3, atol=1e-4)
        assert wanted[0].abs().max() > 1e-3


def test_a_dropped_metagene_keeps_still(case):
    """Its moments are zero, so training moves every other row but not its own; all shapes stay."""
    network, optimizer, batch = case
    average = copy.deepcopy(network)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    for at in range(4):
        if at == 2:
            drop([network, average], optimizer, 1)
            still = [row.detach().clone() for row in metagene_rows(network)]
        optimizer.zero_grad()
        network(batch.image, batch)["loss"].backward()
        optimizer.step()
    assert network.generative.active.tolist() == average.generative.active.tolist() == [True, False, False]
    for row, before in zip(metagene_rows(network), still, strict=True):
        assert torch.equal(row[1], before[1])
        assert not torch.equal(row[0], before[0])
    assert {name: value.shape for name, value in network.state_dict().items()} == shapes


def test_the_only_metagene_cannot_be_dropped(case):
    """One stays in use."""
    network, optimizer, _ = case
    drop([network], optimizer, 0)
    with pytest.raises(RunError, match="metagene 1 is the only one in use and must stay; split it"):
        drop([network], None, 1)
    assert network.generative.active.tolist() == [False, True, False]
