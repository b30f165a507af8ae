"""The recalibration of a run: one factor a mode of prediction, fitted on withheld spots and kept in the run folder."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from superst_monai.errors import RunError
from superst_monai.inference.run import Run

FILE = "calibration.json"
LEVEL = 0.9
"""Nominal coverage that is made right."""
TOP = 100
"""Genes whose intervals it is made right for: those with the highest expected counts."""
Mode = Literal["histology", "field"]
"""What a prediction rests on: the image alone, or a field that also took in the counts of the section."""
MODES: tuple[Mode, ...] = ("histology", "field")


@dataclass(frozen=True)
class Calibration:
    """What a factor does to the intervals of the counts of withheld spots.

    Attributes:
        factor: c of `model/dispersion.py`.
        n_spots: withheld spots of all training sections.
        before: share of their counts within the intervals of LEVEL as the model has them, of genes `top100` and `all`.
        after: the same with the factor.
    """

    factor: float
    n_spots: int
    before: Mapping[str, float]
    after: Mapping[str, float]


def to_json(found: Mapping[Mode, Calibration], weights_sha256: str) -> str:
    """Write calibrations down, with the hash of the weights that they are of."""
    modes = {mode: asdict(calibration) for mode, calibration in found.items()}
    return json.dumps({"weights_sha256": weights_sha256, "level": LEVEL, **modes}, indent=2) + "\n"


def read_calibration(run: Run, mode: Mode) -> Calibration | None:
    """The recalibration of a mode; None if the run has none, or has one of other weights.

    Raises:
        RunError: the file is damaged.
    """
    file = run.path / FILE
    if not file.is_file():
        return None
    try:
        found: dict[str, Any] = dict(json.loads(file.read_text()))
        if found["weights_sha256"] != run.weights_sha256 or mode not in found:
            return None
        calibration = Calibration(**found[mode])
        sound = math.isfinite(calibration.factor) and calibration.factor > 0
    except (ValueError, TypeError, KeyError) as exc:
        raise RunError(f"{file} is damaged ({exc}); restore it from a copy of the run, or delete it.") from exc
    if not sound:
        raise RunError(f"{file} must hold a positive factor, got {calibration.factor}; restore it, or delete it.")
    return calibration


def in_words(mode: Mode, found: Calibration) -> str:
    """Say what a recalibration does."""
    source = {"histology": "from histology alone", "field": "with a section's field"}[mode]
    parts = {"top100": f"the {TOP} genes expected highest", "all": "all genes"}
    said = ", ".join(
        f"{100 * found.before[part]:.1f} % before and {100 * found.after[part]:.1f} % after ({name})"
        for part, name in parts.items()
    )
    return (
        f"{100 * LEVEL:.0f} % intervals {source} cover, of the counts of {found.n_spots} withheld spots, {said} "
        f"recalibration by the factor {found.factor:g}"
    )
