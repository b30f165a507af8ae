"""Evaluations of metagenes: the sums over the fixed patches, and what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from superst_monai.engines import metagene_evaluation
from superst_monai.engines.metagene_evaluation import MetageneEvaluation, Scores
from superst_monai.engines.prepare import prepare_batch
from superst_monai.engines.training_data import TrainingData
from superst_monai.model.metagene_scores import removal_losses
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.collate import collate_patches

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def data(make_section) -> TrainingData:
    """One section with patches of 32 px."""
    return TrainingData([make_section("A")], min_counts=1, patch_px=32, val_share=0.0)


@pytest.fixture
def network(data) -> FusionVAE:
    """Four metagenes with the first values of the section; activities that differ from place to place."""
    torch.manual_seed(0)
    network = FusionVAE(data.n_genes, n_metagenes=4, depth=3, width=4, n_patches=data.n_patches)
    data.set_first_values(network)
    return network


def test_scores_are_sums_over_the_patches_of_epoch_0(data, network):
    """Loss by spot with counts and shares of the sizes, batch after batch; the data set keeps its epoch."""
    dataset = data.training_set(batch_size=2)
    dataset.set_epoch(0)
    loss, size, spots = torch.zeros(4), torch.zeros(4), 0
    for start in (0, 2, 4):
        batch = prepare_batch(collate_patches([dataset[start], dataset[start + 1]]))[2][0]
        found = removal_losses(network, batch, torch.eye(4, dtype=torch.bool))
        loss, size = loss + found[0], size + found[1]
        spots += sum(bool(row.any()) for row in batch.counts)
    dataset.set_epoch(5)
    scores = MetageneEvaluation(dataset, batch_size=2, n_batches=3).score(network)
    assert dataset.epoch == 5
    np.testing.assert_allclose(scores.loss, loss / spots)
    np.testing.assert_allclose(scores.share, size / size.sum())


def test_processes_share_out_the_batches(data, network, monkeypatch):
    """What two processes find adds up to what one finds, and each decides on the sum; alone, one takes all."""
    evaluation = MetageneEvaluation(data.training_set(batch_size=2), batch_size=2, n_batches=3)
    whole = evaluation.score(network)
    told = []
    monkeypatch.setattr(metagene_evaluation, "of_all", lambda values: told.append(values) or torch.cat(told))
    monkeypatch.setattr(metagene_evaluation.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(metagene_evaluation.dist, "get_world_size", lambda: 2)
    for number in (0, 1):
        monkeypatch.setattr(metagene_evaluation, "rank", lambda number=number: number)
        shared = evaluation.score(network)
    assert [len(values) for values in told] == [1, 1]
    assert not torch.equal(*told)
    np.testing.assert_allclose(shared.loss, whole.loss, rtol=1e-9)
    np.testing.assert_allclose(shared.share, whole.share, rtol=1e-9)
    np.testing.assert_array_equal(evaluation.score(network, alone=True).loss, whole.loss)
    assert len(told) == 2


def test_metagenes_out_of_use_have_no_score_and_the_only_one_is_never_missed_too_little(data, network):
    """NaN for rows out of use; infinity for a single one, whose share is all."""
    evaluation = MetageneEvaluation(data.training_set(batch_size=2), batch_size=2, n_batches=1)
    network.generative.active[1] = False
    scores = evaluation.score(network)
    assert np.isnan(scores.loss).tolist() == [False, True, False, False]
    network.generative.active[2:] = False
    scores = evaluation.score(network)
    np.testing.assert_array_equal(scores.loss, [INF, NAN, NAN, NAN])
    np.testing.assert_array_equal(scores.share, [1, 0, 0, 0])
    assert scores.weak(1e9) == []


def test_twins_are_not_dropped_together(data, network):
    """Two metagenes that do each other's work are missed little one by one; only one of them is expendable."""
    left = torch.tensor([1.8, 0.2] * 6).log()  # the genes of the left half of the tissue, and of the right one
    right = left.flip(0)
    with torch.no_grad():
        network.guide.profile.mean.copy_(torch.stack([right, right, left, left]))
        head = network.generative.expression_decoder.activity
        head.weight.zero_()
        head.bias.copy_(torch.tensor([0.35, 0.35, 0.3, 1e-6]).log())
    evaluation = MetageneEvaluation(data.training_set(batch_size=2), batch_size=2, n_batches=1)
    scores = evaluation.score(network)
    least = 1.1 * float(scores.loss[[0, 1]].max())
    weak = scores.weak(least)
    assert sorted(weak) == [0, 1, 3]
    assert evaluation.expendable(network, weak, least_gain=least) == weak[:2]
    assert weak[0] == 3
    assert evaluation.expendable(network, weak[:1], least_gain=least) == weak[:1]
    assert evaluation.expendable(network, [], least_gain=least) == []


def test_patches_without_spots_give_no_scores(make_section):
    """With nothing to lose nothing is said."""
    data = TrainingData([make_section("A")], min_counts=1, patch_px=4, val_share=0.0)  # no spot fits
    network = FusionVAE(data.n_genes, n_metagenes=2, depth=2, width=4)
    evaluation = MetageneEvaluation(data.training_set(batch_size=2), batch_size=2, n_batches=2)
    assert evaluation.score(network) is None


def test_weak_and_contributing_metagenes_are_in_the_order_of_their_loss():
    """The least missed of the weak and the most missed of the others come first; rows out of use are neither."""
    scores = Scores(np.array([0.5, NAN, 7.0, -1.0, 3.0]), np.array([0.2, 0.0, 0.2, 0.3, 0.3]))
    assert scores.weak(1.0) == [3, 0]
    assert scores.contributing(1.0) == [2, 4]
    assert scores.as_record() == {
        "loss": [0.5, None, 7.0, -1.0, 3.0],
        "share": [0.2, 0.0, 0.2, 0.3, 0.3],
        "collapsed": False,
    }


@pytest.mark.parametrize(
    ("loss", "share", "collapsed"),
    [
        ([1, 1, 1], [0.985, 0.009, 0.006], True),
        ([1, 1, 1], [0.98, 0.014, 0.006], False),
        ([INF, NAN, NAN], [1, 0, 0], True),
        ([INF], [1], False),
        ([1] * 300, [1 / 300] * 300, False),
    ],
)
def test_a_collapse_is_one_metagene_alone_above_one_percent(loss, share, collapsed):
    """All but one out of use or below 1 %; not where there is one row only, nor where many share evenly."""
    assert Scores(np.array(loss, float), np.array(share, float)).collapsed == collapsed
