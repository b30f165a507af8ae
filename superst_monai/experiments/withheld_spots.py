"""Spots withheld from sections: the sections without them, maps trained on these, and scores of the spots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.analysis.comparison import compare
from superst_monai.analysis.evaluation import TOP, score_genes
from superst_monai.data.section import Section
from superst_monai.data.store import read_section
from superst_monai.errors import RunError
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.folder import ExperimentFolder
from superst_monai.experiments.sections import file_name
from superst_monai.inference.maps import Maps
from superst_monai.transforms.labels import draw_section

Mask = NDArray[np.bool_]
KINDS: Mapping[str, bool] = {"field": True, "histology": False}
"""What a map is made from: image and the counts of the spots trained on, or the image alone; whether it has a field."""
SCORES = ("raw", "lognorm", "r2")
_GENES = 256  # whose samples are in memory at once


def draw_withheld(n_spots: int, share: float, rng: np.random.Generator) -> Mask:
    """Draw the spots to withhold.

    Args:
        n_spots: S.
        share: of them, rounded to whole spots.
        rng: source of randomness.

    Returns:
        `(S,)`, True where a spot is withheld.

    Raises:
        RunError: the share leaves no spot to withhold or none to train on.
    """
    n = round(share * n_spots)
    if not 0 < n < n_spots:
        raise RunError(
            f"spots must be left both to train on and to judge by, but a share of {share:g} withholds {n} of "
            f"{n_spots}; pass another share."
        )
    found = np.zeros(n_spots, np.bool_)
    found[rng.permutation(n_spots)[:n]] = True
    return found


def choose_spots(section: Section, chosen: Mask) -> Section:
    """The section with some of its spots."""
    return replace(section, counts=section.counts[np.flatnonzero(chosen)], spots=section.spots[chosen])


def without_spots(section: Section, withheld: Mask) -> Section:
    """The section as if some spots had not been measured.

    Their pixels count as tissue: where the tissue mask leaves them out, training would otherwise take them for glass,
    which is told to hold no counts.

    Args:
        section: with counts.
        withheld: spots to leave out `(S,)`.
    """
    label = draw_section(section, section.mpp, section.tissue.shape)
    place = np.concatenate([[False], withheld])[label]  # (H, W)
    return replace(choose_spots(section, ~withheld), tissue=section.tissue | place)


def train_and_predict(
    folder: ExperimentFolder,
    name: str,
    stores: Sequence[Path],
    effort: Effort,
    *,
    covariates: Mapping[str, str] | None,
    seed: int,
) -> list[dict[str, Maps]]:
    """Train on sections, fit their fields, and predict them.

    Args:
        folder: of the experiment; what it holds of this name is not made again.
        name: of run and maps.
        stores: of the sections.
        effort: of training and prediction.
        covariates: column of the spots for each covariate.
        seed: of training and prediction.

    Returns:
        For each section the maps of each of KINDS.
    """
    run = folder.run(name, stores, seed=seed, covariates=covariates, **effort.training)
    folder.fit_fields(run)
    found = []
    for store in stores:
        section = read_section(store)
        drawing = {"samples": effort.samples, "seed": seed, "source_path": store}
        found.append(
            {
                kind: folder.maps(f"{name}-{file_name(section.name)}-{kind}", run, section, use_field=field, **drawing)
                for kind, field in KINDS.items()
            }
        )
    return found


def score_spots(maps: Maps, section: Section, judged: Mask) -> pd.DataFrame:
    """Score the prediction of some spots for the 100 genes of the maps of which the whole section holds most UMIs.

    Args:
        maps: of the section's slide.
        section: with all its spots, so that the genes do not depend on which are judged.
        judged: spots `(S,)`, at least one.

    Returns:
        A row for each gene, in the order of their totals: `gene` and SCORES, see `evaluation.score_genes`.

    Raises:
        SuperstError: maps and section do not fit, see `comparison.compare`.
    """
    both = compare(maps, choose_spots(section, judged))
    scores = score_genes(both.moments(_GENES)[0], both.observed, names=both.genes)
    column = section.genes.index.get_indexer(pd.Index(both.genes))
    total = np.asarray(section.counts.sum(axis=0)).ravel()[column]
    top = np.argsort(-total, kind="stable")[:TOP]
    return scores.iloc[top][list(SCORES)].rename_axis("gene").reset_index()
