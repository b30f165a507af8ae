"""What happens around a training step: seeds, clock, guard against NaN, scores, metrics on disk and pictures."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import IterationEvents
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.tensorboard import SummaryWriter

from superst_monai.engines.budget import Budget
from superst_monai.engines.processes import of_all, rank
from superst_monai.errors import TrainingError
from superst_monai.model.objective import PARTS, FusionVAE
from superst_monai.transforms.sampling import PatchDataset
from superst_monai.types import Key

SCORE = "val_loglik_per_spot"
"""Name of the score of withheld spots: their log-likelihood, per spot [nat], higher is better."""
UMI_SCORE = "val_loglik_umis_per_spot"
"""Name of the score of training spots: log-likelihood of the UMIs that were set aside, per spot [nat]."""


def output_of(engine: Engine) -> dict[str, Any]:
    """What the last iteration of a MONAI engine produced, by MONAI's keys."""
    found: Any = engine.state.output
    return dict(found)


class EpochSeed:
    """Makes each epoch a function of the seed: patches and noise of a resumed run equal those of a whole one.

    Several processes share the patches; the noise of each is its own.

    Args:
        dataset: whose patches depend on the epoch.
        seed: of the run.
    """

    def __init__(self, dataset: PatchDataset, seed: int) -> None:
        self.dataset = dataset
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Hook into the start of each epoch, before anything random."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed the generators for the epoch that starts."""
        epoch = engine.state.epoch
        self.dataset.set_epoch(epoch)
        entropy = np.random.SeedSequence([self.seed, epoch, rank()])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


class Clock:
    """Runs the budget's clock and ends the training when it is spent."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def attach(self, engine: Engine) -> None:
        """Hook into start, each step and end."""
        engine.add_event_handler(Events.STARTED, self.budget.start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self.budget.stop)

    def __call__(self, engine: Engine) -> None:
        """Stop the engine when the minutes are spent; the epochs it counts itself."""
        if self.budget.clock_fraction >= 1.0:
            engine.terminate()


class FiniteGuard:
    """Stops before a step that NaN or infinity would spoil; the weights and checkpoints so far stay good.

    Args:
        parameters: of the network.
        checkpoints: folder named in the message.
        max_norm: gradients are scaled down to this norm [nat], which tames rare huge steps.
    """

    def __init__(self, network: FusionVAE, checkpoints: Path, *, max_norm: float = 1e6) -> None:
        self.network = network
        self.checkpoints = checkpoints
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Hook in between the loss and the optimiser's step."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self.check_loss)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self.check_gradients)

    def check_loss(self, engine: Engine) -> None:
        """Raise TrainingError when the loss is no number."""
        self._stop_unless(bool(torch.isfinite(output_of(engine)["loss"])), engine, "loss")

    def check_gradients(self, engine: Engine) -> None:
        """Clip the gradients; raise TrainingError when their norm is no number."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_norm)
        self._stop_unless(bool(torch.isfinite(norm)), engine, "norm of the gradients")

    def _stop_unless(self, finite: bool, engine: Engine, what: str) -> None:
        if finite:
            return
        pred, loss = output_of(engine)["pred"], float(output_of(engine)["loss"].detach())
        parts = ", ".join(f"{name} {float(pred[name]):.6g}" for name in PARTS)
        batch: Any = engine.state.batch
        sections = of_all(batch[Key.SECTION]).tolist()
        raise TrainingError(
            f"the {what} must stay finite, but became {loss} at step "
            f"{engine.state.iteration} (epoch {engine.state.epoch}, patches of sections {sections}; {parts}). Training "
            f"stopped; {self._kept()}, or start again with a smaller --learning-rate."
        )

    def _kept(self) -> str:
        if any(self.checkpoints.glob("*.pt")):
            return f"the last good checkpoint is in {self.checkpoints.name}/: continue it with --resume"
        return "there is no checkpoint yet: give the same command again with another --seed"


class SpotScore(Metric):
    """Mean log-likelihood per spot [nat] over all batches of a validation."""

    def reset(self) -> None:
        """Forget what was added."""
        self._total = 0.0
        self._spots = 0

    def update(self, output: Tensor) -> None:
        """Add the log-likelihoods of some spots `(n,)`."""
        self._total += float(output.double().sum())
        self._spots += len(output)

    def compute(self) -> float:
        """Mean over the spots, NaN without any."""
        return self._total / self._spots if self._spots else float("nan")


def of_withheld_spots(output: Mapping[str, Any]) -> Tensor:
    """Log-likelihoods of the spots with all of their UMIs in an evaluator's output."""
    loglik: Tensor = output["pred"]["loglik"]
    return loglik[output["pred"]["share"] == 1]


