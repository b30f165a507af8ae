"""The figure of the restarts experiment: correlations between runs, and predicted uncertainty against their spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from superst_monai.experiments.figures import COLOURS, boxes, correlations, diagonal, legend, panels


def restarts_figure(table: pd.DataFrame, uncertainty: Mapping[str, Any]) -> Figure:
    """Draw the experiment.

    Args:
        table: correlation of each gene between each pair of runs on each section.
        uncertainty: of `restarts.judge`.
    """
    figure, [[left, right]] = panels(2, width_ratios=[2, 1])
    sections = list(dict.fromkeys(table["section"]))
    pair = table["restart_a"].astype(str) + ", " + table["restart_b"].astype(str)
    pairs = list(dict.fromkeys(pair))
    groups = {
        name: [table.loc[(table["section"] == name) & (pair == one), "correlation"].to_numpy() for one in pairs]
        for name in sections
    }
    boxes(left, groups, pairs)
    left.set(xlabel="numbers of two restarts", ylabel="r over random regions, per gene")
    correlations(left, table["correlation"])
    if len(pairs) > 10:
        left.tick_params(axis="x", rotation=90)
    told, found = ([100 * one[key] for one in uncertainty["bins"]] for key in ("predicted", "between_runs"))
    right.plot(told, found, marker="o", markersize=3, linewidth=1, color=COLOURS[0], label="tenths of regions x genes")
    right.set(xlim=(0, None), ylim=(0, None))
    diagonal(right, "the sd tells the spread")
    right.set(xlabel="predicted sd [% of count]", ylabel="sd between restarts [% of count]")
    legend(right, ncols=1)
    return figure
