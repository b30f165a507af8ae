"""`superst analyze cell-types`: maps, tables and figures of the cell types of some sections."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from superst_monai.analysis.cell_types import Decomposition, decompose
from superst_monai.analysis.cell_types_border import composition_by_distance
from superst_monai.analysis.cell_types_maps import (
    Mixing,
    TypeMaps,
    fit_mixing,
    mix_colours,
    spot_table,
    type_colours,
    type_maps,
)
from superst_monai.analysis.cell_types_reference import Reference
from superst_monai.analysis.credible import LEVEL, summarise
from superst_monai.analysis.exports.pyramid import Picture, write_pyramid
from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.analysis.gene_maps import source_section
from superst_monai.analysis.metagene_summary import section_shares
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.panels import colour_end, draw_numbers, draw_raster
from superst_monai.analysis.several_maps import Named, require_one_run, tissue_sizes, without_effects
from superst_monai.analysis.support_grid import Grid
from superst_monai.data.atomic import new_store

_LONGEST_PX = 1000


def write_cell_types(
    several: Sequence[Named],
    reference: Reference,
    out_dir: Path | str,
    *,
    regions: Sequence[NDArray[np.bool_]] | None = None,
    region_name: str = "region",
    width_um: float = 50.0,
    reach_um: float = 500.0,
) -> list[Path]:
    """Score cell types on some sections of a run, with the effects of covariates taken out.

    Writes `composition.csv` (each section as a whole), `metagenes.csv` (each metagene), `SECTION.png` (mixture and
    share of each type), `SECTION.ome.zarr` (score of each type in each pixel, and its standard deviation),
    `SECTION_spots.csv` where the section that was predicted on has spots, `cell_types.json` (what was used), and with
    regions `border.csv` and `border.png` (composition by distance to their border).

    Args:
        several: maps of one run, seed and number of samples.
        reference: of `read_reference` or `read_markers`.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        regions: a region on each section `(H, W)`, empty where a section has none.
        region_name: what it is called.
        width_um: width of the bands along its border [um].
        reach_um: how far they go [um].

    Returns:
        The files.

    Raises:
        RunError: maps are not of one run, have fewer than two samples, expect nothing on the tissue, or the region has
            no border.
        AssayError: the reference shares no gene with the run, or none that tells some type from the others.
        StoreError: a file cannot be written.
    """
    require_one_run(several)
    several = [without_effects(one) for one in several]
    share, _ = section_shares(several)
    found = decompose(several[0].maps, share, reference)
    border = None
    if regions is not None:
        border = composition_by_distance(several, regions, found, width_um=width_um, reach_um=reach_um)
    out = make_folder(out_dir)
    written = [
        write_whole(out / "composition.csv", _compositions(several, found).to_csv),
        write_whole(out / "metagenes.csv", found.table(share).to_csv),
        write_json(out / "cell_types.json", _said(several, reference, found)),
    ]
    if border is not None:
        written.append(write_whole(out / "border.csv", border.to_csv))
        save_figure(border_figure(border, region_name), out / "border.png")
        written.append(out / "border.png")
    return written + _write_sections(several, found, out)


def _write_sections(several: Sequence[Named], found: Decomposition, out: Path) -> list[Path]:
    """Draw the types on each section, colours alike on all, and write those of its spots."""
    drawn = [type_maps(one.maps, found, longest_px=_LONGEST_PX) for one in several]
    mixing = fit_mixing(drawn)
    ends = [colour_end(*(maps.share[t][maps.inside] for maps in drawn)) or 1.0 for t in range(len(found.cell_types))]
    written = []
    for one, maps in zip(several, drawn, strict=True):
        path = out / f"{one.name}.png"
        save_figure(section_figure(one, maps, found.cell_types, ends, mixing), path)
        written.append(path)
        image = out / f"{one.name}.ome.zarr"
        with new_store(image, overwrite=True) as partial:
            write_pyramid(partial, Picture(found.maps(one.maps), Grid(one.maps), found.cell_types, ["mean", "sd"]))
        written.append(image)
        section = source_section(one.maps)
        if section is not None:
            table = spot_table(one.maps, section, found)
            written.append(write_whole(out / f"{one.name}_spots.csv", table.to_csv))
    return written


def section_figure(
    one: Named, found: TypeMaps, cell_types: Sequence[str], ends: Sequence[float], mixing: Mixing
) -> Figure:
    """Draw the mixture of all types, and the share of each.

    Args:
        one: the section.
        found: of `type_maps`.
        cell_types: names.
        ends: where the colours of each type end.
        mixing: of `fit_mixing`.
    """
    mpp = one.maps.mpp * found.factor
    n_cols = min(4, int(np.ceil(np.sqrt(len(cell_types) + 1))))
    n_rows = -(-(len(cell_types) + 1) // n_cols)
    aspect = min(2.0, found.inside.shape[0] / found.inside.shape[1])
    figure = Figure(figsize=(4.4 * n_cols, 1.0 + (3.8 * aspect + 0.3) * n_rows), dpi=130, layout="constrained")
    panels = list(np.ravel(figure.subplots(n_rows, n_cols, squeeze=False)))
    draw_raster(
        panels[0], mix_colours(found, mixing), mpp, "types mixed by share above its 5th percentile; pale: little"
    )
    for t, (name, end, axes) in enumerate(zip(cell_types, ends, panels[1:], strict=False)):
        draw_numbers(figure, axes, found.share[t], found.inside, mpp, name, "share of the composition", top=end)
    for axes in panels[len(cell_types) + 1 :]:
        axes.set_axis_off()
    patches = [Patch(color=c, label=name) for c, name in zip(type_colours(len(cell_types)), cell_types, strict=True)]
    figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 6), fontsize=8, frameon=False)
    figure.suptitle(one.name, fontsize=11)
    return figure


def border_figure(border: pd.DataFrame, region_name: str) -> Figure:
    """Draw the share of each type against the distance to the border, with its credible interval.

    Args:
        border: of `composition_by_distance`.
        region_name: what lies inside.
    """
    cell_types = list(dict.fromkeys(border.index.get_level_values("cell_type")))
    figure = Figure(figsize=(7.0, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(cell_types, type_colours(len(cell_types)), strict=True):
        rows = border.xs(name, level="cell_type")
        axes.plot(rows.index, rows["share"], color=colour, label=name, marker=".", linewidth=1.4)
        axes.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.2, linewidth=0)
    axes.axvline(0.0, color="0.4", linewidth=0.8)
    axes.set_xlabel(f"distance to the border of {region_name}, negative inside [um]", fontsize=9)
    axes.set_ylabel(f"share of the composition, {100 * LEVEL:g} % credible interval", fontsize=9)
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return figure


def _compositions(several: Sequence[Named], found: Decomposition) -> pd.DataFrame:
    """Composition of each section as a whole: section, cell_type, share, sd, low, high."""
    parts = {}
    for one in several:
        share = found.share(tissue_sizes(one.maps)[:, None])[:, 0]  # (N, T)
        parts[one.name] = summarise(share).table("share", pd.Index(found.cell_types, name="cell_type"))
    return pd.concat(parts, names=["section"])[["share", "sd", "low", "high"]].clip(lower=0)


def _said(several: Sequence[Named], reference: Reference, found: Decomposition) -> dict[str, object]:
    """What the scores were made of."""
    n_cells = reference.n_cells
    return {
        "reference": "markers" if n_cells is None else "single cells",
        "sections": [one.name for one in several],
        "removed_covariates": list(several[0].maps.record.get("removed", [])),
        "cell_types": {
            name: {
                "informative_genes": int(found.n_genes[t]),
                "cells": None if n_cells is None else int(n_cells[t]),
            }
            for t, name in enumerate(found.cell_types)
        },
    }
