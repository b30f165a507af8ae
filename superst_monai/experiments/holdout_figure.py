"""The figure of the hold-out experiment: predicted against observed, and the scores of genes beside the baselines'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from superst_monai.experiments.figures import (
    SMALL_PT,
    box_handles,
    boxes,
    correlations,
    diagonal,
    legend_below,
    log_axis,
    panels,
    scatter,
)

LABELS = {"model": "superst", "gene_mean": "gene mean", "image_intensity": "image intensity"}
_WORDS = {
    "raw": "count of a spot [UMI]",
    "lognorm": "ln(1 + UMI per 10,000)",
}
_SCORES = {
    "raw": "r over spots, raw counts",
    "lognorm": "r over spots, log-normalised",
    "r2": "R² of raw counts (shown from -1)",
}
_CROWDED = 4  # sections, from which on their names are turned


def holdout_figure(table: pd.DataFrame, pairs: Sequence[Mapping[str, tuple[NDArray[Any], NDArray[Any]]]]) -> Figure:
    """Draw the experiment.

    Args:
        table: a row for each gene of each test section.
        pairs: of each test section observed and predicted values of its highest genes, flat, by kind.
    """
    figure, rows = panels(3, 2, height_in=2.7)
    for axes, kind in zip(rows[0], _WORDS, strict=False):
        observed, predicted = (np.concatenate([pair[kind][i] for pair in pairs]) for i in range(2))
        _draw_density(figure, axes, observed, predicted, kind)
    top = table[table["top100"]]
    _draw_totals(rows[0, 2], top)
    sections = list(dict.fromkeys(top["section"]))
    for axes, (score, words) in zip(rows[1], _SCORES.items(), strict=True):
        groups = {
            label: [top.loc[top["section"] == name, f"{method}_{score}"].to_numpy() for name in sections]
            for method, label in LABELS.items()
        }
        boxes(axes, groups, sections, ncols=0)
        axes.set_ylabel(words)
        shown = np.concatenate([values for columns in groups.values() for values in columns])
        correlations(axes, shown[shown >= -1])
        if len(sections) >= _CROWDED:
            axes.tick_params(axis="x", rotation=90)
    legend_below(figure, [*box_handles(LABELS.values()), *rows[0, 2].get_lines()])
    return figure


def _draw_density(figure: Figure, axes: Axes, observed: NDArray[Any], predicted: NDArray[Any], kind: str) -> None:
    """Spots and genes, as many as lie in each hexagon; counts on a scale that has a zero and many decades."""
    top = 1.02 * max(float(observed.max(initial=0)), float(predicted.max(initial=0)), 1.0)
    x, y = (np.log10(1 + v) if kind == "raw" else v for v in (observed, predicted))
    end = float(np.log10(1 + top)) if kind == "raw" else top
    hexagons = axes.hexbin(x, y, gridsize=40, bins="log", mincnt=1, extent=(0, end, 0, end), cmap="viridis", lw=0)
    axes.set(xlim=(0, end), ylim=(0, end))
    diagonal(axes)
    if kind == "raw":
        ticks = [tick for tick in (0, 1, 10, 100, 1000, 10000) if tick <= top]
        axes.set_xticks(np.log10(1 + np.array(ticks)), [f"{tick:,}" for tick in ticks])
        axes.set_yticks(np.log10(1 + np.array(ticks)), [f"{tick:,}" for tick in ticks])
    axes.set(xlabel=f"observed {_WORDS[kind]}", ylabel="predicted")
    bar = figure.colorbar(hexagons, ax=axes, pad=0.02, aspect=30)
    bar.set_label("spots x genes", fontsize=SMALL_PT)
    bar.ax.tick_params(labelsize=SMALL_PT)
    log_axis(bar.ax.yaxis)


def _draw_totals(axes: Axes, top: pd.DataFrame) -> None:
    """Level of each gene on its section: the sum over its spots, on logarithmic axes."""
    observed, predicted = top["total"].to_numpy(float), top["predicted_total"].to_numpy(float)
    shown = (observed > 0) & (predicted > 0)
    axes.set(xscale="log", yscale="log")
    scatter(axes, observed[shown], predicted[shown])
    diagonal(axes)
    axes.set(xlabel="observed gene total [UMI]", ylabel="predicted total")
    log_axis(axes.xaxis)
    log_axis(axes.yaxis)
