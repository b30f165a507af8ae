"""Laws of posterior maps: genes, sums and frames agree with each other and with what is stored."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from superst_monai.data.section import Section, empty_tables
from superst_monai.data.store import write_section
from superst_monai.errors import AlignmentError, RunError, ShapeError, StoreError
from superst_monai.inference.maps import Maps, open_maps
from superst_monai.inference.maps_store import ATTRS, open_store


@pytest.fixture
def maps(maps_path: Path) -> Maps:
    """The maps of the section."""
    return open_maps(maps_path)


@pytest.fixture
def label(maps: Maps) -> np.ndarray:
    """Three supports that cross tiles, and one without pixels (the third)."""
    label = np.zeros(maps.shape, np.int64)
    label[30:90, 40:100] = 1
    label[60:70, 20:80] = 2
    label[90:150, 0:210] = 4
    return label


def test_a_gene_is_the_mean_and_sd_of_its_samples(maps: Maps, maps_path: Path) -> None:
    """A gene's map is, pixel by pixel, what the plain formula gives from the stored samples."""
    group, meta = open_store(maps_path)
    activity = np.asarray(group["posterior/activity"]).astype(np.float64) / meta["multiplier"]  # (N, K, H, W)
    rate = np.exp(maps.log_rate[:, :, 2].astype(np.float64))
    expected = (activity * rate[:, :, None, None]).sum(1) * np.exp(maps.logit[:, 2])[:, None, None]
    mean, sd = maps.gene("Mbp")
    assert mean.dtype == sd.dtype == np.float32
    np.testing.assert_allclose(mean, expected.mean(0), rtol=1e-5)
    np.testing.assert_allclose(sd, expected.std(0), rtol=1e-4, atol=1e-7)


def test_a_sum_over_a_support_is_the_sum_of_its_pixels(maps: Maps, label: np.ndarray) -> None:
    """The expected count of a support is the sum of the gene's map over it; one without pixels has none."""
    sums = maps.sum_over(label)
    assert sums.genes == maps.genes
    assert sums.mean.shape == (4, 7)
    for g, gene in enumerate(maps.genes):
        mean, _ = maps.gene(gene)
        by_pixel = [mean[label == i + 1].sum(dtype=np.float64) for i in range(4)]
        np.testing.assert_allclose(sums.mean[:, g], by_pixel, rtol=1e-3)
    assert (sums.mean[2] == 0).all()


