"""The trainer's and evaluator's handlers, assembled once for every door: CLI, bundle and Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping, EMAHandler
from monai.engines import SupervisedEvaluator
from monai.handlers import (
    CheckpointLoader,
    CheckpointSaver,
    LrScheduleHandler,
    StatsHandler,
    TensorBoardStatsHandler,
    ValidationHandler,
)
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.tensorboard import SummaryWriter

from superst_monai.engines.budget import Budget
from superst_monai.engines.handlers import (
    SCORE,
    UMI_SCORE,
    Clock,
    EpochSeed,
    FiniteGuard,
    Heartbeat,
    MetageneImages,
    MetricsLog,
    SpotScore,
    of_umis_set_aside,
    of_withheld_spots,
)
from superst_monai.engines.metagene_schedule import MetageneSchedule
from superst_monai.engines.prepare import loss_of
from superst_monai.engines.processes import rank
from superst_monai.engines.run_folder import RunFolder
from superst_monai.engines.together import SharedBudget, StopTogether, Together
from superst_monai.errors import TrainingError
from superst_monai.model.objective import FusionVAE
from superst_monai.transforms.sampling import PatchDataset


class Checkpoints:
    """Keeps the last checkpoints of a run and loads the newest one of a resumed run.

    A checkpoint appears whole or not at all, and holds tensors and numbers only.

    Args:
        folder: of the run.
        state: everything that a resumed run needs, by name; the trainer is added.
        every_epochs: between two checkpoints.
        keep: how many of them stay on disk.
    """

    def __init__(self, folder: RunFolder, state: dict[str, Any], *, every_epochs: int, keep: int = 2) -> None:
        self.folder = folder
        self.state = state
        self.every_epochs = every_epochs
        self.keep = keep

    def attach(self, engine: Engine) -> None:
        """Hook loader and saver into the trainer."""
        everything = self.state | {"trainer": engine}
        last = self.folder.last_checkpoint() if self.folder.resume else None
        if last is not None:
            CheckpointLoader(str(last), everything, map_location=cast(Any, "cpu")).attach(engine)
        if not self.folder.writes:
            return
        where = str(self.folder.checkpoints)
        CheckpointSaver(where, everything, save_interval=self.every_epochs, n_saved=self.keep).attach(engine)


class HeldOut:
    """Validation during training: keeps the best weights, and ends training when the score stops rising.

    Args:
        evaluator: of the validation set; `score_of` decides.
        network: its weights are written when the score is the best so far.
        folder: of the run; the weights are its `models/model.pt`.
        every_epochs: between two validations; a last one ends the training.
        patience: validations without a better score before training stops.
    """

    def __init__(
        self,
        evaluator: SupervisedEvaluator,
        network: nn.Module,
        folder: RunFolder,
        *,
        every_epochs: int,
        patience: int,
    ) -> None:
        self.evaluator = evaluator
        self.network = network
        self.folder = folder
        self.every_epochs = every_epochs
        self.patience = patience
        self._validated_at = -1

    def attach(self, engine: Engine) -> None:
        """Hook into the ends of epochs and of the training."""
        self._trainer = engine
        self._stop = EarlyStopping(self.patience, score_of, engine)
        self.evaluator.add_event_handler(Events.COMPLETED, self._judge)
        ValidationHandler(self.every_epochs, self.evaluator, epoch_level=True).attach(engine)
        engine.add_event_handler(Events.COMPLETED, self._last)

    @property
    def best_score(self) -> float | None:
        """Best score so far."""
        return self._stop.best_score

    def state_dict(self) -> dict[str, Any]:
        """Best score and the validations since."""
        return dict(self._stop.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the scores of an interrupted run."""
        self._stop.load_state_dict(state)

    def _judge(self, evaluator: Engine) -> None:
        self._validated_at = self._trainer.state.iteration
        self._stop(evaluator)
        if self._stop.counter == 0:
            self.folder.save_weights(self.network)

    def _last(self, engine: Engine) -> None:
        if self._validated_at != engine.state.iteration:
            self.evaluator.run(engine.state.epoch)


