"""How well the method bears spots that lie elsewhere than the counts came from: training spots are shifted.

Restates Extended Data Fig. 6 of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.experiments.alteration import (
    Alteration,
    levels_faults,
    over_repeats,
    require_judged,
    summarise,
    values_at,
    write_p,
)
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import boxes, panels
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.sections import list_sections

NAME = "misalignment"
_WORDS = {"raw": "r, raw counts", "lognorm": "r, log-normalised", "r2": "R² of raw counts (axis ends at -1)"}


def run_misalignment(
    out: Path | str,
    sections: Sequence[Path | str],
    *,
    radii: Sequence[float] = (1.0, 2.0),
    withheld: float = 0.2,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Shift each training spot in a random direction, train, and predict the withheld spots, which stay in place.

    Args:
        out: the experiment's folder.
        sections: stores with counts, trained on together.
        radii: length of the shift in radii of a spot; 0 is always there.
        withheld: share of the spots of each section that are judged and never trained on.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` draws withheld spots, directions and the seed of the training anew.
        seed: of everything.
        show: progress.

    Returns:
        Content of `misalignment.json`, see `docs/experiments.md`.

    Raises:
        RunError: a shift is not possible, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    if faults := levels_faults(radii, "radii", np.inf):
        raise RunError("; ".join(faults) + ".")
    paths = [entry.path for entry in list_sections(sections)]
    require_judged(paths, withheld)
    settings = {"sections": paths, "radii": list(radii), "withheld": withheld, "covariates": dict(covariates or {})}
    folder = ExperimentFolder(out, NAME, settings | {"seed": seed} | effort.settings, show=show)
    alteration = Alteration(
        folder, paths, radii, shift_spots, lambda *_: {}, effort, withheld=withheld, covariates=covariates, seed=seed
    )
    table = alteration.table()
    rows = summarise(table)
    return folder.finish({"finding": _finding(rows), "levels": rows}, table, _figure(over_repeats(table), rows))


def shift_spots(section: Section, radii: float, rng: np.random.Generator) -> Section:
    """Move each spot by some of its radii in a direction of its own, without leaving the slide.

    The direction is uniform; where it would take the centre of a spot off the slide it is turned by a right angle, once
    or more. The length of the shift is always kept.

    Args:
        section: with counts.
        radii: length of the shift.
        rng: source of the directions, which do not depend on the length.

    Raises:
        RunError: the slide is too narrow for such a shift.
    """
    centre = section.spots[["x_um", "y_um"]].to_numpy(np.float64)
    length = radii * section.spots["radius_um"].to_numpy(np.float64)[:, None]
    angle = rng.uniform(0.0, 2 * np.pi, section.n_spots)[:, None] + np.pi / 2 * np.arange(4)  # (S, 4)
    target = centre[:, None] + length[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # (S, 4, 2)
    end = np.array(section.tissue.shape[::-1]) * section.mpp
    inside = ((target >= 0) & (target < end)).all(axis=-1)  # (S, 4)
    if not inside.any(axis=1).all():
        raise RunError(
            f"spots of {section.name} must stay on the slide, {end[0]:.0f} x {end[1]:.0f} um, but {radii:g} radii take "
            f"{int((~inside.any(axis=1)).sum())} of {section.n_spots} off it in all directions; pass a smaller shift."
        )
    moved = target[np.arange(section.n_spots), inside.argmax(axis=1)]
    return replace(section, spots=section.spots.assign(x_um=moved[:, 0], y_um=moved[:, 1]))


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence, on the longest shift."""
    longest = max(row["level"] for row in rows)
    said = []
    for row in rows:
        if row["level"] == longest:
            after, before = row["medians"]["lognorm"], row["unaltered"]["lognorm"]
            test = row["tests"]["lognorm"]
            numbers = "undefined" if after is None or before is None else f"{after:.3f} instead of {before:.3f}"
            said.append(f"{numbers} with {row['kind']} (p = {test['p']:.2g})" if test["p"] is not None else numbers)
    return (
        f"With training spots shifted by {longest:g} radii, the highest genes correlate on withheld spots by "
        f"{' and '.join(said)}, log-normalised (median)."
    )


def _figure(table: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Boxes of the scores of genes at each shift."""
    figure, (axes,) = panels(len(_WORDS), height_in=2.9)
    levels = sorted(table["level"].unique())
    for panel, (score, words) in zip(axes, _WORDS.items(), strict=True):
        boxes(panel, values_at(table, score, "all", levels), [f"{level:g}" for level in levels])
        panel.set(ylim=(-1.0, 1.0), xlabel="shift of the training spots [radii]", ylabel=words)
        panel.axhline(0, color="black", linewidth=0.5, linestyle=":", zorder=0)
        write_p(panel, rows, score, "all", levels)
    return figure
