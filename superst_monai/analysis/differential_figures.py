"""`superst analyze differential`: table, numbers and forest plot of differential expression between two regions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from superst_monai.analysis.counted_regions import CountedRegions
from superst_monai.analysis.credible import LEVEL
from superst_monai.analysis.differential import UNITS, Mask, Per, differential
from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.analysis.forest import draw_forest
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.several_maps import Named, require_one_run

_SURE = 0.05  # local false sign rate below which a gene is counted in the summary


def write_differential(
    several: Sequence[Named],
    regions: Sequence[tuple[Mask, Mask]],
    out_dir: Path | str,
    *,
    names: tuple[str, str] = ("A", "B"),
    per: Per = "scale",
    level: float = LEVEL,
    top: int = 20,
    counted: CountedRegions | None = None,
) -> list[Path]:
    """Compare two regions, each on one section or several, and write what was found.

    Writes `differential.csv` (all genes, the surest first), `differential.png` (forest plot of the surest genes of each
    direction) and `differential.json` (regions, settings, counts of sure genes).

    Args:
        several: maps of one run, seed and number of samples.
        regions: pixels of the one and of the other region on each, `(H, W)`; empty where a section has none.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        names: what the regions are called.
        per: expression by "scale" or by "area"; see `differential.differential`.
        level: probability of the credible intervals.
        top: genes of each direction in the figure.
        counted: counts of the spots in both regions, see `differential.differential`.

    Returns:
        The files.

    Raises:
        RunError: the maps are not of one run, have fewer than two samples, or a region holds no tissue.
        StoreError: a file cannot be written.
    """
    require_one_run(several)
    table = differential([one.maps for one in several], regions, per=per, level=level, counted=counted)
    out = make_folder(out_dir)
    sure = table["lfsr"] < _SURE
    said = {
        "regions": dict(zip("AB", names, strict=True)),
        "sections": [
            {
                "name": one.name,
                "area_um2": dict(zip("AB", (float(mask.sum()) * one.maps.mpp**2 for mask in masks), strict=True)),
                "conditions": dict(one.maps.record.get("conditions", {})),
                "removed": list(one.maps.record.get("removed", [])),
            }
            for one, masks in zip(several, regions, strict=True)
        ],
        "unit": UNITS[per],
        "level": level,
        "samples": several[0].maps.n_samples,
        "spots_counted": None if counted is None else dict(zip("AB", counted.n_spots, strict=True)),
        "n_genes": len(table),
        f"n_lfsr_below_{_SURE:g}": {
            "higher_in_A": int((sure & (table["log2_fold_change"] > 0)).sum()),
            "higher_in_B": int((sure & (table["log2_fold_change"] < 0)).sum()),
        },
    }
    save_figure(differential_figure(table, names, per=per, level=level, top=top), out / "differential.png")
    return [
        write_whole(out / "differential.csv", table.to_csv),
        out / "differential.png",
        write_json(out / "differential.json", said),
    ]


def differential_figure(table: pd.DataFrame, names: tuple[str, str], *, per: Per, level: float, top: int) -> Figure:
    """Draw the surest genes of each direction, those higher in A above, the surest outermost.

    Args:
        table: of `differential.differential`.
        names: of the regions A and B.
        per: as in the table.
        level: as in the table.
        top: genes of each direction.
    """
    up = table[table["log2_fold_change"] > 0].head(top)
    down = table[table["log2_fold_change"] < 0].head(top)
    shown = pd.concat([up, down.iloc[::-1]])
    figure = Figure(figsize=(5.2, 1.3 + 0.16 * max(len(shown), 6)), dpi=150, layout="constrained")
    axes = figure.subplots()
    title = (
        f"{names[0]} (right) against {names[1]} (left)\n{UNITS[per]}; surest genes of each direction, by |mean| / sd"
    )
    draw_forest(axes, shown, title, level=level)
    return figure
