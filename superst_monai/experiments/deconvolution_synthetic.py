"""Which cells within a spot express what, on synthetic tissues: ROC curves of each subtype against the spots alone.

Restates Extended Data Fig. 1a-c of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from superst_monai.analysis.files import make_folder
from superst_monai.data.store import read_section
from superst_monai.data.synthetic import SUBTYPES, make_tissue
from superst_monai.errors import RunError
from superst_monai.experiments.demo import SETTINGS, Finding, prepare_tissue, score_maps
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import COLOURS, NORMAL_PT, legend, panels
from superst_monai.experiments.folder import ExperimentFolder, Show

NAME = "deconvolution-synthetic"
FALSE_RATE = np.linspace(0.0, 1.0, 101)
"""False positive rates at which curves are read and averaged."""
PIXELS = {"tissue": "all tissue", "cells": "within cells"}
METHODS = {"superst": "superst", "spots": "nearest spot"}
Floats = NDArray[np.float64]


def run_deconvolution_synthetic(
    out: Path | str,
    *,
    tissues: int = 10,
    size_px: int = 2400,
    mpp: float = 4.0,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Make random tissues, train on the spots of each by itself, and score the maps of its subtypes at every pixel.

    A pixel's score for a subtype is the expected UMIs of the subtype's marker genes, fixed beforehand. The baseline is
    the observed UMIs of these genes in the nearest spot. Settings of the training are those of the demo.

    Args:
        out: the experiment's folder.
        tissues: how many; tissue i is made, trained and predicted from seed + i.
        size_px: side of a tissue, 1 um per pixel [px].
        mpp: working resolution [um/px].
        effort: `repeats` is not used; its options go before those of the demo.
        seed: of the first tissue.
        show: progress.

    Returns:
        Content of `deconvolution-synthetic.json`, see `docs/experiments.md`.

    Raises:
        RunError: there is no tissue, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    if tissues < 1:
        raise RunError(f"tissues must be at least 1, got {tissues}; the paper has 10.")
    settings = {"tissues": tissues, "size_px": size_px, "mpp": mpp, "seed": seed, **effort.settings}
    folder = ExperimentFolder(out, NAME, settings, show=show)
    parts = [
        folder.part(f"tissue-{number}", partial(_judge, folder, number, size_px, mpp, effort, seed + number))
        for number in range(tissues)
    ]
    rows = [row for part in parts for row in part["auc"]]
    table = pd.DataFrame(rows)
    curves = {
        pixels: {
            method: {
                subtype: _band([part["roc"][pixels][method][subtype] for part in parts]) for subtype in SUBTYPES[1:]
            }
            for method in METHODS
        }
        for pixels in PIXELS
    }
    summary = {
        "finding": _finding(table),
        "auc": _moments(table),
        "roc": {"false_positive_rate": FALSE_RATE.tolist(), **curves},
    }
    return folder.finish(summary, table, _figure(summary))


def roc(score: NDArray[np.floating], truth: NDArray[np.bool_], judged: NDArray[np.bool_]) -> Floats:
    """True positive rate of a score at each of FALSE_RATE `(101,)`.

    Args:
        score: what ranks the pixels `(H, W)`.
        truth: pixels of the subtype `(H, W)`.
        judged: pixels to judge `(H, W)`, of which some are of the subtype and some are not.
    """
    false, true, _ = roc_curve(truth[judged], score[judged])
    return np.asarray(np.interp(FALSE_RATE, false, true), dtype=np.float64)  # of equal rates numpy takes the last


def _judge(
    folder: ExperimentFolder, number: int, size_px: int, mpp: float, effort: Effort, seed: int
) -> dict[str, Any]:
    """Areas and curves of one tissue."""
    tissue = make_tissue(seed=seed, size_px=size_px)
    place = make_folder(folder.path / "sections" / f"tissue-{number}")
    store, name = place / "section.zarr", f"tissue-{number}"
    section = read_section(store) if store.exists() else prepare_tissue(tissue, place, mpp)
    training = effort.training | {"options": SETTINGS | dict(effort.options)}
    run = folder.run(name, [store], mpp=mpp, seed=seed, **training)
    folder.fit_fields(run)
    folder.maps(name, run, section, samples=effort.samples, seed=seed, source_path=store)
    findings = score_maps(folder.path / "maps" / f"{name}.zarr", tissue, section)
    return {"auc": _areas(findings, number, seed), "roc": _curves(findings, tissue.tissue_at(section.mpp))}


def _areas(findings: Mapping[str, Finding], number: int, seed: int) -> list[dict[str, Any]]:
    """Area under the curve of each subtype, kind of pixels and method."""
    rows = []
    for subtype, found in findings.items():
        areas = {
            "tissue": {"superst": found.auc, "spots": found.baseline_auc},
            "cells": {"superst": found.auc_in_cells, "spots": found.baseline_auc_in_cells},
        }
        for pixels, methods in areas.items():
            key = {"tissue": number, "seed": seed, "subtype": subtype, "pixels": pixels}
            rows += [{**key, "method": method, "auc": area} for method, area in methods.items()]
    return rows


def _curves(findings: Mapping[str, Finding], tissue: NDArray[np.bool_]) -> dict[str, Any]:
    """True positive rates by kind of pixels, method and subtype."""
    cells = tissue & np.any([found.truth for found in findings.values()], axis=0)
    fields = {"superst": "mean", "spots": "spread"}
    return {
        pixels: {
            method: {name: roc(getattr(found, field), found.truth, judged).tolist() for name, found in findings.items()}
            for method, field in fields.items()
        }
        for pixels, judged in (("tissue", tissue), ("cells", cells))
    }


def _band(curves: list[list[float]]) -> dict[str, list[float]]:
    """Mean and standard deviation over tissues, the latter 0 if there is one."""
    values = np.array(curves)
    return {"mean": values.mean(axis=0).tolist(), "sd": _sd(values).tolist()}


def _sd(values: Floats) -> Floats:
    return np.asarray(values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1:]))


def _moments(table: pd.DataFrame) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Mean and standard deviation of the areas over tissues, by kind of pixels, method and subtype."""
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = {p: {m: {} for m in METHODS} for p in PIXELS}
    for keys, group in table.groupby(["pixels", "method", "subtype"], sort=False):
        pixels, method, subtype = map(str, keys)
        values = group["auc"].to_numpy(np.float64)
        found[pixels][method][subtype] = {"mean": float(values.mean()), "sd": float(_sd(values))}
    return found


