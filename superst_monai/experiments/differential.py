"""Whether the genes of a region come first: the model's ranked list and a test of spots, against a reference list.

Restates Extended Data Fig. 8a, b of Bergenstråhle et al. 2022 (doi:10.1038/s41587-021-01075-3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import sparse
from scipy.stats import mannwhitneyu

from superst_monai.analysis.counted_regions import spots_in
from superst_monai.analysis.differential import differential
from superst_monai.analysis.evaluation import lognorm
from superst_monai.analysis.regions import read_regions
from superst_monai.analysis.several_maps import Named
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import FULL, Effort
from superst_monai.experiments.figures import COLOURS, legend, panels
from superst_monai.experiments.folder import ExperimentFolder, Show
from superst_monai.experiments.sections import Entry, file_name, list_sections

NAME = "differential"
METHODS = {"superst": "superst", "spots": "rank test of spots"}
_LARGEST = 500  # set size
_GENES = 256  # tested at once
Mask = NDArray[np.bool_]


def run_differential(
    out: Path | str,
    sections: Sequence[Path | str],
    regions: Sequence[Path | str],
    reference: Path | str,
    *,
    of: str,
    against: str | None = None,
    covariates: Mapping[str, str] | None = None,
    effort: Effort = FULL,
    seed: int = 0,
    show: Show | None = None,
) -> dict[str, Any]:
    """Train on sections, rank genes by how surely they are higher in a region, and compare with a reference list.

    Args:
        out: the experiment's folder.
        sections: stores with counts, trained on together.
        regions: annotations of each section, see `regions.read_regions`.
        reference: text file of genes known to be higher in the region, one a line; lines that begin with # are skipped.
        of: name of the region.
        against: name of the other region; the tissue outside the first if not given.
        covariates: column of the spots for each covariate of the training.
        effort: `repeats` is not used. At least 2 samples.
        seed: of training and prediction.
        show: progress.

    Returns:
        Content of `differential.json`, see `docs/experiments.md`.

    Raises:
        RunError: no gene of the reference was measured, a region holds no spot, or the folder is of another experiment.
        SuperstError: a step fails.
    """
    entries = list_sections(sections)
    listed = read_genes(reference)
    _require_measured(listed, entries)
    settings = {
        "sections": [entry.path for entry in entries],
        "regions": [str(Path(path).resolve()) for path in regions],
        "regions_sha256": [_hash(Path(path)) for path in regions],
        "reference": listed,
        "of": of,
        "against": against,
        "covariates": dict(covariates or {}),
        "seed": seed,
        **effort.settings,
    }
    folder = ExperimentFolder(out, NAME, settings, show=show)
    several = _predict(folder, entries, covariates, effort, seed)
    masks = read_regions(several, regions, of, against)
    table, spots = _tables(several, masks, [entry.path for entry in entries])
    table["in_reference"] = table["gene"].isin(listed)
    summary = _summarise(table, listed, spots, of)
    return folder.finish(summary, table, _figure(summary))


def read_genes(path: Path | str) -> list[str]:
    """Read a list of genes, one a line; empty lines and those that begin with # are skipped, repeated genes once.

    Raises:
        RunError: the file cannot be read as text or names no gene.
    """
    try:
        lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as exc:
        raise RunError(f"the reference must be a text file of genes, one a line, but {path}: {exc}.") from exc
    genes = list(dict.fromkeys(line for line in lines if line and not line.startswith("#")))
    if not genes:
        raise RunError(f"the reference must name at least one gene, one a line, but {path} names none.")
    return genes


def _require_measured(listed: Sequence[str], entries: Sequence[Entry]) -> None:
    """Refuse a reference that shares no gene with the sections, before the work."""
    for entry in entries:
        known = read_section(entry.path).genes.index
        if not known.isin(listed).any():
            raise RunError(
                f"the reference must name genes that were measured, but none of its {len(listed)} "
                f"({', '.join(listed[:3])} ...) is among the {len(known)} of {entry.name} "
                f"({', '.join(known[:3])} ...); use one kind of names."
            )


def rank_test(counts: sparse.csc_matrix, groups: Sequence[Mask]) -> pd.DataFrame:
    """Wilcoxon rank-sum test of log-normalised counts: is a gene higher in the first group of spots than in the second?

    This is the test of scanpy's `rank_genes_groups(method="wilcoxon")`, also in its order: its score is a fixed linear
    function of the rank sum, so that genes are ordered by that. The p-value, two-sided, is corrected for ties.

    Args:
        counts: of spots `(S, G)`.
        groups: spots of the first and of the second group `(S,)`.

    Returns:
        G rows: `auc`, the chance that a spot of the first group is higher than one of the second (U over its maximum),
        and `p`.
    """
    depth = np.asarray(counts.sum(axis=1)).ravel()
    parts = []
    for start in range(0, counts.shape[1], _GENES):
        values = lognorm(counts[:, start : start + _GENES].toarray(), depth)
        first, second = (values[group] for group in groups)
        found = mannwhitneyu(first, second, axis=0, method="asymptotic", use_continuity=False)
        parts.append(pd.DataFrame({"auc": found.statistic / (len(first) * len(second)), "p": found.pvalue}))
    return pd.concat(parts, ignore_index=True)


def overlaps(order: Sequence[str], reference: Sequence[str], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Genes of the reference among the first n of a ranked list, for each set size n."""
    hits = np.cumsum(pd.Index(order).isin(reference))
    return np.asarray(hits[sizes - 1], dtype=np.int64)


