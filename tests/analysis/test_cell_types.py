"""Cell types: known mixtures are recovered, scores add up, shares sum to one, and borders are where they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from numpy.typing import NDArray

from superst_monai.analysis.cell_types import composition, decompose
from superst_monai.analysis.cell_types_border import composition_by_distance, signed_distance_um
from superst_monai.analysis.cell_types_figures import write_cell_types
from superst_monai.analysis.cell_types_maps import fit_mixing, mix_colours, spot_table, type_colours, type_maps
from superst_monai.analysis.cell_types_reference import Reference
from superst_monai.analysis.several_maps import Named, open_several
from superst_monai.data.section import Section
from superst_monai.errors import AssayError, RunError
from superst_monai.inference.maps import Maps, open_maps

StoreMaps = Callable[..., Path]
SHAPE = (24, 36)
T, K, G, N = 4, 5, 300, 3
GENES = [f"g{i}" for i in range(G)]


def known(seed: int = 0, platform: float = 0.0) -> tuple[Reference, NDArray[np.float64], NDArray[np.float64]]:
    """Cell types with 30 typical genes each, metagenes that are mixtures of them `(K, T)`, and their rates `(K, G)`."""
    rng = np.random.default_rng(seed)
    profile = np.exp(rng.normal(0, 1.2, G) + rng.normal(0, 0.1, (T, G)))
    for t in range(T):
        profile[t, 30 * t : 30 * t + 30] *= np.exp(rng.normal(1.5, 0.4, 30))
    profile /= profile.sum(1, keepdims=True)
    mixture = rng.dirichlet(np.full(T, 0.6), K) * rng.uniform(300, 900, (K, 1))
    rates = mixture @ profile * np.exp(platform * rng.standard_normal(G))
    reference = Reference(list("abcd"), GENES, GENES, profile, np.full(T, 9))
    return reference, mixture, rates


def smooth_samples(seed: int = 1) -> NDArray[np.float64]:
    """Scaled activity `(N, K, H, W)`."""
    rng = np.random.default_rng(seed)
    share = rng.dirichlet(np.full(K, 0.7), (N, *SHAPE)).transpose(0, 3, 1, 2)
    return share * rng.uniform(0.2, 0.8, (N, 1, *SHAPE))


@pytest.fixture(scope="module")
def maps(store_maps: StoreMaps) -> Maps:
    """Maps whose metagenes are known mixtures, without platform effect and posterior spread of the rates."""
    tissue = np.tile(np.arange(36) < 32, (24, 1))
    return open_maps(store_maps(smooth_samples(), np.log(known()[2]), tissue=tissue))


def shares(maps: Maps) -> NDArray[np.float64]:
    """Share of each metagene."""
    size = maps.size_of(maps.tissue.astype(int))[:, 0]
    return size / size.sum(1, keepdims=True)


def test_known_mixtures_are_recovered(maps: Maps) -> None:
    """Without noise the weights are the UMIs of each type in a unit of each metagene, in every sample."""
    reference, mixture, _ = known()
    found = decompose(maps, shares(maps), reference)
    np.testing.assert_allclose(found.weight, np.broadcast_to(mixture, (N, K, T)), rtol=1e-3, atol=0.1)
    assert (found.n_genes >= 25).all()
    assert (found.n_genes <= 60).all()


def test_platform_effects_are_taken_out(store_maps: StoreMaps) -> None:
    """Log-normal factors of the genes, as large as e in one sd, move compositions far less than without the step."""
    errors = []
    for seed in range(4):
        reference, mixture, rates = known(seed, platform=1.0)
        maps = open_maps(store_maps(smooth_samples()[:2, :, :16, :16], np.log(rates)))
        found = decompose(maps, shares(maps), reference)
        truth = composition(mixture)
        plain = composition(_plain_nnls(rates, reference.profile))
        errors.append(
            [abs(composition(found.weight)[0] - truth).sum(1).mean() / 2, abs(plain - truth).sum(1).mean() / 2]
        )
    ours, without = np.mean(errors, axis=0)
    assert ours < 0.13
    assert ours < 0.5 * without


def _plain_nnls(rates: NDArray[np.float64], profile: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights by Poisson-weighted least squares on the profiles as they are."""
    from scipy.optimize import nnls

    deviation = np.sqrt(rates.mean(0))
    return np.array([nnls((profile / deviation).T, row / deviation)[0] for row in rates])


