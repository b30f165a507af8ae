"""Merged spots are the sum of their two spots in counts, pixels and prediction, and are judged as told."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix
from scipy.stats import t as student

from superst_monai.data.section import Section
from superst_monai.data.store import read_section, write_section
from superst_monai.errors import AssayError
from superst_monai.experiments.deconvolution_merged import run_deconvolution_merged
from superst_monai.experiments.effort import Effort
from superst_monai.experiments.merged_pairs import EDGES, judge_pairs, merge_spots, neighbour_pairs
from superst_monai.experiments.withheld_spots import KINDS
from superst_monai.inference.maps import open_maps
from superst_monai.transforms.labels import draw_section, spot_labels

MakeSection = Callable[..., Section]
Done = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def done(stores: dict[str, Path], effort: Effort, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The experiment on section A, one repeat."""
    out = tmp_path_factory.mktemp("merged") / "out"
    return out, run_deconvolution_merged(out, [stores["A"]], effort=replace(effort, repeats=1, samples=3))


def pairs_of(section: Section) -> np.ndarray:
    """The pairs of a section in the experiment."""
    xy = section.spots[["x_um", "y_um"]].to_numpy()
    return neighbour_pairs(xy, np.random.default_rng((0, 0, 0)))


@pytest.mark.parametrize("hexagonal", [False, True])
def test_pairs_are_neighbours_disjoint_and_as_many_as_fit(hexagonal: bool) -> None:
    """On both kinds of grid no spot is in two pairs and no two spots that are left are neighbours."""
    row, col = (axis.ravel() for axis in np.mgrid[:12, :9])
    xy = np.stack([100.0 * col, 100.0 * row], axis=1)
    if hexagonal:
        xy = np.stack([100.0 * (col + row % 2 / 2), 100.0 * math.sqrt(0.75) * row], axis=1)
    pairs = neighbour_pairs(xy, np.random.default_rng(0))
    assert len(np.unique(pairs)) == pairs.size
    np.testing.assert_allclose(np.hypot(*(xy[pairs[:, 0]] - xy[pairs[:, 1]]).T), 100.0)
    left = np.setdiff1d(np.arange(len(xy)), pairs)
    apart = np.hypot(*(xy[left, None] - xy[None, left]).transpose(2, 0, 1)) + 1e9 * np.eye(len(left))
    assert len(left) < 2 or apart.min() > 120
    np.testing.assert_array_equal(pairs, neighbour_pairs(xy, np.random.default_rng(0)))
    assert {*map(tuple, pairs)} != {*map(tuple, neighbour_pairs(xy, np.random.default_rng(1)))}


def test_a_section_without_neighbours_is_refused() -> None:
    """There is no pitch, or no pair."""
    with pytest.raises(AssayError, match="none of 1 has one"):
        neighbour_pairs(np.array([[0.0, 0.0]]), np.random.default_rng(0))


def test_merging_adds_counts_and_pixels(make_section: MakeSection, tmp_path: Path) -> None:
    """X_A + X_B, the pixels of both, and no others; the store keeps it; spots in no pair are gone."""
    section = make_section()
    pairs = pairs_of(section)[:10]
    merged = merge_spots(section, pairs)
    dense = section.counts.toarray()
    np.testing.assert_array_equal(merged.counts.toarray(), dense[pairs[:, 0]] + dense[pairs[:, 1]])
    assert merged.spots.index[3] == f"spot{pairs[3, 0]}+spot{pairs[3, 1]}"
    single = draw_section(section, section.mpp, section.tissue.shape)
    whole = draw_section(merged, section.mpp, section.tissue.shape)
    for number, pair in enumerate(pairs):
        np.testing.assert_array_equal(whole == number + 1, np.isin(single, pair + 1))
    assert whole.max() == len(pairs)
    write_section(merged, tmp_path / "merged.zarr")
    label = spot_labels(read_section(tmp_path / "merged.zarr"))
    np.testing.assert_array_equal(np.where(label > len(pairs), 0, label), whole)
    assert (label[whole == 0] == np.where(section.tissue | (single > 0), 0, len(pairs) + 1)[whole == 0]).all()


def test_a_merged_spot_is_expected_to_hold_what_its_spots_do(done: Done, stores: dict[str, Path]) -> None:
    """The prediction of the merged sum is the sum of the predictions, sample by sample."""
    out, _ = done
    section = read_section(stores["A"])
    pairs = pairs_of(section)
    merged = read_section(out / "sections/0-0.zarr")
    for kind in KINDS:
        maps = open_maps(out / f"maps/0-A-{kind}.zarr")
        parts = maps.sum_over(maps.spot_label(section), n_supports=section.n_spots)
        whole = maps.sum_over(maps.spot_label(merged), n_supports=merged.n_spots)
        summed = parts.total_count[:, pairs[:, 0]] + parts.total_count[:, pairs[:, 1]]
        np.testing.assert_allclose(whole.total_count, summed, rtol=1e-4)


