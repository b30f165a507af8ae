"""Panels of a map figure: a raster in micrometres with a scale bar and, for numbers, a colour bar with their unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import FigureBase
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from superst_monai.analysis.overlay import scale_bar_um
from superst_monai.data.resample import resample, to_uint8

COLOURS = "viridis"  # perceptually uniform, told apart by the colour-blind
SIGNED_COLOURS = "RdBu_r"  # blue below 0, white at 0, red above
FULL_PERCENTILE = 80.0  # of the scale: where a colour that is mixed with white is full
_TOP = 99.5  # percentile of the tissue at which the colours end, so that a few bright pixels do not darken the rest


def draw_raster(axes: Axes, raster: NDArray[Any], mpp: float, title: str, **style: Any) -> Any:
    """Draw a raster `(h, w)` or `(h, w, 3)` of pixels of `mpp` um with a scale bar; what `imshow` returns."""
    height_um, width_um = raster.shape[0] * mpp, raster.shape[1] * mpp
    drawn = axes.imshow(raster, extent=(0.0, width_um, height_um, 0.0), interpolation="nearest", **style)
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)
    _add_scale_bar(axes, width_um, height_um)
    return drawn


def draw_numbers(
    figure: FigureBase,
    axes: Axes,
    values: NDArray[Any],
    mask: NDArray[np.bool_],
    mpp: float,
    title: str,
    unit: str,
    *,
    top: float | None = None,
    signed: bool = False,
) -> None:
    """Draw a map of numbers from 0 up with its colour bar; white outside the mask.

    Args:
        figure: that holds the axes.
        axes: to draw on.
        values: `(h, w)`.
        mask: pixels with a value `(h, w)`.
        mpp: um per pixel.
        title: of the panel.
        unit: named at the colour bar.
        top: where the colours end; the 99.5th percentile (of the distance from 0, if signed) if not given.
        signed: the numbers lie on both sides of 0, and so do the colours; the mask's outside is then light grey.
    """
    inside = values[mask]
    end = (colour_end(inside) if top is None else top) or 1.0
    shown = np.ma.masked_array(values, ~mask)
    colours = SIGNED_COLOURS if signed else COLOURS
    drawn = draw_raster(axes, shown, mpp, title, cmap=colours, vmin=-end if signed else 0.0, vmax=end)
    if signed:
        axes.set_facecolor("0.85")
    over, under = (bool(inside.size) and float((sign * inside).max()) > end for sign in (1, -1))
    extend = {(True, True): "both", (True, False): "max", (False, True): "min"}.get((over, under and signed), "neither")
    bar = figure.colorbar(drawn, ax=axes, extend=extend, fraction=0.046, pad=0.03)
    bar.set_label(unit, fontsize=8)
    bar.ax.tick_params(labelsize=7)


def colour_end(*parts: NDArray[Any]) -> float:
    """Where the colours of some numbers end: the 99.5th percentile of their distances from 0, 0 if there is none."""
    every = np.abs(np.concatenate([np.ravel(part) for part in parts]))
    return float(np.percentile(every, _TOP)) if every.size else 0.0


def reduce_image(image: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Reduce an image `(H, W, 3)` by a factor >= 1, averaging over area."""
    return to_uint8(_reduced(image, factor))


def reduce_map(
    values: NDArray[Any], mask: NDArray[np.bool_], factor: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Average a map over the masked part of larger pixels; the mask keeps those at least half full."""
    stack = np.stack([np.where(mask, values, 0.0), mask], axis=-1).astype(np.float32)  # (H, W, 2)
    total, share = np.moveaxis(_reduced(stack, factor).astype(np.float64), -1, 0)
    kept = share >= 0.5 - 1e-6
    return np.where(kept, (total / np.where(kept, share, 1.0)).clip(0.0, None), 0.0), kept


def _reduced(raster: NDArray[Any], factor: float) -> NDArray[Any]:
    """Resample `(H, W, C)` to pixels `factor` times as long."""
    height, width = (max(1, round(side / factor)) for side in raster.shape[:2])
    return resample(raster, start=(0.0, 0.0), step=(factor, factor), shape=(height, width))


def _add_scale_bar(axes: Axes, width_um: float, height_um: float) -> None:
    """Put a labelled bar into the lower left corner on a white ground."""
    length, margin = scale_bar_um(width_um), 0.03 * max(width_um, height_um)
    thick = margin / 3
    axes.add_patch(
        Rectangle((margin, height_um - margin - thick), length, thick, color="black", zorder=5, gid="scale bar")
    )
    label = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} um"
    ground = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
    x, y = margin + length / 2, height_um - margin - 2 * thick
    axes.text(x, y, label, ha="center", va="bottom", fontsize=7, bbox=ground, zorder=5)