def test_markers_score_one_where_they_are_as_frequent_as_on_average(store_maps: StoreMaps) -> None:
    """With markers of no other type a score is the weighted mean of their fold changes, so 1 over the whole tissue."""
    _, _, rates = known()
    weight = np.zeros((2, 5))
    weight[0, :2], weight[1, 2:] = 1.0, [1.0, 2.0, 1.0]
    genes = ["g1", "g2", "g40", "g41", "absent"]
    reference = Reference(["x", "y"], genes, genes, weight, None)
    maps = open_maps(store_maps(smooth_samples(), np.log(rates)))
    share = shares(maps)
    found = decompose(maps, share, reference)
    tissue = np.einsum("nk,kg->g", share, rates) / N
    assert list(found.n_genes) == [2, 2]
    for t, (columns, weights) in enumerate((([1, 2], [1, 1]), ([40, 41], [1, 2]))):
        mu, variance = tissue[columns] * weights, tissue[columns] * 2  # logit 0: mean (1 + exp(0))
        expected = (rates[:, columns] * mu / variance).sum(1) / (mu**2 / variance).sum()
        np.testing.assert_allclose(found.weight[0, :, t], expected, rtol=1e-4)
    even = Reference(["x", "y"], genes[:4], genes[:4], (weight[:, :4] > 0).astype(float), None)
    whole = np.einsum("nk,nkt->t", share, decompose(maps, share, even).weight) / N
    np.testing.assert_allclose(whole, 1.0, rtol=1e-3)


def test_scores_add_up_and_shares_sum_to_one(maps: Maps) -> None:
    """The score of a region is the sum of its pixels'; every composition with a score sums to 1."""
    reference, *_ = known()
    found = decompose(maps, shares(maps), reference)
    label = np.random.default_rng(2).integers(0, 4, SHAPE)
    apart, together = (found.score(maps.size_of(part)) for part in (label, (label > 0).astype(int)))
    np.testing.assert_allclose(apart.sum(1), together[:, 0], rtol=1e-5)
    np.testing.assert_allclose(found.share(maps.size_of(label)).sum(-1), 1, rtol=1e-9)
    assert (found.share(np.zeros((N, 2, K))) == 0).all()
    table = found.table(shares(maps))
    np.testing.assert_allclose(table["share"].groupby("metagene").sum(), 1, rtol=1e-9)
    as_genes = found.maps(maps)
    np.testing.assert_allclose(as_genes.law(maps.size_of(label)).mean, apart.mean(0), rtol=1e-4)


def test_the_order_of_metagenes_does_not_matter(maps: Maps, store_maps: StoreMaps) -> None:
    """Permuted metagenes give the same composition of a region."""
    order, label = [3, 0, 4, 1, 2], np.ones(SHAPE, int)
    other = open_maps(store_maps(smooth_samples()[:, order], np.log(known()[2])[order], tissue=maps.tissue))
    found = [decompose(one, shares(one), known()[0]).share(one.size_of(label)) for one in (maps, other)]
    np.testing.assert_allclose(*found, atol=1e-5)


def test_blocks_are_what_plain_sums_give(maps: Maps) -> None:
    """Shares and scores of blocks against sums over the tissue pixels of the arrays."""
    found = decompose(maps, shares(maps), known()[0])
    drawn = type_maps(maps, found, longest_px=9)
    assert drawn.factor == 4
    score = np.einsum("nkhw,nkt->thw", smooth_samples() * maps.tissue, found.weight) / N
    blocks = score.reshape(T, 6, 4, 9, 4).sum((2, 4))[:, :, :8]
    np.testing.assert_allclose(drawn.share[:, :, :8], blocks / blocks.sum(0), rtol=2e-3)
    np.testing.assert_allclose(drawn.score[:, :8], blocks.sum(0) / 16, rtol=2e-3)
    assert not drawn.inside[:, 8].any()
    assert (drawn.share[:, :, 8] == 0).all()