def test_directions_are_judged_as_told(done: Done, stores: dict[str, Path]) -> None:
    """Against plain loops over pairs and genes, from the expected counts of each sample."""
    out, _ = done
    section = read_section(stores["A"])
    pairs = pairs_of(section)
    maps = open_maps(out / "maps/0-A-field.zarr")
    bins, genes = judge_pairs(maps, section, pairs, seed=0)
    law = maps.sum_over(maps.spot_label(section), n_supports=section.n_spots)
    mean = law.total_count.astype(np.float64) * np.exp(law.logits.astype(np.float64))[:, None]
    counts = section.counts[:, section.genes.index.get_indexer(pd.Index(maps.genes))].toarray().astype(float)
    n = maps.n_samples
    for quantity in ("counts", "share"):
        wanted = np.zeros((len(EDGES) - 1, 3), int)
        of_gene = {gene: [0, 0] for gene in maps.genes}
        for a, b in pairs:
            for g, gene in enumerate(maps.genes):
                e_a, e_b, x_a, x_b = mean[:, a, g], mean[:, b, g], counts[a, g], counts[b, g]
                if quantity == "share":
                    e_a, e_b = e_a / mean[:, a].sum(1), e_b / mean[:, b].sum(1)
                    x_a, x_b = x_a * counts[b].sum(), x_b * counts[a].sum()
                ratio = np.log2(e_a / e_b)
                lfsr = student.cdf(-abs(ratio.mean()) / (ratio.std(ddof=1) * math.sqrt(1 + 1 / n)), n - 1)
                place = max(i for i, low in enumerate(EDGES[:-1]) if lfsr >= low)
                right = np.sign(ratio.mean()) * np.sign(x_a - x_b)
                wanted[place] += (right != 0, right > 0, right == 0)
                if lfsr < 0.025:
                    of_gene[gene][0] += right != 0
                    of_gene[gene][1] += right > 0
        mine = bins[bins["quantity"] == quantity].sort_values("lfsr_low")
        np.testing.assert_array_equal(mine[["judged", "right", "ties"]], wanted)
        assert (mine[["judged", "ties"]].sum(axis=1) >= mine["drawn_judged"]).all()
        said = genes[genes["quantity"] == quantity].set_index("gene")[["judged", "right"]]
        assert said.T.to_dict("list") == of_gene


def test_an_honest_law_is_right_as_often_as_it_expects(done: Done, stores: dict[str, Path]) -> None:
    """Of counts drawn from the samples of the maps as many directions are right as of those drawn to compare with."""
    out, _ = done
    section, maps = read_section(stores["A"]), open_maps(out / "maps/0-A-field.zarr")
    pairs = pairs_of(section)
    law = maps.sum_over(maps.spot_label(section), n_supports=section.n_spots)
    section = replace(section, genes=section.genes.loc[maps.genes])
    rng, found = np.random.default_rng(5), []
    for seed in range(20):
        sample = np.zeros(section.n_spots, int)
        sample[pairs] = rng.integers(maps.n_samples, size=len(pairs))[:, None]  # both spots of a pair are of one
        total_count, odds = law.total_count[sample, np.arange(section.n_spots)], np.exp(law.logits[sample])
        drawn = rng.poisson(rng.standard_gamma(total_count) * odds).astype(np.int32)
        bins, _ = judge_pairs(maps, replace(section, counts=csr_matrix(drawn)), pairs, seed=seed)
        found.append(bins[bins["quantity"] == "counts"].sum(numeric_only=True))
    total = pd.DataFrame(found).sum()
    fractions = total["right"] / total["judged"], total["drawn_right"] / total["drawn_judged"]
    assert fractions[0] == pytest.approx(fractions[1], abs=3 * math.sqrt(0.5 / total["judged"]))
    assert fractions[0] > 0.51


@pytest.mark.usefixtures("no_training")
def test_result_holds_what_the_parts_do_and_resuming_trains_nothing(
    done: Done, stores: dict[str, Path], effort: Effort
) -> None:
    """Credible differences are those below half of 5 % local false sign rate; fractions are of what was judged."""
    out, result = done
    table = pd.read_csv(out / "deconvolution-merged.csv")
    assert len(table) == 2 * 2 * (len(EDGES) - 1)
    for kind in KINDS:
        for quantity in ("counts", "share"):
            mine = table[(table["kind"] == kind) & (table["quantity"] == quantity)]
            n_pairs = result["pairs"][0]["pairs"]
            assert mine["judged"].sum() + mine["ties"].sum() == 12 * n_pairs
            sure = mine[mine["lfsr_high"] <= 0.025].sum(numeric_only=True)
            said = result["credible"][kind][quantity]
            assert (said["judged"], said["right"], said["ties"]) == (sure["judged"], sure["right"], sure["ties"])
            if said["judged"]:
                assert said["fraction_right"] == pytest.approx(sure["right"] / sure["judged"])
            known = mine[mine["judged"] > 0]
            np.testing.assert_allclose(known["fraction_right"], known["right"] / known["judged"])
    assert (out / "deconvolution-merged.png").stat().st_size > 10_000
    again = run_deconvolution_merged(out, [stores["A"]], effort=replace(effort, repeats=1, samples=3))
    assert again == result
    assert "higher in one spot of a pair: with field" in result["finding"]
