"""How well the method bears an image of which parts are missing: tiles are hidden in the image that is trained on.

Restates Extended Data Fig. 7 of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.experiments.alteration import (
    Alteration,
    levels_faults,
    over_repeats,
    require_judged,
    summarise,
    values_at,
    write_p,
)
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import boxes, panels
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.sections import list_sections
from superst_monai.experiments.withheld_spots import Mask
from superst_monai.transforms.labels import draw_section
from superst_monai.transforms.occlusion import paint_tiles

NAME = "occlusion"
_WORDS = {"lognorm": "r, log-normalised", "r2": "R² of raw counts"}
_PARTS = {"visible": "spots that are seen", "hidden": "spots that are hidden"}


def run_occlusion(
    out: Path | str,
    sections: Sequence[Path | str],
    *,
    shares: Sequence[float] = (0.1, 0.2, 0.4),
    grid: int = 100,
    withheld: float = 0.2,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Hide tiles of the image, train on what is left, and predict the withheld spots from it.

    Args:
        out: the experiment's folder.
        sections: stores with counts, trained on together.
        shares: of the tiles that are hidden; 0 is always there.
        grid: tiles along the longer side of the image.
        withheld: share of the spots of each section that are judged and never trained on.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` draws withheld spots, tiles and the seed of the training anew.
        seed: of everything.
        show: progress.

    Returns:
        Content of `occlusion.json`, see `docs/experiments.md`.

    Raises:
        RunError: a share or grid is not possible, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    faults = levels_faults(shares, "shares", 1.0)
    if grid < 1:
        faults.append(f"grid must be at least 1, got {grid}")
    if faults:
        raise RunError("; ".join(faults) + ".")
    paths = [entry.path for entry in list_sections(sections)]
    require_judged(paths, withheld)
    settings = {"sections": paths, "shares": list(shares), "grid": grid, "withheld": withheld, "seed": seed}
    settings |= {"covariates": dict(covariates or {})}
    folder = ExperimentFolder(out, NAME, settings | effort.settings, show=show)
    alter, parts = partial(hide_tiles, grid=grid), partial(_split_spots, grid=grid)
    alteration = Alteration(
        folder, paths, shares, alter, parts, effort, withheld=withheld, covariates=covariates, seed=seed
    )
    table = alteration.table()
    rows = summarise(table)
    return folder.finish({"finding": _finding(rows), "levels": rows}, table, _figure(over_repeats(table), rows))


def draw_tiles(shape: tuple[int, int], share: float, rng: np.random.Generator, *, grid: int = 100) -> Mask:
    """Draw tiles of an image; those of a smaller share are among those of a larger one, if the generator is the same.

    Args:
        shape: H and W [px].
        share: of the tiles, rounded to whole tiles.
        rng: source of randomness.
        grid: square tiles along the longer side; each is a whole number of pixels wide, so there may be fewer.

    Returns:
        Pixels of the tiles `(H, W)`.
    """
    height, width = shape
    tile_px = math.ceil(max(shape) / grid)
    chosen = np.zeros((-(-height // tile_px), -(-width // tile_px)), np.bool_)
    chosen.flat[rng.permutation(chosen.size)[: round(share * chosen.size)]] = True
    return paint_tiles(torch.from_numpy(chosen), tile_px=tile_px, height=height, width=width)[0].numpy()


def hide_tiles(section: Section, share: float, rng: np.random.Generator, *, grid: int = 100) -> Section:
    """Replace tiles of a section's image by the mean colour of its tissue.

    The mean colour of the whole image would often pass for glass, by which colours are balanced.

    Args:
        section: with tissue.
        share: of the tiles.
        rng: source of the tiles, see `draw_tiles`.
        grid: tiles along the longer side.
    """
    hidden = draw_tiles(section.tissue.shape, share, rng, grid=grid)
    image = np.array(section.image)
    image[hidden] = np.rint(section.image[section.tissue].mean(axis=0)).astype(np.uint8)
    return replace(section, image=image)


def _split_spots(section: Section, share: float, rng: np.random.Generator, *, grid: int) -> dict[str, Mask]:
    """Spots of which at least half of the pixels are hidden, and the others; nothing at a share of 0."""
    if share == 0:
        return {}
    hidden = draw_tiles(section.tissue.shape, share, rng, grid=grid)
    label = draw_section(section, section.mpp, section.tissue.shape)
    n_px, n_hidden = (
        np.bincount(label[mask], minlength=section.n_spots + 1)[1:] for mask in (np.ones_like(hidden), hidden)
    )
    covered = 2 * n_hidden >= np.maximum(n_px, 1)
    return {"visible": ~covered, "hidden": covered}


def _finding(rows: Sequence[Mapping[str, Any]]) -> str:
    """One sentence, on the largest share and the model with its field."""
    largest = max(row["level"] for row in rows)
    said = []
    for row in rows:
        if row["level"] == largest and row["kind"] == "field" and row["part"] in _PARTS:
            after, before = row["medians"]["lognorm"], row["unaltered"]["lognorm"]
            p = row["tests"]["lognorm"]["p"]
            if after is not None and before is not None and p is not None:
                said.append(f"{after:.3f} instead of {before:.3f} (p = {p:.2g}) on {_PARTS[row['part']]}")
    return (
        f"With {100 * largest:g} % of the tiles hidden, the highest genes correlate on withheld spots by "
        f"{' and '.join(said) or 'an undefined number'}, log-normalised (median)."
    )


def _figure(table: pd.DataFrame, rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Scores of genes on all withheld spots, and their change on spots that are seen and on those that are hidden."""
    figure, axes = panels(1 + len(_PARTS), len(_WORDS), height_in=2.9)
    levels = sorted(table["level"].unique())
    for line, (score, words) in zip(axes, _WORDS.items(), strict=True):
        boxes(line[0], values_at(table, score, "all", levels), [f"{100 * level:g}" for level in levels])
        line[0].set(ylim=(-1.0, 1.0), ylabel=f"{words}, all spots")
        write_p(line[0], rows, score, "all", levels)
        changes = {part: values_at(table, score, part, levels[1:], change=True) for part in _PARTS}
        every = np.abs(np.concatenate([each for kinds in changes.values() for part in kinds.values() for each in part]))
        end = 1.9 * max(0.05, float(np.nanpercentile(every, 99)) if np.isfinite(every).any() else 0.0)
        for panel, (part, what) in zip(line[1:], _PARTS.items(), strict=True):
            boxes(panel, changes[part], [f"{100 * level:g}" for level in levels[1:]])
            panel.set(ylim=(-end, end), ylabel=f"change of {words},\n{what}")
            write_p(panel, rows, score, part, levels[1:])
        for panel in line:
            panel.axhline(0, color="black", linewidth=0.5, linestyle=":", zorder=0)
            panel.set_xlabel("tiles hidden [%]")
    return figure