def of_umis_set_aside(output: Mapping[str, Any]) -> Tensor:
    """Log-likelihoods of the spots with a part of their UMIs in an evaluator's output."""
    loglik: Tensor = output["pred"]["loglik"]
    share = output["pred"]["share"]
    return loglik[(share > 0) & (share < 1)]


class MetricsLog:
    """Writes `metrics.csv`, one row an epoch: time, learning rate, the objective's parts and the held-out scores.

    Args:
        path: of the table; rows of epochs that a resumed run repeats are replaced.
        budget: tells the time.
        optimizer: tells the learning rate.
        evaluator: its last scores are written in the epoch in which they were taken.
    """

    columns = ("epoch", "step", "seconds", "learning_rate", "loss", *PARTS, SCORE, UMI_SCORE)

    def __init__(self, path: Path, budget: Budget, optimizer: Optimizer, evaluator: Engine | None = None) -> None:
        self.path = path
        self.budget = budget
        self.optimizer = optimizer
        self._sums: dict[str, float] = {}
        self._steps = 0
        self._scores: dict[str, str] = {}
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self._take_scores)

    def attach(self, engine: Engine) -> None:
        """Hook into start, steps and the ends of epochs and training."""
        engine.add_event_handler(Events.STARTED, self._open)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._add)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._write)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _open(self, engine: Engine) -> None:
        rows: list[dict[str, str]] = []
        if self.path.exists() and engine.state.epoch:
            with self.path.open(newline="") as file:
                rows = [row for row in csv.DictReader(file) if int(row["epoch"]) <= engine.state.epoch]
        with self.path.open("w", newline="") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)

    def _take_scores(self, evaluator: Engine) -> None:
        scores = {name: evaluator.state.metrics[name] for name in (SCORE, UMI_SCORE)}
        self._scores = {name: f"{score:.6g}" for name, score in scores.items() if not np.isnan(score)}

    def _add(self, engine: Engine) -> None:
        for name, value in output_of(engine)["pred"].items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value.detach())
        self._steps += 1

    def _write(self, engine: Engine) -> None:
        if not self._steps:
            return
        row: dict[str, Any] = {name: f"{self._sums[name] / self._steps:.6g}" for name in ("loss", *PARTS)}
        row |= {"epoch": engine.state.epoch, "step": engine.state.iteration, "seconds": f"{self.budget.spent_s:.2f}"}
        row["learning_rate"] = f"{self.optimizer.param_groups[0]['lr']:.6g}"
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row | self._scores)
        self._sums, self._steps, self._scores = {}, 0, {}


class MetageneImages:
    """Draws the first validation patch and its metagene maps into TensorBoard after each validation."""

    def __init__(self, network: nn.Module, writer: SummaryWriter, epoch: Callable[[], int]) -> None:
        self.network = network
        self.writer = writer
        self.epoch = epoch

    def attach(self, engine: Engine) -> None:
        """Hook into the end of each validation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Write one image: the patch, then each metagene scaled to its own maximum."""
        image: Tensor = output_of(engine)[Key.IMAGE.value][:1]
        with torch.no_grad():
            maps = self.network(image)[0].float()  # (K, H, W)
        maps = maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        tiles: Sequence[Tensor] = [image[0].float() / 1.8 + 0.5, *maps[:, None].expand(-1, 3, -1, -1)]
        self.writer.add_image("histology_and_metagenes", torch.cat(list(tiles), dim=2).clamp(0, 1).cpu(), self.epoch())


class Heartbeat:
    """Calls back with the share of the budget spent and the latest loss, at most so often.

    Args:
        budget: tells the share.
        show: receives share in [0, 1], seconds spent and the loss [nat/patch].
        every_s: least time between two calls [s].
    """

    def __init__(self, budget: Budget, show: Callable[[float, float, float], None], *, every_s: float = 0.5) -> None:
        self.budget = budget
        self.show = show
        self.every_s = every_s
        self._last_s = -float("inf")

    def attach(self, engine: Engine) -> None:
        """Hook into each step and the end."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, self._report)

    def __call__(self, engine: Engine) -> None:
        """Report if it is time."""
        if time.monotonic() - self._last_s >= self.every_s:
            self._last_s = time.monotonic()
            self._report(engine)

    def _report(self, engine: Engine) -> None:
        if engine.state.output:
            self.show(
                self.budget.fraction(engine.state.iteration),
                self.budget.spent_s,
                float(output_of(engine)["loss"].detach()),
            )