def test_a_pure_type_has_its_own_colour(maps: Maps) -> None:
    """One type alone is its colour, without score it is white, and a type at its floor has no part in a mixture."""
    found = decompose(maps, shares(maps), known()[0])
    drawn = type_maps(maps, found, longest_px=9)
    mixing = fit_mixing([drawn])
    assert mixing.floor == pytest.approx(np.percentile(drawn.share[:, drawn.inside], 5, axis=1))
    pure = np.broadcast_to(mixing.floor[:, None, None], (T, 1, 3)).copy()
    pure[1] += 0.3
    score = np.array([[mixing.full_score, 0.0, mixing.full_score]])
    picture = mix_colours(drawn._replace(share=pure, score=score, inside=score > 0), mixing)
    np.testing.assert_array_equal(picture[0, 0], np.rint(255 * type_colours(T)[1]))
    assert (picture[0, 1] == 255).all()
    assert len(np.unique(type_colours(10), axis=0)) == 10
    assert len(np.unique(type_colours(40), axis=0)) == 40


def test_spots_have_the_composition_of_their_pixels(maps: Maps, make_section: Callable[..., Section]) -> None:
    """Mean and sd over samples of the share of a disc; a spot beyond the map has none."""
    found = decompose(maps, shares(maps), known()[0])
    x_um = np.array([80.0, 180, 280, 80, 180, 9000])
    section = make_section(x_um=x_um)
    table = spot_table(maps, section, found)
    label = maps.spot_label(section)
    pixels = (smooth_samples() * maps.tissue)[:, :, label == 2].sum(-1)
    share = composition(np.einsum("nk,nkt->nt", pixels, found.weight))
    row = table.loc["spot1"]
    assert list(row[["a", "b", "c", "d"]]) == pytest.approx(list(share.mean(0)), rel=1e-3)
    assert row["c_sd"] == pytest.approx(share[:, 2].std(ddof=1), rel=1e-2)
    np.testing.assert_allclose(table[["a", "b", "c", "d"]].iloc[:5].sum(axis=1), 1)
    assert table.iloc[5, 2:].isna().all()


def test_distances_are_to_the_border_within_the_tissue() -> None:
    """Against a search over all pixels; to swap region and other tissue swaps the sign; glass makes no border."""
    rng = np.random.default_rng(4)
    row, col = np.mgrid[:15, :20]
    region, tissue = (row - 6) ** 2 + (col - 8) ** 2 < 20, (col > 1) & (rng.random((15, 20)) < 0.9)
    found = signed_distance_um(region, tissue, 5.0)
    inside, outside = np.argwhere(region & tissue), np.argwhere(~region & tissue)
    for i, j in [*inside, *outside]:
        others = outside if region[i, j] else inside
        nearest = np.sqrt(((others - (i, j)) ** 2).sum(1)).min()
        assert found[i, j] == pytest.approx((1 - 2 * region[i, j]) * (nearest - 0.5) * 5, rel=1e-6)
    assert np.isnan(found[~tissue]).all()
    np.testing.assert_array_equal(signed_distance_um(~region, tissue, 5.0), -found)
    for whole in (np.zeros_like(tissue), tissue):
        with pytest.raises(RunError, match="a region must have a border within the tissue"):
            signed_distance_um(whole, tissue, 5.0)


