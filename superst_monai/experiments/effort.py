"""How much work an experiment does: length of each training, posterior samples, repeats; in full, or in minutes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from superst_monai.errors import RunError


@dataclass(frozen=True)
class Effort:
    """How much work an experiment does.

    Attributes:
        samples: posterior samples of each map.
        repeats: how often an experiment does the same with another seed; each says what it repeats.
        minutes: wall-clock of each training [min]; None trains as many steps as `options` say, on any machine alike.
        options: keys of the training configuration that differ from it, such as `default_steps`.

    Raises:
        RunError: samples or repeats is below 1, or minutes is not positive; all faults.
    """

    samples: int = 10
    repeats: int = 4
    minutes: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the numbers; the training checks its options itself."""
        faults = [
            f"{name} must be at least 1, got {number}"
            for name, number in (("samples", self.samples), ("repeats", self.repeats))
            if number < 1
        ]
        if self.minutes is not None and not self.minutes > 0:
            faults.append(f"minutes must be positive, got {self.minutes}")
        if faults:
            raise RunError("; ".join(faults) + "; pass other numbers.")

    @property
    def settings(self) -> dict[str, Any]:
        """What an `ExperimentFolder` pins of it, as JSON knows it."""
        return {
            "samples": self.samples,
            "repeats": self.repeats,
            "minutes": self.minutes,
            "options": dict(self.options),
        }

    @property
    def training(self) -> dict[str, Any]:
        """Arguments of `workflow.train`."""
        return {"minutes": self.minutes, "options": dict(self.options)}


FULL = Effort()
"""As much as the results in `docs/experiments.md` took, if a row does not say otherwise."""
QUICK = Effort(samples=4, repeats=2, options={"default_steps": 60, "batch_size": 4, "patch_px": 64})
"""Minutes on two cores for a section of some hundred spots: says that an experiment runs, not what it finds."""
