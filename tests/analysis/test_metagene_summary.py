"""Metagenes: profiles against plain loops, blocks against plain means, and colours that mean the same everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from superst_monai.analysis.blocks import activity_blocks
from superst_monai.analysis.metagene_colours import fit_colours
from superst_monai.analysis.metagene_summary import profiles, section_shares, top_genes
from superst_monai.analysis.metagene_summary_figures import write_metagenes
from superst_monai.analysis.several_maps import Named, open_several
from superst_monai.errors import RunError
from superst_monai.inference.maps import open_maps

StoreMaps = Callable[..., Path]
SHAPE = (20, 30)


def random_samples(seed: int = 0, n_metagenes: int = 4, scale: float = 1.0) -> NDArray[np.float64]:
    """Scaled activity of smooth shares, so that pixels differ."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(n_metagenes, 0.5), (3, *SHAPE)).transpose(0, 3, 1, 2)
    return shares * rng.uniform(0.1, 0.9, (3, 1, *SHAPE)) * scale


@pytest.fixture(scope="module")
def paths(store_maps: StoreMaps) -> list[Path]:
    """Two sections of one run; metagene 4 is not in use."""
    rng = np.random.default_rng(1)
    log_rate = rng.normal(0, 1, (3, 4, 6))
    tissue = np.arange(30) < 25
    found = []
    for seed, name in enumerate("AB"):
        samples = random_samples(seed)
        samples[:, 3] = 0
        found.append(store_maps(samples, log_rate, tissue=np.tile(tissue, (20, 1)), name=name))
    return found