class LastWeights:
    """Writes the weights when training ends, for runs without validation."""

    def __init__(self, network: nn.Module, folder: RunFolder) -> None:
        self.network = network
        self.folder = folder

    def attach(self, engine: Engine) -> None:
        """Hook into the end of the training."""
        engine.add_event_handler(Events.COMPLETED, lambda _: self.folder.save_weights(self.network))


def score_of(engine: Engine) -> float:
    """Score of an evaluator's run that decides: that of the withheld spots, without any that of the UMIs set aside.

    Raises:
        TrainingError: neither is a number.
    """
    scores = [float(engine.state.metrics[name]) for name in (SCORE, UMI_SCORE)]
    found = [score for score in scores if not math.isnan(score)]
    if not found:
        raise TrainingError(
            f"the validation must score at least one spot, but {SCORE} and {UMI_SCORE} are no numbers at epoch "
            f"{engine.state.epoch}: no held-out spot lies whole in a validation patch, or the network's answer is no "
            "number; pass a larger --patch, or train without validation (val_share 0 and val_umis 0)."
        )
    return found[0]


def held_out_metric() -> dict[str, SpotScore]:
    """The evaluator's metrics by name, first that of the withheld spots."""
    transforms = {SCORE: of_withheld_spots, UMI_SCORE: of_umis_set_aside}
    return {name: SpotScore(output_transform=transform) for name, transform in transforms.items()}


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
    average: EMAHandler,
    run_folder: RunFolder,
    evaluator: SupervisedEvaluator | None,
    seed: int,
    every_steps: int,
    patience: int,
    metagenes: MetageneSchedule,
    show: Callable[[float, float, float], None] | None = None,
) -> list[Any]:
    """Everything that happens around the trainer's steps, in the order in which it must happen.

    Of several processes the first alone validates and writes; the others take its decisions over.

    Args:
        network: trained.
        optimizer: of the network.
        lr_scheduler: stepped after each step.
        budget: how long training lasts; shared in several processes.
        dataset: of the training patches.
        average: moving average of the weights; the one that is validated and kept.
        run_folder: where everything is written.
        evaluator: of the validation set, or None.
        seed: of the run.
        every_steps: between two validations and checkpoints [steps], rounded up to whole epochs.
        patience: validations without a better score before training stops.
        metagenes: drops and splits metagenes; after what keeps the weights, before what writes the checkpoints.
        show: called with the share of the budget spent, seconds and loss; None logs.
    """
    every = interval(every_steps, budget.steps_per_epoch)
    state: dict[str, Any] = {"network": network, "optimizer": optimizer, "lr_scheduler": lr_scheduler, "budget": budget}
    state |= {"average": average.ema_model, "metagenes": metagenes}
    together = [Together(budget)] if isinstance(budget, SharedBudget) else []
    everywhere: list[Any] = [
        *together,
        EpochSeed(dataset, seed),
        FiniteGuard(network, run_folder.checkpoints),
        LrScheduleHandler(cast(Any, lr_scheduler), print_lr=False, epoch_level=False),
        Clock(budget),
        average,
    ]
    checkpoints = Checkpoints(run_folder, state, every_epochs=every)
    if rank():
        return [*everywhere, metagenes, checkpoints, StopTogether()]
    writer = SummaryWriter(str(run_folder.logs))
    watch: HeldOut | LastWeights = LastWeights(average.ema_model, run_folder)
    if evaluator is not None:
        watch = HeldOut(evaluator, average.ema_model, run_folder, every_epochs=every, patience=patience)
        state["held_out"] = watch
        MetageneImages(average.ema_model, writer, lambda: evaluator.state.epoch).attach(evaluator)
    loss: dict[str, Any] = {"tag_name": "loss", "output_transform": loss_of}
    return [
        *everywhere,
        watch,
        metagenes,
        checkpoints,
        MetricsLog(run_folder.path / "metrics.csv", budget, optimizer, evaluator),
        TensorBoardStatsHandler(writer, **loss),
        Heartbeat(budget, show) if show else StatsHandler(iteration_log=False, **loss),
        *([StopTogether()] if together else []),
    ]
