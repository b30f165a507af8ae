"""When training stops, which weights it keeps and which score decides."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from superst_monai.engines.handlers import SCORE, UMI_SCORE
from superst_monai.engines.trainer import HeldOut, held_out_metric, score_of
from superst_monai.engines.workflow import train
from superst_monai.errors import TrainingError

NAN = float("nan")
SMALL = {"n_metagenes": 2, "depth": 2, "width": 4, "patch_px": 32, "batch_size": 2, "min_counts": 1}


class Run:
    """A training whose one weight is its epoch, with given scores in the place of a model's.

    Args:
        scores: of withheld spots and of UMIs set aside, for each epoch.
        patience: of the training.
        every: epochs between two validations.
    """

    def __init__(self, scores: Sequence[tuple[float, float]], *, patience: int, every: int = 1) -> None:
        self.network = nn.Linear(1, 1, bias=False).requires_grad_(False)
        self.kept: list[int] = []
        self.trainer = Engine(lambda *_: None)
        self.trainer.add_event_handler(Events.EPOCH_STARTED, lambda e: self.network.weight.fill_(e.state.epoch))

        def answer(*_: Any) -> dict[str, torch.Tensor]:
            loglik = torch.tensor(scores[self.trainer.state.epoch - 1])
            return {"loglik": loglik[~loglik.isnan()], "share": torch.tensor([1.0, 0.5])[~loglik.isnan()]}

        evaluator = SupervisedEvaluator(
            device=torch.device("cpu"),
            val_data_loader=[0],
            network=self.network,
            prepare_batch=lambda *_, **__: (torch.zeros(1), torch.zeros(1)),
            inferer=answer,
            key_val_metric=held_out_metric(),
            decollate=False,
        )
        self.watch = HeldOut(evaluator, self.network, self, every_epochs=every, patience=patience)
        self.watch.attach(self.trainer)

    def save_weights(self, network: nn.Linear) -> None:
        """In the place of the run folder."""
        self.kept.append(int(network.weight.item()))

    def epochs(self, most: int) -> int:
        """Train at most so many epochs; the epoch at which it ended."""
        return self.trainer.run([0, 0], max_epochs=most).epoch


def withheld(*scores: float) -> list[tuple[float, float]]:
    """Scores of withheld spots; those of the UMIs rise all the time and must not matter."""
    return [(score, float(i)) for i, score in enumerate(scores)]


def test_training_stops_after_so_many_validations_without_a_better_score():
    """The count starts again at each better score, an equal one is none better; the weights kept are the best's."""
    run = Run(withheld(-9, -8, -8.5, -7, -7, -7.5, -7.25, -1), patience=3)
    assert run.epochs(8) == 7
    assert run.kept == [1, 2, 4]
    assert run.watch.best_score == -7


def test_a_rising_score_never_stops_the_training():
    """All epochs are done, and the last weights are the best."""
    run = Run(withheld(-3, -2, -1), patience=1)
    assert run.epochs(3) == 3
    assert run.kept == [1, 2, 3]


def test_patience_counts_validations_and_the_last_epoch_is_validated():
    """With two epochs between validations, two bad ones take four epochs; an end in between is validated once more."""
    assert Run(withheld(-9, -1, 0, -2, 0, -2, 0, 0), patience=2, every=2).epochs(8) == 6
    run = Run(withheld(-9, -4, -3), patience=2, every=2)
    assert run.epochs(3) == 3
    assert run.kept == [2, 3]


def test_without_withheld_spots_the_umis_decide():
    """The score of the UMIs set aside stops the training and chooses the weights."""
    run = Run([(NAN, -5.0), (NAN, -4.0), (NAN, -4.5), (NAN, -4.5)], patience=1)
    assert run.epochs(4) == 3
    assert run.kept == [1, 2]
    assert run.watch.best_score == -4


def test_a_resumed_run_goes_on_counting():
    """Score and count of the first part hold in the second: it stops where one run would have."""
    scores = withheld(-9, -8, -8.5, -8.25, -8.125, -1)
    first = Run(scores, patience=3)
    first.epochs(3)
    second = Run(scores, patience=3)
    second.trainer.load_state_dict(first.trainer.state_dict())
    second.watch.load_state_dict(first.watch.state_dict())
    assert second.epochs(6) == 5
    assert second.kept == []
    assert second.watch.best_score == -8


def test_no_score_at_all_is_refused():
    """A validation that scores nothing neither keeps weights nor goes on unseen."""
    run = Run([(NAN, NAN)], patience=1)
    with pytest.raises(TrainingError, match=r"must score at least one spot, .* no numbers at epoch 1.*larger --patch"):
        run.epochs(1)
    assert run.kept == []


def test_the_deciding_score_is_that_of_withheld_spots():
    """Unless it is no number."""
    engine = Engine(lambda *_: None)
    engine.state.metrics = {SCORE: -2.0, UMI_SCORE: -1.0}
    assert score_of(engine) == -2.0
    engine.state.metrics[SCORE] = NAN
    assert score_of(engine) == -1.0


@pytest.mark.parametrize(("options", "written"), [({}, {SCORE, UMI_SCORE}), ({"val_share": 0.0}, {UMI_SCORE})])
def test_a_run_writes_the_scores_that_it_has(stores, tmp_path, options, written):
    """Both columns are there; the one without evidence is empty, and the weights of the best validation are kept."""
    run = train(stores[:1], tmp_path / "run", epochs=1, options=SMALL | {"val_every_steps": 10} | options)
    with (run / "metrics.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert {name for name in (SCORE, UMI_SCORE) if row[name]} == written
    assert all(float(row[name]) < 0 for name in written)
    assert (run / "models" / "model.pt").exists()
