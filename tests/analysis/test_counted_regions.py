"""What counts of spots add to fold changes: plain sums, a truth that the model misses, no move without a gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from superst_monai.analysis.counted_regions import CountedRegions, count_regions, spots_in
from superst_monai.analysis.differential import differential
from superst_monai.data.section import Section
from superst_monai.errors import RunError
from superst_monai.inference.maps import Maps, open_maps

SHAPE = (24, 36)
LEFT = np.tile(np.arange(SHAPE[1]) < SHAPE[1] // 2, (SHAPE[0], 1))


@pytest.fixture(scope="module")
def maps(store_maps: Callable[..., Path]) -> Maps:
    """Random maps of 40 genes, 4 samples."""
    rng = np.random.default_rng(3)
    samples = rng.integers(1, 64, (4, 2, *SHAPE)) / 256
    return open_maps(store_maps(samples, rng.normal(0, 1, (4, 2, 40)), logit=rng.normal(-1, 0.3, (4, 40))))


@pytest.fixture
def section(make_section: Callable[..., Section]) -> Section:
    """Six spots, two on the left half, one across the middle, three on the right; 40 genes."""
    return make_section(genes=tuple(f"g{i}" for i in range(40)))


def test_sums_are_those_of_loops_over_spots_and_samples(maps: Maps, section: Section) -> None:
    """Counts, expectations and both variances against plain loops; a gene that was not measured has no counts."""
    other = replace(section, counts=section.counts[:, :39], genes=section.genes.iloc[:39])
    found = count_regions([maps], [other], [(LEFT, ~LEFT)])
    label = maps.spot_label(section)
    sides = spots_in(section, label, (LEFT, ~LEFT))
    assert found.n_spots == tuple(side.sum() for side in sides)
    sums = maps.sum_over(label, n_supports=6)
    expected = sums.total_count * np.exp(sums.logits)[:, None]  # (N, S, G)
    observed = section.counts.toarray().astype(float)
    odds = np.exp(maps.logit.astype(float)).mean(0)
    for i, side in enumerate(sides):
        np.testing.assert_allclose(found.expected[:, i], expected[:, side].sum(1), rtol=1e-4)
        np.testing.assert_array_equal(found.counts[i, :39], observed[side, :39].sum(0))
        of_law = expected.mean(0)[side].sum(0) * (1 + odds)
        np.testing.assert_allclose(found.noise[0, i], of_law, rtol=1e-4)
        between = side.sum() * observed[side, :39].var(0, ddof=1)
        np.testing.assert_allclose(found.noise[1, i, :39], np.maximum(of_law[:39], between), rtol=1e-4)
    assert np.isnan(found.counts[:, 39]).all()
    moves, spread = found.moves(composition=False, seed=0)
    assert np.isfinite(moves).all()
    assert spread >= 0


def made_up(
    rng: np.random.Generator, *, missed: NDArray[np.float64], n_genes: int, umis: float
) -> tuple[NDArray[np.float64], CountedRegions]:
    """Samples of a model that is surer than right, by what it misses, and the counts of 50 spots in each region."""
    model = rng.normal(0, 0.05, (20, n_genes))  # log2 fold changes around the truth that the model knows of
    expected = np.stack([umis * 2 ** (model / 2), umis * 2 ** (-model / 2)], axis=1)
    counts = rng.poisson(umis * 2 ** np.stack([missed / 2, -missed / 2])).astype(float)
    noise = np.stack([expected.mean(0)] * 2)
    return model, CountedRegions(counts, expected, noise, (50, 50))


@pytest.mark.parametrize(
    ("composition", "rare", "nominal"), [(False, False, 0.95), (True, False, 0.95), (False, True, 0.9)]
)
def test_intervals_hold_what_the_model_misses(composition: bool, rare: bool, nominal: float) -> None:
    """At the nominal 95 % for effects in all genes, at 90 % for effects in a tenth of them; without counts hardly."""
    rng = np.random.default_rng(0)
    n_genes = 4000
    missed = rng.normal(0, 0.4, n_genes)
    if rare:
        missed[400:] = 0
    model, counted = made_up(rng, missed=missed, n_genes=n_genes, umis=400.0)
    moves, spread = counted.moves(composition=composition, seed=1)
    assert spread**0.5 == pytest.approx(missed.std(), rel=0.1)
    fold = model + moves
    mean, sd = fold.mean(0), fold.std(0, ddof=1)
    part = missed != 0
    covered = np.abs(missed - mean) < 2.09 * 1.02 * sd  # t law of 19 degrees of freedom
    assert covered[part].mean() == pytest.approx(nominal, abs=0.02)
    alone = np.abs(missed - model.mean(0)) < 2.09 * 1.02 * model.std(0, ddof=1)
    assert alone[part].mean() < 0.3


def test_a_model_that_misses_nothing_is_left_alone() -> None:
    """Where counts differ from it by their noise alone, the common variance is nearly zero and few genes move."""
    rng = np.random.default_rng(2)
    _, counted = made_up(rng, missed=np.zeros(3000), n_genes=3000, umis=100.0)
    gaps = counted.gaps(composition=False)
    assert counted.spread(gaps) < 0.1 * counted.variances[0].mean()
    few = replace(counted, expected=np.full_like(counted.expected, 1.0))
    assert few.spread(gaps) == 0.0


def test_a_difference_in_depth_is_no_gap_of_composition() -> None:
    """Twice the counts in one region of every gene: a gap per area, none of shares."""
    rng = np.random.default_rng(3)
    _, counted = made_up(rng, missed=np.zeros(2000), n_genes=2000, umis=300.0)
    deeper = replace(counted, counts=counted.counts * np.array([[2.0], [1.0]]))
    assert deeper.gaps(composition=False).mean() == pytest.approx(1.0, abs=0.01)
    assert deeper.gaps(composition=True).mean() == pytest.approx(0.0, abs=0.01)


def test_the_table_is_moved_as_the_counts_say(maps: Maps, section: Section) -> None:
    """Fold changes with counts are those without plus the mean move; the same again for the same seed."""
    counted = count_regions([maps], [section], [(LEFT, ~LEFT)])
    alone, found, again = (
        differential([maps], [(LEFT, ~LEFT)], per="area", counted=c).loc[maps.genes] for c in (None, counted, counted)
    )
    pd.testing.assert_frame_equal(found, again)
    moves, _ = counted.moves(composition=False, seed=0)
    np.testing.assert_allclose(found["log2_fold_change"] - alone["log2_fold_change"], moves.mean(0), atol=1e-9)


def test_regions_without_spots_are_refused(maps: Maps, section: Section) -> None:
    """A region between the spots cannot be checked."""
    corner = np.zeros(SHAPE, bool)
    corner[:2, :2] = True
    with pytest.raises(RunError, match="both regions must hold spots, at least half of each, but they hold 0 and"):
        count_regions([maps], [section], [(corner, ~corner)])
