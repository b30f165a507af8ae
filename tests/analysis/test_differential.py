"""Differential expression against plain sums, its laws, and a truth that is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from superst_monai.analysis.differential import differential
from superst_monai.analysis.differential_figures import differential_figure, write_differential
from superst_monai.analysis.several_maps import Named
from superst_monai.errors import RunError, ShapeError
from superst_monai.inference.conditions import under
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.rates import Effects

StoreMaps = Callable[..., Path]
SHAPE = (20, 30)


def random_samples(seed: int = 0, n_samples: int = 4, n_metagenes: int = 3) -> NDArray[np.float64]:
    """Scaled activity that a float16 holds exactly."""
    return np.random.default_rng(seed).integers(1, 64, (n_samples, n_metagenes, *SHAPE)) / 256


def halves() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two regions that overlap."""
    left, right = np.zeros(SHAPE, bool), np.zeros(SHAPE, bool)
    left[3:17, 2:16], right[5:19, 12:28] = True, True
    return left, right


@pytest.fixture(scope="module")
def maps(store_maps: StoreMaps) -> Maps:
    """Random maps of five genes."""
    rng = np.random.default_rng(3)
    return open_maps(store_maps(random_samples(), rng.normal(0, 1, (4, 3, 5)), logit=rng.normal(-1, 0.3, (4, 5))))


@pytest.mark.parametrize("per", ["scale", "area"])
def test_fold_changes_are_those_of_plain_sums(maps: Maps, per: str) -> None:
    """Every number against loops over samples, genes and pixels of the whole arrays."""
    a, b = halves()
    table = differential([maps], [(a, b)], per=per, level=0.9)
    assert list(table["inverse_cv"]) == sorted(table["inverse_cv"], reverse=True)
    samples = random_samples()
    for g, gene in enumerate(maps.genes):
        fold, sides = [], []
        for n in range(4):
            rate = np.exp(maps.log_rate[n, :, g].astype(float) + maps.logit[n, g])
            expected = [(samples[n][:, mask].sum(1) * rate).sum() for mask in (a, b)]
            size = [samples[n][:, mask].sum() if per == "scale" else mask.sum() * 100 / 1000 for mask in (a, b)]
            sides.append(np.array(expected) / size)
            fold.append(np.log2(sides[-1][0] / sides[-1][1]))
        row = table.loc[gene]
        assert row["log2_fold_change"] == pytest.approx(np.mean(fold), rel=1e-4)
        assert row["sd"] == pytest.approx(np.std(fold, ddof=1), rel=1e-3)
        assert [row["expression_a"], row["expression_b"]] == pytest.approx(list(np.mean(sides, axis=0)), rel=1e-4)
        assert row["low"] < row["log2_fold_change"] < row["high"]
        assert row["gene_id"] == f"ID-{gene}"


def test_swapping_regions_turns_the_sign(maps: Maps) -> None:
    """Fold changes and interval ends change sign, spread and sign rate stay."""
    a, b = halves()
    one, other = (differential([maps], [pair]).loc[maps.genes] for pair in ((a, b), (b, a)))
    np.testing.assert_allclose(one["log2_fold_change"], -other["log2_fold_change"], atol=1e-12)
    np.testing.assert_allclose(one["low"], -other["high"], atol=1e-12)
    np.testing.assert_allclose(one[["sd", "lfsr"]], other[["sd", "lfsr"]], atol=1e-12)
    np.testing.assert_allclose(one["expression_a"], other["expression_b"])


def test_a_region_does_not_differ_from_itself(maps: Maps) -> None:
    """Fold change 0 in every sample: no spread, and a sign that is not known."""
    a, _ = halves()
    table = differential([maps], [(a, a)])
    np.testing.assert_array_equal(table[["log2_fold_change", "sd", "low", "high", "inverse_cv"]], 0.0)
    np.testing.assert_array_equal(table["lfsr"], 0.5)


def test_the_order_of_metagenes_does_not_matter(maps: Maps, store_maps: StoreMaps) -> None:
    """Permuted metagenes give the same table."""
    order = [2, 0, 1]
    permuted = open_maps(store_maps(random_samples()[:, order], maps.log_rate[:, order], logit=maps.logit))
    tables = [differential([one], [halves()]) for one in (maps, permuted)]
    pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_regions_of_several_sections_are_one(store_maps: StoreMaps) -> None:
    """A slide cut in two gives what the whole gives, by scale and by area, also where a part holds one region alone."""
    rng = np.random.default_rng(4)
    log_rate, samples, (a, b) = rng.normal(0, 1, (4, 3, 6)), random_samples(), halves()
    whole = open_maps(store_maps(samples, log_rate))
    parts = [open_maps(store_maps(samples[..., cols], log_rate)) for cols in (slice(0, 13), slice(13, 30))]
    cut = [(a[:, cols], b[:, cols] & (cols.start > 0)) for cols in (slice(0, 13), slice(13, 30))]
    b = b & (np.arange(30) >= 13)
    for per in ("scale", "area"):
        tables = differential([whole], [(a, b)], per=per), differential(parts, cut, per=per)
        pd.testing.assert_frame_equal(*tables, rtol=1e-4)


