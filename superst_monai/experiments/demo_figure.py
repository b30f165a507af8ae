"""One figure of the demo: truth, spots, prediction, uncertainty and baseline of each subtype, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from superst_monai.analysis.panels import draw_numbers, draw_raster
from superst_monai.data.section import Section
from superst_monai.transforms.labels import draw_spots

if TYPE_CHECKING:
    from superst_monai.experiments.demo import Finding

_CELL, _OTHER = "#440154", "#d9d9d9"
_BARS = ("#0072B2", "#999999")


def demo_figure(
    section: Section, tissue: NDArray[np.bool_], findings: Mapping[str, Finding], *, window_um: float = 800.0
) -> Figure:
    """Draw a window in the middle of the tissue, a row for each subtype, beside the histology and the scores.

    Args:
        section: at the resolution of the maps.
        tissue: pixels judged `(H, W)`.
        findings: by subtype, three.
        window_um: side of the window, wide enough for some spots and narrow enough to see cells [um].
    """
    window = _window(tissue, window_um / section.mpp)
    figure = Figure(figsize=(22, 3.6 * len(findings) + 0.6), dpi=110, layout="constrained")
    rows = figure.subplots(len(findings), 6, squeeze=False)
    _draw_histology(rows[0, 0], rows[1, 0], section, window)
    _draw_scores(rows[2, 0], findings)
    label = _spots_of(section)
    for row, (name, finding) in zip(rows[:, 1:], findings.items(), strict=True):
        _draw_row(figure, row, name, finding, label, tissue, section.mpp, window)
    figure.suptitle("Superst on a synthetic tissue: expected UMIs of each subtype's marker genes in a pixel")
    return figure


def _draw_row(
    figure: Figure,
    row: Any,
    name: str,
    finding: Finding,
    label: NDArray[np.int64],
    tissue: NDArray[np.bool_],
    mpp: float,
    window: tuple[slice, slice],
) -> None:
    """Draw the five panels of one subtype; spots, prediction and baseline share their colours."""
    colours = ListedColormap([_OTHER, _CELL])
    truth = np.ma.masked_array(finding.truth.astype(np.float64), ~tissue)[window]
    draw_raster(row[0], truth, mpp, f"truth: {name} cells", cmap=colours, vmin=0, vmax=1)
    handles = [Patch(color=_CELL, label=name), Patch(color=_OTHER, label="other tissue")]
    row[0].legend(handles=handles, loc="lower right", fontsize=7)
    observed = np.concatenate([[0.0], finding.spots])[label]  # (H, W)
    inside = finding.mean[tissue]
    top = float(np.percentile(inside, 99.5))
    unit = f"marker UMIs per pixel ({mpp:g} um)"
    panels = (
        (observed, label > 0, "observed in spots", unit, top),
        (finding.mean, tissue, f"predicted (AUC {finding.auc:.2f})", unit, top),
        (finding.sd, tissue, "posterior standard deviation", unit, None),
        (finding.spread, tissue, f"baseline: nearest spot (AUC {finding.baseline_auc:.2f})", unit, top),
    )
    for axes, (values, mask, title, what, end) in zip(row[1:], panels, strict=True):
        draw_numbers(figure, axes, values[window], mask[window], mpp, title, what, top=end)


def _draw_histology(whole: Axes, detail: Axes, section: Section, window: tuple[slice, slice]) -> None:
    """Draw the slide with the window marked, and the window."""
    draw_raster(whole, section.image, section.mpp, "H&E (drawn), window marked")
    rows, columns = window
    corner = columns.start * section.mpp, rows.start * section.mpp
    size = (columns.stop - columns.start) * section.mpp, (rows.stop - rows.start) * section.mpp
    whole.add_patch(Rectangle(corner, *size, fill=False, edgecolor="black", linewidth=1.5, gid="window"))
    draw_raster(detail, section.image[window], section.mpp, "H&E, window")


def _draw_scores(axes: Axes, findings: Mapping[str, Finding]) -> None:
    """Draw the areas under the ROC curves as bars."""
    place = np.arange(len(findings))
    values = [finding.auc for finding in findings.values()], [finding.baseline_auc for finding in findings.values()]
    for shift, heights, colour, label in zip((-0.2, 0.2), values, _BARS, ("superst", "nearest spot"), strict=True):
        bars = axes.bar(place + shift, heights, width=0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    axes.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axes.set_xticks(place, list(findings))
    axes.set(ylim=(0, 1.25), ylabel="area under ROC curve, all pixels")
    axes.set_title("0.5 is chance, 1 is best", fontsize=9)
    axes.legend(loc="upper center", ncols=2, fontsize=7, frameon=False)


def _spots_of(section: Section) -> NDArray[np.int64]:
    """Spot of each pixel `(H, W)`, 0 none."""
    x, y, radius = (section.spots[name].to_numpy() / section.mpp for name in ("x_um", "y_um", "radius_um"))
    return draw_spots(x, y, radius, section.tissue.shape)


def _window(tissue: NDArray[np.bool_], side_px: float) -> tuple[slice, slice]:
    """A square round the middle of the tissue, clipped to the map."""
    found = []
    for axis, length in enumerate(tissue.shape):
        middle = float(np.nonzero(tissue)[axis].mean())
        side = min(max(1, round(side_px)), length)
        start = min(max(0, round(middle - side / 2)), length - side)
        found.append(slice(start, start + side))
    return found[0], found[1]