def test_bands_hold_the_composition_at_their_distance(store_maps: StoreMaps) -> None:
    """Left of the border one type, right of it another; bands sum to 1 and their areas to that of their tissue."""
    reference, _, _ = known()
    samples = np.zeros((N, T, *SHAPE))
    samples[:, 0, :, :15] = samples[:, 1, :, 15:] = 0.5
    path = store_maps(samples, np.log(reference.profile * 500))
    several = open_several([path, path])
    found = decompose(several[0].maps, shares(several[0].maps), reference)
    region = np.tile(np.arange(36) < 15, (24, 1))
    table = composition_by_distance(several, [region, region & False], found, width_um=20, reach_um=60)
    assert list(table.index.unique("distance_um")) == [-50, -30, -10, 10, 30, 50]
    np.testing.assert_allclose(table["share"].groupby("distance_um").sum(), 1)
    np.testing.assert_allclose(table.loc[(slice(-60, 0), "a"), "share"], 1, atol=1e-4)
    np.testing.assert_allclose(table.loc[(slice(0, 60), "b"), "share"], 1, atol=1e-4)
    np.testing.assert_allclose(table["area_um2"], 2 * 24 * 100)
    double = composition_by_distance(several, [region, region], found, width_um=20, reach_um=60)
    np.testing.assert_allclose(double["area_um2"], 4 * 24 * 100)
    with pytest.raises(RunError, match="reach at least one width, got 50 and 20 um"):
        composition_by_distance(several, [region, region], found, width_um=50, reach_um=20)
    with pytest.raises(RunError, match="must have a border within the tissue of a section, but it is on none"):
        composition_by_distance(several, [region & False] * 2, found)


def test_types_that_nothing_tells_apart_are_named(maps: Maps) -> None:
    """A type without a typical gene, and genes of another naming, are refused."""
    reference, *_ = known()
    flat = reference.profile.copy()
    flat[2] = flat[[0, 1, 3]].mean(0)
    with pytest.raises(AssayError, match="but c have none among the 300 genes shared; leave them out"):
        decompose(maps, shares(maps), Reference(list("abcd"), GENES, GENES, flat, np.full(T, 9)))
    other = [f"ENSG{i}" for i in range(G)]
    with pytest.raises(AssayError, match=r"none is in both: ENSG0, ENSG1, ENSG2 \.\.\. and g0, g1, g2 \.\.\.; use one"):
        decompose(maps, shares(maps), Reference(list("abcd"), other, other, reference.profile, np.full(T, 9)))
    ids = Reference(list("abcd"), other, [f"ID-{g}" for g in GENES], reference.profile, np.full(T, 9))
    by_id, by_name = (decompose(maps, shares(maps), one) for one in (ids, reference))
    np.testing.assert_array_equal(by_id.weight, by_name.weight)


def test_files_hold_what_was_found(maps: Maps, make_section: Callable[..., Section], tmp_path: Path) -> None:
    """Tables and pixel scores are those of the functions; the section that was predicted on gives the spots."""
    from superst_monai.data.store import write_section

    write_section(make_section(), tmp_path / "section.zarr")
    maps = open_maps(Path(str(maps._group.store.root)))
    maps.record["source_path"] = str(tmp_path / "section.zarr")
    named, region = Named("S", maps), np.tile(np.arange(36) < 15, (24, 1))
    out = tmp_path / "out"
    written = write_cell_types([named], known()[0], out, regions=[region], region_name="tumour", width_um=50)
    assert sorted(path.name for path in written) == [
        *("S.ome.zarr", "S.png", "S_spots.csv", "border.csv", "border.png", "cell_types.json", "composition.csv"),
        "metagenes.csv",
    ]
    found = decompose(maps, shares(maps), known()[0])
    pixels = np.asarray(zarr.open_group(out / "S.ome.zarr", mode="r")["0"])
    expected = np.einsum("nkhw,nkt->nthw", smooth_samples() * maps.tissue, found.weight)
    np.testing.assert_allclose(pixels[::2], expected.mean(0), rtol=5e-3, atol=1e-2)
    np.testing.assert_allclose(pixels[1::2], expected.std(0), rtol=2e-2, atol=2e-2)
    whole = pd.read_csv(out / "composition.csv", index_col=["section", "cell_type"])
    assert list(whole["share"]) == pytest.approx(list(found.share(shares(maps)[:, None])[:, 0].mean(0)), rel=1e-3)
    said = json.loads((out / "cell_types.json").read_text())
    assert said["reference"] == "single cells"
    assert said["cell_types"]["a"] == {"informative_genes": int(found.n_genes[0]), "cells": 9}
    spots = pd.read_csv(out / "S_spots.csv", index_col=0)
    pd.testing.assert_frame_equal(spots, spot_table(maps, make_section(), found), check_names=False)
