"""Bring posterior maps and a measured section of the same slide together: one pixel grid, shared genes, whole spots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import sparse

from superst_monai.analysis.baselines import spot_histograms
from superst_monai.analysis.law_scores import GeneChunk
from superst_monai.data.platforms.assay import few
from superst_monai.data.section import Section
from superst_monai.errors import AlignmentError, AssayError, ResolutionError, RunError
from superst_monai.inference.derived import without_calibration
from superst_monai.inference.maps import Maps
from superst_monai.inference.sums import Sums


@dataclass(frozen=True, eq=False)
class Comparison:
    """Observed spots on the grid of the maps.

    Attributes:
        maps: the prediction.
        section: the measured section at the resolution of the maps, all its spots.
        label: spot of each pixel `(H, W)`: 0 none, i is spot i - 1 of the S that are compared.
        rows: rows of the section that are compared `(S,)`, those with pixels.
        genes: G names that both have, in the order of the maps.
        observed: counts `(S, G)`.
    """

    maps: Maps
    section: Section
    label: NDArray[np.int64]
    rows: NDArray[np.int64]
    genes: list[str]
    observed: sparse.csr_matrix

    def moments(self, genes_per_chunk: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predicted mean and standard deviation of the counts `(S, G)`, some genes at a time."""
        mean, sd = (np.empty(self.observed.shape, np.float32) for _ in range(2))
        for columns, sums in self._chunks(genes_per_chunk):
            mean[:, columns], sd[:, columns] = sums.mean, sums.sd
        return mean, sd

    def samples(self, genes_per_chunk: int) -> Iterator[GeneChunk]:
        """Parameters of the predictive law, some genes at a time."""
        for columns, sums in self._chunks(genes_per_chunk):
            yield GeneChunk(columns, sums.total_count, sums.logits[:, None])

    def uncalibrated(self) -> Comparison:
        """The same with the laws of counts before the run's recalibration."""
        return replace(self, maps=without_calibration(self.maps))

    def histograms(self) -> NDArray[np.float64]:
        """Colour histograms of the spots `(S, F)`; the image may end a pixel before or after the maps."""
        height, width = (min(sides) for sides in zip(self.label.shape, self.section.tissue.shape, strict=True))
        return spot_histograms(self.section.image[:height, :width], self.label[:height, :width], len(self.rows))

    def _chunks(self, genes_per_chunk: int) -> Iterator[tuple[slice, Sums]]:
        """Sums over the spots, with their columns in `genes`."""
        chunks = self.maps.chunks(self.label, genes_per_chunk, genes=self.genes, n_supports=len(self.rows))
        start = 0
        for sums in chunks:
            yield slice(start, start + len(sums.genes)), sums
            start += len(sums.genes)


def compare(maps: Maps, truth: Section) -> Comparison:
    """Match a measured section to maps of its slide.

    Args:
        maps: the prediction.
        truth: a section with counts, not coarser than the maps.

    Raises:
        AssayError: the section has no counts, or no spot with a pixel.
        ResolutionError: the section is coarser than the maps.
        AlignmentError: section and maps are of slides of different extent.
        RunError: they share no gene.
    """
    if not truth.has_counts:
        raise AssayError(f"section {truth.name} has no counts to compare with; pass one that was sequenced.")
    if truth.mpp > maps.mpp * (1 + 1e-6):
        raise ResolutionError(
            f"section {truth.name} must be as fine as the maps ({maps.mpp:g} um per pixel), got {truth.mpp:g}; "
            f"prepare it again with --mpp {maps.mpp:g} or less."
        )
    sides_um = [n * truth.mpp for n in truth.tissue.shape], [n * maps.mpp for n in maps.shape]
    if any(abs(one - other) > truth.mpp + maps.mpp for one, other in zip(*sides_um, strict=True)):
        size, own = (" x ".join(f"{side:.0f}" for side in reversed(pair)) for pair in sides_um)
        raise AlignmentError(
            f"section {truth.name} must be of the slide that the maps show, {own} um wide and high, got {size} um; "
            "pass the section of this slide."
        )
    section = truth.at(maps.mpp)
    column = section.genes.index.get_indexer(pd.Index(maps.genes))
    shared = column >= 0
    if not shared.any():
        raise RunError(
            f"section {truth.name} and the maps must share genes, got none of {len(maps.genes)} (of the maps: "
            f"{few(maps.genes)}; of the section: {few(section.genes.index)}); use one kind of names."
        )
    label, rows = _whole_spots(maps.spot_label(section), section)
    genes = [gene for gene, kept in zip(maps.genes, shared, strict=True) if kept]
    return Comparison(maps, section, label, rows, genes, section.counts[:, column[shared]][rows].tocsr())


def _whole_spots(label: NDArray[np.int64], section: Section) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the spots that have pixels without gaps: label `(H, W)` and their rows in the section `(S,)`."""
    rows = np.flatnonzero(np.bincount(label.ravel(), minlength=section.n_spots + 1)[1:])
    if rows.size == 0:
        raise AssayError(f"no spot of section {section.name} has a pixel of the maps; check where its spots lie.")
    number = np.zeros(section.n_spots + 1, dtype=np.int64)
    number[rows + 1] = np.arange(1, rows.size + 1)
    return number[label], rows