def test_profiles_are_those_of_plain_loops(paths: list[Path]) -> None:
    """Fold change of each rate against the mean of the tissue of both sections; an unused metagene has no profile."""
    several = open_several(paths)
    share, table = section_shares(several)
    np.testing.assert_allclose(share.sum(1), 1)
    sizes = [np.stack([random_samples(s)[n][:3, :, :25].sum((1, 2)) for n in range(3)]) for s in range(2)]
    rows = table.set_index(["metagene", "section"])
    for s, name in enumerate("AB"):
        values = sizes[s] / sizes[s].sum(1, keepdims=True)
        for k in range(3):
            row = rows.loc[(f"metagene_{k + 1}", name)]
            assert list(row) == pytest.approx([values[:, k].mean(), values[:, k].std(ddof=1)], rel=2e-3)
    assert list(rows.loc[("metagene_4", "A")]) == [0, 0]
    maps = several[0].maps
    found = dict(profiles(maps, share))
    assert list(found) == [0, 1, 2]
    for k, profile in found.items():
        for g, gene in enumerate(maps.genes):
            values = []
            for n in range(3):
                mean = sum(share[n, j] * np.exp(float(maps.log_rate[n, j, g])) for j in range(3))
                values.append(np.log2(np.exp(float(maps.log_rate[n, k, g])) / mean))
            assert profile.loc[gene, "log2_fold_change"] == pytest.approx(np.mean(values), abs=1e-5)
            assert profile.loc[gene, "sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-5)


def test_a_shift_of_all_rates_of_a_gene_changes_no_profile(paths: list[Path], store_maps: StoreMaps) -> None:
    """Baselines and effects of covariates cancel, as large as they may be."""
    several = open_several(paths)
    share, _ = section_shares(several)
    maps = several[0].maps
    shift = np.random.default_rng(2).normal(0, 30, (3, 1, 6))
    shifted = open_maps(store_maps(random_samples(), maps.log_rate + shift))
    for (_, one), (_, other) in zip(profiles(maps, share), profiles(shifted, share), strict=True):
        np.testing.assert_allclose(one["log2_fold_change"], other["log2_fold_change"], atol=1e-4)


def test_top_genes_are_those_surely_furthest() -> None:
    """By the end of the interval that is nearer to 0, the highest first and the lowest last; unsure ones are out."""
    table = pd.DataFrame(
        {"low": [0.5, 2.0, -1.0, -9.0, -3.0, 0.1], "high": [9.0, 2.1, 1.0, -1.0, -2.0, 0.2]}, index=list("abcdef")
    )
    assert list(top_genes(table, 2).index) == ["b", "a", "d", "e"]
    assert list(top_genes(table, 1).index) == ["b", "e"]


def test_blocks_are_means_over_tissue(paths: list[Path]) -> None:
    """Activity is weighted by scale; border blocks are smaller; blocks that are mostly glass are left out."""
    maps = open_maps(paths[0])
    activity, scale, factor = activity_blocks(maps, longest_px=8)
    assert (factor, activity.shape) == (4, (4, 5, 8))
    mean = random_samples()[:, :, :, :25].mean(0)
    mean[3] = 0
    for i in range(5):
        for j in range(6):
            block = mean[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum((1, 2))
            n_px = 16
            np.testing.assert_allclose(activity[:, i, j], block / block.sum(), rtol=2e-3, atol=1e-6)
            np.testing.assert_allclose(scale[i, j], block.sum() / n_px, rtol=2e-3)
    assert (scale[:, 6:] == 0).all()
    np.testing.assert_allclose(
        activity_blocks(maps, longest_px=30)[0][:3, 7, 9], (mean / mean.sum(0))[:3, 7, 9], rtol=2e-3
    )


def test_the_same_activity_has_the_same_colour_on_all_sections(paths: list[Path]) -> None:
    """One set of colours; twice the scale changes the lightness and not the hue."""
    maps = [open_maps(path) for path in paths]
    colours = fit_colours(maps)
    activity = np.random.default_rng(3).dirichlet(np.ones(4), 50).T  # (K, 50)
    weak, strong = (colours.paint(activity, np.full(50, colours.full_scale * s)).astype(float) for s in (0.3, 0.6))
    np.testing.assert_allclose(255 - strong, 2 * (255 - weak), atol=2)
    both = [activity_blocks(one, longest_px=30) for one in maps]
    first = colours.paint(both[0][0], both[0][1])
    np.testing.assert_array_equal(colours.paint(both[0][0][:, :5], both[0][1][:5]), first[:5])
    assert (first[:, 26:] == 255).all()
    assert (colours.paint(activity, np.zeros(50)) == 255).all()


def test_colours_do_not_depend_on_the_order_of_metagenes_or_sections(store_maps: StoreMaps, paths: list[Path]) -> None:
    """Components have a fixed order and sign, also with metagenes permuted."""
    maps = [open_maps(path) for path in paths]
    colours, turned = fit_colours(maps), fit_colours(maps[::-1])
    np.testing.assert_allclose(turned.components, colours.components, atol=1e-6)
    order = [2, 0, 3, 1]
    permuted = []
    for seed in range(2):
        samples = random_samples(seed)
        samples[:, 3] = 0
        tissue = np.tile(np.arange(30) < 25, (20, 1))
        permuted.append(open_maps(store_maps(samples[:, order], np.zeros((4, 2)), tissue=tissue)))
    other = fit_colours(permuted)
    np.testing.assert_allclose(other.components, colours.components[:, order], atol=1e-5)
    np.testing.assert_allclose(other.variance, colours.variance, atol=1e-6)
    blocks = [activity_blocks(one, longest_px=15) for one in (maps[0], permuted[0])]
    pictures = [c.paint(a, s).astype(int) for c, (a, s, _) in zip((colours, other), blocks, strict=True)]
    assert abs(pictures[0] - pictures[1]).max() <= 1


def test_components_are_those_of_a_plain_decomposition(paths: list[Path]) -> None:
    """Directions and variance against a singular value decomposition of all tissue pixels."""
    maps = [open_maps(path) for path in paths]
    colours = fit_colours(maps)
    pixels = []
    for seed in range(2):
        mean = random_samples(seed).mean(0)
        mean[3] = 0
        pixels.append((mean / mean.sum(0))[:, :, :25].reshape(4, -1))
    whole = np.concatenate(pixels, axis=1).T
    centred = whole - whole.mean(0)
    _, values, axes = np.linalg.svd(centred, full_matrices=False)
    assert abs(np.sum(colours.components[:2] * axes[:2], axis=1)) == pytest.approx([1, 1], abs=1e-3)
    np.testing.assert_allclose(colours.variance[:2], (values**2 / (values**2).sum())[:2], rtol=1e-3)
    np.testing.assert_array_equal(colours.components[2], 0)  # three metagenes in use have two directions
    scores = centred @ colours.components.T
    np.testing.assert_allclose(colours.low, np.percentile(scores, 1, axis=0), atol=2e-3)
    assert ((scores[:, :2] ** 3).sum(0) > 0).all()


def test_one_metagene_and_no_expression(store_maps: StoreMaps) -> None:
    """A single metagene gives one colour; nothing on the tissue is refused."""
    samples = np.full((2, 1, *SHAPE), 0.25)
    colours = fit_colours([open_maps(store_maps(samples, np.zeros((1, 2))))])
    picture = colours.paint(np.ones((1, 5)), np.full(5, 0.25))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 1
    with pytest.raises(RunError, match="must expect expression on the tissue to be coloured, got none"):
        fit_colours([open_maps(store_maps(samples * 0, np.zeros((1, 2))))])


def test_files_hold_what_was_found(paths: list[Path], tmp_path: Path) -> None:
    """Tables, figures and the meaning of the colours are written; other runs are refused before anything is."""
    written = write_metagenes(paths, tmp_path / "out", top=2)
    assert [path.name for path in written] == [
        *("sections.csv", "profiles.csv", "top_genes.csv", "summary.png", "summary.json"),
        *(f"metagene_{k}.png" for k in (1, 2, 3)),
    ]
    several = open_several(paths)
    share, _ = section_shares(several)
    table = pd.read_csv(tmp_path / "out" / "profiles.csv", index_col=["metagene", "gene"])
    for k, profile in profiles(several[0].maps, share):
        pd.testing.assert_frame_equal(table.loc[f"metagene_{k + 1}"], profile)
    said = json.loads((tmp_path / "out" / "summary.json").read_text())
    colours = fit_colours([one.maps for one in several])
    assert list(said["channels"]["red"]["weights"].values()) == pytest.approx(list(colours.components[0]))
    assert said["sections"] == ["A", "B"]
    assert said["full_scale"] == pytest.approx(colours.full_scale)


def test_a_single_sample_is_refused(store_maps: StoreMaps, tmp_path: Path) -> None:
    """Without spread there are no intervals."""
    path = store_maps(random_samples()[:1], np.zeros((4, 2)))
    with pytest.raises(RunError, match="at least 2 posterior samples, got 1"):
        write_metagenes([path], tmp_path / "out")
    share, table = section_shares([Named("S", open_maps(path))])
    assert share.shape == (1, 4)
    assert table["sd"].isna().all()
