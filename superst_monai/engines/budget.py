"""How long a training lasts, in epochs or wall-clock, and the learning-rate schedule fitted to it."""

from __future__ import annotations

import math
import time

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from superst_monai.errors import RunError


class Budget:
    """Epochs or minutes to spend; whichever of the two ends first ends the training.

    Args:
        steps_per_epoch: optimisation steps of one epoch.
        epochs: at most so many epochs, or None.
        minutes: at most so much wall-clock [min], or None; what earlier parts of a resumed run took counts.
        warmup_steps: steps over which the learning rate rises.

    Raises:
        RunError: neither or an impossible limit is given.
    """

    def __init__(
        self, steps_per_epoch: int, *, epochs: int | None = None, minutes: float | None = None, warmup_steps: int = 30
    ) -> None:
        if epochs is None and minutes is None:
            raise RunError("a training needs an end, got neither epochs nor minutes; pass --epochs or --minutes.")
        if (epochs is not None and epochs < 1) or (minutes is not None and not 0 < minutes < math.inf):
            raise RunError(f"epochs must be at least 1 and minutes positive, got {epochs} and {minutes}; pass others.")
        self.steps_per_epoch = steps_per_epoch
        self.epochs = epochs
        self.minutes = minutes
        self.warmup_steps = warmup_steps
        self._spent_s = 0.0
        self._started_s: float | None = None

    @property
    def max_epochs(self) -> int:
        """Upper bound on the epochs for the trainer."""
        return self.epochs if self.epochs is not None else 10**9

    @property
    def spent_s(self) -> float:
        """Wall-clock spent so far, all parts of a resumed run together [s]."""
        return self._spent_s + (time.monotonic() - self._started_s if self._started_s is not None else 0.0)

    def start(self) -> None:
        """Start the clock."""
        self._started_s = time.monotonic()

    def stop(self) -> None:
        """Stop the clock."""
        self._spent_s, self._started_s = self.spent_s, None

    def fraction(self, step: int) -> float:
        """Share of the budget spent after `step` optimisation steps, in [0, 1]."""
        by_steps = step / (self.epochs * self.steps_per_epoch) if self.epochs is not None else 0.0
        return min(1.0, max(by_steps, self.clock_fraction))

    @property
    def clock_fraction(self) -> float:
        """Share of the minutes spent, 0 without such a limit."""
        return self.spent_s / (60.0 * self.minutes) if self.minutes is not None else 0.0

    def factor(self, step: int) -> float:
        """Factor on the learning rate after `step` steps: linear warm-up times a half cosine down to zero."""
        return min(1.0, (step + 1) / self.warmup_steps) * 0.5 * (1.0 + math.cos(math.pi * self.fraction(step)))

    def state_dict(self) -> dict[str, float]:
        """Wall-clock spent [s]."""
        return {"spent_s": self.spent_s}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take over the wall-clock of an interrupted run."""
        self._spent_s = float(state["spent_s"])


def schedule(optimizer: Optimizer, budget: Budget) -> LambdaLR:
    """Learning-rate scheduler that follows a budget; step it after each optimisation step."""
    return LambdaLR(optimizer, budget.factor)
