"""Scores the metagenes at intervals, drops and splits them as a policy says, and keeps the tree of what happened."""

from __future__ import annotations

import copy
import json
import logging
from collections import deque
from typing import Any, cast

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from torch.optim import Optimizer

from superst_monai.engines.budget import Budget
from superst_monai.engines.metagene_evaluation import MetageneEvaluation, Scores
from superst_monai.engines.metagene_policies import Policy
from superst_monai.engines.processes import rank
from superst_monai.engines.run_folder import RunFolder
from superst_monai.model.metagene_moves import drop, split
from superst_monai.model.objective import FusionVAE

LAST_GROWTH = 0.8
"""Share of the budget after which nothing is split any more, so that copies have time to become different."""


class MetageneSchedule:
    """Keeps the metagenes in use that a policy wants.

    A metagene contributes if the counts of the patches of an evaluation lose at least `least_gain` of log-likelihood
    without it. The evaluation is the same in every process, the clock of the budget too, and nothing is drawn but the
    perturbations, from (seed, step, row): every process and a resumed run make the same moves.

    Args:
        policy: how many metagenes there are when.
        evaluation: scores them.
        network: trained.
        optimizer: of the network.
        average: moving average of the weights, which follows each move.
        budget: tells how much of the training is over.
        folder: of the run; `metagenes.json` is written there.
        seed: of the run.
        every_epochs: between two evaluations.
        least_gain: of a metagene that contributes [nat/spot].
        perturbation: of a split, see `metagene_moves.split`.
        strong_perturbation: of a split that counters a collapse.
    """

    def __init__(
        self,
        policy: Policy,
        evaluation: MetageneEvaluation,
        *,
        network: FusionVAE,
        optimizer: Optimizer,
        average: EMAHandler,
        budget: Budget,
        folder: RunFolder,
        seed: int,
        every_epochs: int,
        least_gain: float = 1.0,
        perturbation: float = 0.1,
        strong_perturbation: float = 0.5,
    ) -> None:
        self.policy = policy
        self.evaluation = evaluation
        self.networks = [network, cast(FusionVAE, average.ema_model)]
        self.optimizer = optimizer
        self.budget = budget
        self.folder = folder
        self.seed = seed
        self.every_epochs = every_epochs
        self.least_gain = least_gain
        self.perturbation = perturbation
        self.strong_perturbation = strong_perturbation
        self._evaluations: list[dict[str, Any]] = []
        self._moves: list[dict[str, Any]] = []
        for k in self._rows(in_use=True):
            self._note(0, "start", k)

    def attach(self, engine: Engine) -> None:
        """Hook into the ends of epochs and of the training, there after what writes the weights that are kept."""
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=self.every_epochs), self)
        engine.add_event_handler(Events.COMPLETED, self._purge_kept)

    def state_dict(self) -> dict[str, Any]:
        """What happened so far: `evaluations` and `moves`, as in `metagenes.json`."""
        return {"evaluations": list(self._evaluations), "moves": list(self._moves)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what happened in an interrupted run."""
        self._evaluations, self._moves = list(state["evaluations"]), list(state["moves"])

    def __call__(self, engine: Engine) -> None:
        """Score the metagenes and make the moves of the policy."""
        step = engine.state.iteration
        scores = self.evaluation.score(self.networks[0])
        if scores is None:
            return
        fraction = self.budget.fraction(step)
        self._evaluations.append({"step": step, **scores.as_record()})
        if scores.collapsed:
            self._counter_collapse(scores, step, grow=fraction < LAST_GROWTH)
        else:
            self._drop(scores, step, fraction)
            if fraction < LAST_GROWTH:
                self._grow(scores, step, fraction)
        engine.state.metrics["metagenes_in_use"] = len(self._rows(in_use=True))
        engine.state.metrics["metagenes_collapsed"] = int(scores.collapsed)
        self._write()

    def _rows(self, *, in_use: bool) -> list[int]:
        found: list[int] = (self.networks[0].generative.active == in_use).nonzero().flatten().tolist()
        return found

    def _drop(self, scores: Scores, step: int, fraction: float) -> None:
        """Drop what does not contribute, beyond the spare ones; two stay, since one alone would be a collapse."""
        weak = scores.weak(self.least_gain)
        n = min(len(weak) - self.policy.spare(len(scores.loss), fraction), int(scores.in_use.sum()) - 2)
        for k in self.evaluation.expendable(self.networks[0], weak[: max(0, n)], least_gain=self.least_gain):
            drop(self.networks, self.optimizer, k)
            self._note(step, "drop", k, loss=scores.loss[k])

    def _grow(self, scores: Scores, step: int, fraction: float) -> None:
        """Split what contributes, the most missed first, until there are as many as wanted."""
        parents = scores.contributing(self.least_gain)
        missing = self.policy.wanted(len(parents), len(scores.loss), fraction) - len(self._rows(in_use=True))
        children = self._rows(in_use=False)[: max(0, missing)]
        for parent, child in zip(parents, children, strict=False):
            self._split(step, "split", parent, child, self.perturbation, scores)

    def _counter_collapse(self, scores: Scores, step: int, *, grow: bool) -> None:
        """Say that one metagene is all that is used; split it into the rows that are not, in equal parts."""
        unused = np.flatnonzero(scores.in_use & ~scores.used).tolist()
        children = unused or self._rows(in_use=False)[:1]
        self._warn(
            scores, step, f"{len(children)} split off it again" if grow else "too late in the training to split it"
        )
        if not grow:
            return
        for k in unused:
            drop(self.networks, self.optimizer, k)
            self._note(step, "drop", k, loss=scores.loss[k])
        parents = deque(np.flatnonzero(scores.used).tolist())
        for child in children:
            self._split(step, "split_again", parents[0], child, self.strong_perturbation, scores)
            parents += [parents.popleft(), child]

    def _split(self, step: int, action: str, parent: int, child: int, perturbation: float, scores: Scores) -> None:
        seed = int(np.random.SeedSequence((self.seed, step, child)).generate_state(1)[0])
        split(self.networks, self.optimizer, parent, child, perturbation=perturbation, seed=seed)
        self._note(step, action, child, parent=parent, loss=scores.loss[parent])

    def _purge_kept(self, engine: Engine) -> None:
        """Drop what does not contribute from the weights that are kept; one stays."""
        if not (self.policy.purges and self.folder.writes):
            return
        kept = copy.deepcopy(self.networks[1])
        kept.load_state_dict(torch.load(self.folder.models / "model.pt", map_location="cpu", weights_only=True))
        scores = self.evaluation.score(kept, alone=True)
        if scores is None:
            return
        weak = scores.weak(self.least_gain)[: int(scores.in_use.sum()) - 1]
        for k in self.evaluation.expendable(kept, weak, least_gain=self.least_gain, alone=True):
            drop([kept], None, k)
            self._note(engine.state.iteration, "purge", k, loss=scores.loss[k])
        self.folder.save_weights(kept)
        self._write()

    def _note(self, step: int, action: str, metagene: int, *, parent: int | None = None, loss: float = np.nan) -> None:
        move = {"step": step, "action": action, "metagene": metagene, "parent": parent}
        self._moves.append(move | {"loss": float(loss) if np.isfinite(loss) else None})

    def _warn(self, scores: Scores, step: int, what: str) -> None:
        shares = ", ".join(f"{k}: {scores.share[k]:.2%}" for k in np.flatnonzero(scores.in_use))
        if not rank():
            logging.getLogger(__name__).warning(
                "step %d: the metagenes have collapsed, one is all that is used (shares of the scaled activity in the "
                "spots: %s); %s.",
                *(step, shares, what),
            )

    def _write(self) -> None:
        if self.folder.writes:
            self.folder.write("metagenes.json", json.dumps(self.state_dict(), indent=1) + "\n")
