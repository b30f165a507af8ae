"""Pairs of neighbouring spots: drawn, merged into one measurement, and judged by which spot of a pair has more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from superst_monai.analysis.credible import summarise
from superst_monai.analysis.evaluation import TOP
from superst_monai.data.section import SECOND_PART, Section
from superst_monai.errors import AssayError
from superst_monai.experiments.withheld_spots import without_spots
from superst_monai.inference.maps import Maps
from superst_monai.inference.sums import Sums

Pairs = NDArray[np.int64]
Floats = NDArray[np.float64]
SURE = 0.025
"""Local false sign rate below which the central 95 % credible interval has one sign."""
EDGES = (0.0, 1e-4, 1e-3, 0.005, 0.01, SURE, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Ends of the bins of the local false sign rate."""
QUANTITIES = ("counts", "share")
"""What is compared: counts, or their share of all UMIs of the spot, which does not tell which spot is deeper."""
_REACH = 1.2  # pitches; the diagonal of a square grid is 1.41
_GENES = 256  # whose samples are in memory at once


def neighbour_pairs(xy_um: Floats, rng: np.random.Generator) -> Pairs:
    """Draw disjoint pairs of neighbours until no two spots that are left are neighbours.

    Neighbours lie at most 1.2 pitches apart, the pitch being the median distance to the nearest spot. Pairs are taken
    greedily in random order.

    Args:
        xy_um: centres of the spots `(S, 2)` [um].
        rng: source of the order.

    Returns:
        Rows of the two spots of each pair `(P, 2)`.

    Raises:
        AssayError: there is no pair.
    """
    tree = cKDTree(xy_um)
    apart = tree.query(xy_um, k=2)[0][:, 1]
    edges = tree.query_pairs(_REACH * float(np.median(apart)), output_type="ndarray")
    if not len(edges):
        raise AssayError(f"merging needs neighbouring spots, but none of {len(xy_um)} has one; pass another section.")
    edges = edges[rng.permutation(len(edges))]
    found, free = [], np.ones(len(xy_um), np.bool_)
    while len(edges):
        order = np.arange(len(edges))
        first = np.full(len(xy_um), len(edges))
        np.minimum.at(first, edges, order[:, None])
        chosen = edges[(first[edges] == order[:, None]).all(axis=1)]  # before all other edges of both spots
        found.append(chosen)
        free[chosen] = False
        edges = edges[free[edges].all(axis=1)]
    return np.concatenate(found).astype(np.int64)


def merge_spots(section: Section, pairs: Pairs) -> Section:
    """The section as if the two spots of each pair had been counted together; the other spots are withheld.

    Counts add up, and the support of a merged spot is both spots: see `section.SECOND_PART`.

    Args:
        section: with counts.
        pairs: rows of the spots `(P, 2)`, disjoint.
    """
    a, b = pairs.T
    left_out = np.ones(section.n_spots, np.bool_)
    left_out[pairs] = False
    both = without_spots(section, left_out)
    spots = section.spots.iloc[a].copy()
    spots[list(SECOND_PART)] = section.spots[["x_um", "y_um"]].to_numpy(np.float64)[b]
    names = section.spots.index.to_numpy(dtype=str)
    spots.index = pd.Index([f"{one}+{other}" for one, other in zip(names[a], names[b], strict=True)], name="barcode")
    return replace(both, counts=(section.counts[a] + section.counts[b]).tocsr(), spots=spots)


