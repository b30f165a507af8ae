"""What lies within a measurement: pairs of spots are trained on as one, and both are predicted.

Restates Extended Data Fig. 1d-f of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import COLOURS, SMALL_PT, boxes, legend, panels
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.merged_pairs import (
    EDGES,
    QUANTITIES,
    SURE,
    Pairs,
    judge_pairs,
    merge_spots,
    neighbour_pairs,
)
from superst_monai.experiments.sections import list_sections
from superst_monai.experiments.withheld_spots import KINDS, train_and_predict

NAME = "deconvolution-merged"
_WORDS = {"counts": "counts", "share": "share of the spot's UMIs"}
_COUNTED = ["judged", "right", "ties", "drawn_judged", "drawn_right"]


def run_deconvolution_merged(
    out: Path | str,
    sections: Sequence[Path | str],
    *,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Merge pairs of neighbouring spots, train on the merged ones alone, and predict which spot of a pair has more.

    Args:
        out: the experiment's folder.
        sections: stores with counts, trained on together.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` draws pairs and the seed of training and prediction anew. At least 2 samples.
        seed: of everything.
        show: progress.

    Returns:
        Content of `deconvolution-merged.json`, see `docs/experiments.md`.

    Raises:
        RunError: the folder is of another experiment, or there are fewer than 2 samples.
        AssayError: a section has no neighbouring spots.
        SuperstError: a step fails.
    """
    paths = [entry.path for entry in list_sections(sections)]
    settings = {"sections": paths, "covariates": dict(covariates or {}), "seed": seed, **effort.settings}
    folder = ExperimentFolder(out, NAME, settings, show=show)
    parts = [
        folder.part(f"{repeat}", partial(_judge, folder, paths, repeat, effort, covariates, seed))
        for repeat in range(effort.repeats)
    ]
    bins, genes = (pd.concat([pd.DataFrame(part[name]) for part in parts]) for name in ("bins", "genes"))
    table = bins.groupby(["kind", "quantity", "lfsr_low", "lfsr_high"], sort=False)[_COUNTED].sum().reset_index()
    for name, judged in (("fraction_right", "judged"), ("fraction_expected", "drawn_judged")):
        table[name] = table["right" if judged == "judged" else "drawn_right"] / table[judged].replace(0, np.nan)
    of_genes = genes.groupby(["kind", "quantity", "section", "gene"], sort=False)[["judged", "right"]].sum()
    credible = _credible(table)
    summary = {
        "finding": _finding(credible),
        "pairs": [pairs for part in parts for pairs in part["pairs"]],
        "credible": credible,
        "genes": of_genes.reset_index().to_dict("list"),
    }
    return folder.finish(summary, table, _figure(table, of_genes.reset_index()))


def _judge(
    folder: ExperimentFolder,
    paths: Sequence[str],
    repeat: int,
    effort: Effort,
    covariates: Mapping[str, str] | None,
    seed: int,
) -> dict[str, Any]:
    """One repeat: bins and genes of `judge_pairs` for each kind, of all sections."""
    stores = [
        folder.section(f"{repeat}-{number}", partial(_merged, path, seed, repeat, number))
        for number, path in enumerate(paths)
    ]
    found = train_and_predict(folder, f"{repeat}", stores, effort, covariates=covariates, seed=seed + repeat)
    bins, genes, sizes = [], [], []
    for number, (path, maps) in enumerate(zip(paths, found, strict=True)):
        section = read_section(path)
        pairs = _pairs(section, seed, repeat, number)
        sizes.append({"repeat": repeat, "section": section.name, "pairs": len(pairs), "spots": section.n_spots})
        for kind in KINDS:
            table, of_genes = judge_pairs(maps[kind], section, pairs, seed=seed + repeat)
            bins.append(table.assign(kind=kind))
            genes.append(of_genes.assign(kind=kind, section=section.name))
    return {
        "pairs": sizes,
        "bins": pd.concat(bins).to_dict("list"),
        "genes": pd.concat(genes).to_dict("list"),
    }


def _pairs(section: Section, seed: int, repeat: int, number: int) -> Pairs:
    """The pairs of a section in a repeat."""
    return neighbour_pairs(
        section.spots[["x_um", "y_um"]].to_numpy(np.float64), np.random.default_rng((seed, repeat, number))
    )