def test_supports_add(maps: Maps, label: np.ndarray) -> None:
    """Two disjoint regions together have the sum of their total counts, in each posterior sample."""
    apart = maps.sum_over(label)
    together = maps.sum_over((label > 0).astype(np.uint8))
    np.testing.assert_allclose(apart.total_count.sum(1), together.total_count[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(apart.logits, together.logits)


def test_sums_come_in_chunks_of_genes_too(maps: Maps, label: np.ndarray) -> None:
    """Chunks, in the order asked for, are the columns of the whole."""
    genes = ["Mbp", "ACTB", "KRT8"]
    whole = maps.sum_over(label, genes, n_supports=6)
    parts = list(maps.chunks(label, 2, genes=genes, n_supports=6))
    assert [part.genes for part in parts] == [["Mbp", "ACTB"], ["KRT8"]]
    np.testing.assert_allclose(
        np.concatenate([part.total_count for part in parts], axis=2), whole.total_count, rtol=1e-5
    )
    assert whole.mean.shape == (6, 3)


def test_sizes_do_not_depend_on_the_cache(maps_path: Path, maps: Maps, label: np.ndarray) -> None:
    """Without memory for tiles each is read again, and the sums are the same."""
    poor = open_maps(maps_path, cache_mib=0)
    for _ in range(2):
        np.testing.assert_array_equal(poor.size_of(label), maps.size_of(label))


def test_any_box_can_be_read(maps_path: Path, maps: Maps) -> None:
    """A box across tiles, computed or not, and one within a tile are cut from the whole; without a cache too."""
    whole = np.zeros((maps.n_samples, maps.n_metagenes, *maps.shape), np.float32)
    for place, tile in maps.tiles():
        whole[(..., *place)] = tile
    for opened in (maps, open_maps(maps_path, cache_mib=0)):
        for place in (np.s_[50:140, 3:205], np.s_[64:128, 64:128], np.s_[70:71, 80:95], np.s_[0:150, 0:210]):
            np.testing.assert_array_equal(opened.read(place), whole[(..., *place)])


def test_covered_pixels_are_those_with_a_prediction(maps: Maps, section: Section) -> None:
    """Tissue and spots have a size in every sample, and nothing else has one."""
    size = maps.read(np.s_[0:150, 0:210]).sum((0, 1))
    np.testing.assert_array_equal(maps.covered, size > 0)
    assert (maps.covered >= maps.tissue).all()
    np.testing.assert_array_equal(maps.covered, maps.tissue | (maps.spot_label(section) > 0))


def test_the_law_of_known_sizes_is_that_of_the_label(maps: Maps, label: np.ndarray) -> None:
    """Sizes taken once serve for any genes."""
    sums = maps.law(maps.size_of(label), ["Mbp"])
    np.testing.assert_array_equal(sums.total_count, maps.sum_over(label, ["Mbp"]).total_count)


def test_spots_are_predicted_with_what_was_observed(maps: Maps, section: Section) -> None:
    """A spot's expectation is the sum of the gene's map over its disc; the observed counts stand beside it."""
    adata = maps.spots(section)
    assert list(adata.var_names) == maps.genes
    assert list(adata.obs_names) == list(section.spots.index)
    assert list(adata.var["gene_id"]) == maps.gene_ids
    np.testing.assert_array_equal(adata.layers["observed"], section.counts.toarray())
    np.testing.assert_array_equal(adata.obsm["spatial"], section.spots[["x_um", "y_um"]])
    spot = section.spots.iloc[10]
    row, col = np.mgrid[:150, :210] + 0.5
    disc = (col * 4 - spot.x_um) ** 2 + (row * 4 - spot.y_um) ** 2 <= spot.radius_um**2
    assert adata.X[10, 2] == pytest.approx(maps.gene("Mbp")[0][disc].sum(), rel=1e-3)
    assert (adata.layers["sd"] > np.sqrt(adata.X)).all()


def test_genes_that_a_section_did_not_measure_are_predicted_all_the_same(maps: Maps, section: Section) -> None:
    """Shared genes are the default; a gene asked for by name has NaN where nothing was observed."""
    some = replace(section, counts=section.counts[:, [0, 2]], genes=section.genes.iloc[[0, 2]])
    assert list(maps.spots(some).var_names) == ["ACTB", "Mbp"]
    adata = maps.spots(some, ["Mbp", "Plp1"])
    assert np.isnan(adata.layers["observed"][:, 1]).all()
    np.testing.assert_array_equal(adata.layers["observed"][:, 0], section.counts[:, [2]].toarray()[:, 0])


def test_pixels_and_places_on_the_slide_are_inverse(maps: Maps) -> None:
    """The centre of pixel (0, 0) lies half a pixel from the corner; to the slide and back is the identity."""
    assert maps.to_px0(0, 0) == (4.0, 2.0)  # 4 um pixels of a slide of 0.5 x 1 um
    rng = np.random.default_rng(0)
    row, col = rng.uniform(-5, 200, (2, 50))
    back = maps.from_px0(*maps.to_px0(row, col))
    np.testing.assert_allclose(back, (row, col), atol=1e-10)


def test_tissue_is_that_of_the_section(maps: Maps, section: Section) -> None:
    """The stored mask comes back."""
    np.testing.assert_array_equal(maps.tissue, section.tissue)


def test_unknown_genes_are_named_with_those_that_were_meant(maps: Maps) -> None:
    """Case and typing errors are seen through; a name like no other has no suggestion."""
    with pytest.raises(RunError, match=r"the run has 7 genes, but not 'MBP' \(did you mean Mbp\?\); see .genes"):
        maps.gene("MBP")
    with pytest.raises(RunError, match=r"'krt81' \(did you mean K.*\?\); '§§§'; see"):
        maps.sum_over(np.ones(maps.shape, int), ["krt81", "ACTB", "§§§"])


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (np.zeros((3, 4), np.int64), r"integers \(H, W\) = \(150, 210\) as the maps, got \(3, 4\) int64"),
        (np.zeros((150, 210)), r"got \(150, 210\) float64"),
        (np.full((150, 210), -1), r"labels must lie in 0, got -1 \.\.\. -1"),
        (np.full((150, 210), 9), r"labels must lie in 0 \.\.\. 5 \(n_supports\), got 9 \.\.\. 9"),
    ],
)
def test_labels_that_do_not_fit_are_refused(maps: Maps, wrong: np.ndarray, fault: str) -> None:
    """A label image has the maps' shape and whole numbers from 0 to the number of supports."""
    with pytest.raises(ShapeError, match=fault):
        maps.size_of(wrong, n_supports=5 if wrong.max() > 0 else None)


def test_sections_that_do_not_fit_are_refused(
    maps: Maps, section: Section, make_section: Callable[..., Section]
) -> None:
    """No shared gene shows names of both; a slide alone has no spots; another extent is another slide."""
    with pytest.raises(
        RunError, match=r"the run has ACTB, Gfap, Mbp \.\.\., the section g1, g2, g3 \.\.\.; use one nam"
    ):
        maps.spots(make_section(genes=["g1", "g2", "g3", "g4"]))
    spots, counts, genes = empty_tables("C2")
    with pytest.raises(RunError, match="section C2 must have spots, but is a slide alone"):
        maps.spots(replace(section, spots=spots, counts=counts, genes=genes))
    with pytest.raises(
        AlignmentError, match=r"of the slide of the maps \(C2\), but it measures 840x640 um and .* 840x600"
    ):
        maps.spots(make_section(height=160))


