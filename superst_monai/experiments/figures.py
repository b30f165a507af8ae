"""The look of all experiments' figures: sizes, fonts, colours and boxes, in one place.

Figures are at most 7.2 inches wide, a printed page's text, with letters of 7 points or more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from numpy.typing import NDArray

WIDTH_IN = 7.2  # of a printed page's text [inch]
SMALL_PT, NORMAL_PT = 7, 8
DPI = 200
COLOURS = ("#0072B2", "#E69F00", "#999999", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
"""Okabe & Ito: told apart by the colour-blind. The model is the first, baselines follow."""
_LINE_PT = 0.6


def panels(columns: int, rows: int = 1, *, height_in: float = 2.6, **options: Any) -> tuple[Figure, NDArray[Any]]:
    """A figure of the width of a page and its panels.

    Args:
        columns, rows: number of panels.
        height_in: of one row [inch].
        options: of `Figure.subplots`.

    Returns:
        Figure and axes `(rows, columns)`.
    """
    figure = Figure(figsize=(WIDTH_IN, height_in * rows), dpi=DPI, layout="constrained")
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, **options)
    for each in axes.ravel():
        each.tick_params(labelsize=SMALL_PT, width=_LINE_PT, length=2.5)
        each.xaxis.label.set_fontsize(NORMAL_PT)
        each.yaxis.label.set_fontsize(NORMAL_PT)
        each.spines[:].set_linewidth(_LINE_PT)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def boxes(
    axes: Axes,
    groups: Mapping[str, Sequence[NDArray[Any]]],
    ticks: Sequence[str],
    *,
    colours: Sequence[Any] = COLOURS,
    ncols: int = 2,
) -> None:
    """Box values as the paper does: median, quartiles, whiskers to the last value within 1.5 times their distance.

    Args:
        axes: where to draw.
        groups: for each entry of the legend the values at each tick; NaN is left out. Where nothing is left, "none"
            is written.
        ticks: labels of the places along x.
        colours: of the groups.
        ncols: columns of the legend, which there is for two groups or more; 0 draws none.
    """
    width = 0.8 / len(groups)
    for i, (colour, columns) in enumerate(zip(colours, groups.values(), strict=False)):
        for tick, values in enumerate(columns):
            place = tick + (i - (len(groups) - 1) / 2) * width
            known = np.asarray(values, dtype=np.float64)
            known = known[~np.isnan(known)]
            if known.size == 0:
                _say_none(axes, place, colour)
                continue
            _box(axes, known, place, 0.85 * width, colour)
    axes.set_xticks(range(len(ticks)), list(ticks))
    axes.set_xlim(-0.5, len(ticks) - 0.5)
    if len(groups) > 1 and ncols:
        legend(axes, handles=box_handles(groups, colours), ncols=ncols)


def box_handles(names: Iterable[str], colours: Sequence[Any] = COLOURS) -> list[Patch]:
    """Entries of a legend of `boxes`."""
    return [Patch(facecolor=colour, alpha=0.7, label=name) for colour, name in zip(colours, names, strict=False)]


def title(axes: Axes, text: str) -> None:
    """A title over the left end of a panel."""
    axes.set_title(text, loc="left", fontsize=NORMAL_PT)


def shades(n: int) -> list[tuple[float, float, float, float]]:
    """Colours of `n` things that have an order, dark to light."""
    return [colormaps["cividis"](share) for share in np.linspace(0.0, 0.9, n)]


def legend(axes: Axes, **options: Any) -> None:
    """A small legend without a frame, above the panel so that it hides nothing."""
    known: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": 2}
    known |= {"fontsize": SMALL_PT, "frameon": False, "handlelength": 1.2, "borderaxespad": 0.1, "columnspacing": 1.0}
    axes.legend(**(known | options))


def correlations(axes: Axes, values: NDArray[Any] | pd.Series) -> None:
    """Let y be correlations: up to 1, down to the lowest of the values, and 0 marked if it is shown."""
    low = float(np.nanmin(np.asarray(values, dtype=np.float64), initial=0.9))
    axes.set_ylim(low - 0.05 * (1 - low), 1 + 0.02 * (1 - low))
    if low < 0:
        axes.axhline(0, color="black", linewidth=0.5, linestyle=":", zorder=0)


def legend_below(figure: Figure, handles: Sequence[Artist], *, ncols: int = 6) -> None:
    """One legend for all panels, under them."""
    figure.legend(handles=handles, loc="outside lower center", ncols=ncols, fontsize=SMALL_PT, frameon=False)


def log_axis(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers: decades, and between them if the axis spans few."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 30 * low else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
    axis.set_minor_formatter(NullFormatter())


def scatter(
    axes: Axes, x: NDArray[Any], y: NDArray[Any], *, colour: str = COLOURS[0], label: str | None = None
) -> None:
    """Points that may be many: small, half transparent, as pixels where a figure is saved as vectors."""
    alpha = float(np.clip(200 / max(len(x), 1), 0.05, 0.7))
    axes.scatter(x, y, s=5, alpha=alpha, color=colour, linewidths=0, rasterized=True, label=label)


def diagonal(axes: Axes, label: str = "equal") -> None:
    """The line on which x and y are equal, over the range of the panel."""
    low, high = np.transpose([axes.get_xlim(), axes.get_ylim()])
    ends = [min(low), max(high)]
    axes.plot(ends, ends, color="black", linewidth=0.8, linestyle="--", label=label)


def _say_none(axes: Axes, place: float, colour: Any) -> None:
    """Write at the foot of a panel that there is no box."""
    axes.text(
        *(place, 0.02),
        "none",
        transform=axes.get_xaxis_transform(),
        rotation=90,
        ha="center",
        va="bottom",
        fontsize=SMALL_PT,
        color=colour,
    )


def _box(axes: Axes, values: NDArray[np.float64], place: float, width: float, colour: Any) -> None:
    """One box."""
    line = {"linewidth": _LINE_PT, "color": "black"}
    parts = axes.boxplot(
        [values],
        positions=[place],
        widths=width,
        whis=1.5,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": colour, "alpha": 0.7, "linewidth": _LINE_PT},
        medianprops=line,
        whiskerprops=line,
        capprops=line,
        flierprops={"marker": ".", "markersize": 2, "markerfacecolor": colour, "markeredgecolor": "none"},
    )
    parts["boxes"][0].set_gid("box")
