"""Fold changes against the section's mean: values by plain loops, figures and tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from superst_monai.analysis.gene_folds import LOWEST, colour_ends, fold_figure, gene_map, write_gene_folds
from superst_monai.analysis.several_maps import Named, open_several
from superst_monai.errors import RunError
from superst_monai.inference.maps import open_maps

StoreMaps = Callable[..., Path]
SHAPE = (18, 24)
TISSUE = np.tile(np.arange(24) < 20, (18, 1))
SAMPLES = np.random.default_rng(0).integers(1, 64, (4, 2, *SHAPE)) / 256
LOG_RATE = np.random.default_rng(1).normal(0, 1, (4, 2, 3))
LOGIT = np.random.default_rng(2).normal(0, 1, (4, 3))


@pytest.fixture(scope="module")
def path(store_maps: StoreMaps) -> Path:
    """Random maps of three genes, with one pixel of tissue without expression."""
    samples = SAMPLES.copy()
    samples[:, :, 5, 5] = 0
    return store_maps(samples, LOG_RATE, logit=LOGIT, tissue=TISSUE)


def test_maps_are_those_of_plain_loops(path: Path) -> None:
    """Mean and sd of log2 of each pixel's expectation over that of the mean tissue pixel, sample by sample."""
    found = gene_map(open_maps(path), "g1")
    samples = SAMPLES * TISSUE
    samples[:, :, 5, 5] = 0
    folds = []
    for n in range(4):
        expected = np.tensordot(np.exp(LOG_RATE[n, :, 1] + LOGIT[n, 1]), samples[n], axes=1)
        with np.errstate(divide="ignore"):
            folds.append(np.log2(expected / expected[TISSUE].mean()).clip(LOWEST))
    some = TISSUE & (SAMPLES[0, 0] > 0)
    some[5, 5] = True
    np.testing.assert_allclose(found.fold[some], np.mean(folds, 0)[some], atol=1e-4)
    np.testing.assert_allclose(found.fold_sd[some], np.std(folds, 0, ddof=1)[some], atol=1e-4)
    mean, sd = open_maps(path).gene("g1")
    np.testing.assert_array_equal(found.mean, mean)
    np.testing.assert_array_equal(found.sd, sd)
    assert found.fold[5, 5] == LOWEST
    assert found.inverse_cv[5, 5] == 0
    assert (found.fold[~TISSUE] == 0).all()
    above = TISSUE & (found.fold > 0) & (found.fold_sd > 0)
    np.testing.assert_allclose(found.inverse_cv[above], found.fold[above] / found.fold_sd[above], rtol=1e-6)


def test_the_section_mean_has_no_fold_change(store_maps: StoreMaps) -> None:
    """On even tissue every pixel is the mean: fold change and its spread are 0."""
    even = np.full((3, 2, *SHAPE), 0.25)
    found = gene_map(open_maps(store_maps(even, LOG_RATE[:3])), "g0")
    np.testing.assert_allclose(found.fold, 0, atol=1e-6)
    np.testing.assert_allclose(found.fold_sd, 0, atol=1e-6)


def test_a_figure_shows_the_maps(path: Path) -> None:
    """Five rasters with their values and colour ends; the fold change has colours on both sides of 0."""
    maps = open_maps(path)
    found, ends = gene_map(maps, "g2"), colour_ends(maps, "g2")
    figure = fold_figure("g2", found, Named("S", maps), None, ends)
    panels = [axes for axes in figure.axes if axes.images and axes.get_label() != "<colorbar>"]
    assert len(panels) == 5
    assert "no histology" in figure.axes[0].texts[0].get_text()
    for axes, values, end in zip(panels, (*found, found.inverse_cv), ends, strict=True):
        shown = axes.images[0].get_array()
        np.testing.assert_array_equal(np.ma.getmaskarray(shown), ~TISSUE)
        np.testing.assert_allclose(shown.compressed(), values[TISSUE], rtol=1e-5, atol=1e-6)
        assert axes.images[0].get_clim()[1] == pytest.approx(end)
    assert panels[2].images[0].get_clim()[0] == pytest.approx(-ends.end_fold)


def test_colours_are_common_on_request(path: Path, store_maps: StoreMaps, tmp_path: Path) -> None:
    """The larger end counts for both sections; the table has a row for each gene and section, sums as in the maps."""
    other = store_maps(SAMPLES[:, :, ::-1] * 0.5, LOG_RATE, logit=LOGIT, name="T")
    written = write_gene_folds([path, other], ["g2"], tmp_path / "out", common_range=True)
    names = [file.relative_to(tmp_path / "out").as_posix() for file in written]
    assert names == ["S/g2.png", "T/g2.png", "GENES.csv"]
    table = pd.read_csv(written[-1], index_col=["gene", "section"])
    ends = [colour_ends(one.maps, "g2") for one in open_several([path, other])]
    for column, values in zip(ends[0]._fields, zip(*ends, strict=True), strict=True):
        assert list(table.loc["g2", column]) == pytest.approx([max(values)] * 2)
    maps = open_maps(other)
    assert table.loc[("g2", "T"), "total"] == pytest.approx(maps.gene("g2")[0].sum(), rel=1e-4)
    found = gene_map(maps, "g2")
    assert table.loc[("g2", "T"), "fold_q95"] == pytest.approx(np.quantile(found.fold, 0.95), rel=1e-5)
    assert table.loc[("g2", "T"), "share_above"] == pytest.approx((found.inverse_cv > 2).mean())


def test_colours_of_a_section_alone_are_its_own(path: Path, tmp_path: Path) -> None:
    """One section needs no folder of its own, and its colours end where its values do."""
    written = write_gene_folds([path], ["g1"], tmp_path)
    assert [file.name for file in written] == ["g1.png", "GENES.csv"]
    table = pd.read_csv(written[-1], index_col="gene")
    ends = colour_ends(open_maps(path), "g1")
    assert list(table.loc["g1", list(ends._fields)]) == pytest.approx(list(ends))


def test_unknown_genes_and_single_samples_are_refused(path: Path, store_maps: StoreMaps, tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(RunError, match="the maps hold 3 genes, but not G9"):
        write_gene_folds([path], ["G9"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    single = open_maps(store_maps(SAMPLES[:1], LOG_RATE[:1]))
    with pytest.raises(RunError, match="at least 2 posterior samples, got 1"):
        gene_map(single, "g0")
