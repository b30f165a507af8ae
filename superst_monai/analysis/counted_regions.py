"""What the counts of the spots in two regions say of the fold changes between them, and how far the model is off.

A model of few metagenes gives every gene the pattern of some of them. What a gene does beyond that, its fold change
between two regions among it, is not in the posterior samples, and their intervals are too narrow for it. Where the
spots were counted it can be seen: gene g has the log2 ratio o_g of its counts in the spots of both regions, and the
samples expect p_ng for the same spots. With d_g the part that the model misses,

    o_g = p_ng + d_g + noise,   noise ~ Normal(0, v_g),   d_g ~ Normal(0, s2),

where v_g is the variance of the log2 ratio of two negative binomial counts (delta method). s2 is common to all genes
and found by the method of moments: the mean of (o - p)^2 - v - var_n(p), weighted by 1 / (v + var_n(p)). Few genes
with large effects are not held back by the many without: gene g has s2_g = max(s2, (o_g - p_g)^2 - v_g - var_n(p_g))
(empirical Bayes with limited translation, Efron and Morris 1972, doi:10.1080/01621459.1972.10481215). The fold change
of sample n is moved by a draw of Normal(w_g (o_g - p_ng), w_g v_g + u_g) with w_g = s2_g / (s2_g + v_g): a gene with
many counts follows them, one with few the model. u_g is what a region is more than its spots: for n spots whose
counts have the mean m and the variance s_n^2, s_n^2 / (n m^2) of either region over ln(2)^2, less v_g.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST_UMIS = 5.0
"""Expected in the spots of either region of a gene that helps to find s2."""
_CHUNK = 512  # genes at once
_HALF = 0.5  # added to counts and expectations before logarithms, so that a count of zero has one


@dataclass(frozen=True, eq=False)
class CountedRegions:
    """Counts and predictions of the spots in two regions.

    Attributes:
        counts: of spots in A and in B `(2, G)` [UMI]; NaN for a gene that a section did not measure.
        expected: by each sample `(N, 2, G)` [UMI].
        noise: variance of the counts of both regions [UMI^2], first round what the spots hold, then round what their
            number of spots anywhere in the region would hold `(2, 2, G)`.
        n_spots: in A and in B.
    """

    counts: Floats
    expected: Floats
    noise: Floats
    n_spots: tuple[int, int]

    def gaps(self, *, composition: bool) -> Floats:
        """What the log2 ratio of the counts has more than that of each sample `(N, G)`; NaN where not measured.

        Args:
            composition: compare shares of all UMIs, so that a difference in depth is no gap.
        """
        found = _fold(*self.counts) - _fold(self.expected[:, 0], self.expected[:, 1])
        if composition:
            measured = np.isfinite(self.counts).all(axis=0)
            total, share = (part[..., measured].sum(axis=-1) for part in (self.counts, self.expected))
            found -= (_fold(*total) - _fold(share[:, 0], share[:, 1]))[:, None]
        return found

    @property
    def variances(self) -> Floats:
        """Of the log2 ratio of the counts round what the spots hold, and round what the regions hold `(2, G)`."""
        mean = self.expected.mean(axis=0) + _HALF
        return np.asarray((self.noise / mean**2).sum(axis=1) / np.log(2) ** 2)

    def spread(self, gaps: Floats) -> float:
        """Variance s2 of what the model misses, at least 0."""
        known = np.isfinite(gaps).all(axis=0) & (self.expected.mean(axis=0) >= LEAST_UMIS).all(axis=0)
        if not known.any():
            return 0.0
        noise = (self.variances[0] + gaps.var(axis=0, ddof=1))[known]
        excess = gaps.mean(axis=0)[known] ** 2 - noise
        return max(0.0, float(np.average(excess, weights=1 / noise)))

    def moves(self, *, composition: bool, seed: int) -> tuple[Floats, float]:
        """What the log2 fold changes of each sample are moved by `(N, G)`, and s2.

        Args:
            composition: see `gaps`.
            seed: of the draws.
        """
        gaps, (counted, sampled) = self.gaps(composition=composition), self.variances
        spread = self.spread(gaps)
        own = np.maximum(spread, gaps.mean(axis=0) ** 2 - counted - gaps.var(axis=0, ddof=1))
        weight = own / (own + counted)
        noise = np.random.default_rng(seed).standard_normal(gaps.shape)
        unmeasured = np.sqrt(spread) * noise
        moved = weight * gaps + np.sqrt(weight * counted + sampled - counted) * noise
        return np.where(np.isfinite(gaps), moved, unmeasured), spread


def count_regions(
    several: Sequence[Maps], sections: Sequence[Section], regions: Sequence[tuple[Mask, Mask]]
) -> CountedRegions:
    """Add up counts and predictions of the spots of two regions.

    Args:
        several: maps of one run, seed and number of samples, under the conditions that the sections were measured in.
        sections: with counts, one of the slide of each.
        regions: pixels of A and B on each, `(H, W)`.

    Raises:
        RunError: a region holds no spot.
        AlignmentError: a section is not of the slide of its maps.
    """
    names = several[0].genes
    counts, noise = np.zeros((2, len(names))), np.zeros((2, 2, len(names)))
    expected = np.zeros((several[0].n_samples, 2, len(names)))
    n_spots = np.zeros(2, np.int64)
    for maps, section, masks in zip(several, sections, regions, strict=True):
        label = maps.spot_label(section)
        sizes = maps.size_of(label, n_supports=section.n_spots)  # (N, S, K)
        for i, side in enumerate(spots_in(section, label, masks)):
            n_spots[i] += side.sum()
            for start in range(0, len(names), _CHUNK):
                columns = slice(start, start + _CHUNK)
                found, sums, variance = _one_side(maps, section, sizes[:, side], np.flatnonzero(side), columns)
                counts[i, columns] += found
                expected[:, i, columns] += sums
                noise[:, i, columns] += variance
    if not n_spots.all():
        raise RunError(
            f"both regions must hold spots, at least half of each, but they hold {n_spots[0]} and {n_spots[1]}; "
            "draw larger regions, or leave the counts out."
        )
    return CountedRegions(counts, expected, noise, (int(n_spots[0]), int(n_spots[1])))


def _one_side(
    maps: Maps, section: Section, sizes: NDArray[np.float32], rows: NDArray[np.int64], columns: slice
) -> tuple[Floats, Floats, Floats]:
    """Counts `(g,)`, expectations `(N, g)` and variances `(2, g)` of the spots of one region, of some genes."""
    rates = expected_rates(maps, columns)  # (N, K, g)
    sums = np.einsum("nsk,nkg->ng", sizes, rates)
    mean = sum(size @ rate for size, rate in zip(sizes, rates, strict=True)) / len(rates)  # (S, g)
    of_law = mean.sum(axis=0) * (1 + np.exp(maps.logit[:, columns].astype(np.float64)).mean(axis=0) * maps.dispersion)
    column = section.genes.index.get_indexer(pd.Index(maps.genes[columns]))
    observed = section.counts[rows][:, column].toarray().astype(np.float64)
    observed[:, column < 0] = np.nan
    if len(rows) < 2:
        return observed.sum(axis=0), sums, np.stack([of_law, of_law])
    between = len(rows) * observed.var(axis=0, ddof=1)
    return observed.sum(axis=0), sums, np.stack([of_law, np.fmax(of_law, between)])


def expected_rates(maps: Maps, columns: slice | NDArray[Any]) -> NDArray[np.float64]:
    """Expected UMIs of a unit of each metagene, exp(log_rate + logit), of some genes `(N, K, g)`."""
    return np.exp((maps.log_rate[:, :, columns] + maps.logit[:, None, columns]).astype(np.float64))


def spots_in(section: Section, label: NDArray[np.int64], masks: Sequence[Mask]) -> list[Mask]:
    """Spots of which at least half of the pixels lie in each region `(S,)`; none is in both.

    Args:
        section: with counts.
        label: spot of each pixel of the maps `(H, W)`, 0 none.
        masks: the two regions `(H, W)`.
    """
    n_px, *inside = (
        np.bincount(label[mask], minlength=section.n_spots + 1)[1:] for mask in (np.ones_like(masks[0]), *masks)
    )
    first = (n_px > 0) & (2 * inside[0] >= n_px)
    return [first, (n_px > 0) & (2 * inside[1] >= n_px) & ~first]


def _fold(a: Floats, b: Floats) -> Floats:
    """log2 of the ratio of two counts."""
    return np.asarray(np.log2(a + _HALF) - np.log2(b + _HALF))
