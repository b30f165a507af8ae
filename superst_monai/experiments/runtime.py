"""How long training takes as the data grow: the objective against time for the first one, two, three ... sections.

Restates Extended Data Fig. 10 of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from superst_monai.errors import RunError
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import COLOURS, legend, legend_below, log_axis, panels, shades
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.holdout import training_record
from superst_monai.experiments.sections import list_sections

NAME = "runtime"
SHARES = (0.95, 0.99)
CURVES = {"elbo": ("loss", "ELBO"), "counts": ("expression", "log likelihood of the counts")}
"""Column of `metrics.csv`, of opposite sign, and words for each curve."""
_WINDOW = 5  # epochs in a running median, as one epoch's mean is noisy


def run_runtime(
    out: Path | str,
    sections: Sequence[Path | str],
    *,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Train on the first section, the first two, ... and all, and say when the objective is nearly at its best.

    Args:
        out: the experiment's folder.
        sections: stores, in the order in which the data grow.
        covariates: column of the spots for each covariate of the training.
        effort: `samples` and `repeats` are not used.
        seed: of the trainings.
        show: progress.

    Returns:
        Content of `runtime.json`, see `docs/experiments.md`.

    Raises:
        RunError: there is no section, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    if not sections:
        raise RunError("the runtime experiment needs at least one section, got none; name stores of superst prepare.")
    entries = list_sections(sections)
    settings = {"sections": [entry.path for entry in entries], "covariates": dict(covariates or {}), "seed": seed}
    folder = ExperimentFolder(out, NAME, settings | effort.settings, show=show)
    runs, tables = [], []
    for n in range(1, len(entries) + 1):
        paths = [entry.path for entry in entries[:n]]
        run = folder.run(f"first-{n}", paths, seed=seed, covariates=covariates, **effort.training)
        curve = read_curve(run / "metrics.csv")
        tables.append(curve.assign(sections=n))
        runs.append(training_record(f"first-{n}", run) | {"times": {name: time_to(curve, name) for name in CURVES}})
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "sections", table.pop("sections"))
    return folder.finish({"finding": _finding(runs), "runs": runs}, table, _figure(table, runs))


def read_curve(metrics: Path) -> pd.DataFrame:
    """Read the course of a training.

    Args:
        metrics: `metrics.csv` of a run.

    Returns:
        A row for each epoch: `epoch`, `step`, `seconds`, and for each of CURVES its value [nat per patch] and
        `NAME_normalised`: the running median of five epochs, 0 at the first and 1 at its best.
    """
    found = pd.read_csv(metrics)
    curve = found[["epoch", "step", "seconds"]].copy()
    for name, (column, _) in CURVES.items():
        curve[name] = -found[column]
        smooth = curve[name].rolling(_WINDOW, center=True, min_periods=1).median()
        rise = smooth.max() - smooth.iloc[0]
        curve[f"{name}_normalised"] = (smooth - smooth.iloc[0]) / rise if rise > 0 else 1.0
    return curve


def time_to(curve: pd.DataFrame, name: str) -> dict[str, float | int]:
    """First and best value of a curve [nat per patch], and steps and seconds until shares of the way between them."""
    found: dict[str, float | int] = {"first": float(curve[name].iloc[0]), "best": float(curve[name].max())}
    for share in SHARES:
        reached = curve[curve[f"{name}_normalised"] >= share].iloc[0]
        found |= {f"steps_to_{share:g}": int(reached["step"]), f"seconds_to_{share:g}": float(reached["seconds"])}
    return found


def _finding(runs: Sequence[Mapping[str, Any]]) -> str:
    """One sentence."""
    said = [f"{run['times']['elbo']['seconds_to_0.95']:.0f} s ({run['spots']:,} spots)" for run in runs]
    last = runs[-1]["times"]["counts"]["seconds_to_0.95"]
    return (
        f"The ELBO has come 95 % of its way after {', '.join(said)} of 1 to {len(runs)} section(s); the likelihood of "
        f"the counts of all after {last:.0f} s."
    )


def _figure(table: pd.DataFrame, runs: Sequence[Mapping[str, Any]]) -> Figure:
    """Both curves of each training against time, and the time to 95 % against the number of spots."""
    figure, [axes] = panels(3)
    for panel, (name, (_, words)) in zip(axes, CURVES.items(), strict=False):
        for run, colour in zip(runs, shades(len(runs)), strict=True):
            curve = table[table["sections"] == len(run["sections"])]
            label = f"{len(run['sections'])} section(s), {run['spots']:,} spots"
            panel.plot(curve["seconds"], curve[f"{name}_normalised"], color=colour, linewidth=1, label=label)
            panel.axvline(run["times"][name]["seconds_to_0.95"], color=colour, linewidth=0.6, linestyle=":")
        panel.axhline(0.95, color="black", linewidth=0.5, linestyle=":")
        panel.set(xscale="log", xlabel="seconds of training", ylabel=f"{words}\n(0 first, 1 best)", ylim=(-0.05, 1.05))
        log_axis(panel.xaxis)
    legend_below(figure, axes[0].get_legend_handles_labels()[0])
    spots = [run["spots"] for run in runs]
    for name, plain in zip(CURVES, COLOURS, strict=False):
        times = [run["times"][name]["seconds_to_0.95"] for run in runs]
        axes[2].plot(spots, times, marker="o", markersize=3, linewidth=1, color=plain, label=CURVES[name][1])
    axes[2].set(xlabel="spots", ylabel="seconds to 95 %")
    axes[2].set_xlim(0, 1.05 * max(spots))
    axes[2].set_ylim(0, 1.05 * max(run["times"][name]["seconds_to_0.95"] for run in runs for name in CURVES))
    legend(axes[2], ncols=1)
    return figure
