"""The whole way on a synthetic tissue whose expression is known at every pixel: slide, section, run, maps, score.

Restates the deconvolution experiment of Bergenstråhle et al. 2022, Extended Data Fig. 1
(doi:10.1038/s41587-021-01075-3): can the map tell which cells within a spot express what?
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.deconvolution import pixel_auc, spread_evenly
from superst_monai.analysis.files import make_folder, write_json, write_text
from superst_monai.analysis.overlay import overlay_figure, save_figure
from superst_monai.data.preflight import preflight
from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.data.synthetic import SUBTYPES, SyntheticTissue, make_tissue, to_assay, write_slide
from superst_monai.engines.workflow import train
from superst_monai.errors import RunError
from superst_monai.experiments.demo_figure import demo_figure
from superst_monai.inference.calibrate import calibrate_run
from superst_monai.inference.colours_fit import fit_colours
from superst_monai.inference.field_store import fit_training_fields
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
from superst_monai.transforms.tissue import find_tissue

SETTINGS = {"depth": 4, "n_metagenes": 4, "batch_size": 2, "learning_rate": 0.005}
"""Training settings of a tissue this small and simple: a shallower network, many short steps."""
Show = Callable[[float, float, float], None]


class Finding(NamedTuple):
    """What is known, predicted and measured of one subtype, on the pixels of the maps."""

    truth: NDArray[np.bool_]  # (H, W) pixels of the subtype
    mean: NDArray[np.float32]  # (H, W) expected UMIs of its marker genes [1/px]
    sd: NDArray[np.float32]  # (H, W) posterior standard deviation of `mean`
    spots: NDArray[np.float64]  # (S,) UMIs of its marker genes in each spot, spread evenly over its pixels [1/px]
    spread: NDArray[np.floating[Any]]  # (H, W) these, given to the pixels of a spot and round it
    auc: float  # of the prediction, over the tissue
    baseline_auc: float  # of `spread`
    auc_in_cells: float  # of the prediction, over the pixels of cells alone: which subtype, not whether a cell
    baseline_auc_in_cells: float


def run_demo(
    out: Path | str,
    *,
    minutes: float = 4.0,
    seed: int = 0,
    size_px: int = 2400,
    mpp: float = 4.0,
    samples: int = 10,
    options: Mapping[str, Any] | None = None,
    show: Show | None = None,
) -> dict[str, Any]:
    """Make a synthetic tissue, prepare, train, predict, and score the maps at every pixel.

    A pixel's score for a subtype is the expected UMIs of the subtype's marker genes, fixed beforehand. The baseline
    is the observed UMIs of these genes in the nearest spot.

    Args:
        out: folder to write, new or empty: `slide.tif`, `section.zarr`, `run/`, `maps.zarr`, `summary.json`,
            `summary.md` and `demo.png`.
        minutes: wall-clock of the training [min].
        seed: of tissue, training and prediction.
        size_px: side of the slide, 1 um per pixel [px].
        mpp: working resolution [um/px].
        samples: posterior samples.
        options: keys of the training configuration, over those of `SETTINGS`.
        show: progress of the training, see `workflow.train`.

    Returns:
        Content of `summary.json`: `auc` and `baseline_auc` by subtype over all tissue, the same within cells alone,
        `seconds` in all, and the settings.

    Raises:
        RunError: the folder is not empty.
        SuperstError: a step fails.
    """
    started = time.monotonic()
    out = make_folder(out)
    if any(out.iterdir()):
        raise RunError(f"the demo needs a new or empty folder, but {out} holds files; choose another one.")
    tissue = make_tissue(seed=seed, size_px=size_px)
    section = prepare_tissue(tissue, out, mpp)
    settings = SETTINGS | dict(options or {})
    run = train([out / "section.zarr"], out / "run", mpp=mpp, minutes=minutes, seed=seed, options=settings, show=show)
    fit_colours(run)
    fit_training_fields(run)
    calibrate_run(run)
    maps = out / "maps.zarr"
    predict(load_run(run), section, maps, samples=samples, seed=seed, source_path=out / "section.zarr")
    findings = score_maps(maps, tissue, section)
    save_figure(demo_figure(section, tissue.tissue_at(mpp), findings), out / "demo.png")
    summary = {
        "auc": {name: finding.auc for name, finding in findings.items()},
        "baseline_auc": {name: finding.baseline_auc for name, finding in findings.items()},
        "auc_in_cells": {name: finding.auc_in_cells for name, finding in findings.items()},
        "baseline_auc_in_cells": {name: finding.baseline_auc_in_cells for name, finding in findings.items()},
        "seconds": round(time.monotonic() - started, 1),
        "minutes": minutes,
        "seed": seed,
        "size_px": size_px,
        "mpp": mpp,
        "samples": samples,
        "n_spots": section.n_spots,
        "n_genes": section.n_genes,
    }
    write_text(out / "summary.md", _markdown(summary))
    write_json(out / "summary.json", summary)
    return summary


def prepare_tissue(tissue: SyntheticTissue, out: Path, mpp: float) -> Section:
    """Write slide and section of a synthetic tissue into a folder, by the way that any data take."""
    slide_path = out / "slide.tif"
    write_slide(tissue, slide_path)
    assay = to_assay(tissue, slide_path)
    with Slide.open(slide_path) as slide:
        section = join_section(slide, assay, mpp=mpp, name="synthetic", find_tissue=find_tissue)
    report = preflight(section, assay)
    report.raise_if_faulty()
    write_section(section, out / "section.zarr", report=report)
    save_figure(overlay_figure(section), out / "section.png")
    return section


def score_maps(maps_path: Path, tissue: SyntheticTissue, section: Section) -> dict[str, Finding]:
    """Compare maps, and the spots alone, with the true subtype of each tissue pixel.

    Raises:
        RunError: the maps hold no marker of a subtype.
    """
    marks, maps = tissue.genes["subtype"], open_maps(maps_path)
    known = set(maps.genes)
    markers = {name: [gene for gene in marks.index[marks == name] if gene in known] for name in SUBTYPES[1:]}
    mask = tissue.tissue_at(section.mpp)
    truths = {name: tissue.truth(number, mpp=section.mpp) for number, name in enumerate(markers, start=1)}
    cells = mask & np.any(list(truths.values()), axis=0)
    x, y, radius = (section.spots[name].to_numpy() / section.mpp for name in ("x_um", "y_um", "radius_um"))
    findings = {}
    for name, genes in markers.items():
        truth = truths[name]
        marked = np.asarray(section.counts[:, section.genes.index.get_indexer(pd.Index(genes))].sum(axis=1)).ravel()
        spots = marked / (np.pi * radius**2)
        mean, sd = maps.gene_set(genes)
        spread = spread_evenly(spots, x, y, radius, mask.shape)
        auc = [pixel_auc(score, truth, where) for where in (mask, cells) for score in (mean, spread)]
        findings[name] = Finding(truth, mean, sd, spots, spread, *auc)
    return findings


def _markdown(summary: Mapping[str, Any]) -> str:
    """The summary to read."""
    columns = ("auc", "baseline_auc", "auc_in_cells", "baseline_auc_in_cells")
    rows = [f"| {name} | " + " | ".join(f"{summary[c][name]:.3f}" for c in columns) + " |" for name in summary["auc"]]
    return "\n".join(
        [
            "# Which cells within a spot express what?",
            "",
            f"A synthetic tissue, {summary['size_px']} um wide (seed {summary['seed']}), holds three subtypes of cells",
            "that differ in shape and in their marker genes. It was measured by",
            f"{summary['n_spots']} spots of {summary['n_genes']} genes, wider than the cells. The model saw the slide",
            f"and the spots, was trained for {summary['minutes']:g} min, and predicted {summary['samples']} posterior",
            f"samples at {summary['mpp']:g} um per pixel; {summary['seconds']:.0f} s in all.",
            "",
            "Area under the ROC curve; score: expected UMIs of the subtype's marker genes in a pixel. Baseline: the",
            "observed UMIs of these genes in the nearest spot. Over all tissue pixels, and within cells alone, where",
            "only the shape tells the subtypes apart. Chance is 0.5.",
            "",
            "| subtype | superst | spots spread evenly | superst, in cells | spots, in cells |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "![truth, spots, prediction, uncertainty and baseline](demo.png)",
            "",
        ]
    )
