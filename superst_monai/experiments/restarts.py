"""How much a prediction depends on the seed of its training, and whether its uncertainty tells.

Restates Extended Data Fig. 5 of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from superst_monai.analysis.evaluation import TOP, gene_correlations
from superst_monai.data.store import read_section
from superst_monai.errors import AlignmentError, RunError
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.holdout import training_record
from superst_monai.experiments.paired import median
from superst_monai.experiments.restarts_figure import restarts_figure
from superst_monai.experiments.sections import Entry, file_name, list_sections
from superst_monai.inference.maps import Maps
from superst_monai.transforms.labels import draw_spots

NAME = "restarts"
_BINS = 10  # of predicted uncertainty
Floats = NDArray[np.float64]


def run_restarts(
    out: Path | str,
    sections: Sequence[Path | str],
    *,
    seeds: Sequence[int] | None = None,
    n_regions: int = 100,
    radius_um: float = 100.0,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Train on the same sections with several seeds and compare what the runs predict on them, from histology alone.

    Args:
        out: the experiment's folder.
        sections: stores to train on and to predict.
        seeds: of the trainings and predictions; None takes `effort.repeats` seeds from `seed` on.
        n_regions: random regions on each section.
        radius_um: of a region, a disc in the tissue; where discs overlap a pixel goes to the nearer centre [um].
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` is the number of trainings.
        seed: of the regions.
        show: progress.

    Returns:
        Content of `restarts.json`, see `docs/experiments.md`.

    Raises:
        RunError: fewer than two trainings, no section, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    used = list(range(seed, seed + effort.repeats)) if seeds is None else list(seeds)
    if len(used) < 2 or not sections or n_regions < 3:
        raise RunError(
            f"restarts are compared in pairs, over at least 3 regions of a section, got {len(used)} seeds, "
            f"{len(sections)} sections and {n_regions} regions; ask for more."
        )
    entries = list_sections(sections)
    settings = {"sections": [entry.path for entry in entries], "seeds": used, "seed": seed, "n_regions": n_regions}
    settings |= {"radius_um": radius_um, "covariates": dict(covariates or {}), **effort.settings}
    folder = ExperimentFolder(out, NAME, settings, show=show)
    runs = []
    for i, own in enumerate(used):
        paths = [entry.path for entry in entries]
        runs.append(folder.run(f"restart-{i}", paths, seed=own, covariates=covariates, **effort.training))
    tables, relative = [], []
    for entry in entries:
        drawn = [
            _in_regions(folder, f"restart-{i}-{file_name(entry.name)}", run, entry, own, settings)
            for i, (run, own) in enumerate(zip(runs, used, strict=True))
        ]
        mean, sd = (np.array([part[key] for part in drawn]) for key in ("mean", "sd"))  # (R, regions, genes)
        tables.append(_pairs(entry.name, drawn[0]["genes"], used, mean))
        relative.append(relative_spread(mean, sd))
    table = pd.concat(tables, ignore_index=True)
    told, found = (np.concatenate([part[i] for part in relative]) for i in range(2))
    uncertainty = judge(told, found)
    correlation = {"median": median(table["correlation"]), "pairs": _by_pair(table)}
    summary = {
        "finding": _finding(len(used), n_regions, correlation, uncertainty),
        "correlation": correlation,
        "uncertainty": uncertainty,
        "runs": [training_record(run.name, run) | {"seed": own} for run, own in zip(runs, used, strict=True)],
    }
    return folder.finish(summary, table, restarts_figure(table, uncertainty))


def random_regions(maps: Maps, n_regions: int, radius_um: float, *, seed: int) -> NDArray[np.int64]:
    """Discs round random pixels of the tissue, cut to the tissue.

    Args:
        maps: of a section.
        n_regions: how many, each round another pixel.
        radius_um: [um].
        seed: of the places.

    Returns:
        Label `(H, W)`: 0 none, i is region i - 1.

    Raises:
        AlignmentError: there are not as many tissue pixels.
    """
    row, col = np.nonzero(maps.tissue)
    if len(row) < n_regions:
        raise AlignmentError(f"{n_regions} regions need as many tissue pixels, got {len(row)}; ask for fewer regions.")
    chosen = np.random.default_rng(seed).choice(len(row), n_regions, replace=False)
    radius = np.full(n_regions, radius_um / maps.mpp)
    label = draw_spots(col[chosen] + 0.5, row[chosen] + 0.5, radius, maps.shape)
    return np.where(maps.tissue, label, 0)


def _in_regions(
    folder: ExperimentFolder, name: str, run: Path, entry: Entry, own: int, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Expected counts of the highest genes in the regions of a section, and their posterior sd, both `(R, G)` [UMI]."""

    def compute() -> dict[str, Any]:
        section = read_section(entry.path)
        options = {"samples": settings["samples"], "seed": own, "source_path": entry.path, "use_field": False}
        maps = folder.maps(name, run, section, **options)
        total = pd.Series(np.asarray(section.counts.sum(axis=0)).ravel(), index=section.genes.index)
        genes = [str(gene) for gene in total[maps.genes].nlargest(TOP, keep="first").index]
        label = random_regions(maps, settings["n_regions"], settings["radius_um"], seed=settings["seed"])
        sums = maps.sum_over(label, genes, n_supports=settings["n_regions"])
        return {"genes": genes, "mean": sums.mean.tolist(), "sd": sums.sd_of_mean.tolist()}

    return folder.part(name, compute)