def _finding(table: pd.DataFrame) -> str:
    """One sentence."""
    mean = table.groupby(["pixels", "method"])["auc"].mean()
    said = [
        f"{mean[pixels, 'superst']:.3f} over {what} (spots alone {mean[pixels, 'spots']:.3f})"
        for pixels, what in PIXELS.items()
    ]
    n = table["tissue"].nunique()
    return f"On {n} synthetic tissue(s) the mean area under the ROC curve of a subtype is {' and '.join(said)}."


def _figure(summary: Mapping[str, Any]) -> Figure:
    """A panel for each subtype and kind of pixels: mean curves, with ribbons of a standard deviation over tissues."""
    subtypes = SUBTYPES[1:]
    figure, axes = panels(len(subtypes), len(PIXELS), height_in=2.5, sharex=True, sharey=True)
    for line, (pixels, what) in zip(axes, PIXELS.items(), strict=True):
        for panel, subtype in zip(line, subtypes, strict=True):
            for colour, (method, words) in zip((COLOURS[0], COLOURS[2]), METHODS.items(), strict=True):
                mean, sd = (np.array(summary["roc"][pixels][method][subtype][part]) for part in ("mean", "sd"))
                area = summary["auc"][pixels][method][subtype]
                label = f"{words}, AUC {area['mean']:.2f} ± {area['sd']:.2f}"
                panel.plot(FALSE_RATE, mean, color=colour, linewidth=1.2, label=label)
                ends = np.clip([mean - sd, mean + sd], 0, 1)
                panel.fill_between(FALSE_RATE, *ends, color=colour, alpha=0.25, linewidth=0)
            panel.plot([0, 1], [0, 1], color="black", linewidth=0.6, linestyle=":")
            panel.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
            legend(panel, ncols=1, loc="lower right", bbox_to_anchor=(1.0, 0.0))
            panel.set_title(f"{subtype}, {what}", fontsize=NORMAL_PT)
        line[0].set_ylabel("true positive rate")
    for panel in axes[-1]:
        panel.set_xlabel("false positive rate")
    return figure