def test_known_truth_lies_within_the_intervals(store_maps: StoreMaps) -> None:
    """Rates known only by the counts of two metagenes: intervals of 3000 genes cover the truth at the nominal rate.

    Each rate has a gamma prior and a Poisson count, so that its posterior is a gamma law; the samples are drawn from it
    and the truth from the prior. Regions are mixtures of the metagenes, and expression per area.
    """
    rng = np.random.default_rng(5)
    shape, rate, exposure, n_genes, n_samples = 2.0, 1.0, 10.0, 3000, 10
    truth = rng.gamma(shape, 1 / rate, (2, n_genes))
    counts = rng.poisson(exposure * truth)
    posterior = rng.gamma(shape + counts, 1 / (rate + exposure), (n_samples, 2, n_genes))
    samples = np.zeros((n_samples, 2, *SHAPE))
    samples[:, 0, :, :15], samples[:, 1, :, :15] = 0.75, 0.25
    samples[:, 0, :, 15:], samples[:, 1, :, 15:] = 0.125, 0.875
    maps = open_maps(store_maps(samples, np.log(posterior)))
    left = np.arange(30) < 15
    regions = (np.tile(left, (20, 1)), np.tile(~left, (20, 1)))
    found = differential([maps], [regions], per="area").loc[maps.genes]
    fold = np.log2(0.75 * truth[0] + 0.25 * truth[1]) - np.log2(0.125 * truth[0] + 0.875 * truth[1])
    covered = (found["low"] <= fold) & (fold <= found["high"])
    assert covered.mean() == pytest.approx(0.95, abs=0.02)
    half = differential([maps], [regions], per="area", level=0.5).loc[maps.genes]
    assert ((half["low"] <= fold) & (fold <= half["high"])).mean() == pytest.approx(0.5, abs=0.03)
    wrong = np.sign(found["log2_fold_change"]) != np.sign(fold)
    assert wrong.mean() == pytest.approx(found["lfsr"].mean(), abs=0.02)
    sure = found["lfsr"] < 0.05
    assert sure.sum() > 300
    assert wrong[sure].mean() < 0.05


def test_effects_of_sections_are_removed_on_request(store_maps: StoreMaps) -> None:
    """A gene that only the chemistry changes differs between two sections, and does not once that is taken out."""
    samples = random_samples(n_metagenes=2)
    effect = np.zeros((4, 2, 3))
    effect[:, 1, 1] = 1.0
    both = []
    for j, section in enumerate(("x", "y")):
        effects = Effects([("chemistry", "x"), ("chemistry", "y")], effect.astype(np.float32), np.zeros_like(effect))
        log_rate = np.zeros((4, 2, 3)) + effect[:, j : j + 1]
        path = store_maps(samples, log_rate, effects=effects, conditions={"chemistry": section})
        both.append(open_maps(path))
    everything, nothing = np.ones(SHAPE, bool), np.zeros(SHAPE, bool)
    regions = [(everything, nothing), (nothing, everything)]
    with_effect = differential(both, regions)
    assert with_effect.loc["g1", "log2_fold_change"] == pytest.approx(-1 / np.log(2), rel=1e-3)
    removed = differential([under(maps, {"chemistry": None}) for maps in both], regions)
    np.testing.assert_allclose(removed["log2_fold_change"], 0, atol=1e-6)


def test_regions_without_tissue_are_refused(maps: Maps, store_maps: StoreMaps) -> None:
    """An empty region, one off the tissue, one of another shape, and a single sample are named."""
    a, b = halves()
    with pytest.raises(RunError, match="both regions must hold tissue, but region B has no pixel; draw them"):
        differential([maps], [(a, np.zeros(SHAPE, bool))])
    glass = open_maps(store_maps(random_samples(), np.zeros((4, 3, 2)), tissue=~a))
    with pytest.raises(RunError, match="on region A no expression is predicted"):
        differential([glass], [(a, b)])
    with pytest.raises(ShapeError, match=r"regions must be \(H, W\) = \(20, 30\) as the maps, got \(5, 5\)"):
        differential([maps], [(a, np.ones((5, 5), bool))])
    single = open_maps(store_maps(random_samples(n_samples=1), np.zeros((3, 2))))
    with pytest.raises(RunError, match="at least 2 posterior samples"):
        differential([single], [(a, b)])


def test_files_hold_what_was_found(maps: Maps, store_maps: StoreMaps, tmp_path: Path) -> None:
    """Table, figure and numbers are written; maps of another run or seed are refused before anything is."""
    named, masks = Named("S", maps), halves()
    written = write_differential([named], [masks], tmp_path / "out", names=("tumour", "rest"), top=2)
    assert [path.name for path in written] == ["differential.csv", "differential.png", "differential.json"]
    table = pd.read_csv(written[0], index_col="gene")
    pd.testing.assert_frame_equal(table, differential([maps], [masks]))
    said = json.loads(written[2].read_text())
    assert said["regions"] == {"A": "tumour", "B": "rest"}
    assert said["sections"][0]["area_um2"] == {"A": 19600.0, "B": 22400.0}
    assert said["unit"] == "UMIs per unit of scale"
    n_up = ((table["lfsr"] < 0.05) & (table["log2_fold_change"] > 0)).sum()
    assert said["n_lfsr_below_0.05"]["higher_in_A"] == n_up
    other = Named("T", open_maps(store_maps(random_samples(), np.zeros((4, 3, 5)), seed=1, run_sha256="v")))
    with pytest.raises(RunError, match="but T differs from S in weights of the run, seed; predict them again"):
        write_differential([named, other], [masks, masks], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_forest_shows_the_surest_genes_of_each_direction(maps: Maps) -> None:
    """Upward genes on top with the surest first, downward ones below with the surest last; intervals are drawn."""
    table = differential([maps], [halves()])
    axes = differential_figure(table, ("A", "B"), per="scale", level=0.95, top=2).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    up, down = table[table["log2_fold_change"] > 0], table[table["log2_fold_change"] < 0]
    assert labels == [*up.index[:2], *down.index[:2][::-1]]
    lines = axes.collections[0].get_segments()
    np.testing.assert_allclose([[x for x, _ in line] for line in lines], table.loc[labels, ["low", "high"]])
    assert axes.get_xlabel() == "log2 fold change, 95 % credible interval"