def _pairs(section: str, genes: Sequence[str], seeds: Sequence[int], mean: Floats) -> pd.DataFrame:
    """Correlation over regions of each gene between each two restarts; mean `(N, R, G)`."""
    found = []
    for a, b in itertools.combinations(range(len(seeds)), 2):
        first = {"section": section, "restart_a": a, "restart_b": b, "seed_a": seeds[a], "seed_b": seeds[b]}
        found.append(pd.DataFrame({**first, "gene": genes, "correlation": gene_correlations(mean[a], mean[b])}))
    return pd.concat(found, ignore_index=True)


def _by_pair(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Median correlation of each pair of restarts on each section."""
    keys = ["section", "restart_a", "restart_b"]
    pairs: list[dict[str, Any]] = [
        {"section": str(section), "restart_a": int(a), "restart_b": int(b)}
        for section, a, b in table[keys].drop_duplicates().itertuples(index=False)
    ]
    for pair in pairs:
        mine = (table[keys] == list(pair.values())).all(axis=1)
        pair["median"] = median(table.loc[mine, "correlation"])
    return pairs


def relative_spread(mean: Floats, sd: Floats) -> tuple[Floats, Floats]:
    """What the runs say of their uncertainty, and how far apart they are, of each region and gene.

    Args:
        mean: expected counts `(N, R, G)` of N runs.
        sd: posterior standard deviation of each `(N, R, G)`.

    Returns:
        Both relative to the mean of the runs, flat: root of the mean predicted variance, and standard deviation
        between the runs (divisor N - 1). Regions and genes of no expected count are left out.
    """
    level = mean.mean(0)
    known = level > 0
    told = np.sqrt((sd**2).mean(0))[known] / level[known]
    return told, mean.std(0, ddof=1)[known] / level[known]


def judge(told: Floats, found: Floats) -> dict[str, Any]:
    """Compare predicted uncertainty with the spread between runs, both relative to the expected count `(n,)`.

    Returns:
        `ratio`: root mean square of the spread over that of the predicted sd (1: the restarts differ as much as each
        says); `spearman`: rank correlation of the two (None where one is constant); `bins`: ten classes of equal
        size by predicted sd, with the root mean square of both.
    """
    varies = bool(np.ptp(told) > 0 and np.ptp(found) > 0)
    classes = [part for part in np.array_split(np.argsort(told, kind="stable"), _BINS) if len(part)]
    bins = [{"predicted": _rms(told[part]), "between_runs": _rms(found[part]), "n": len(part)} for part in classes]
    predicted = _rms(told)
    return {
        "ratio": _rms(found) / predicted if predicted > 0 else None,
        "spearman": float(spearmanr(told, found).statistic) if varies else None,
        "bins": bins,
    }


def _rms(values: Floats) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(values**2)))


def _finding(n: int, n_regions: int, correlation: Mapping[str, Any], uncertainty: Mapping[str, Any]) -> str:
    """One sentence."""
    middle, ratio, rank = correlation["median"], uncertainty["ratio"], uncertainty["spearman"]
    said = ["undefined" if value is None else f"{value:.3f}" for value in (middle, ratio, rank)]
    return (
        f"Between {n} restarts the median gene correlates by {said[0]} over {n_regions} random regions; the runs lie "
        f"{said[1]} times as far apart as their predicted sd, and the two have a rank correlation of {said[2]}."
    )