def test_folders_without_maps_are_refused(tmp_path: Path, section: Section, maps_path: Path) -> None:
    """A missing folder, another folder, a section and a store of another version are told apart."""
    with pytest.raises(StoreError, match="there are no posterior maps"):
        open_maps(tmp_path / "none.zarr")
    with pytest.raises(StoreError, match="is not a zarr store"):
        open_maps(tmp_path)
    write_section(section, tmp_path / "section.zarr")
    with pytest.raises(StoreError, match="must hold posterior maps, got section"):
        open_maps(tmp_path / "section.zarr")
    zarr.create_group(tmp_path / "other.zarr")
    with pytest.raises(StoreError, match="must hold posterior maps, got no superst_monai store"):
        open_maps(tmp_path / "other.zarr")
    copy = shutil.copytree(maps_path, tmp_path / "copy.zarr")
    group = zarr.open_group(copy, mode="r+", use_consolidated=False)
    group.attrs[ATTRS] = {**group.attrs[ATTRS], "format_version": 99}
    with pytest.raises(StoreError, match="must have format version 1, got 99"):
        open_maps(copy)


def test_incomplete_maps_are_refused(tmp_path: Path, maps_path: Path) -> None:
    """Everything that is missing is named."""
    copy = shutil.copytree(maps_path, tmp_path / "copy.zarr")
    shutil.rmtree(copy / "posterior" / "logit")
    group = zarr.open_group(copy, mode="r+", use_consolidated=False)
    group.attrs[ATTRS] = {k: v for k, v in group.attrs[ATTRS].items() if k != "record"}
    with pytest.raises(StoreError, match="incomplete, missing attribute record, posterior/logit; predict again"):
        open_maps(copy)


def test_a_gene_of_a_large_section_takes_little_time(tmp_path: Path, maps_path: Path) -> None:
    """A gene over 1000 x 1000 pixels, 10 samples and 12 metagenes is arithmetic of a fraction of a second."""
    _, meta = open_store(maps_path)
    large = zarr.create_group(tmp_path / "large.zarr")
    large.create_array("posterior/activity", shape=(10, 12, 1000, 1000), chunks=(1, 12, 256, 256), dtype="float16")
    large["posterior/activity"][...] = np.float16(0.5)
    large.create_array("posterior/computed", data=np.ones((4, 4), bool))
    large.create_array("posterior/log_rate", data=np.zeros((10, 12, 7), np.float32))
    large.create_array("posterior/logit", data=np.zeros((10, 7), np.float32))
    shutil.copytree(maps_path / "tables", tmp_path / "large.zarr" / "tables")
    large = zarr.open_group(tmp_path / "large.zarr", mode="r", use_consolidated=False)
    maps = Maps(large, {**meta, "tile_px": 256}, cache_bytes=2**29)
    maps.gene("Mbp")
    started = time.process_time()
    mean, sd = maps.gene("ACTB")
    assert time.process_time() - started < 1.0  # 0.25 s on an idle core
    np.testing.assert_allclose(mean, 12 * 0.5 / 256, rtol=1e-6)
    np.testing.assert_allclose(sd, 0, atol=1e-7)


def test_a_gene_set_is_the_sum_of_its_genes(maps: Maps) -> None:
    """Means add up; the spread is that of the sum in each sample (against a plain sum over one pixel)."""
    some = maps.genes[:3]
    mean, sd = maps.gene_set(some)
    np.testing.assert_allclose(mean, sum(maps.gene(gene)[0] for gene in some), rtol=1e-4, atol=1e-9)
    row, col = np.unravel_index(mean.argmax(), mean.shape)
    pixel = np.zeros(maps.shape, np.int64)
    pixel[row, col] = 1
    sums = maps.sum_over(pixel, some)
    each = (sums.total_count[:, 0] * np.exp(sums.logits)).sum(-1)  # (N,)
    np.testing.assert_allclose([mean[row, col], sd[row, col]], [each.mean(), each.std()], rtol=1e-3)


def test_many_genes_at_once_are_what_they_are_alone(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one gene at a time and a plain mean over samples; whatever number is computed together."""
    wanted = [*reversed(maps.genes[:5]), maps.genes[0]]
    every = list(maps.each_gene(wanted))
    monkeypatch.setattr("superst_monai.inference.maps._TOGETHER_BYTES", 0)
    monkeypatch.setattr("superst_monai.inference.maps._TOGETHER", 2)
    by_two = list(maps.each_gene(wanted))
    assert [name for name, *_ in every] == [name for name, *_ in by_two] == wanted
    samples = maps.read((slice(0, maps.shape[0]), slice(0, maps.shape[1])))
    for (name, mean, sd), (_, *two) in zip(every, by_two, strict=True):
        g = maps.genes.index(name)
        each = np.einsum("nk,nkhw->nhw", np.exp(maps.log_rate[:, :, g] + maps.logit[:, g, None]), samples)
        np.testing.assert_allclose(mean, each.mean(axis=0), rtol=1e-4, atol=1e-9)
        np.testing.assert_allclose(sd, each.std(axis=0), rtol=1e-3, atol=1e-8)
        for found, alone, pair in zip((mean, sd), maps.gene(name), two, strict=True):
            np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-9)
            np.testing.assert_allclose(found, pair, rtol=1e-4, atol=1e-9)
    with pytest.raises(RunError, match="nonsense"):
        list(maps.each_gene(["nonsense"]))
