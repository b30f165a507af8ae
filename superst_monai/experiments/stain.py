"""How a prediction changes when the slide was stained more or less: haematoxylin and eosin are rescaled over a grid.

Restates Extended Data Fig. 4d of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from superst_monai.analysis.comparison import Comparison, compare
from superst_monai.analysis.evaluation import gene_correlations, lognorm, score_genes
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.paired import highest, median, paired_test
from superst_monai.experiments.sections import file_name, list_sections, refuse_seen, trained_on
from superst_monai.experiments.stain_figure import stain_figure
from superst_monai.inference.maps import Maps
from superst_monai.transforms.balance import section_glass
from superst_monai.transforms.stain import stain_concentrations, transmitted_light

NAME = "stain"
FACTORS = (0.6, 0.8, 1.0, 1.2, 1.4)
QUICK_FACTORS = (0.6, 1.0, 1.4)
SCORES = ("unscaled_raw", "unscaled_lognorm", "observed_raw", "observed_lognorm")
_ROWS = 512  # of an image rescaled at once
_GENES = 256  # whose samples are in memory at once


def run_stain(
    out: Path | str,
    test: Sequence[Path | str],
    *,
    run: Path | str | None = None,
    train: Sequence[Path | str] = (),
    factors: Sequence[float] = FACTORS,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Rescale the stains of held-out sections, predict from histology alone, and correlate gene by gene.

    Args:
        out: the experiment's folder.
        test: stores of the held-out sections.
        run: a trained run; None trains one.
        train: stores of the training sections if there is no run.
        factors: of each stain's concentration; all pairs are predicted.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` is not used.
        seed: of the training and, the same for all factors, of the predictions.
        show: progress.

    Returns:
        Content of `stain.json`, see `docs/experiments.md`.

    Raises:
        RunError: neither or both of run and train, a factor that is not positive, or a section that was trained on.
        SuperstError: a step fails.
    """
    _check(run, train, test, factors)
    tests = list_sections(test)
    trained = trained_on(run) if run is not None else list_sections(train)
    refuse_seen(trained, tests)
    settings = {
        "run": None if run is None else str(Path(run).resolve()),
        "train": [entry.path for entry in trained],
        "test": [entry.path for entry in tests],
        "factors": list(factors),
        "covariates": dict(covariates or {}),
        "seed": seed,
        **effort.settings,
    }
    folder = ExperimentFolder(out, NAME, settings, show=show)
    if run is None:
        run = folder.run("run", [e.path for e in trained], seed=seed, covariates=covariates, **effort.training)
    drawing = {"samples": effort.samples, "seed": seed, "use_field": False}
    cells = []
    for entry in tests:
        grid = _Grid(folder, entry.name, Path(entry.path), Path(run), drawing)
        cells += [grid.cell(*pair) for pair in itertools.product(factors, repeat=2)]
    table = pd.concat([_table(cell) for cell in cells], ignore_index=True)
    described = [_describe(table, cell) for cell in cells]
    return folder.finish({"finding": _finding(described), "cells": described}, table, stain_figure(table, described))


def scale_stains(section: Section, haematoxylin: float, eosin: float) -> Section:
    """The section as if it had taken up more or less of its stains; its glass keeps its colour.

    Optical densities are taken against the glass, unmixed, multiplied and mixed again; the residual stays.

    Args:
        section: stained with haematoxylin and eosin.
        haematoxylin, eosin: factors of the concentrations.

    Returns:
        The section with another image; with factors of 1 the same to the byte.
    """
    glass = torch.from_numpy(np.maximum(section_glass(section.image, section.tissue), 1.0)).double()[:, None, None]
    factor = torch.tensor([haematoxylin, eosin, 1.0], dtype=torch.float64)[:, None, None]
    image = np.empty_like(section.image)
    for start in range(0, len(image), _ROWS):
        rows = np.array(section.image[start : start + _ROWS])
        rgb = torch.from_numpy(rows).permute(2, 0, 1).double() / glass  # (3, h, W)
        scaled = transmitted_light(stain_concentrations(rgb) * factor) * glass
        image[start : start + _ROWS] = scaled.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return replace(section, image=image)


