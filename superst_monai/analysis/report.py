"""The evaluation of maps against a measured section: numbers, the prediction of each spot, and one figure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from superst_monai.analysis.comparison import Comparison, compare
from superst_monai.analysis.evaluation import evaluate, score_genes
from superst_monai.analysis.evaluation_figures import evaluation_figure
from superst_monai.analysis.files import make_folder, write_json, write_whole
from superst_monai.analysis.overlay import save_figure
from superst_monai.analysis.training_sections import BASELINES, fit_baselines, read_run, was_trained_on
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.inference.maps import open_maps


def evaluate_maps(
    maps_path: Path | str, truth_path: Path | str, out_dir: Path | str, *, genes_per_chunk: int = 256
) -> dict[str, Any]:
    """Evaluate maps on the spots of a measured section of the same slide.

    Writes `evaluation.json` (what is returned), `genes.csv` (scores of each gene, model and baselines),
    `predicted.h5ad` (spots x genes: X predicted mean, layers `sd` and `observed`) and `evaluation.png`.

    Args:
        maps_path: store of posterior maps.
        truth_path: store of a section with counts, not coarser than the maps.
        out_dir: folder to write to, made if it is not there; files of these names are replaced.
        genes_per_chunk: genes whose samples are in memory at once.

    Returns:
        The blocks of `evaluation.evaluate`; `maps`, `truth`, `mpp`; `n_genes_left_out` of `maps` and `truth`;
        `n_spots_without_pixels`; `trained_on_truth` and `counts_used` (None: not known); `calibration` that the maps
        contain (None: none); `baselines` of which each is None when it could
        not be fitted; and `notes`, one sentence each.

    Raises:
        SuperstError: maps and section do not fit (see `comparison.compare`), or a file cannot be read or written.
    """
    maps_path, truth_path = Path(maps_path), Path(truth_path)
    maps, truth = open_maps(maps_path), read_section(truth_path)
    both = compare(maps, truth)
    out = make_folder(out_dir)
    trained, baselines, notes = _learn_from_run(both, truth_path)
    mean, sd = both.moments(genes_per_chunk)
    calibration = maps.record.get("calibration")
    result = evaluate(
        mean,
        both.observed,
        sd=sd,
        samples=both.samples(genes_per_chunk),
        uncalibrated=None if calibration is None else both.uncalibrated().samples(genes_per_chunk),
        baselines=baselines,
    )
    n_genes = len(both.genes)
    result |= {
        "maps": str(maps_path.resolve()),
        "truth": str(truth_path.resolve()),
        "mpp": float(maps.mpp),
        "n_genes_left_out": {"maps": len(maps.genes) - n_genes, "truth": truth.n_genes - n_genes},
        "n_spots_without_pixels": truth.n_spots - len(both.rows),
        "trained_on_truth": trained,
        "counts_used": maps.record.get("counts_used"),
        "calibration": calibration,
        "baselines": {name: result["baselines"].get(name) for name in BASELINES},
        "notes": [*notes, *_seen(both), *_left_out(both)],
    }
    _write(out, both, result, mean, sd, baselines)
    return result


def _learn_from_run(both: Comparison, truth_path: Path) -> tuple[bool | None, dict[str, NDArray[Any]], list[str]]:
    """Whether the truth was trained on, the baselines' predictions, and what must be said about both."""
    notes: list[str] = []
    trained: bool | None = None
    try:
        record = read_run(both.maps.record.get("run"))
        trained = was_trained_on(record, both.section, truth_path)
        if trained:
            notes.append(
                f"section {both.section.name} was in the training set: these are scores of a fit, not of a prediction."
            )
        fitted = fit_baselines(record, both.genes, both.maps.mpp)
    except RunError as exc:
        return trained, {}, [*notes, f"no baselines: {exc}"]
    return trained, fitted.predict(both.histograms()), notes


def _seen(both: Comparison) -> list[str]:
    """A sentence on maps that took in counts of the section; only withheld spots tell how good a prediction is."""
    if not both.maps.record.get("counts_used"):
        return []
    return [
        f"the maps use counts of {both.section.name} (its field): unless the field was fitted without these spots, "
        "neither correlation nor coverage is that of held-out counts."
    ]


def _left_out(both: Comparison) -> list[str]:
    """Sentences on spots and genes that were not compared, and on another slide file."""
    notes = []
    n_maps, n_truth, n_both = len(both.maps.genes), both.section.n_genes, len(both.genes)
    if n_both < max(n_maps, n_truth):
        notes.append(
            f"{n_both} genes are in both; {n_maps - n_both} of the maps and {n_truth - n_both} of the section are not."
        )
    n_lost = both.section.n_spots - len(both.rows)
    if n_lost:
        notes.append(f"{n_lost} of {both.section.n_spots} spots have no pixel of their own and were left out.")
    predicted_on = (both.maps.record.get("slide") or {}).get("sha256")
    if predicted_on and predicted_on != both.section.slide.get("sha256"):
        notes.append(
            "maps and section come from different image files of the same size; make sure they show one slide."
        )
    return notes


def _write(
    out: Path,
    both: Comparison,
    result: Mapping[str, Any],
    mean: NDArray[np.float32],
    sd: NDArray[np.float32],
    baselines: Mapping[str, NDArray[Any]],
) -> None:
    """Write the four files, the numbers first."""
    write_json(out / "evaluation.json", result)
    said = {"model": mean, **{name: np.broadcast_to(values, mean.shape) for name, values in baselines.items()}}
    scores = {name: score_genes(values, both.observed, names=both.genes) for name, values in said.items()}
    write_whole(out / "genes.csv", _gene_table(both, scores).to_csv)
    write_whole(out / "predicted.h5ad", _spots(both, mean, sd).write_h5ad)
    totals = [np.asarray(counts.sum(axis=1)).ravel() for counts in (mean, both.observed)]
    figure = evaluation_figure(result, predicted_total=totals[0], observed_total=totals[1], scores=scores)
    figure.suptitle(_title(result))
    save_figure(figure, out / "evaluation.png")


def _title(result: Mapping[str, Any]) -> str:
    """What the figure is of; spots are called held out only if the run is known not to have seen them."""
    kind = {True: "Spots of a training section", False: "Spots of a held-out section"}
    what = kind.get(result["trained_on_truth"], "Spots (whether the run was trained on them is not known)")
    if result["counts_used"]:
        what += ", whose counts the maps use"
    return f"{what}: {result['n_spots']:,} spots, {result['n_genes']:,} genes"


def _gene_table(both: Comparison, scores: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """G rows: gene_id, total, then the scores of model and baselines, `raw`, `lognorm`, `r2`, those with a prefix."""
    first = both.section.genes.loc[both.genes, ["gene_id"]].assign(total=scores["model"]["total"])
    parts = [
        table.drop(columns="total").add_prefix("" if name == "model" else f"{name}_") for name, table in scores.items()
    ]
    return pd.concat([first, *parts], axis=1).rename_axis("gene")


def _spots(both: Comparison, mean: NDArray[np.float32], sd: NDArray[np.float32]) -> AnnData:
    """Predicted and observed counts of the compared spots."""
    spots = both.section.spots.iloc[both.rows]
    return AnnData(
        mean,
        obs=spots,
        var=both.section.genes.loc[both.genes],
        layers={"sd": sd, "observed": both.observed},
        obsm={"spatial": spots[["x_um", "y_um"]].to_numpy(np.float64)},
    )