def _merged(path: str, seed: int, repeat: int, number: int) -> Section:
    """A section to train on."""
    section = read_section(path)
    return merge_spots(section, _pairs(section, seed, repeat, number))


def _credible(table: pd.DataFrame) -> dict[str, dict[str, dict[str, Any]]]:
    """Differences whose interval has one sign, by kind and quantity, and what share of them was right."""
    found: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
    for keys, group in table.groupby(["kind", "quantity"]):
        kind, quantity = map(str, keys)
        sums = group.loc[group["lfsr_high"] <= SURE, _COUNTED].sum()
        found[kind][quantity] = {
            **{name: int(sums[name]) for name in _COUNTED[:3]},
            "differences": int(group[["judged", "ties"]].to_numpy().sum()),
            "fraction_right": sums["right"] / sums["judged"] if sums["judged"] else None,
            "fraction_expected": sums["drawn_right"] / sums["drawn_judged"] if sums["drawn_judged"] else None,
        }
    return found


def _finding(credible: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """One sentence."""

    def said(known: Mapping[str, Any]) -> str:
        if known["fraction_right"] is None:
            return "none to judge"
        expected = known["fraction_expected"]
        law = "" if expected is None else f" ({100 * expected:.1f} % expected)"
        return f"{100 * known['fraction_right']:.1f} % of {known['judged']:,} right{law}"

    parts = [
        f"with {kind} {said(by['counts'])} in counts, {said(by['share'])} in shares" for kind, by in credible.items()
    ]
    return f"Where a gene is credibly (95 %) higher in one spot of a pair: {'; '.join(parts)}."


def _figure(table: pd.DataFrame, genes: pd.DataFrame) -> Figure:
    """Share of right directions gene by gene, and against the uncertainty, of counts and of shares."""
    figure, axes = panels(2, len(QUANTITIES), height_in=2.7, width_ratios=[1, 2])
    for line, quantity in zip(axes, QUANTITIES, strict=True):
        mine = genes[(genes["quantity"] == quantity) & (genes["judged"] > 0)]
        groups = {
            kind: [(rows["right"] / rows["judged"]).to_numpy()]
            for kind in KINDS
            for rows in [mine[mine["kind"] == kind]]
        }
        boxes(line[0], groups, [_WORDS[quantity]])
        line[0].set(ylim=(0, 1.02), ylabel="right, of a gene's credible\ndirections")
        line[0].axhline(0.5, color="black", linewidth=0.5, linestyle=":", zorder=0)
        _draw_bins(line[1], table[table["quantity"] == quantity])
    axes[-1, 1].set_xlabel("local false sign rate of the prediction")
    return figure


def _draw_bins(axes: Axes, table: pd.DataFrame) -> None:
    """Fraction right in each bin of uncertainty, with that of counts drawn from the model's own law."""
    place = np.arange(len(EDGES) - 1)
    for colour, kind in zip(COLOURS, KINDS, strict=False):
        rows = table[table["kind"] == kind].sort_values("lfsr_low")
        right, n = rows["fraction_right"].to_numpy(np.float64), rows["judged"].to_numpy(np.float64)
        error = np.sqrt(right * (1 - right) / np.where(n > 0, n, np.nan))
        axes.errorbar(
            place, right, yerr=error, color=colour, marker="o", markersize=3, linewidth=1, elinewidth=0.6, label=kind
        )
        expected = rows["fraction_expected"].to_numpy(np.float64)
        axes.plot(place, expected, color=colour, linewidth=0.8, linestyle="--", label=f"{kind}, by its own law")
    axes.axvline(EDGES.index(SURE) - 0.5, color="black", linewidth=0.5)
    axes.axhline(0.5, color="black", linewidth=0.5, linestyle=":", zorder=0)
    names = [f"{low:g}-{high:g}" for low, high in pairwise(EDGES)]
    axes.set_xticks(place, names, rotation=45, ha="right", fontsize=SMALL_PT)
    axes.set(ylim=(0.4, 1.02), ylabel=f"right directions\n({_WORDS[table['quantity'].iloc[0]]})")
    legend(axes, ncols=4)