def _hash(path: Path) -> str | None:
    """Hash of an annotation file; None of a store."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _predict(
    folder: ExperimentFolder, entries: Sequence[Entry], covariates: Mapping[str, str] | None, effort: Effort, seed: int
) -> list[Named]:
    """Train on the sections and predict them, with their fields."""
    paths = [entry.path for entry in entries]
    run = folder.run("run", paths, seed=seed, covariates=covariates, **effort.training)
    folder.fit_fields(run)
    drawing = {"samples": effort.samples, "seed": seed}
    return [
        Named(e.name, folder.maps(file_name(e.name), run, read_section(e.path), source_path=e.path, **drawing))
        for e in entries
    ]


def _tables(
    several: Sequence[Named], masks: Sequence[tuple[Mask, Mask]], paths: Sequence[str]
) -> tuple[pd.DataFrame, tuple[int, int]]:
    """Both ranked lists in one table, a row for each gene that all sections have, and the spots of both regions."""
    found = differential([one.maps for one in several], masks)
    tables, sides = [], []
    names = several[0].maps.genes
    for one, pair, path in zip(several, masks, paths, strict=True):
        section = read_section(path)
        column = section.genes.index.get_indexer(pd.Index(names))
        tables.append(section.counts[:, column])
        sides.append(spots_in(section, one.maps.spot_label(section), pair))
    first, second = (np.concatenate(side) for side in zip(*sides, strict=True))
    if not (first.any() and second.any()):
        raise RunError(
            f"both regions must hold spots, at least half of each, but they hold {int(first.sum())} and "
            f"{int(second.sum())}; draw larger regions."
        )
    tested = rank_test(sparse.vstack(tables, format="csc"), (first, second)).set_axis(names)
    score = np.sign(found["log2_fold_change"]) * found["inverse_cv"]
    table = found.assign(signed_inverse_cv=score).join(tested.add_prefix("spots_")).reset_index()
    for method, column_name in (("superst", "signed_inverse_cv"), ("spots", "spots_auc")):
        table[f"{method}_rank"] = table[column_name].rank(ascending=False, method="first").astype(int)
    return table.sort_values("superst_rank"), (int(first.sum()), int(second.sum()))


def _summarise(table: pd.DataFrame, listed: Sequence[str], spots: tuple[int, int], of: str) -> dict[str, Any]:
    """Agreement of both lists with the reference over set sizes."""
    sizes = np.arange(1, min(_LARGEST, len(table)) + 1)
    known = table.loc[table["in_reference"], "gene"]
    found = {m: overlaps(table.sort_values(f"{m}_rank")["gene"].tolist(), known.tolist(), sizes) for m in METHODS}
    at = max(1, min(len(known), len(sizes)))
    said = " and ".join(f"{found[method][at - 1]} by {words}" for method, words in METHODS.items())
    return {
        "finding": f"Of the first {at} genes that are higher in {of}, {said} are in the reference of {len(known)} "
        f"measured genes; {at * len(known) / len(table):.1f} would be by chance.",
        "genes": len(table),
        "reference_measured": known.tolist(),
        "reference_missing": [gene for gene in listed if gene not in set(known)],
        "spots": list(spots),
        "set_size": sizes.tolist(),
        "overlap": {method: counts.tolist() for method, counts in found.items()},
        "overlap_by_chance": (sizes * len(known) / len(table)).tolist(),
    }


def _figure(summary: Mapping[str, Any]) -> Figure:
    """Genes of the reference among the first n, and which share of the n they are."""
    figure, (axes,) = panels(2, height_in=2.8)
    sizes = np.array(summary["set_size"])
    lines = {words: np.array(summary["overlap"][method]) for method, words in METHODS.items()}
    lines["by chance"] = np.array(summary["overlap_by_chance"])
    for colour, dashes, (words, counts) in zip(COLOURS, ("-", "--", ":"), lines.items(), strict=False):
        style = {"color": colour, "linestyle": dashes, "linewidth": 1.2, "label": words}
        axes[0].plot(sizes, counts, **style)
        axes[1].plot(sizes, counts / sizes, **style)
    axes[0].set(ylabel=f"of the {len(summary['reference_measured'])} genes of the reference", ylim=(0, None))
    axes[1].set(ylabel="share of the set that is in the reference", ylim=(0, 1.02))
    for panel in axes:
        panel.set(xlabel="set size, highest ranked genes", xlim=(0, sizes[-1]))
        legend(panel, ncols=3)
    return figure
