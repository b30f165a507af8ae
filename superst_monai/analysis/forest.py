"""Forest plots: one line a gene, its mean and its credible interval."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes

UP, DOWN = "#b2182b", "#2166ac"  # red and blue that the colour-blind tell apart


def draw_forest(axes: Axes, table: pd.DataFrame, title: str, *, level: float) -> None:
    """Draw log2 fold changes with their intervals, the first row on top.

    Args:
        axes: to draw on.
        table: rows named by gene: log2_fold_change, low, high.
        title: of the panel.
        level: probability of the intervals, named on the axis.
    """
    place = range(len(table))[::-1]
    colours = [UP if mean > 0 else DOWN for mean in table["log2_fold_change"]]
    axes.axvline(0.0, color="0.6", linewidth=0.8, zorder=0)
    axes.hlines(list(place), table["low"], table["high"], colors=colours, linewidth=1.4)
    axes.scatter(table["log2_fold_change"], list(place), c=colours, s=14, zorder=3)
    axes.set_yticks(list(place), [str(gene) for gene in table.index], fontsize=7)
    axes.set_ylim(-0.8, max(len(table), 1) - 0.2)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel(f"log2 fold change, {100 * level:g} % credible interval", fontsize=8)
    axes.set_title(title, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if table.empty:
        axes.text(0.5, 0.5, "no gene whose interval leaves out 0", ha="center", transform=axes.transAxes, fontsize=8)
        axes.set_xlim(-1, 1)
