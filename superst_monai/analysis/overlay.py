"""Draw spots and tissue outline on the histology: the picture that shows whether they fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke

from superst_monai.data.section import Section
from superst_monai.errors import StoreError

_OUTLINE, _SPOT = "#00c000", "#ffe800"


def overlay_figure(section: Section, *, longest_px: int = 2000) -> Figure:
    """Draw the H&E image, the outline of the tissue, the spots, and a scale bar.

    Args:
        section: the section; without counts no spots are drawn.
        longest_px: finer sections are drawn resampled to at most so many pixels along the longer side.
    Returns:
        A figure whose axes are in micrometres, one axes, not shown and not registered anywhere.
    """
    drawn = section.at(section.mpp * max(1.0, max(section.tissue.shape) / longest_px))
    height, width = drawn.tissue.shape
    extent = (0.0, width * drawn.mpp, height * drawn.mpp, 0.0)  # left, right, bottom, top [um]
    scale = 8 / max(height, width)
    figure = Figure(figsize=(max(3.0, width * scale), max(3.0, height * scale) + 0.4), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.imshow(drawn.image, extent=extent, interpolation="nearest")
    if drawn.tissue.any() and not drawn.tissue.all():
        centre = [(np.arange(n) + 0.5) * drawn.mpp for n in (width, height)]
        axes.contour(*centre, drawn.tissue.astype(np.float64), levels=[0.5], colors=_OUTLINE, linewidths=0.8)
    if section.has_counts:
        _add_spots(axes, section)
    _add_scale_bar(axes, extent[1], extent[2])
    axes.set(xlim=extent[:2], ylim=extent[2:], aspect="equal", xticks=[], yticks=[])
    spots = f"{section.n_spots} spots" if section.has_counts else "no spots"
    axes.set_title(f"{section.name}: {spots}, tissue outlined, {section.mpp:g} um per pixel", fontsize=9)
    return figure


def _add_spots(axes: Axes, section: Section) -> None:
    """Add the spots as one collection in data coordinates (um)."""
    x, y, radius = section.spots[["x_um", "y_um", "radius_um"]].to_numpy(np.float64).T  # (S,) each
    style: dict[str, Any] = {"facecolors": "none", "edgecolors": _SPOT, "linewidths": 0.6, "path_effects": _halo()}
    if section.shape == "square":
        corner = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        outline = np.stack([x, y], axis=1)[:, None] + radius[:, None, None] * corner  # (S, 4, 2)
        axes.add_collection(PolyCollection(list(outline), **style))
    else:
        circles = EllipseCollection(
            2 * radius,
            2 * radius,
            np.zeros_like(radius),
            units="xy",
            offsets=np.stack([x, y], axis=1),
            offset_transform=axes.transData,
            **style,
        )
        axes.add_collection(circles)


def _halo() -> list[AbstractPathEffect]:
    """A dark rim, so that a bright line reads on stained tissue and on white glass."""
    return [withStroke(linewidth=1.4, foreground="black")]


def scale_bar_um(width_um: float) -> float:
    """Longest of 1, 2, 5 x 10^n um that is at most a fifth of the picture's width [um]."""
    steps = np.outer(10.0 ** np.arange(-2, 7), [1.0, 2.0, 5.0]).ravel()
    return float(steps[steps <= width_um / 5].max(initial=steps[0]))


def _add_scale_bar(axes: Axes, width_um: float, height_um: float) -> None:
    """Put a labelled bar into the lower left corner, on a white ground so that it reads on any image."""
    length, margin = scale_bar_um(width_um), 0.03 * max(width_um, height_um)
    thick = margin / 4
    low = height_um - margin - thick
    axes.add_patch(Rectangle((margin, low), length, thick, color="black", zorder=5, gid="scale bar"))
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    axes.text(margin + length / 2, low - thick, label, ha="center", va="bottom", fontsize=8, bbox=ground, zorder=5)


def save_figure(fig: Figure, path: Path | str) -> None:
    """Write a figure as PNG (or what the suffix says), whole or not at all.

    Args:
        fig: the figure.
        path: file to write; an existing one is replaced.
    Raises:
        StoreError: the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix or '.png'}")
    try:
        fig.savefig(partial)
        partial.replace(path)
    except OSError as exc:
        raise StoreError(f"cannot write {path} ({exc.strerror or exc}); check the folder and free space.") from exc
    finally:
        partial.unlink(missing_ok=True)
