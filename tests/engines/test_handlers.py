"""Handlers: scores, logs, seeds and heartbeats, each against what it must add up to."""

from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine

from superst_monai.engines.budget import Budget
from superst_monai.engines.handlers import SCORE, UMI_SCORE, EpochSeed, Heartbeat, MetageneImages
from superst_monai.engines.prepare import parameter_groups, prefers_bfloat16, prepare_batch
from superst_monai.engines.trainer import held_out_metric, interval
from superst_monai.model.objective import FusionVAE
from superst_monai.types import Key


def scores_of(*batches: tuple[list[float], list[float]]) -> dict[str, float]:
    """Scores of an evaluator whose batches give (log-likelihoods, shares)."""
    answers = [{"pred": {"loglik": torch.tensor(a), "share": torch.tensor(b)}} for a, b in batches]
    engine = Engine(lambda _, answer: answer)
    for name, metric in held_out_metric().items():
        metric.attach(engine, name)
    return engine.run(answers).metrics


def test_each_score_is_the_mean_over_its_spots():
    """Batches count by their spots: a share of 1 is withheld, one below it set aside, of 0 nothing; none give NaN."""
    nothing = ([], [])
    scores = scores_of(([-1.0, -2.0, -3.0], [1.0, 0.05, 0.0]), nothing, ([-5.0, -7.0, -9.0], [1.0, 1.0, 0.05]))
    assert scores == {SCORE: pytest.approx(-13 / 3), UMI_SCORE: pytest.approx(-11 / 2)}
    assert all(math.isnan(score) for score in scores_of(nothing).values())


def test_noise_of_an_epoch_depends_on_seed_and_epoch_alone():
    """Whatever was drawn before, an epoch starts from the same state; other epochs and seeds from others."""

    class Patches:
        epoch = 0

        def set_epoch(self, epoch):
            self.epoch = epoch

    def draws(seed, waste):
        found = []
        engine = Engine(lambda _, __: found.append(float(torch.rand(()))))
        EpochSeed(Patches(), seed).attach(engine)
        torch.rand(waste)
        engine.run([0, 1], max_epochs=3)
        return found

    assert draws(1, 3) == draws(1, 99)
    assert len(set(draws(1, 0)) | set(draws(2, 0))) == 12


def test_heartbeats_tell_share_seconds_and_loss():
    """With no least time each step reports, and the end reports once more."""
    budget = Budget(4, epochs=1)
    seen = []
    engine = Engine(lambda _, batch: {"loss": torch.tensor(float(batch))})
    Heartbeat(budget, lambda share, seconds, loss: seen.append((share, loss)), every_s=0).attach(engine)
    engine.run([1, 2, 3, 4])
    assert seen == [(0.25, 1.0), (0.5, 2.0), (0.75, 3.0), (1.0, 4.0), (1.0, 4.0)]


def test_images_show_patch_and_metagenes_side_by_side():
    """The picture is the patch and K maps, each scaled to its own maximum."""
    torch.manual_seed(0)
    network = FusionVAE(3, n_metagenes=2, depth=2, width=4).eval()
    image = torch.rand(1, 3, 8, 8) * 1.8 - 0.9
    drawn = []

    class Writer:
        def add_image(self, tag, picture, step):
            drawn.append((tag, picture, step))

    engine = Engine(lambda _, __: {Key.IMAGE.value: image})
    MetageneImages(network, Writer(), lambda: 7).attach(engine)
    engine.run([0])
    tag, picture, step = drawn[0]
    assert (tag, step) == ("histology_and_metagenes", 7)
    torch.testing.assert_close(picture[:, :, :8], image[0] / 1.8 + 0.5)
    maps = network(image)[0].detach()
    torch.testing.assert_close(picture[0, :, 8:16], maps[0] / maps[0].max())
    assert picture.shape == (3, 8, 24)


def test_every_parameter_learns_at_one_rate():
    """The groups share out the parameters, baselines fastest."""
    network = FusionVAE(3, n_metagenes=2, depth=2, width=4, covariates={"c": ["a", "b"]})
    groups = parameter_groups(network, 0.1, globals_factor=2.0, baselines_factor=5.0)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    assert [g["lr"] for g in groups] == [0.1, 0.2, 0.5]
    assert {id(network.generative.log_rate), id(network.generative.logit)} == {id(p) for p in groups[2]["params"]}


def test_batches_reach_the_network_as_patches():
    """Image, label and the rest keep their values."""
    batch = {
        Key.IMAGE: torch.rand(2, 3, 4, 4),
        Key.LABEL: torch.randint(0, 2, (2, 4, 4)),
        Key.COUNTS: torch.ones(1, 3),
        Key.SPOT_SECTION: torch.zeros(1, dtype=torch.int64),
        Key.OCCLUDED: torch.zeros(2, 1, 4, 4, dtype=torch.bool),
        Key.SECTION: torch.zeros(2, dtype=torch.int64),
        Key.SHARE: torch.tensor([0.95]),
    }
    image, label, (patches,), kwargs = prepare_batch(batch, "cpu")
    assert kwargs == {}
    torch.testing.assert_close(image, batch[Key.IMAGE])
    assert patches.image is image
    assert patches.label is label
    assert torch.equal(patches.counts, batch[Key.COUNTS])
    assert torch.equal(patches.share, batch[Key.SHARE])


def test_intervals_are_whole_epochs():
    """Rounded up, at least one."""
    assert [interval(50, n) for n in (1, 10, 49, 50, 51, 400)] == [50, 5, 2, 1, 1, 1]


def test_precision_is_chosen_by_the_device():
    """The answer of a CPU is what oneDNN says of it."""
    assert prefers_bfloat16(torch.device("cpu")) == bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
