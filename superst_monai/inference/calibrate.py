"""Recalibrate a trained run: predict the spots that training withheld, and make their intervals wide enough."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.data.atomic import scratch_folder
from superst_monai.data.section import Section
from superst_monai.inference.calibration import FILE, LEVEL, MODES, TOP, Calibration, Mode, to_json
from superst_monai.inference.colours import FILE as COLOURS
from superst_monai.inference.derived import without_calibration
from superst_monai.inference.field_store import save_field
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.run import Run, load_run
from superst_monai.inference.section_field import fit_field
from superst_monai.inference.slide_map import Show, predict
from superst_monai.inference.withheld import training_sections
from superst_monai.model.dispersion import disperse, fit_dispersion
from superst_monai.model.predictive import coverage, score_counts

_LOG = logging.getLogger(__name__)
LEAST_SPOTS = 10
"""Withheld spots below which no factor is fitted: their depths alone would decide."""
_GENES_AT_ONCE = 256
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class WithheldLaw:
    """Predicted law and observed counts of the withheld spots of one section.

    Attributes:
        maps: before recalibration; only what belongs to genes is asked.
        sizes: metagene sizes `(N, S, K)`.
        observed: counts of the run's genes `(S, G)`.
    """

    maps: Maps
    sizes: Floats
    observed: sparse.csr_matrix

    def at(self, genes: NDArray[np.int64]) -> tuple[NDArray[np.float64], Floats, Floats]:
        """Counts `(S, g)` of some genes and their law, total_count and logits `(N, S, g)`."""
        law = self.maps.law(self.sizes, [self.maps.genes[g] for g in genes])
        counts: NDArray[np.float64] = self.observed[:, genes].toarray().astype(np.float64)
        return counts, law.total_count, np.broadcast_to(law.logits[:, None], law.total_count.shape)


def calibrate_run(
    run_dir: str | Path, *, show: Show | None = None, tell: Callable[[str], None] = _LOG.warning
) -> dict[Mode, Calibration]:
    """Fit one factor for predictions from histology alone and one for those with a field; write `calibration.json`.

    The spots are those that training withheld, whole. With a field they are predicted from one that was fitted without
    them, and that is not kept.

    Args:
        run_dir: of a finished run whose training sections lie where they did; fit their fields before.
        show: called with the share done and the seconds spent.
        tell: receives why there is no recalibration, where there can be none.

    Returns:
        What was written; empty where there are too few withheld spots, or sections have gone or changed.

    Raises:
        SuperstError: a section cannot be read, predicted or fitted, or the folder cannot be written.
    """
    run = load_run(run_dir)
    path = run.path / FILE
    path.unlink(missing_ok=True)
    known = training_sections(run)
    if not isinstance(known, str):
        n_spots = sum(len(rows) for _, blocks in known for rows in blocks)
        if n_spots < LEAST_SPOTS:
            known = f"the training withheld {n_spots} spots, and fewer than {LEAST_SPOTS} tell too little"
    if isinstance(known, str):
        tell(f"the intervals of counts stay as the model has them, without a check: {known}")
        return {}
    withheld = [(section, np.sort(np.concatenate(blocks))) for section, blocks in known if blocks]
    laws: dict[Mode, list[WithheldLaw]] = {mode: [] for mode in MODES}
    with scratch_folder(path) as scratch:
        for (section, rows), told in zip(withheld, _parts(show, len(withheld)), strict=True):
            laws["histology"].append(_from_histology(run, section, rows, scratch, told))
            laws["field"].append(_with_field(run, section, rows, scratch, told))
        found = {mode: calibrate(pieces, least=1.0 if mode == "histology" else 0.0) for mode, pieces in laws.items()}
        (scratch / FILE).write_text(to_json(found, run.weights_sha256))
        os.replace(scratch / FILE, path)
    return found


def calibrate(pieces: Sequence[WithheldLaw], *, least: float) -> Calibration:
    """The factor with which the intervals of the genes expected highest cover LEVEL of the counts, and what it does.

    Args:
        pieces: of all sections, at least one.
        least: smallest factor. From histology alone it is 1: the network was trained on the sections of these spots, so
            that they can show its intervals to be too narrow, but not too wide for a slide that it never saw.
    """
    expected = sum(piece.maps.law(piece.sizes.sum(axis=1, keepdims=True)).mean[0] for piece in pieces)
    top = np.argsort(-np.asarray(expected), kind="stable")[:TOP]
    counts, total_count, logits = (
        np.concatenate(parts, axis=axis)
        for parts, axis in zip(zip(*(piece.at(top) for piece in pieces), strict=True), (0, 1, 1), strict=True)
    )
    factor = max(least, fit_dispersion(counts, total_count, logits, level=LEVEL))
    before, after = (_coverage(pieces, top, c) for c in (1.0, factor))
    return Calibration(factor, len(counts), before, after)


def _coverage(pieces: Sequence[WithheldLaw], top: NDArray[np.int64], factor: float) -> dict[str, float]:
    """Share of the counts within the intervals, of the top genes and of all."""
    covered = np.zeros(len(pieces[0].maps.genes))
    for piece in pieces:
        for start in range(0, len(covered), _GENES_AT_ONCE):
            genes = np.arange(start, min(start + _GENES_AT_ONCE, len(covered)))
            counts, total_count, logits = piece.at(genes)
            scores = score_counts(counts, *disperse(total_count, logits, factor))
            covered[genes] += coverage(scores.lower, scores.upper, [LEVEL])[0].sum(axis=0)
    share = covered / sum(piece.observed.shape[0] for piece in pieces)
    return {"top100": round(float(share[top].mean()), 4), "all": round(float(share.mean()), 4)}


def _from_histology(
    run: Run, section: Section, rows: NDArray[np.int64], scratch: Path, show: Sequence[Show]
) -> WithheldLaw:
    """The law of spots as the image alone predicts them."""
    return _predicted(run, section, rows, scratch / "histology.zarr", show[0], use_field=False)


def _with_field(
    run: Run, section: Section, rows: NDArray[np.int64], scratch: Path, show: Sequence[Show]
) -> WithheldLaw:
    """The law of spots as a field predicts them that was fitted to all other spots of the section."""
    keep = np.ones(section.n_spots, np.bool_)
    keep[rows] = False
    apart = replace(run, path=scratch)  # its fields are others than the run's
    if (run.path / COLOURS).is_file():
        shutil.copyfile(run.path / COLOURS, scratch / COLOURS)
    save_field(apart, section, fit_field(run, section, keep=keep, seed=int(run.record["seed"]), show=show[1]))
    return _predicted(apart, section, rows, scratch / "field.zarr", show[2], use_field=True)


def _predicted(
    run: Run, section: Section, rows: NDArray[np.int64], out: Path, show: Show, *, use_field: bool
) -> WithheldLaw:
    """Predict a section with default settings, into a store that may go when this returns."""
    seed = int(run.record["seed"])
    predict(run, section, out, seed=seed, show=show, tell=lambda _: None, overwrite=True, use_field=use_field)
    maps = without_calibration(open_maps(out, cache_mib=0))
    label = maps.spot_label(section)
    rows = rows[np.isin(rows + 1, label)]  # the others have no pixel
    number = np.zeros(section.n_spots + 1, np.int64)
    number[rows + 1] = np.arange(1, len(rows) + 1)
    columns = section.genes.index.get_indexer(pd.Index(maps.genes))
    return WithheldLaw(maps, maps.size_of(number[label], n_supports=len(rows)), section.counts[:, columns][rows])


def _parts(show: Show | None, n: int) -> list[list[Show]]:
    """Progress of the three steps of each of n sections, as that of the whole."""
    started = time.monotonic()

    def of(step: int) -> Show:
        def tell(share: float, _: float) -> None:
            if show is not None:
                show((step + share) / (3 * n), time.monotonic() - started)

        return tell

    return [[of(3 * i + step) for step in range(3)] for i in range(n)]
