"""The training sections of a run: was this one among them, and what do plain baselines fitted on them say?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.analysis.baselines import (
    fit_gene_mean,
    fit_image_intensity,
    predict_image_intensity,
    spot_histograms,
)
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import ResolutionError, RunError, StoreError
from superst_monai.transforms.labels import spot_labels

Floats = NDArray[np.float64]
BASELINES = ("gene_mean", "image_intensity")


class Fitted(NamedTuple):
    """Baselines fitted on spots of the training sections."""

    gene_mean: Floats  # (G,)
    coefficients: Floats  # (1 + F, G)

    def predict(self, histograms: Floats) -> dict[str, NDArray[Any]]:
        """Expected counts by baseline: `(G,)`, and `(S, G)` float32 from colour histograms `(S, F)`."""
        coloured = predict_image_intensity(histograms, self.coefficients).astype(np.float32)
        return dict(zip(BASELINES, (self.gene_mean, coloured), strict=True))


def read_run(path: Path | str | None) -> dict[str, Any]:
    """Read the record of a run, `run.json`.

    Raises:
        RunError: the run is not known, not there any more, or its record cannot be read.
    """
    if path is None:
        raise RunError("the maps do not say which run they are from; predict them again.")
    try:
        record = json.loads((Path(path) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise RunError(f"the run {path} has no readable run.json ({exc}); put the run folder back.") from exc
    if not isinstance(record, dict) or not isinstance(record.get("sections"), list):
        raise RunError(f"the record of the run {path} names no sections; put its own run.json back.")
    return record


def was_trained_on(record: Mapping[str, Any], section: Section, path: Path) -> bool:
    """Whether a section was in the training set: the same store, or the same slide file under any name."""
    slide = section.slide.get("sha256")
    return any(
        (entry.get("path") is not None and Path(entry["path"]).resolve() == path.resolve())
        or (slide is not None and entry.get("slide") == slide)
        for entry in record["sections"]
    )


def fit_baselines(record: Mapping[str, Any], genes: Sequence[str], mpp: float) -> Fitted:
    """Fit the baselines on all training sections of a run, brought to one resolution.

    Args:
        record: of the run, from `read_run`.
        genes: G names, all of which every training section must have.
        mpp: um per pixel at which colours are taken.

    Raises:
        RunError: a section is not there any more, cannot be read, or does not fit; all of them.
    """
    histograms, counts, faults = [], [], []
    for entry in record["sections"]:
        try:
            colours, table = _spots_of(entry, genes, mpp)
        except (RunError, StoreError, ResolutionError) as exc:
            faults.append(str(exc))
        else:
            histograms.append(colours)
            counts.append(table)
    if faults or not counts:
        raise RunError(" ".join(faults) or "the run names no training section; train it again.")
    stacked = sparse.vstack(counts, format="csr")
    return Fitted(fit_gene_mean(stacked), fit_image_intensity(np.concatenate(histograms), stacked))


def _spots_of(entry: Mapping[str, Any], genes: Sequence[str], mpp: float) -> tuple[Floats, sparse.csr_matrix]:
    """Colour histograms `(S, F)` and counts `(S, G)` of the spots of one training section that have pixels."""
    if entry.get("path") is None:
        raise RunError(f"training section {entry.get('name')} was not read from a store.")
    section = read_section(entry["path"]).at(mpp)
    column = section.genes.index.get_indexer(pd.Index(genes))
    if (column < 0).any():
        raise RunError(f"training section {section.name} lacks {int((column < 0).sum())} of {len(column)} genes.")
    label = spot_labels(section)
    there = np.bincount(label.ravel(), minlength=section.n_spots + 1)[1 : section.n_spots + 1] > 0
    histograms = spot_histograms(section.image, label, section.n_spots)
    return histograms[there], section.counts[:, column][np.flatnonzero(there)].tocsr()
