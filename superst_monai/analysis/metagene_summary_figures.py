"""`superst analyze metagenes`: tables and figures of the metagenes of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from superst_monai.analysis.blocks import activity_blocks
from superst_monai.analysis.credible import LEVEL
from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.analysis.forest import draw_forest
from superst_monai.analysis.metagene_colours import Colours, fit_colours
from superst_monai.analysis.metagene_summary import metagene_name, profiles, section_shares, top_genes
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.panels import draw_numbers, draw_raster
from superst_monai.analysis.several_maps import Named, open_several, require_one_run

Floats = NDArray[np.float32]
_LONGEST_PX = 600  # of activity maps, as drawn
_SUMMARY_LONGEST_PX = 1500


def write_metagenes(paths: Sequence[Path | str], out_dir: Path | str, *, top: int = 12) -> list[Path]:
    """Describe the metagenes of a run by their genes and their place on some sections.

    Writes `profiles.csv` (metagene x gene: log2 fold change against the mean of the tissue), `top_genes.csv`,
    `sections.csv` (share of each metagene in each section), `metagene_1.png` ... (top genes and activity maps),
    `summary.png` (the summarised expression map of all sections) and `summary.json` (how its colours are made).

    Args:
        paths: posterior maps of one run, seed and number of samples.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        top: genes of each direction in figures and `top_genes.csv`.

    Returns:
        The files.

    Raises:
        RunError: the maps are not of one run, have fewer than two samples, or expect nothing on the tissue.
        StoreError: maps cannot be read or a file cannot be written.
    """
    several = open_several(paths)
    require_one_run(several)
    share, sections = section_shares(several)
    out = make_folder(out_dir)
    written = [write_whole(out / "sections.csv", lambda path: sections.to_csv(path, index=False))]
    every = dict(profiles(several[0].maps, share))
    tops = {k: top_genes(table, top) for k, table in every.items()}
    for name, tables in (("profiles.csv", every), ("top_genes.csv", tops)):
        whole = pd.concat({metagene_name(k): table for k, table in tables.items()}, names=["metagene"])
        written.append(write_whole(out / name, whole.to_csv))
    written += _write_summary(several, out)
    drawn = [activity_blocks(one.maps, longest_px=_LONGEST_PX) for one in several]
    for k, table in tops.items():
        path = out / f"{metagene_name(k)}.png"
        save_figure(metagene_figure(k, table, several, [(a[k], s > 0, f) for a, s, f in drawn], share[:, k]), path)
        written.append(path)
    return written


def metagene_figure(
    k: int,
    genes: pd.DataFrame,
    several: Sequence[Named],
    activity: Sequence[tuple[Floats, NDArray[np.bool_], int]],
    share: NDArray[np.float64],
) -> Figure:
    """Draw one metagene: its top genes, and its activity on each section in one range of colours.

    Args:
        k: number of the metagene, from 0.
        genes: of `top_genes`.
        several: the sections.
        activity: of each section the activity `(h, w)`, the blocks that are tissue, and their side [px].
        share: samples of its share in the expression of the tissue `(N,)`.
    """
    n_cols = int(np.ceil(np.sqrt(len(several))))
    n_rows = -(-len(several) // n_cols)
    height = max(3.6, 0.6 + 0.16 * len(genes), 3.4 * n_rows)
    figure = Figure(figsize=(3.6 + 4.2 * n_cols, height), dpi=150, layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[3.6, 4.2 * n_cols])[0]
    draw_forest(left.subplots(), genes, "genes furthest from the mean of the tissue", level=LEVEL)
    panels = list(np.ravel(right.subplots(n_rows, n_cols, squeeze=False)))
    inside = np.concatenate([values[mask] for values, mask, _ in activity])
    end = float(np.percentile(inside, 99.5)) if inside.size else 1.0
    for one, (values, mask, factor), axes in zip(several, activity, panels, strict=False):
        draw_numbers(
            right, axes, values, mask, one.maps.mpp * factor, one.name, "activity (share of the scale)", top=end
        )
    for axes in panels[len(several) :]:
        axes.set_axis_off()
    figure.suptitle(
        f"{metagene_name(k).replace('_', ' ')}: {100 * share.mean():.2g} % of the scale of the tissue", fontsize=10
    )
    return figure


def summary_figure(several: Sequence[Named], pictures: Sequence[tuple[NDArray[np.uint8], int]]) -> Figure:
    """Draw the summarised expression map of each section, with what the colours mean.

    Args:
        several: the sections.
        pictures: of each its colours `(h, w, 3)`, and the side of a drawn pixel [px].
    """
    n_cols = int(np.ceil(np.sqrt(len(several))))
    n_rows = -(-len(several) // n_cols)
    aspect = max(picture.shape[0] / picture.shape[1] for picture, _ in pictures)
    figure = Figure(figsize=(5 * n_cols, 0.6 + 5 * min(aspect, 2.5) * n_rows), dpi=150, layout="constrained")
    panels = list(np.ravel(figure.subplots(n_rows, n_cols, squeeze=False)))
    for one, (picture, factor), axes in zip(several, pictures, panels, strict=False):
        draw_raster(axes, picture, one.maps.mpp * factor, one.name)
    for axes in panels[len(several) :]:
        axes.set_axis_off()
    figure.suptitle(
        "summarised expression: alike colours are alike expression, on all sections; paler is less of it", fontsize=9
    )
    return figure


def _write_summary(several: Sequence[Named], out: Path) -> list[Path]:
    """Fit the colours of all sections, draw them, and write what they mean."""
    colours = fit_colours([one.maps for one in several])
    pictures = []
    for one in several:
        activity, scale, factor = activity_blocks(one.maps, longest_px=_SUMMARY_LONGEST_PX)
        pictures.append((colours.paint(activity, scale), factor))
    save_figure(summary_figure(several, pictures), out / "summary.png")
    return [out / "summary.png", write_json(out / "summary.json", _said(colours, several))]


def _said(colours: Colours, several: Sequence[Named]) -> Mapping[str, Any]:
    """The colours in numbers: from activity and scale of a pixel, these give its colour."""
    names = [metagene_name(k) for k in range(len(colours.mean))]
    channels = {}
    for i, channel in enumerate(("red", "green", "blue")):
        channels[channel] = {
            "variance_share": float(colours.variance[i]),
            "low": float(colours.low[i]),
            "high": float(colours.high[i]),
            "weights": dict(zip(names, map(float, colours.components[i]), strict=True)),
        }
    return {
        "sections": [one.name for one in several],
        "mean_activity": dict(zip(names, map(float, colours.mean), strict=True)),
        "channels": channels,
        "full_scale": colours.full_scale,
    }
