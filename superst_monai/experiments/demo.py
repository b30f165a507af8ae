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
from superst_monai.analysis.gene_sets import Share, gene_set_shares
from superst_monai.analysis.overlay import overlay_figure, save_figure
from superst_monai.data.preflight import preflight
from superst_monai.data.section import Section, join_section
from superst_monai.data.slide import Slide
from superst_monai.data.store import write_section
from superst_monai.data.synthetic import SUBTYPES, SyntheticTissue, make_tissue, to_assay, write_slide
from superst_monai.engines.workflow import train
from superst_monai.errors import RunError
from superst_monai.experiments.demo_figure import demo_figure
from superst_monai.inference.maps import open_maps
from superst_monai.inference.run import load_run
from superst_monai.inference.slide_map import predict
from superst_monai.transforms.tissue import find_tissue

Show = Callable[[float, float, float], None]


class Finding(NamedTuple):
    """What is known, predicted and measured of one subtype, on the pixels of the maps."""

    truth: NDArray[np.bool_]  # (H, W) pixels of the subtype
    share: Share  # its markers' share of the expression, as predicted
    spots: NDArray[np.float64]  # (S,) its markers' share of the UMIs of each spot
    spread: NDArray[np.floating[Any]]  # (H, W) that share, given to the pixels of a spot and round it
    auc: float  # of the prediction
    baseline_auc: float  # of `spread`


def run_demo(
    out: Path | str,
    *,
    minutes: float = 4.0,
    seed: int = 0,
    size_px: int = 2400,
    mpp: float = 3.0,
    samples: int = 10,
    options: Mapping[str, Any] | None = None,
    show: Show | None = None,
) -> dict[str, Any]:
    """Make a synthetic tissue, prepare, train, predict, and score the maps at every pixel.

    A pixel's score for a subtype is the expected share of the subtype's marker genes, fixed beforehand. The
    baseline is the observed share of the nearest spot.

    Args:
        out: folder to write, new or empty: `slide.tif`, `section.zarr`, `run/`, `maps.zarr`, `summary.json`,
            `summary.md` and `demo.png`.
        minutes: wall-clock of the training [min].
        seed: of tissue, training and prediction.
        size_px: side of the slide, 1 um per pixel [px].
        mpp: working resolution [um/px].
        samples: posterior samples.
        options: keys of the training configuration.
        show: progress of the training, see `workflow.train`.

    Returns:
        Content of `summary.json`: `auc` and `baseline_auc` by subtype, `seconds` in all, and the settings.

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
    run = train([out / "section.zarr"], out / "run", mpp=mpp, minutes=minutes, seed=seed, options=options, show=show)
    maps = out / "maps.zarr"
    predict(load_run(run), section, maps, samples=samples, seed=seed, source_path=out / "section.zarr")
    findings = score_maps(maps, tissue, section)
    save_figure(demo_figure(section, tissue.tissue_at(mpp), findings), out / "demo.png")
    summary = {
        "auc": {name: finding.auc for name, finding in findings.items()},
        "baseline_auc": {name: finding.baseline_auc for name, finding in findings.items()},
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
    marks = tissue.genes["subtype"]
    known = set(open_maps(maps_path).genes)
    markers = {name: [gene for gene in marks.index[marks == name] if gene in known] for name in SUBTYPES[1:]}
    shares = gene_set_shares(maps_path, markers)
    mask = tissue.tissue_at(section.mpp)
    total = np.asarray(section.counts.sum(axis=1)).ravel()
    x, y, radius = (section.spots[name].to_numpy() / section.mpp for name in ("x_um", "y_um", "radius_um"))
    findings = {}
    for number, (name, genes) in enumerate(markers.items(), start=1):
        truth = tissue.truth(number, mpp=section.mpp)
        marked = np.asarray(section.counts[:, section.genes.index.get_indexer(pd.Index(genes))].sum(axis=1)).ravel()
        spots = marked / np.maximum(total, 1)
        spread = spread_evenly(spots, x, y, radius, mask.shape)
        auc = pixel_auc(shares[name].mean, truth, mask), pixel_auc(spread, truth, mask)
        findings[name] = Finding(truth, shares[name], spots, spread, *auc)
    return findings


def _markdown(summary: Mapping[str, Any]) -> str:
    """The summary to read."""
    rows = [f"| {name} | {auc:.3f} | {summary['baseline_auc'][name]:.3f} |" for name, auc in summary["auc"].items()]
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
            "Area under the ROC curve over all tissue pixels; score: expected share of the subtype's marker genes.",
            "Baseline: the observed share of the nearest spot. Chance is 0.5.",
            "",
            "| subtype | superst | spots spread evenly |",
            "|---|---|---|",
            *rows,
            "",
            "![truth, spots, prediction, uncertainty and baseline](demo.png)",
            "",
        ]
    )
