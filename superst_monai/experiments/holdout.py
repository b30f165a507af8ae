"""Sections predicted from their histology by runs that never saw them, against their counts and plain baselines.

Restates Extended Data Fig. 3 and 4a-c of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.evaluation import TOP, lognorm
from superst_monai.analysis.report import evaluate_maps
from superst_monai.analysis.training_sections import BASELINES
from superst_monai.data.store import read_section
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.holdout_figure import holdout_figure
from superst_monai.experiments.holdout_splits import Split, check_splits
from superst_monai.experiments.paired import highest, median, paired_test
from superst_monai.experiments.sections import Entry, file_name

NAME = "holdout"
METHODS = ("model", *BASELINES)
SCORES = ("raw", "lognorm", "r2")


def run_holdout(
    out: Path | str,
    splits: Sequence[Split],
    *,
    same_patient: bool = False,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Train on the sections of each split, predict its test sections from histology alone, and compare with counts.

    Args:
        out: the experiment's folder; beside the result it holds the whole evaluation of each test section.
        splits: of `one_split`, `leave_one_section_out` or `leave_one_patient_out`.
        same_patient: allow a patient to be in training and test.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` is not used.
        seed: of trainings and predictions.
        show: progress.

    Returns:
        Content of `holdout.json`, see `docs/experiments.md`.

    Raises:
        RunError: the splits would not measure a prediction, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    check_splits(splits, same_patient=same_patient)
    settings = {
        "splits": [{"name": s.name, **{k: [e.path for e in getattr(s, k)] for k in ("train", "test")}} for s in splits],
        "patients": {e.name: e.patient for s in splits for e in (*s.train, *s.test)},
        "same_patient": same_patient,
        "covariates": dict(covariates or {}),
        "seed": seed,
        **effort.settings,
    }
    folder = ExperimentFolder(out, NAME, settings, show=show)
    sections, tables, pairs, trainings = [], [], [], []
    for split in splits:
        train = [entry.path for entry in split.train]
        run = folder.run(split.name, train, seed=seed, covariates=covariates, **effort.training)
        trainings.append(training_record(split.name, run))
        for entry in split.test:
            evaluation = _evaluate(folder, split, entry, run, effort, seed)
            table = _gene_table(evaluation, split, entry)
            tables.append(table)
            pairs.append(_counts_of(evaluation, highest(table).index))
            sections.append(_describe(evaluation, split, entry, table))
    medians = {k: {m: median([s[k][m] for s in sections]) for m in METHODS} for k in SCORES}
    summary = {"finding": _finding(medians, sections), "medians": medians, "sections": sections, "runs": trainings}
    table = pd.concat(tables).reset_index()
    return folder.finish(summary, table, holdout_figure(table, pairs))


def training_record(name: str, run: Path) -> dict[str, Any]:
    """What a training took: its name, sections, spots, steps, seconds and threads."""
    record = json.loads((run / "run.json").read_text())
    sections = [section["name"] for section in record["sections"]]
    spots = sum(section["spots"] for section in record["sections"])
    kept = {key: record[key] for key in ("mpp", "genes", "steps", "seconds", "threads")}
    return {"name": name, "sections": sections, "spots": spots, **kept}


def _evaluate(folder: ExperimentFolder, split: Split, entry: Entry, run: Path, effort: Effort, seed: int) -> Path:
    """Folder of the evaluation of a test section, made if it is not there; its figure is what is written last."""
    name = f"{split.name}-{file_name(entry.name)}"
    evaluation = folder.path / "evaluations" / name
    if not (evaluation / "evaluation.png").exists():
        options = {"samples": effort.samples, "seed": seed, "source_path": entry.path, "use_field": False}
        folder.maps(name, run, read_section(entry.path), **options)
        evaluate_maps(folder.path / "maps" / f"{name}.zarr", entry.path, evaluation)
    return evaluation


def _gene_table(evaluation: Path, split: Split, entry: Entry) -> pd.DataFrame:
    """Scores of all genes on a test section, the model's with the prefix of its name as those of the baselines."""
    # A gene may be called NA.
    scores = pd.read_csv(evaluation / "genes.csv", index_col="gene", keep_default_na=False, na_values=[""])
    scores = scores.rename(columns={score: f"model_{score}" for score in SCORES})
    columns = [f"{method}_{score}" for method in METHODS for score in SCORES]
    values = scores.reindex(columns=columns)  # a baseline that could not be fitted has no score
    predicted = np.asarray(anndata.read_h5ad(evaluation / "predicted.h5ad").X.sum(axis=0)).ravel()
    first = scores[["total"]].assign(predicted_total=predicted, top100=scores.index.isin(highest(scores).index))
    first.insert(0, "split", split.name)
    first.insert(1, "section", entry.name)
    return pd.concat([first, values], axis=1)


def _counts_of(evaluation: Path, genes: pd.Index) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Observed and predicted values of spots and some genes, raw and log-normalised, each flat."""
    spots = anndata.read_h5ad(evaluation / "predicted.h5ad")
    columns = spots.var_names.get_indexer(genes)
    found: dict[str, list[NDArray[Any]]] = {"raw": [], "lognorm": []}
    for counts in (spots.layers["observed"], spots.X):
        part = counts[:, columns]
        part = np.asarray(part if isinstance(part, np.ndarray) else part.toarray(), dtype=np.float64)
        found["raw"].append(part.ravel())
        found["lognorm"].append(lognorm(part, np.asarray(counts.sum(axis=1)).ravel()).ravel())
    return {kind: (values[0], values[1]) for kind, values in found.items()}


def _describe(evaluation: Path, split: Split, entry: Entry, table: pd.DataFrame) -> dict[str, Any]:
    """The numbers of one test section: medians over the highest genes, and paired tests against the baselines."""
    record = json.loads((evaluation / "evaluation.json").read_text())
    top = highest(table)
    scores = {k: {m: median(top[f"{m}_{k}"]) for m in METHODS} for k in SCORES}
    tests = {k: {m: paired_test(top[f"model_{k}"], top[f"{m}_{k}"]) for m in BASELINES} for k in SCORES}
    return {
        "split": split.name,
        "section": entry.name,
        "patient": entry.patient,
        "patient_in_training": None if entry.patient is None else entry.patient in split.shared_patients,
        "spots": record["n_spots"],
        "genes": record["n_genes"],
        **scores,
        "depth": record["depth"],
        "total_ratio": float(table["predicted_total"].sum() / table["total"].sum()),
        "coverage_top100": record["coverage_top100"],
        "tests": tests,
        "notes": record["notes"],
    }


def _finding(medians: Mapping[str, Mapping[str, float | None]], sections: Sequence[Mapping[str, Any]]) -> str:
    """One sentence."""

    def said(score: str, method: str) -> str:
        value = medians[score][method]
        return "undefined" if value is None else f"{value:.3f}"

    return (
        f"On {len(sections)} section(s) predicted from histology alone, the {TOP} highest genes correlate with their "
        f"counts by {said('raw', 'model')} raw and {said('lognorm', 'model')} log-normalised (median); image intensity "
        f"reaches {said('raw', 'image_intensity')} and {said('lognorm', 'image_intensity')}."
    )
