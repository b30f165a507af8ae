"""One figure of an evaluation: totals of spots, correlations of genes, coverage of intervals and PIT of counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

_COLOURS = ("#0072B2", "#E69F00", "#999999", "#009E73", "#CC79A7")  # Okabe & Ito: told apart by the colour-blind


def evaluation_figure(
    result: Mapping[str, Any],
    *,
    predicted_total: NDArray[Any],
    observed_total: NDArray[Any],
    scores: Mapping[str, pd.DataFrame],
) -> Figure:
    """Draw an evaluation; save it with `figure.savefig`.

    Args:
        result: from `evaluation.evaluate`.
        predicted_total: expected UMIs of each spot, all genes `(S,)`.
        observed_total: UMIs of each spot, all genes `(S,)`.
        scores: tables of `evaluation.score_genes` by name, "model" first, then the baselines.

    Returns:
        Figure of four panels, 18.5 x 4.6 inches.
    """
    figure = Figure(figsize=(18.5, 4.6), layout="constrained")
    totals, genes, intervals, transforms = figure.subplots(1, 4)
    _draw_totals(totals, predicted_total, observed_total, result["depth"])
    _draw_correlations(genes, scores)
    _draw_coverage(intervals, result)
    _draw_pit(transforms, result)
    figure.suptitle(f"Held-out spots: {result['n_spots']:,} spots, {result['n_genes']:,} genes")
    return figure


def _draw_totals(axes: Axes, predicted: NDArray[Any], observed: NDArray[Any], depth: float | None) -> None:
    """Scatter predicted against observed totals, with the line on which they are equal."""
    limit = 1.05 * max(float(np.max(predicted)), float(np.max(observed)), 1.0)
    axes.scatter(observed, predicted, s=8, alpha=0.5, color=_COLOURS[0], linewidths=0, rasterized=True)
    axes.plot([0, limit], [0, limit], color="black", linewidth=1, linestyle="--", label="equal")
    axes.set(xlim=(0, limit), ylim=(0, limit), aspect="equal")
    axes.set(xlabel="observed total [UMIs per spot]", ylabel="expected total [UMIs per spot]")
    axes.set_title("Total counts: r " + ("undefined (constant)" if depth is None else f"= {depth:.2f}"))
    axes.legend(loc="upper left", frameon=False)


def _draw_correlations(axes: Axes, scores: Mapping[str, pd.DataFrame]) -> None:
    """Box the correlations of genes, by normalisation, the model beside the baselines; no box where none is defined."""
    kinds = ("raw", "lognorm")
    width = 0.8 / len(scores)
    handles = []
    for i, (name, table) in enumerate(scores.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        for centre, kind in enumerate(kinds):
            place = centre + (i - (len(scores) - 1) / 2) * width
            values = table[kind].dropna().to_numpy()
            if values.size == 0:
                axes.text(place, 0.0, "constant,\nno correlation", rotation=90, ha="center", va="center", fontsize=8)
                continue
            parts = axes.boxplot(
                [values], positions=[place], widths=0.85 * width, patch_artist=True, whis=(5, 95), sym=""
            )
            parts["boxes"][0].set(facecolor=colour, alpha=0.8)
            parts["medians"][0].set(color="black")
        raw, normalised = (int(table[kind].notna().sum()) for kind in kinds)
        genes = f"{raw:,} genes" if raw == normalised else f"{raw:,} genes raw, {normalised:,} log-normalised"
        label = f"{name.replace('_', ' ')} ({genes})"
        handles.append(Patch(facecolor=colour, alpha=0.8, label=label))
    axes.axhline(0, color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xticks(range(len(kinds)), ["raw counts", "log-normalised"])
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(-1, 1), ylabel="Pearson correlation over spots, per gene")
    axes.set_title("Genes: median, quartiles, 5-95 % of genes")
    axes.legend(handles=handles, loc="lower center", frameon=False, fontsize=8)


def _draw_coverage(axes: Axes, result: Mapping[str, Any]) -> None:
    """Plot observed against nominal coverage of central predictive intervals; below the line is overconfident."""
    axes.plot([0, 100], [0, 100], color="black", linewidth=1, linestyle="--", label="honest")
    for part, label, colour, law, style in _laws(result):
        curve = law["coverage_curve"]
        nominal, observed = (100 * np.array(curve[key], dtype=float) for key in ("nominal", part))
        axes.plot(nominal, observed, marker="o", markersize=4, color=colour, linestyle=style, label=label)
    if "all" not in result["coverage_curve"]:
        axes.text(50, 25, "no predictive samples given", ha="center")
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set(xlabel="nominal coverage of central interval [%]", ylabel="observed coverage [% of counts]")
    axes.set_title("Calibration: below the line is overconfident")
    axes.legend(loc="upper left", frameon=False, fontsize=8)


def _draw_pit(axes: Axes, result: Mapping[str, Any]) -> None:
    """Draw the PIT histograms: flat is honest, a valley overconfident, a hill underconfident, a slope biased."""
    for part, label, colour, law, style in _laws(result):
        share = np.array(law["pit"][part])
        axes.stairs(share * len(share), np.linspace(0, 1, len(share) + 1), color=colour, linestyle=style, label=label)
    axes.axhline(1, color="black", linewidth=1, linestyle="--", label="honest")
    if not result["pit"]:
        axes.text(0.5, 0.5, "no predictive samples given", ha="center")
    axes.set(xlim=(0, 1), xlabel="probability integral transform of the count", ylabel="density of counts")
    axes.set_ylim(bottom=0)
    axes.set_title("PIT: a valley is overconfident, a slope biased")
    axes.legend(loc="lower center", frameon=False, fontsize=8)


def _laws(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str, Mapping[str, Any], str]]:
    """Genes, label, colour, scores and line style of each law that there are scores of."""
    before = result["uncalibrated"]
    laws = [(result, "", "-")] if before is None else [(result, ", recalibrated", "-"), (before, ", before", ":")]
    for part, genes, colour in (("all", "all genes", _COLOURS[0]), ("top100", "100 highest genes", _COLOURS[1])):
        for law, when, style in laws:
            if part in law["pit"]:
                yield part, genes + when, colour, law, style
