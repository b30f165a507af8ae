"""The trainer's and evaluator's handlers, assembled once for every door: CLI, bundle and Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    EarlyStopHandler,
    LrScheduleHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
)
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter

from superst_monai.engines.budget import Budget
from superst_monai.engines.handlers import (
    SCORE,
    Clock,
    EpochSeed,
    FiniteGuard,
    Heartbeat,
    MetageneImages,
    MetricsLog,
    SpotScore,
    spot_score,
)
from superst_monai.engines.prepare import loss_of
from superst_monai.engines.run_folder import RunFolder
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.sampling import PatchDataset


class Checkpoints:
    """Keeps the last checkpoints of a run, the best weights, and loads the newest checkpoint of a resumed run.

    Args:
        folder: of the run.
        network: whose weights `models/model.pt` holds: those with the best held-out score, or the last.
        state: everything else that a resumed run needs, by name.
        evaluator: gives the held-out score, or None.
        every_epochs: between two checkpoints.
        keep: how many of them stay on disk.
    """

    def __init__(
        self,
        folder: RunFolder,
        network: FusionVAE,
        state: dict[str, Any],
        evaluator: SupervisedEvaluator | None,
        *,
        every_epochs: int,
        keep: int = 2,
    ) -> None:
        self.folder = folder
        self.network = network
        self.state = state
        self.evaluator = evaluator
        self.every_epochs = every_epochs
        self.keep = keep

    def attach(self, engine: Engine) -> None:
        """Hook loader and savers into the trainer (and evaluator)."""
        everything = {"network": self.network, **self.state, "trainer": engine}
        last = self.folder.last_checkpoint() if self.folder.resume else None
        if last is not None:
            CheckpointLoader(str(last), everything, map_location=None).attach(engine)
        CheckpointSaver(
            str(self.folder.checkpoints),
            everything,
            file_prefix="",
            epoch_level=True,
            save_interval=self.every_epochs,
            n_saved=self.keep,
        ).attach(engine)
        best = {"model": self.network}
        if self.evaluator is None:
            CheckpointSaver(str(self.folder.models), best, save_final=True, final_filename="model.pt").attach(engine)
        else:
            CheckpointSaver(
                str(self.folder.models), best, save_key_metric=True, key_metric_filename="model.pt"
            ).attach(self.evaluator)


class HeldOut:
    """Validation during training, a last one at its end, and the end when the score stops rising.

    Args:
        evaluator: of the held-out spots.
        every_epochs: between two validations.
        patience: validations without a better score before training stops.
    """

    def __init__(self, evaluator: SupervisedEvaluator, *, every_epochs: int, patience: int) -> None:
        self.evaluator = evaluator
        self.every_epochs = every_epochs
        self.stop = EarlyStopHandler(patience, score_of)
        self._validated_at = -1
        evaluator.add_event_handler(Events.COMPLETED, self._note)
        self.stop.attach(evaluator)

    def attach(self, engine: Engine) -> None:
        """Hook into the ends of epochs and of the training."""
        self._trainer = engine
        self.stop.set_trainer(engine)
        ValidationHandler(self.every_epochs, self.evaluator, epoch_level=True).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._last)

    def _note(self, _: Engine) -> None:
        self._validated_at = self._trainer.state.iteration

    def _last(self, engine: Engine) -> None:
        if self._validated_at != engine.state.iteration:
            self.evaluator.run(engine.state.epoch)


def score_of(engine: Engine) -> float:
    """Held-out score of an evaluator after its run."""
    return float(engine.state.metrics[SCORE])


def held_out_metric() -> dict[str, SpotScore]:
    """The evaluator's key metric, by name."""
    return {SCORE: SpotScore(output_transform=spot_score)}


def interval(every_steps: int, steps_per_epoch: int) -> int:
    """Whole epochs that last at least `every_steps` steps."""
    return max(1, -(-every_steps // steps_per_epoch))


def training_handlers(
    *,
    network: FusionVAE,
    optimizer: Optimizer,
    lr_scheduler: LambdaLR,
    budget: Budget,
    dataset: PatchDataset,
    run_folder: RunFolder,
    evaluator: SupervisedEvaluator | None,
    seed: int,
    every_steps: int,
    patience: int,
    show: Callable[[float, float, float], None] | None = None,
) -> list[Any]:
    """Everything that happens around the trainer's steps, in the order in which it must happen.

    Args:
        network: trained.
        optimizer: of the network.
        lr_scheduler: stepped after each step.
        budget: how long training lasts.
        dataset: of the training patches.
        run_folder: where everything is written.
        evaluator: of the held-out spots, or None.
        seed: of the run.
        every_steps: between two validations and checkpoints [steps], rounded up to whole epochs.
        patience: validations without a better score before training stops.
        show: called with the share of the budget spent, seconds and loss; None logs.
    """
    every = interval(every_steps, budget.steps_per_epoch)
    state = {"optimizer": optimizer, "lr_scheduler": lr_scheduler, "budget": budget}
    writer = SummaryWriter(str(run_folder.logs))
    handlers: list[Any] = [
        EpochSeed(dataset, seed),
        FiniteGuard(network, run_folder.checkpoints),
        LrScheduleHandler(cast(Any, lr_scheduler), print_lr=False, epoch_level=False),
        Clock(budget),
    ]
    if evaluator is not None:
        handlers.append(HeldOut(evaluator, every_epochs=every, patience=patience))
        MetageneImages(network, writer, lambda: evaluator.state.epoch).attach(evaluator)
    handlers += [
        Checkpoints(run_folder, network, state, evaluator, every_epochs=every),
        MetricsLog(run_folder.path / "metrics.csv", budget, optimizer, evaluator),
        TensorBoardStatsHandler(writer, tag_name="loss", output_transform=loss_of),
        Heartbeat(budget, show) if show else StatsHandler(tag_name="loss", output_transform=loss_of, iteration_log=False),
    ]
    return handlers
