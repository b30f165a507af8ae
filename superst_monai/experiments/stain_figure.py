"""The figure of the stain experiment: correlations of genes over the grid of factors, and the totals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from superst_monai.experiments.figures import (
    SMALL_PT,
    box_handles,
    boxes,
    correlations,
    legend_below,
    panels,
    shades,
    title,
)

_WORDS = {
    "unscaled_lognorm": "r with unscaled prediction, log-norm.",
    "observed_raw": "r with counts, raw",
    "observed_lognorm": "r with counts, log-normalised",
}


def stain_figure(table: pd.DataFrame, cells: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the experiment.

    Args:
        table: a row for each of the highest genes of each cell of the grid and section.
        cells: numbers of each cell.
    """
    figure, axes = panels(2, 2, height_in=2.7)
    red, blue = (sorted(table[stain].unique()) for stain in ("eosin", "haematoxylin"))
    parts = dict(list(table.groupby(["haematoxylin", "eosin"])))
    for panel, (score, words) in zip(axes.ravel(), _WORDS.items(), strict=False):
        groups = {f"eosin x {e:g}": [parts[h, e][score].to_numpy() for h in blue] for e in red}
        boxes(panel, groups, [f"{h:g}" for h in blue], colours=shades(len(red)), ncols=0)
        panel.set(xlabel="haematoxylin x", ylabel=words)
        correlations(panel, table[score])
    legend_below(figure, box_handles((f"eosin x {e:g}" for e in red), shades(len(red))))
    _draw_totals(axes[1, 1], cells, blue, red)
    return figure


def _draw_totals(axes: Axes, cells: Sequence[Mapping[str, Any]], blue: list[float], red: list[float]) -> None:
    """Predicted over unscaled totals of each pair of factors, mean over the sections."""
    frame = pd.DataFrame([{key: cell[key] for key in ("haematoxylin", "eosin", "total_ratio")} for cell in cells])
    ratio = frame.groupby(["eosin", "haematoxylin"])["total_ratio"].mean().unstack().loc[red, blue].to_numpy()
    ends = float(np.abs(np.log(ratio)).max(initial=np.log(1.25)))  # a few per cent stay pale
    axes.imshow(np.log(ratio), cmap="RdBu_r", vmin=-ends, vmax=ends, origin="lower", aspect="auto")
    for (row, column), value in np.ndenumerate(ratio):
        dark = abs(np.log(value)) > 0.6 * ends
        colour = "white" if dark else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=SMALL_PT, color=colour)
    axes.set_xticks(range(len(blue)), [f"{h:g}" for h in blue])
    axes.set_yticks(range(len(red)), [f"{e:g}" for e in red])
    axes.set(xlabel="haematoxylin x", ylabel="eosin x")
    title(axes, "predicted total / unscaled total")