def judge_pairs(maps: Maps, section: Section, pairs: Pairs, *, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge for every gene which spot of a pair is predicted to have more, by which one was counted to have more.

    In sample n spot A is expected to hold E_nA of a gene. log2 E_nA / E_nB is summarised by `credible.summarise`: its
    sign is the prediction and its local false sign rate the uncertainty. Equal observations judge nothing. How often
    an honest model would seem right, for counts are noisy, is found by judging counts drawn from the law of one random
    sample for each pair.

    Args:
        maps: of the section's slide.
        section: with its spots as measured.
        pairs: rows of the spots `(P, 2)`; those of which a spot has no pixel of the maps are left out.
        seed: of the counts drawn.

    Returns:
        A row for each of QUANTITIES and bin of EDGES: quantity, lfsr_low, lfsr_high, differences `judged` and `right`
        (ties left out), `ties`, and `drawn_judged` and `drawn_right` of the counts drawn. And a row for each of
        QUANTITIES and of the 100 genes with most UMIs in the pairs: quantity, gene, `judged` and `right` of the
        differences whose local false sign rate is below SURE.
    """
    rng = np.random.default_rng(seed)
    sizes = maps.size_of(maps.spot_label(section), n_supports=section.n_spots)  # (N, S, K)
    pairs = pairs[(sizes.sum(axis=2) > 0).all(axis=0)[pairs].all(axis=1)]
    sizes = sizes[:, pairs.T.ravel()]  # (N, 2 P, K), all first spots, then all second ones
    column = section.genes.index.get_indexer(pd.Index(maps.genes))
    genes = [gene for gene, at in zip(maps.genes, column, strict=True) if at >= 0]
    observed = section.counts[:, column[column >= 0]][pairs.T.ravel()].tocsc()  # (2 P, G)
    depth = np.asarray(observed.sum(axis=1), dtype=np.float64).ravel()
    expected = np.sum([_mean(maps.law(sizes, genes[part])).sum(axis=-1) for part in _parts(genes)], axis=0)  # (N, 2 P)
    sample = rng.integers(maps.n_samples, size=len(pairs))
    twice = np.tile(sample, 2), np.arange(2 * len(pairs))
    bins, rows = [], []
    for part in _parts(genes):
        law, counts = maps.law(sizes, genes[part]), observed[:, part].toarray().astype(np.float64)
        rate = rng.standard_gamma(law.total_count[twice]) * np.exp(law.logits[twice[0]])  # (2 P, g)
        drawn = rng.poisson(rate).astype(np.float64)
        for quantity in QUANTITIES:
            share = quantity == "share"
            said = summarise(_log_ratio(_mean(law), expected if share else None))  # (P, g) each
            right = np.sign(said.mean) * _sign(counts, depth if share else None)
            drawn_right = np.sign(said.mean) * _sign(drawn, expected[twice] if share else None)
            bins.append(_count(said.lfsr, right, drawn_right).assign(quantity=quantity))
            sure = right * (said.lfsr < SURE)
            of_gene = {"judged": (sure != 0).sum(axis=0), "right": (sure > 0).sum(axis=0), "total": counts.sum(axis=0)}
            rows.append(pd.DataFrame({"quantity": quantity, "gene": genes[part], **of_gene}))
    table = pd.concat(bins).groupby(["quantity", "lfsr_low", "lfsr_high"]).sum().reset_index()
    of_genes = pd.concat(rows).sort_values("total", ascending=False, kind="stable")
    return table, of_genes.groupby("quantity").head(TOP).drop(columns="total").reset_index(drop=True)


def _parts(genes: list[str]) -> Iterator[slice]:
    """Some genes at a time."""
    return (slice(start, start + _GENES) for start in range(0, len(genes), _GENES))


def _mean(law: Sums) -> Floats:
    """Expected counts of each sample `(N, S, g)`."""
    return np.asarray(law.total_count * np.exp(law.logits.astype(np.float64))[:, None], dtype=np.float64)


def _log_ratio(mean: Floats, depth: Floats | None) -> Floats:
    """log2 of the first over the second spot of each pair `(N, P, g)`, of counts `(N, 2 P, g)` or their share."""
    value = np.log2(mean) if depth is None else np.log2(mean) - np.log2(depth)[..., None]
    first, second = np.split(value, 2, axis=1)
    return np.asarray(first - second, dtype=np.float64)


def _sign(counts: Floats, depth: Floats | None) -> Floats:
    """1 where the first spot of a pair has more `(P, g)`, -1 where the second has, of counts `(2 P, g)` or shares."""
    first, second = np.split(counts, 2)
    if depth is not None:
        one, other = np.split(depth, 2)
        first, second = first * other[:, None], second * one[:, None]  # whole numbers: equal shares are equal
    return np.asarray(np.sign(first - second), dtype=np.float64)


def _count(lfsr: Floats, right: Floats, drawn: Floats) -> pd.DataFrame:
    """Count verdicts, 1, -1 or 0 for a tie, in the bins of EDGES."""
    last = len(EDGES) - 2
    place = np.clip(np.searchsorted(EDGES, lfsr, side="right") - 1, 0, last).ravel()

    def counted(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.asarray(np.bincount(place[chosen.ravel()], minlength=last + 1))

    return pd.DataFrame(
        {
            "lfsr_low": EDGES[:-1],
            "lfsr_high": EDGES[1:],
            "judged": counted(right != 0),
            "right": counted(right > 0),
            "ties": counted(right == 0),
            "drawn_judged": counted(drawn != 0),
            "drawn_right": counted(drawn > 0),
        }
    )