@dataclass(frozen=True, eq=False)
class _Grid:
    """Predictions of one section under rescaled stains."""

    folder: ExperimentFolder
    name: str
    path: Path
    run: Path
    drawing: Mapping[str, Any]

    @cached_property
    def section(self) -> Section:
        return read_section(self.path)

    @cached_property
    def unscaled(self) -> tuple[Comparison, NDArray[np.float32]]:
        """The spots, and their expected counts without rescaling `(S, G)`."""
        return self._predict(self.folder.maps(file_name(self.name), self.run, self.section, **self.drawing))

    def cell(self, haematoxylin: float, eosin: float) -> dict[str, Any]:
        """Scores of the highest genes under two factors; their maps are removed."""
        name = f"{file_name(self.name)}-h{haematoxylin:g}-e{eosin:g}"
        found = self.folder.part(name, lambda: self._score(name, haematoxylin, eosin))
        self.folder.forget_maps(name)
        return found

    def _predict(self, maps: Maps) -> tuple[Comparison, NDArray[np.float32]]:
        both = compare(maps, self.section)
        return both, both.moments(_GENES)[0]

    def _score(self, name: str, haematoxylin: float, eosin: float) -> dict[str, Any]:
        both, before = self.unscaled
        after = before
        if (haematoxylin, eosin) != (1.0, 1.0):
            scaled = scale_stains(self.section, haematoxylin, eosin)
            after = self._predict(self.folder.maps(name, self.run, scaled, **self.drawing))[1]
        top = highest(score_genes(after, both.observed, names=both.genes))
        columns = pd.Index(both.genes).get_indexer(top.index)
        one, other = after[:, columns], before[:, columns]
        normalised = (lognorm(part, whole.sum(1)) for part, whole in ((one, after), (other, before)))
        scores = {
            "unscaled_raw": gene_correlations(one, other),
            "unscaled_lognorm": gene_correlations(*normalised),
            "observed_raw": top["raw"].to_numpy(),
            "observed_lognorm": top["lognorm"].to_numpy(),
        }
        return {
            "section": self.name,
            "haematoxylin": haematoxylin,
            "eosin": eosin,
            "total_ratio": float(after.sum(dtype=np.float64) / before.sum(dtype=np.float64)),
            "gene": list(top.index),
            **{key: [None if np.isnan(v) else float(v) for v in values] for key, values in scores.items()},
        }


def _check(
    run: Path | str | None, train: Sequence[Path | str], test: Sequence[Path | str], factors: Sequence[float]
) -> None:
    """Refuse what cannot be; all faults."""
    faults = []
    if (run is None) == (not train):
        faults.append("pass either a trained run or training sections")
    if not test:
        faults.append("name at least one test section")
    if not factors or not all(0 < factor < 10 for factor in factors) or len(set(factors)) < len(factors):
        faults.append(f"factors must lie in (0, 10), each once, got {', '.join(f'{f:g}' for f in factors) or 'none'}")
    if faults:
        raise RunError("; ".join(faults) + ".")


def _table(cell: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each gene of a cell."""
    first = {key: cell[key] for key in ("section", "haematoxylin", "eosin")}
    scores = {key: np.array(cell[key], dtype=np.float64) for key in SCORES}
    return pd.DataFrame({**first, "gene": cell["gene"], **scores})


def _describe(table: pd.DataFrame, cell: Mapping[str, Any]) -> dict[str, Any]:
    """Medians of a cell, and paired tests of its correlation with counts against those of the unscaled image."""
    mine = table[table["section"] == cell["section"]]
    at = mine[(mine["haematoxylin"] == cell["haematoxylin"]) & (mine["eosin"] == cell["eosin"])]
    plain = mine[(mine["haematoxylin"] == 1.0) & (mine["eosin"] == 1.0)]
    tests = {}
    for kind in ("raw", "lognorm"):
        other = plain.set_index("gene").reindex(at["gene"])[f"observed_{kind}"]
        tests[kind] = paired_test(at[f"observed_{kind}"], other)
    kept = {key: cell[key] for key in ("section", "haematoxylin", "eosin", "total_ratio")}
    return kept | {"medians": {score: median(at[score]) for score in SCORES}, "tests": tests}


def _finding(cells: Sequence[Mapping[str, Any]]) -> str:
    """One sentence."""

    def ends(score: str) -> str:
        known = [cell["medians"][score] for cell in cells if cell["medians"][score] is not None]
        return f"{min(known):.3f} to {max(known):.3f}" if known else "undefined"

    ratios = [cell["total_ratio"] for cell in cells]
    return (
        f"Over {len(cells)} rescalings the median gene correlates with the unscaled prediction by "
        f"{ends('unscaled_raw')} raw and {ends('unscaled_lognorm')} log-normalised, and with its counts by "
        f"{ends('observed_raw')} and {ends('observed_lognorm')}; predicted totals are {min(ratios):.2f} to "
        f"{max(ratios):.2f} times the unscaled."
    )
